"""The work behind `orchestration.pretrain`: from a configuration to a finished run.

Decisions: everything that can be refused is refused before Ray starts; one worker on this machine
trains in this process, more workers (or a cluster) through Ray Train's worker group, both with the
same loop; Ray's own run snapshot is thrown away, since the run directory is the truth.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from mpma.config import ExperimentConfig
from mpma.data.dataset import Dataset
from mpma.errors import JobError, UserError
from mpma.training.metrics_log import read_lines
from mpma.training.run_directory import RunDirectory
from orchestration import cluster
from orchestration.defects import told
from orchestration.display import Display, MetricsTail, closing_table
from orchestration.worker import (
    ERROR_FILE,
    FIRST_STEP_NOTE,
    NOTES_FILE,
    StopSignal,
    WorkerPlan,
    run_worker,
    train_loop,
)


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    config: ExperimentConfig
    name: str
    runs: str
    address: str | None
    cpus: int | None
    dashboard: bool
    started: float
    """Wall-clock time of the program's start, in seconds since the epoch."""


def pretrain(request: Request) -> None:
    """Train, or continue, to the end. Raises `UserError` and `JobError`."""
    run = RunDirectory.at(request.runs, request.name)
    done = run.finished_steps()
    if done is not None and done >= request.config.training.steps and _unchanged(run, request.config):
        print(f"{run.name}: finished after {done} steps; nothing to do")
        print("a larger training.steps continues it, another --name starts anew")
        return
    here = False
    if request.address is None:
        here = cluster.plan_layout(request.config.training, cluster.this_machine(request.cpus)).in_process
    if request.config.data.path is not None:
        Dataset.open(request.config.data.path).require_reports()
    lock = run.lock()
    try:
        with cluster.connected(
            request.address, request.cpus, request.dashboard, _import_to_train if here else _import_to_lead
        ) as connection:
            layout = cluster.plan_layout(request.config.training, connection.resources)
            precision, reason = cluster.choose_precision(request.config.training, layout.device)
            display = Display(request.config.training.steps, request.started)
            if connection.dashboard_url:
                display.note(f"Ray dashboard: {connection.dashboard_url}")
            for line in (*layout.reasons, reason):
                display.note(line)
            dataset = _dataset(request.config, display)
            run.begin_or_continue(request.config, dataset.fingerprint)
            run.clear_stop()
            run.folder.remove(ERROR_FILE)
            plan = WorkerPlan(
                config=request.config.model_dump(),
                data=_absolute(dataset.path),
                runs=_absolute(request.runs),
                name=request.name,
                device=layout.device,
                precision=precision,
                threads=layout.threads_per_worker,
            )
            with display:
                stopped = (
                    _train_here(plan, run, display)
                    if layout.in_process
                    else _train_in_group(plan, run, display, layout, request, connection)
                )
            _close(run, display, stopped, request)
    finally:
        del lock


def _import_to_train() -> None:
    """Some seconds of imports that need not wait for Ray, in the order of need."""
    import ray.data  # noqa: F401

    from mpma.training import loop  # noqa: F401
    from orchestration import assembly  # noqa: F401


def _import_to_lead() -> None:
    """The same where other processes train: their model code would only take the cores from them."""
    import ray.train.torch  # noqa: F401


def _unchanged(run: RunDirectory, config: ExperimentConfig) -> bool:
    """Whether a finished run's configuration is the one asked for, but for keys that may change."""
    from mpma.config import MAY_CHANGE_ON_CONTINUE, changed_keys

    return all(key in MAY_CHANGE_ON_CONTINUE for key in changed_keys(run.stored_config(), config))


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(place)


def _dataset(config: ExperimentConfig, display: Display) -> Dataset:
    if config.data.path is not None:
        return Dataset.open(_absolute(config.data.path))
    from orchestration.phantom_data import ensure_phantom

    begun = time.time()
    path = ensure_phantom(config.data.phantom)
    seconds = time.time() - begun
    if seconds > 1:
        display.making_pairs_seconds = seconds
        display.note(
            f"data: synthetic phantom pairs at {path}, made in {seconds:.0f} s (kept for later runs)"
        )
    else:
        display.note(f"data: synthetic phantom pairs at {path}")
    return Dataset.open(path)


class _HereEvents:
    """Events of the worker in this process: display and Ray's metrics."""

    def __init__(self, display: Display, run_name: str) -> None:
        from orchestration.telemetry import RayGauges

        self._display = display
        self._gauges = RayGauges(run_name)

    def note(self, text: str) -> None:
        self._display.note(text)

    def line(self, values: dict[str, Any]) -> None:
        self._display.line(values)
        self._gauges.set(values)

    def progress(self, step: int) -> None:
        self._display.progress(step)


