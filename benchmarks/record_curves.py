"""Learning curves of a full grid of real runs, recorded once, on which searches are replayed.

    python -m benchmarks.record_curves --space masking [--work runs/curves] [--seconds 2000]

Every run is the project's own training loop on phantom pairs, one after another in this process, on one
thread, validated at the rungs alone. A finished run is appended to a file in the work folder at once, so
that recording may be broken off and taken up again; the table in `benchmarks/results/` is written anew
after every run and holds the largest grid that is whole.

Decisions: the recipe is the search's own with the settings below, which make a run short enough to
record many. A run's cost is its processor seconds, since others may share the machine. The default point
is recorded with more seeds, of weights, order, crops and masks: how far two equal runs lie apart is the
yardstick of every difference between searches. No Ray: the split is small and is read whole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from mpma.config import ExperimentConfig, load_config
from mpma.data.batches import Batch, Collator
from mpma.data.dataset import Dataset
from mpma.data.rows import COLLATED_COLUMNS
from mpma.errors import JobError
from mpma.training.loop import Silent, Task, TrainingLoop
from mpma.training.run_directory import RunDirectory
from mpma.training.validation import Validator
from orchestration.assembly import Parts
from orchestration.phantom_data import ensure_phantom

RECIPE: Final = Path("recipes/search.yaml")
RESULTS: Final = Path("benchmarks/results")
METRICS: Final = (
    "val/representation_score",
    "val/retrieval/mean_recall",
    "val/probe/auroc",
    "val/report_reconstruction/visual_gain",
)

Params = Mapping[str, float]


@dataclass(frozen=True)
class Grid:
    """What is recorded: every combination of the axes, and the default point with more seeds.

    Axes are gone through from the last, which varies slowest, so that a broken recording leaves a whole
    grid of fewer values.
    """

    axes: dict[str, tuple[float, ...]]
    rungs: tuple[int, ...]
    """Steps at which a run is validated; the last is its end."""
    settings: dict[str, Any]
    """Keys of the recipe that the recording changes."""
    seeds: int = 5
    """Runs of the default point, the grid's own among them."""
    seeds_after: int = 0
    """Points that are recorded before the other seeds."""

    def runs(self) -> Iterator[tuple[dict[str, float], int]]:
        """(parameters, seed) in the order of recording."""
        names = list(self.axes)
        points = itertools.product(*(self.axes[name] for name in reversed(names)))
        for number, point in enumerate(points):
            if number == self.seeds_after:
                for seed in range(1, self.seeds):
                    yield self.default(), seed
            yield dict(zip(names, reversed(point), strict=True)), 0

    def default(self) -> dict[str, float]:
        """The recipe's own point."""
        config = load_config(RECIPE).config.model_dump()
        return {key: config[key.split(".")[0]][key.split(".")[1]] for key in self.axes}


GRIDS: Final = {
    "masking": Grid(
        axes={
            "image.mask_ratio": (0.75, 0.4, 0.5, 0.6, 0.9),
            "report.mask_ratio": (0.5, 0.15, 0.75, 0.3),
            "training.learning_rate_per_256": (6.0e-3, 2.0e-3),
        },
        rungs=(20, 60, 120, 180),
        settings={"training.steps": 180},
        seeds_after=10,
    ),
}


