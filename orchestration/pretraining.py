"""The work behind `orchestration.pretrain`: from a configuration to a finished run.

Decisions: everything that can be refused is refused before Ray starts; one worker on this machine
trains in this process, more workers (or a cluster) through Ray Train's worker group, both with the
same loop; Ray's own run snapshot is thrown away, since the run directory is the truth.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from mpma.config import ExperimentConfig
from mpma.data.dataset import Dataset
from mpma.data.storage import open_storage
from mpma.training.metrics_log import read_lines
from mpma.training.run_directory import RunDirectory
from orchestration import cluster, tracking
from orchestration.display import Display, closing_table
from orchestration.preflight.survey import Wanted, before_work
from orchestration.worker import ERROR_FILE, StopSignal, WorkerPlan, run_worker
from orchestration.worker_group import train_in_group


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
        here = _plan(request, cluster.this_machine(request.cpus)).in_process
    tracking.require(request.config.tracking)
    if request.config.data.path is not None:
        Dataset.open(request.config.data.path).require_reports()
    lock = run.lock()
    try:
        with cluster.connected(
            request.address,
            request.cpus,
            request.dashboard,
            _import_to_train if here else _import_to_lead,
            name=request.name,
        ) as connection:
            layout = _plan(request, connection.resources)
            precision, reason = cluster.choose_precision(request.config.training, layout.device)
            display = Display(request.config.training.steps, request.started)
            if connection.dashboard_url:
                display.note(f"Ray dashboard: {connection.dashboard_url}")
            for line in (*layout.reasons, reason):
                display.note(line)
            dataset = _dataset(request, display)
            places = (_absolute(request.runs), dataset.path)
            before_work(Wanted(places=places), connection, display.note)
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
            with display, tracking.following(request.config, run, display.note):
                stopped = (
                    _train_here(plan, run, display)
                    if layout.in_process
                    else train_in_group(
                        plan, run, display, layout, request.config.training.max_failures, connection.logs
                    )
                )
            _close(run, display, stopped, request)
    finally:
        del lock


def _plan(request: Request, resources: cluster.Resources) -> cluster.Layout:
    return cluster.plan_layout(request.config.training, resources, request.config.worker_counts)


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


def _dataset(request: Request, display: Display) -> Dataset:
    config = request.config
    if config.data.path is not None:
        return Dataset.open(_absolute(config.data.path))
    from orchestration.phantom_data import CLUSTER_PAIRS, DEFAULT_ROOT, ensure_phantom

    begun = time.time()
    # On a cluster the pairs must lie where every node sees them, and the runs do.
    root = DEFAULT_ROOT
    if request.address is not None:
        root = open_storage(_absolute(request.runs)).child(CLUSTER_PAIRS).location
    path = ensure_phantom(config.data.phantom, root)
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

    def __init__(self, display: Display, plan: WorkerPlan) -> None:
        from orchestration.telemetry.gauges import RunGauges

        self._display = display
        self.gauges = RunGauges(plan.name, plan.steps)

    def note(self, text: str) -> None:
        self._display.note(text)

    def line(self, values: dict[str, Any]) -> None:
        self._display.line(values)
        self.gauges.line(values)

    def progress(self, step: int) -> None:
        self._display.progress(step)
        self.gauges.progress()

    def saved(self, step: int, seconds: float) -> None:
        self.gauges.saved(step, seconds)


def _train_here(plan: WorkerPlan, run: RunDirectory, display: Display) -> bool:
    """Train in this process; return whether it was stopped before its end."""
    with StopSignal().listening(
        lambda: display.note("stopping after this step; once more ends at once, without saving")
    ) as stop:
        events = _HereEvents(display, plan)
        with contextlib.closing(events.gauges):
            outcome = run_worker(plan, 0, 1, 0, events, stop)
    return not outcome.finished


def _close(run: RunDirectory, display: Display, stopped: bool, request: Request) -> None:
    run.clear_stop()
    if stopped:
        display.note(f"stopped and saved; the same command with --name {run.name} continues")
        return
    minutes, seconds = divmod(int(time.time() - request.started), 60)
    display.console.print(
        closing_table(read_lines(run.folder), f"{run.name}: finished in {minutes} min {seconds} s")
    )
    display.note(f"run directory: {run.folder.described()}")


def check(request: Request) -> None:
    """Say whether the run could start, without a cluster."""
    console = Console(highlight=False, soft_wrap=True)
    run = RunDirectory.at(request.runs, request.name)
    config = request.config
    tracking.require(config.tracking)
    if request.address is None:
        layout = _plan(request, cluster.this_machine(request.cpus))
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

    layout = _plan(request, cluster.this_machine(request.cpus))
    forecast_run(request.config, layout, Console(highlight=False, soft_wrap=True))
