"""What one training worker does, in the program's own process or in a Ray Train worker.

Decisions: a worker gets plain values and builds everything else itself, so nothing large or stateful
crosses a process border; each reads only its own part of the sample order; an error that the user can
mend is handed to the driver through the run directory, since Ray Train would otherwise restart the
group to meet it again.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mpma.errors import JobError, UserError
from orchestration.defects import without_values

ERROR_FILE = "error.json"
NOTES_FILE = "notes.txt"
"""What the workers of a group have to say, a line each; the driver shows it and clears it away."""
MOVING_FILE = "moving"
"""Laid down by a group that saved and ended because its node is about to go; the driver starts it again."""
FIRST_STEP_NOTE = "first step done"
"""The note by which the driver of a group learns of it, before any line of metrics.jsonl is due."""


@dataclass(frozen=True)
class WorkerPlan:
    """Plain values that decide a worker's work; picklable."""

    config: dict[str, Any]
    data: str
    """Dataset directory."""
    runs: str
    name: str
    device: str
    precision: str
    threads: int
    until: int | None = None
    """Step at which this session validates, saves and ends; None: the run's end."""
    validate_untrained: bool = True
    keep_parts: bool = False
    """Keep dataset and validation sets in the process for the next run on the same data."""
    stop_folder: str | None = None
    """A folder whose `stop_requested` stops this run as well: that of the search it belongs to."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return int(self.config["training"]["steps"])


class StopSignal:
    """Whether this process was told to end."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def __call__(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask for a stop at the next step."""
        self._asked.set()

    @contextmanager
    def listening(self, on_ask: Callable[[], None] | None = None) -> Iterator[StopSignal]:
        """Take SIGINT and SIGTERM as the wish to save and end; a second SIGINT ends at once."""

        def handle(number: int, _: Any) -> None:
            if self._asked.is_set() and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._asked.set()
            if on_ask is not None:
                on_ask()

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_worker(
    plan: WorkerPlan,
    rank: int,
    world: int,
    local_rank: int,
    events: Any,
    stop_asked: Callable[[], bool],
    in_group: bool = False,
) -> Any:
    """Train with this worker's share; return the loop's `Outcome`."""
    import torch

    from mpma.config import validate_tree
    from mpma.data.dataset import Dataset
    from mpma.training.allocator import keep_freed_memory
    from mpma.training.loop import Task, TrainingLoop
    from mpma.training.run_directory import RunDirectory
    from orchestration import assembly

    torch.set_num_threads(plan.threads)
    if plan.device == "cpu":
        keep_freed_memory()
    config = validate_tree(plan.config)
    dataset = _open_kept(plan.data) if plan.keep_parts else Dataset.open(plan.data)
    run = RunDirectory.at(plan.runs, plan.name)
    device = torch.device("cuda", local_rank) if plan.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    parts = assembly.Parts(config, dataset)
    if rank == 0:
        run.keep_tokenizer(parts.tokenizer.to_bytes())
    task = Task(
        config=config,
        run=run,
        data_fingerprint=dataset.fingerprint,
        train_pairs=dataset.info.splits["train"].pairs,
        device=device,
        rank=rank,
        world=world,
        precision=plan.precision,
        build_model=parts.build_model,
        build_validator=(
            (lambda: _kept_validator(plan, parts, device))
            if plan.keep_parts
            else (lambda: parts.build_validator(device, rank, world, plan.precision))
        ),
        open_stream=lambda step: parts.open_stream(step, rank, world, device, plan.until, events.note),
        draw_pictures=parts.picture_drawer(run, device, plan.precision) if rank == 0 else None,
        stop_asked=stop_asked,
        one_of_a_group=in_group,
        until=plan.until,
        validate_untrained=plan.validate_untrained,
    )
    return TrainingLoop(task, events).run()


@functools.lru_cache(maxsize=1)
def _open_kept(path: str) -> Any:
    """The dataset that this process opened last, for the next run on it."""
    from mpma.data.dataset import Dataset

    return Dataset.open(path)


_VALIDATORS: dict[str, Any] = {}


def _kept_validator(plan: WorkerPlan, parts: Any, device: Any) -> Any:
    """The validator that this process built last, where it fits: its pictures are decoded already.

    It depends on the data and on the settings below, and on nothing of the model. One worker only.
    """
    config = plan.config
    image = {name: value for name, value in config["image"].items() if name != "mask_ratio"}
    report = {name: value for name, value in config["report"].items() if name != "mask_ratio"}
    settings = [plan.data, str(device), plan.precision, parts.target_scale, image, report]
    key = json.dumps([*settings, config["validation"], config["data"]["decode_threads"]])
    if key not in _VALIDATORS:
        _VALIDATORS.clear()
        _VALIDATORS[key] = parts.build_validator(device, 0, 1, plan.precision)
    return _VALIDATORS[key]