class KeptStream:
    """The batches of a run, from the whole training split in memory."""

    wait_seconds = 0.0

    def __init__(self, parts: Parts, rows: pa.Table, step: int) -> None:
        self._parts, self._rows, self._step = parts, rows, step
        config = parts.config
        self._collator = Collator(
            parts.tokenizer,
            config.image,
            config.report,
            config.training.seed,
            parts.target_scale,
            decode_threads=1,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        numbers = self._parts.order.rows(self._step)
        image_ratio, report_ratio = self._parts.mask_ratios(self._step)
        self._step += 1
        return self._collator.collate(
            self._rows.take(numbers.row),
            numbers.epoch,
            numbers.position,
            image_mask_ratio=image_ratio,
            report_mask_ratio=report_ratio,
            augment=True,
        )

    def close(self) -> None:
        """Nothing is held open."""


class RungValidator:
    """Validates at the rungs alone and keeps the figures and the processor seconds it took."""

    def __init__(self, validator: Validator, rungs: tuple[int, ...]) -> None:
        self._validator, self._rungs = validator, rungs
        self.found: list[dict[str, float]] = []
        self.seconds = 0.0

    def run(self, model: Any, step: int) -> dict[str, float]:
        """The figures at a rung, nothing elsewhere."""
        if step not in self._rungs:
            return {}
        began = time.process_time()
        values = self._validator.run(model, step)
        self.seconds += time.process_time() - began
        self.found.append(values)
        return values


class Recorder:
    """Trains the points of a grid, one after another."""

    def __init__(self, grid: Grid, datasets: str) -> None:
        self._grid = grid
        self.dataset = Dataset.open(ensure_phantom(self.config({}, 0).data.phantom, datasets))
        every = np.arange(self.dataset.rows("train"))
        self._rows = self.dataset.read_rows("train", every, COLLATED_COLUMNS).combine_chunks()
        # What is searched changes nothing in what is validated, so one validator serves all runs.
        parts = Parts(self.config({}, 0), self.dataset)
        self._validator = parts.build_validator(torch.device("cpu"), 0, 1, "fp32")

    def config(self, params: Params, seed: int) -> ExperimentConfig:
        """The recipe with the grid's settings and a point's parameters."""
        rungs = self._grid.rungs
        values = {
            **self._grid.settings,
            "training.seed": seed,
            "validation.every_steps": int(np.gcd.reduce(rungs)),
            "training.log_every_steps": rungs[-1],
            **params,
        }
        return load_config(RECIPE, [f"{key}={value}" for key, value in values.items()]).config

    def record(self, params: Params, seed: int) -> dict[str, Any]:
        """One run's line. A run whose losses or embeddings are not finite has nulls from there on."""
        config, rungs = self.config(params, seed), self._grid.rungs
        parts = Parts(config, self.dataset)
        validator = RungValidator(self._validator, rungs)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory.at(folder, "run")
            run.folder.make_directory()
            task = Task(
                config=config,
                run=run,
                data_fingerprint=self.dataset.fingerprint,
                train_pairs=self.dataset.rows("train"),
                device=torch.device("cpu"),
                rank=0,
                world=1,
                precision="fp32",
                build_model=parts.build_model,
                build_validator=lambda: validator,
                open_stream=lambda step: KeptStream(parts, self._rows, step),
            )
            try:
                TrainingLoop(task, Silent()).run()
            except JobError as error:
                print(f"  {error.message}", flush=True)
        seconds = time.process_time() - began - validator.seconds
        missing: list[None] = [None] * (len(rungs) - len(validator.found))
        return {
            "params": dict(params),
            "seed": seed,
            "values": {
                name: [round(values[name], 6) for values in validator.found] + missing for name in METRICS
            },
            "seconds_per_step": round(seconds / rungs[-1], 4),
        }


def recorded_axes(grid: Grid, points: Collection[tuple[float, ...]]) -> dict[str, list[float]]:
    """The largest part of each axis, in the order of recording, whose whole grid is among `points`.

    An axis grows by a value when the grid of the faster axes, all slower ones at their first value, is there.
    """
    names = list(grid.axes)
    kept = {name: [grid.axes[name][0]] for name in names}
    for name in names:
        for value in grid.axes[name][1:]:
            trial = {**kept, name: [*kept[name], value]}
            if any(point not in points for point in itertools.product(*trial.values())):
                break
            kept = trial
    return {name: sorted(values) for name, values in kept.items()}


def table(grid: Grid, lines: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The finished runs as they are kept: a whole grid at seed 0, and the default point's seeds."""
    by_point = {tuple(line["params"].values()): line for line in lines if line["seed"] == 0}
    axes = recorded_axes(grid, by_point)
    default = grid.default()
    return {
        "keys": list(axes),
        "axes": axes,
        "steps": list(grid.rungs),
        "default": default,
        "runs": [by_point[point] for point in itertools.product(*axes.values()) if point in by_point],
        "seeds": sorted((line for line in lines if line["params"] == default), key=lambda line: line["seed"]),
        "settings": settings,
    }


def summary(whole: Mapping[str, Any]) -> str:
    """Best, worst and default point at the last rung, and the spread between the default's seeds."""
    name = METRICS[0]
    ends = [(run["values"][name][-1], run["params"]) for run in whole["runs"]]
    ends = sorted((end for end in ends if end[0] is not None), key=lambda end: end[0])
    spread = [value for run in whole["seeds"] if (value := run["values"][name][-1]) is not None]
    lines = [f"{len(whole['runs'])} runs of a whole grid, {len(spread)} seeds of the default point"]
    if ends:
        lines += [f"best  {ends[-1][0]:.4f} at {ends[-1][1]}", f"worst {ends[0][0]:.4f} at {ends[0][1]}"]
    if len(spread) > 1:
        mean, deviation = statistics.mean(spread), statistics.stdev(spread)
        lines.append(f"default {mean:.4f}, standard deviation between seeds {deviation:.4f}")
    return "\n".join(lines)


def main() -> None:
    """Record what is not there yet, as long as there is time."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--space", choices=sorted(GRIDS), default="masking")
    parser.add_argument("--work", type=Path, default=Path("runs/curves"))
    parser.add_argument("--datasets", default="datasets")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this long")
    given = parser.parse_args()
    torch.set_num_threads(1)
    grid = GRIDS[given.space]
    recorder = Recorder(grid, given.datasets)
    settings = {
        "recipe": str(RECIPE),
        **grid.settings,
        "cost": "processor seconds of one thread, validation left out",
        "data_fingerprint": recorder.dataset.fingerprint,
    }
    given.work.mkdir(parents=True, exist_ok=True)
    work, result = given.work / f"{given.space}.jsonl", RESULTS / f"curves_{given.space}.json"
    lines = [json.loads(line) for line in work.read_text().splitlines()] if work.exists() else []
    done = {(tuple(line["params"].values()), line["seed"]) for line in lines}
    end = time.monotonic() + given.seconds
    for params, seed in grid.runs():
        if (tuple(params.values()), seed) in done:
            continue
        if time.monotonic() > end:
            break
        lines.append(recorder.record(params, seed))
        with work.open("a") as stream:
            stream.write(json.dumps(lines[-1]) + "\n")
        print(json.dumps(lines[-1]), flush=True)
        write(result, table(grid, lines, settings))
    whole = table(grid, lines, settings)
    write(result, whole)
    print(summary(whole))


def write(path: Path, whole: Mapping[str, Any]) -> None:
    """The table as JSON, one run a line."""
    parts = []
    for key, value in whole.items():
        if key in ("runs", "seeds"):
            inner = ",\n  ".join(json.dumps(run) for run in value)
            parts.append(f' "{key}": [\n  {inner}\n ]' if value else f' "{key}": []')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    main()
