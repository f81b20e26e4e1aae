"""A group of workers through Ray Train, as the driver sees it.

Decisions: the group is Ray Train's, its checkpoints are not: ours in the run directory are the truth, and
what Ray Train keeps of a run is thrown away. What workers have to say comes through the run directory as
well, so that a driver that is started anew, or is another machine, sees the same. A group that ends because
its node is about to go has saved: it is started again at once.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mpma.errors import JobError, UserError
from mpma.training.run_directory import RunDirectory
from orchestration.cluster import Layout
from orchestration.defects import told
from orchestration.display import Display, MetricsTail
from orchestration.worker import (
    ERROR_FILE,
    FIRST_STEP_NOTE,
    MOVING_FILE,
    NOTES_FILE,
    StopSignal,
    WorkerPlan,
    train_loop,
)

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

COLLECTIVE_TIMEOUT_SECONDS = 600
"""A worker may be this much later than the others (a first compilation, a slow disk). A lost worker is
noticed by its process or its node, not by this."""
LOOK_FOR_ROOM_SECONDS = 5.0
"""How often a group of a range of workers looks for room to grow."""


def build_trainer(
    plan: WorkerPlan, counts: tuple[int, ...], cpus_per_worker: float, max_failures: int
) -> TorchTrainer:
    """Ray Train's trainer for a plan, with any of the ascending `counts` of workers."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

    from orchestration.elastic import GroupTrainer
    from orchestration.process_group import ProcessGroupConfig

    gpu = plan.device == "cuda"
    resources: dict[str, float] = {"CPU": cpus_per_worker}
    if gpu:
        resources["GPU"] = 1
    return GroupTrainer(
        train_loop,
        counts=counts,
        runs=plan.runs,
        name=plan.name,
        train_loop_config=plan.__dict__,
        torch_config=ProcessGroupConfig(
            backend="nccl" if gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS
        ),
        scaling_config=ScalingConfig(
            num_workers=counts[0] if len(counts) == 1 else (counts[0], counts[-1]),
            use_gpu=gpu,
            resources_per_worker=resources,
            placement_strategy="PACK",
            elastic_resize_monitor_interval_s=LOOK_FOR_ROOM_SECONDS,
        ),
        run_config=RunConfig(
            name=f"{plan.name}-{int(time.time())}",
            # Through the storage: an address may end in settings, behind which a folder would be one of them.
            storage_path=RunDirectory.at(plan.runs, plan.name).folder.child(".ray").location,
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def fit(plan: WorkerPlan, counts: tuple[int, ...], cpus_per_worker: float, max_failures: int) -> None:
    """Train to the plan's end, or until a stop; a group that had to leave its nodes is started again.

    Raises what Ray Train raises, and what a worker met that the user can mend (`UserError`).
    """
    run = RunDirectory.at(plan.runs, plan.name)
    try:
        while True:
            run.folder.remove(MOVING_FILE)
            build_trainer(plan, counts, cpus_per_worker, max_failures).fit()
            if not run.folder.exists(MOVING_FILE) or run.stop_requested():
                return
    finally:
        with contextlib.suppress(OSError):
            run.folder.remove(".ray")
            run.folder.remove(MOVING_FILE)
        raise_reported_error(run)


def train_in_group(
    plan: WorkerPlan, run: RunDirectory, display: Display, layout: Layout, max_failures: int, logs: str
) -> bool:
    """Train through a worker group and show it; return whether it was stopped before its end.

    Raises `UserError` or `JobError`; `logs` is where Ray's own are, for a message.
    """
    failure: list[BaseException] = []

    def work() -> None:
        try:
            fit(plan, layout.counts, layout.cpus_per_worker, max_failures)
        except BaseException as error:
            failure.append(error)

    # In a thread, so that this one keeps the signals: Ray's own handler would abort without saving.
    thread = threading.Thread(target=work, name="ray-train", daemon=True)
    stop = StopSignal()

    def ask() -> None:
        run.request_stop()
        display.note("stopping at the next logged step; once more ends at once, without saving")

    with stop.listening(ask), MetricsTail(run.folder, display), _notes_shown(run, display):
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.2)
    if failure and isinstance(failure[0], UserError):
        raise failure[0]
    if failure:
        raise JobError(
            f"{run.name}: the worker group failed: {told(failure[0])}",
            f"Ray's logs are in {logs}; the same command continues from the last checkpoint",
        )
    return run.finished_steps() != int(plan.config["training"]["steps"])


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