@without_values
def train_loop(settings: dict[str, Any]) -> None:
    """The function that every worker of a Ray Train group runs."""
    import ray.train

    from mpma.data.storage import open_storage
    from mpma.training.ownership import SupersededError
    from mpma.training.run_directory import STOP_FILE, RunDirectory

    os.umask(0o077)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    plan = WorkerPlan(**settings)
    stop: Callable[[], bool] = StopSignal()
    if plan.stop_folder is not None:
        folder = open_storage(plan.stop_folder)
        stop = lambda: folder.exists(STOP_FILE)  # noqa: E731
    node = NodeLeaving()
    try:
        outcome = run_worker(
            plan,
            rank,
            context.get_world_size(),
            context.get_local_rank(),
            WorkerEvents(plan) if rank == 0 else OtherRankEvents(plan, rank),
            lambda: stop() or node(),
            in_group=True,
        )
        if node() and not outcome.finished:
            RunDirectory.at(plan.runs, plan.name).folder.write(MOVING_FILE, b"")
    except SupersededError:
        # Another group trains on: nothing that this worker says may reach the run.
        return
    except UserError as error:
        if rank == 0:
            folder = RunDirectory.at(plan.runs, plan.name).folder
            what = {"message": error.message, "hint": error.hint, "job": isinstance(error, JobError)}
            folder.write(ERROR_FILE, json.dumps(what).encode())
        # Every rank meets the same mistake; ending well keeps Ray Train from trying it again.


class NodeLeaving:
    """Whether the node of this worker is about to go: drained, by hand or on a notice of the cloud.

    Asked at log steps, and the cluster once in `EVERY_SECONDS` at most.
    """

    EVERY_SECONDS = 2.0

    def __init__(self) -> None:
        import ray

        self._node = ray.get_runtime_context().get_node_id()
        self._last, self._leaving = float("-inf"), False

    def __call__(self) -> bool:
        """Once true it stays so."""
        now = time.monotonic()
        if not self._leaving and now - self._last >= self.EVERY_SECONDS:
            from ray._private.state import state

            self._last = now
            self._leaving = self._node in state.get_draining_nodes()
        return self._leaving


class WorkerEvents:
    """Events of rank 0 in a worker group: Ray's metrics; the driver follows metrics.jsonl itself."""

    def __init__(self, plan: WorkerPlan) -> None:
        from mpma.training.run_directory import RunDirectory
        from orchestration.telemetry.gauges import RunGauges

        self._gauges = RunGauges(plan.name, plan.steps)
        self._folder = RunDirectory.at(plan.runs, plan.name).folder
        self._folder.remove(MOVING_FILE)
        # Those of the worker that this one takes the place of come first: the driver shows what is new.
        self._notes: list[str] = []
        if self._folder.exists(NOTES_FILE):
            self._notes = self._folder.read(NOTES_FILE).decode().splitlines()
        self._first_step_noted = FIRST_STEP_NOTE in self._notes

    def note(self, text: str) -> None:
        """Kept in the run directory; the driver shows it."""
        self._notes.append(text)
        self._folder.write(NOTES_FILE, ("\n".join(self._notes) + "\n").encode())

    def line(self, values: dict[str, Any]) -> None:
        """Publish the figures."""
        self._gauges.line(values)

    def saved(self, step: int, seconds: float) -> None:
        """Publish it."""
        self._gauges.saved(step, seconds)

    def progress(self, step: int) -> None:
        """The first step is noted; later ones are seen by the driver in metrics.jsonl."""
        self._gauges.progress()
        if not self._first_step_noted:
            self._first_step_noted = True
            self.note(FIRST_STEP_NOTE)


class OtherRankEvents:
    """Events of the other ranks: each publishes its own process's memory, and nothing else."""

    def __init__(self, plan: WorkerPlan, rank: int) -> None:
        from orchestration.telemetry.gauges import RunGauges

        self._gauges = RunGauges(plan.name, plan.steps, rank)

    def note(self, text: str) -> None:
        """Rank 0 says it."""

    def line(self, values: dict[str, Any]) -> None:
        """Rank 0 writes it."""

    def saved(self, step: int, seconds: float) -> None:
        """Rank 0 tells of it."""

    def progress(self, step: int) -> None:
        """Look at the memory now and then."""
        self._gauges.progress()
