"""A segment of a run inside a reused Ray Tune actor, or through Ray Train where it has several workers.

Decisions: one worker trains in the actor's own process, so the second trial of an actor starts at once
(imports, the dataset and decoded validation pictures are there already); several workers go through Ray
Train's worker group, driven from an actor that holds no CPU of its own. The run directory decides where
training stands: Tune's own checkpoints are not used, so an actor, a node or the driver may vanish at any
moment. What is thrown is turned into an outcome here; only the death of a process is left to Tune.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ray import tune

from mpma.errors import JobError, UserError
from orchestration.defects import hold_back_library_messages, told
from orchestration.search.jobs import Outcome


class SegmentTrainable(tune.Trainable):
    """Carries out one job after another; a Tune trial is one job."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first job."""
        os.umask(0o077)
        hold_back_library_messages()
        self._job = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job; the process and what it has loaded stay."""
        self._job = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Train the segment; one Tune result per job."""
        return {"outcome": asdict(run_segment(self._job)), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run directory has its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run continues from its own checkpoint."""


def run_segment(job: dict[str, Any]) -> Outcome:
    """Train, validate, save; never raises for what training can meet."""
    begun = time.time()
    try:
        return _segment(job, begun)
    except UserError as error:
        return Outcome(
            "failed",
            seconds=(time.time() - begun) * job["devices"],
            reason=error.message,
            hint=error.hint or "",
            mendable=not isinstance(error, JobError),
        )
    except MemoryError:
        return Outcome("failed", seconds=(time.time() - begun) * job["devices"], reason="out of memory")
    except Exception as error:
        # The text of an unknown error may hold data; its kind and place do not.
        if _is_device_memory(error):
            reason = "out of GPU memory"
        else:
            reason = told(error)
        return Outcome("failed", seconds=(time.time() - begun) * job["devices"], reason=reason)


def _segment(job: dict[str, Any], begun: float) -> Outcome:
    from mpma.config import validate_tree
    from mpma.training.run_directory import RunDirectory

    config = validate_tree(job["config"])
    run = RunDirectory.at(job["runs"], job["name"])
    run.begin_or_continue(config, job["fingerprint"])
    until = int(job["until"])
    first_step: list[float] = []
    _forget_peak_memory(job["device"])
    if _reported(run, until) is None or not _saved(run, until):
        stopped = (
            _train_here(job, until, first_step) if job["workers"] == 1 else _train_in_group(job, run, until)
        )
        if stopped and _reported(run, until) is None:
            return Outcome("stopped", seconds=(time.time() - begun) * job["devices"])
    metrics = _reported(run, until)
    if metrics is None:
        raise JobError(f"{run.name}: nothing was reported at step {until}")
    metrics["peak_memory_bytes"] = float(_peak_memory(job["device"]))
    return Outcome(
        "reached",
        step=until,
        metrics=metrics,
        seconds=(time.time() - begun) * job["devices"],
        start_seconds=first_step[0] - job["suggested_at"] if first_step else None,
    )


def _reported(run: Any, step: int) -> dict[str, float | None] | None:
    """Metrics of a step from the run's own record: validation, the losses, the median speed."""
    from mpma.training.metrics_log import read_lines

    found: dict[str, float | None] = {}
    speeds: list[float] = []
    validated = False
    for line in read_lines(run.folder):
        if "pairs_per_second" in line and line["pairs_per_second"] is not None:
            speeds.append(line["pairs_per_second"])
        if line.get("step") == step:
            validated = validated or any(name.startswith("val/") for name in line)
            found.update({name: value for name, value in line.items() if name != "step"})
    if speeds:
        found["pairs_per_second"] = statistics.median(speeds)
    return found if validated else None


def _saved(run: Any, step: int) -> bool:
    from mpma.training.checkpoint import list_checkpoints

    return any(int(name.removeprefix("step_")) >= step for name in list_checkpoints(run.checkpoints))


class _FirstStep:
    """Events of a trial: only the moment of its first step is of interest."""

    def __init__(self, moments: list[float]) -> None:
        self._moments = moments

    def note(self, text: str) -> None:
        """Said once by the search, not by every trial."""

    def line(self, values: dict[str, Any]) -> None:
        """Stands in the run's metrics.jsonl."""

    def progress(self, step: int) -> None:
        """Note the first."""
        if not self._moments:
            self._moments.append(time.time())

    def saved(self, step: int, seconds: float) -> None:
        """Of no interest."""


def _stop_asked(search: str) -> Callable[[], bool]:
    """Whether the search was asked to stop; the file is looked at twice a second at most."""
    from mpma.data.storage import open_storage
    from mpma.training.run_directory import STOP_FILE

    folder = open_storage(search)
    last = [0.0, False]

    def asked() -> bool:
        now = time.monotonic()
        if not last[1] and now - last[0] > 0.5:
            last[0], last[1] = now, folder.exists(STOP_FILE)
        return bool(last[1])

    return asked


def _train_here(job: dict[str, Any], until: int, first_step: list[float]) -> bool:
    """Train in this process; return whether it was told to stop."""
    from orchestration.worker import WorkerPlan, run_worker

    plan = WorkerPlan(
        config=job["config"],
        data=job["data"],
        runs=job["runs"],
        name=job["name"],
        device=job["device"],
        precision=job["precision"],
        threads=job["threads"],
        until=until,
        validate_untrained=False,
        keep_parts=True,
    )
    outcome = run_worker(plan, 0, 1, 0, _FirstStep(first_step), _stop_asked(job["search"]))
    return bool(outcome.step < until)


def _train_in_group(job: dict[str, Any], run: Any, until: int) -> bool:
    """Train through Ray Train; return whether it was told to stop."""
    from orchestration.worker import WorkerPlan
    from orchestration.worker_group import fit

    plan = WorkerPlan(
        config=job["config"],
        data=job["data"],
        runs=job["runs"],
        name=job["name"],
        device=job["device"],
        precision=job["precision"],
        threads=job["threads"],
        until=until,
        validate_untrained=False,
        stop_folder=job["search"],
    )
    fit(plan, (int(job["workers"]),), job["cpus_per_worker"], int(job["retries"]))
    return _reported(run, until) is None


def _forget_peak_memory(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as stream:
        # 5 sets the kernel's record of the process's largest resident size back to the present one.
        stream.write("5")


def _peak_memory(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    with contextlib.suppress(OSError), open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _is_device_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError"
