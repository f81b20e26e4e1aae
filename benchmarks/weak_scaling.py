"""The training loop with 1, 2 and 4 workers of one thread each, the same pairs for every worker.

    python -m benchmarks.weak_scaling [--workers 1,2,4] [--rounds 3] [--steps 12] [--quick] [--out FILE]

Each number of workers is a group of fresh processes over gloo that runs the project's own training loop with
DDP (no Ray; batches of random content from memory), and the numbers take turns. The model is small enough for
steps of well under a second: that makes communication weigh more than it does at full size.

- `pairs_per_second/W`: of all workers together.
- `efficiency/W`: pairs per second over what W workers would do at one worker's rate, or as many workers as
  there are cores where W is more. Four workers on two cores share them, so 1 is the most they can reach.
- `cpu_share/W`: CPU seconds of a worker's own thread over the step's seconds: the rest is waiting, for
  another worker or for a core.
- `cpu_efficiency/W`: CPU seconds of all threads for a pair, of one worker over W: what the collective
  calls and the contrast over more pairs cost, whatever the number of cores.
- `communication_share/W`: torch.profiler's time in gloo's collectives (their threads, overlapped or not) over
  the steps' seconds, on rank 0.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import multiprocessing as processes

from benchmarks import figures
from mpma.config import ExperimentConfig, load_config
from mpma.data.batches import Batch
from mpma.data.stand_in import stand_in_batch
from mpma.model.pretraining import build_model
from mpma.training.loop import Silent, Task, TrainingLoop
from mpma.training.run_directory import RunDirectory

FIGURES: Final = (
    "weak_scaling/pairs_per_second/*",
    "weak_scaling/cpu_share/*",
    "weak_scaling/efficiency/*",
    "weak_scaling/cpu_efficiency/*",
    "weak_scaling/communication_share/*",
)
PAIRS: Final = 8
"""Of one worker in a step."""
VOCABULARY: Final = 5_000
WARM_UP: Final = 3
PROFILED: Final = 3
SIZES: Final = (
    "image={size: 128, width: 192, layers: 6, heads: 3}",
    "image={decoder_width: 128, decoder_layers: 2, decoder_heads: 2, target_scale: 1}",
    "report={max_tokens: 64, layers: 4, width: 192, heads: 3}",
    "memory={slots: 256, top_k: 32, heads: 3}",
    "fusion={layers: 1, heads: 3}",
    # The same groups for any number of workers.
    "alignment.group_size=8",
    "training={device: cpu, precision: fp32, checkpoint_every_steps: 100000}",
    "validation.every_steps=100000",
)


@dataclass(frozen=True)
class Group:
    """A number of workers and what they do."""

    workers: int
    steps: int
    folder: str

    @property
    def total(self) -> int:
        """Steps, those of the warm-up and under the profiler with them."""
        return WARM_UP + self.steps + PROFILED


class Clock(Silent):
    """Times the steps from the loop's own events, and profiles the last of them."""

    def __init__(self, group: Group, profiles: bool) -> None:
        self._group = group
        self._profiles = profiles
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.seconds: list[float] = []
        self.thread_seconds = self.cpu_seconds = 0.0
        self.communication = 0.0

    def progress(self, step: int) -> None:
        """After a step."""
        now = time.perf_counter()
        first, last = WARM_UP, WARM_UP + self._group.steps
        if first < step <= last:
            self.seconds.append(now - self._before)
        if step == first:
            self.thread_seconds, self.cpu_seconds = -time.thread_time(), -time.process_time()
        if step == last:
            self.thread_seconds += time.thread_time()
            self.cpu_seconds += time.process_time()
            if self._profiles:
                self._profiler.start()
            self._profiled = time.perf_counter()
        if step == self._group.total and self._profiles:
            spent = time.perf_counter() - self._profiled
            self._profiler.stop()
            self.communication = _union(self._profiler.events()) / spent
        self._before = time.perf_counter()


def _union(events: Any) -> float:
    """Seconds in which at least one of gloo's collectives runs."""
    spans = sorted(
        (event.time_range.start, event.time_range.end) for event in events if event.name.startswith("gloo:")
    )
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


class Same:
    """One batch for ever: nothing is waited for."""

    wait_seconds = 0.0

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._batch

    def close(self) -> None:
        """Nothing is held open."""


class Unvalidated:
    """No validation."""

    def run(self, model: Any, step: int) -> dict[str, float]:
        return {}