def _train_here(plan: WorkerPlan, run: RunDirectory, display: Display) -> bool:
    """Train in this process; return whether it was stopped before its end."""
    with StopSignal().listening(
        lambda: display.note("stopping after this step; once more ends at once, without saving")
    ) as stop:
        outcome = run_worker(plan, 0, 1, 0, _HereEvents(display, run.name), stop)
    return not outcome.finished


def _train_in_group(
    plan: WorkerPlan,
    run: RunDirectory,
    display: Display,
    layout: cluster.Layout,
    request: Request,
    connection: cluster.Connection,
) -> bool:
    """Train through a Ray Train worker group; return whether it was stopped before its end."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpu = layout.device == "cuda"
    resources: dict[str, float] = {"CPU": layout.cpus_per_worker}
    if gpu:
        resources["GPU"] = 1
    scratch = f"{plan.runs.rstrip('/')}/{run.name}/.ray"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=plan.__dict__,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo", timeout_s=600),
        scaling_config=ScalingConfig(
            num_workers=layout.workers, use_gpu=gpu, resources_per_worker=resources, placement_strategy="PACK"
        ),
        run_config=RunConfig(
            name=f"{run.name}-{int(time.time())}",
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=request.config.training.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    failure: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)

    # In a thread, so that this one keeps the signals: Ray's own handler would abort without saving.
    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    stop = StopSignal()

    def ask() -> None:
        run.request_stop()
        display.note("stopping at the next logged step; once more ends at once, without saving")

    with stop.listening(ask), MetricsTail(run.folder, display), _notes_shown(run, display):
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.2)
    with contextlib.suppress(OSError):
        run.folder.remove(".ray")
    raise_reported_error(run)
    if failure:
        raise JobError(
            f"{run.name}: the worker group failed: {told(failure[0])}",
            f"Ray's logs are in {connection.logs}; the same command continues from the last checkpoint",
        )
    return run.finished_steps() != request.config.training.steps


@contextlib.contextmanager
def _notes_shown(run: RunDirectory, display: Display) -> Iterator[None]:
    run.folder.remove(NOTES_FILE)
    shown: list[str] = []
    end = threading.Event()

    def show() -> None:
        with contextlib.suppress(OSError):
            if run.folder.exists(NOTES_FILE):
                lines = run.folder.read(NOTES_FILE).decode().splitlines()
                for line in lines[len(shown) :]:
                    shown.append(line)
                    if line == FIRST_STEP_NOTE:
                        display.first_step()
                    else:
                        display.note(line)

    def follow() -> None:
        while not end.wait(0.5):
            show()

    thread = threading.Thread(target=follow, daemon=True, name="notes")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(timeout=5)
        show()
        run.folder.remove(NOTES_FILE)


def raise_reported_error(run: RunDirectory) -> None:
    """Raise what a worker of a group met, if it met anything that the user can mend."""
    if not run.folder.exists(ERROR_FILE):
        return
    what = json.loads(run.folder.read(ERROR_FILE))
    run.folder.remove(ERROR_FILE)
    raise (JobError if what["job"] else UserError)(what["message"], what["hint"])


def _close(run: RunDirectory, display: Display, stopped: bool, request: Request) -> None:
    run.clear_stop()
    if stopped:
        display.note(f"stopped and saved; the same command with --name {run.name} continues")
        return
    minutes, seconds = divmod(int(time.time() - request.started), 60)
    display.console.print(
        closing_table(read_lines(run.folder), f"{run.name}: finished in {minutes} min {seconds} s")
    )
    display.note(f"run directory: {run.folder.location}")


def check(request: Request) -> None:
    """Say whether the run could start, without a cluster."""
    console = Console(highlight=False, soft_wrap=True)
    run = RunDirectory.at(request.runs, request.name)
    config = request.config
    if request.address is None:
        layout = cluster.plan_layout(config.training, cluster.this_machine(request.cpus))
        for line in layout.reasons:
            console.print(line, markup=False)
    fingerprint = None
    if config.data.path is not None:
        dataset = Dataset.open(_absolute(config.data.path))
        fingerprint = dataset.fingerprint
        splits = ", ".join(f"{name} {split.pairs}" for name, split in dataset.info.splits.items())
        console.print(f"data: {fingerprint}, pairs: {splits}", markup=False)
        from orchestration import assembly

        for line in assembly.Parts(config, dataset).reasons:
            console.print(line, markup=False)
    if run.exists():
        differing = not _unchanged(run, config)
        if differing:
            run.begin_or_continue(config, fingerprint or "")
        console.print(f"run: {run.name} would be continued", markup=False)
    else:
        console.print(f"run: {run.name} would be started", markup=False)
    console.print("check: all is well", markup=False)


def forecast(request: Request) -> None:
    """Print time, memory and disk from a few measured steps on this machine."""
    from orchestration.forecasting import forecast_run

    layout = cluster.plan_layout(request.config.training, cluster.this_machine(request.cpus))
    forecast_run(request.config, layout, Console(highlight=False, soft_wrap=True))