def settings(group: Group) -> ExperimentConfig:
    """The run's configuration."""
    training = f"training={{workers: {group.workers}, batch_size: {group.workers * PAIRS}}}"
    return load_config(None, [*SIZES, training, f"training.steps={group.total}"]).config


def work(rank: int, group: Group) -> None:
    """One worker's run."""
    torch.set_num_threads(1)
    config = settings(group)
    if group.workers > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{group.folder}/rendezvous", rank=rank, world_size=group.workers
        )
    batch = stand_in_batch(
        PAIRS,
        config.image,
        config.report,
        vocabulary_size=VOCABULARY,
        target_scale=1,
        image_mask_ratio=config.image.mask_ratio,
    )
    # Other pairs than the other workers', or they would not be each other's negatives.
    batch = replace(
        batch, report_hash=batch.report_hash + rank * PAIRS, study_hash=batch.study_hash + rank * PAIRS
    )
    facts = {
        "vocabulary_size": VOCABULARY,
        "pad_id": 0,
        "grey_mean": 0.5,
        "grey_std": 0.25,
        "target_scale": 1,
    }
    clock = Clock(group, profiles=rank == 0)
    task = Task(
        config=config,
        run=RunDirectory.at(group.folder, "run"),
        data_fingerprint="stand-in",
        train_pairs=100_000,
        device=torch.device("cpu"),
        rank=rank,
        world=group.workers,
        precision="fp32",
        build_model=lambda: (build_model(config, **facts), facts),
        build_validator=Unvalidated,
        open_stream=lambda step: Same(batch),
        validate_untrained=False,
    )
    if rank == 0:
        task.run.folder.make_directory()
    TrainingLoop(task, clock).run()
    found = {
        "seconds": clock.seconds,
        "cpu_share": clock.thread_seconds / sum(clock.seconds),
        "cpu_seconds": clock.cpu_seconds / len(clock.seconds),
        "communication": clock.communication,
    }
    Path(group.folder, f"{rank}.json").write_text(json.dumps(found))
    if group.workers > 1:
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Turn:
    """One group's figures."""

    step_seconds: float
    cpu_share: float
    cpu_seconds_per_pair: float
    communication: float


def measure(workers: int, steps: int) -> Turn:
    """A group's run in fresh processes."""
    with tempfile.TemporaryDirectory(prefix="weak_scaling-") as folder:
        group = Group(workers, steps, folder)
        processes.spawn(work, args=(group,), nprocs=workers)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(workers)]
    return Turn(
        step_seconds=statistics.median(found[0]["seconds"]),
        cpu_share=statistics.fmean(one["cpu_share"] for one in found),
        cpu_seconds_per_pair=statistics.fmean(one["cpu_seconds"] for one in found) / PAIRS,
        communication=found[0]["communication"],
    )


def main() -> None:
    parser = figures.options(__doc__)
    parser.add_argument("--workers", default="1,2,4", help="numbers of workers, 1 first")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each number")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of a turn")
    options = parser.parse_args()
    numbers = [int(number) for number in options.workers.split(",")]
    rounds, steps = (1, 3) if options.quick else (options.rounds, options.steps)
    os.environ["OMP_NUM_THREADS"] = "1"
    cores = os.cpu_count() or 1
    with figures.report("weak_scaling", options) as tell:
        turns: dict[int, list[Turn]] = {number: [] for number in numbers}
        for _ in range(rounds):
            for number in numbers:
                turns[number].append(measure(number, steps))
        facts = {"pairs_per_worker": PAIRS, "threads_per_worker": 1, "steps": steps, "cores": cores}
        one = turns[numbers[0]]
        for number in numbers:
            found, usable = turns[number], min(number, cores)
            rates = [number * PAIRS / turn.step_seconds for turn in found]
            alone = [usable * PAIRS / turn.step_seconds for turn in one]
            tell(figures.of(f"weak_scaling/pairs_per_second/{number}", rates, "pairs/s", facts))
            shares = [turn.cpu_share for turn in found]
            tell(figures.of(f"weak_scaling/cpu_share/{number}", shares, figures.FRACTION, facts))
            if number == numbers[0]:
                continue
            tell(figures.ratio(f"weak_scaling/efficiency/{number}", rates, alone, facts))
            tell(
                figures.ratio(
                    f"weak_scaling/cpu_efficiency/{number}",
                    [turn.cpu_seconds_per_pair for turn in one],
                    [turn.cpu_seconds_per_pair for turn in found],
                    facts,
                )
            )
            times = [turn.communication for turn in found]
            tell(figures.of(f"weak_scaling/communication_share/{number}", times, figures.FRACTION, facts))


if __name__ == "__main__":
    main()
