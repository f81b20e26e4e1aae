"""Grids of real runs, recorded once: searches and their comparisons are replayed on the tables.

Every run is the project's own training loop on synthetic pairs, in this process and on one thread,
validated at the rungs alone. A finished run is appended to a file in the work folder at once, so that a
recording may be broken off and taken up again, and parts of it may be recorded side by side.

Decisions: a run's cost is its processor seconds, since others may share the machine. The first seed of
all points comes before the second. No Ray: the split is small and is read whole.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from mpma.config import ExperimentConfig, load_config
from mpma.data.batches import Batch, Collator
from mpma.data.dataset import Dataset
from mpma.data.decoding import Cropper
from mpma.data.rows import COLLATED_COLUMNS, PIXELS_COLUMN, encoded_images
from mpma.errors import JobError
from mpma.training.loop import Silent, Task, TrainingLoop
from mpma.training.run_directory import RunDirectory
from mpma.training.validation import Validator
from orchestration.assembly import Parts
from orchestration.phantom_data import ensure_phantom

DIGITS: Final = 5
"""Decimals that are kept of a figure."""

Params = dict[str, Any]
Line = dict[str, Any]
"""A run: its params, seed, values [rungs] by metric (null where it broke down), and seconds per step."""


@dataclass(frozen=True)
class Recording:
    """What is recorded: every combination of some keys of a recipe, each with so many seeds."""

    recipe: Path
    axes: dict[str, tuple[Any, ...]]
    """Values of each key; the last key varies slowest."""
    metrics: tuple[str, ...]
    rungs: tuple[int, ...]
    """Steps at which a run is validated; the last is its end."""
    seeds: int = 1
    default_seeds: int = 0
    """So many seeds of the recipe's own point: how far equal runs lie apart."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe that the recording changes."""

    def runs(self) -> Iterator[tuple[Params, int]]:
        """(parameters, seed) in the order of recording."""
        names = list(self.axes)
        for seed in range(self.seeds):
            for point in itertools.product(*(self.axes[name] for name in reversed(names))):
                yield dict(zip(names, reversed(point), strict=True)), seed
        for seed in range(self.seeds, self.default_seeds):
            yield self.default(), seed

    def default(self) -> Params:
        """The recipe's own point."""
        tree = load_config(self.recipe).config.model_dump()
        return {key: tree[key.split(".")[0]][key.split(".")[1]] for key in self.axes}

    def config(self, params: Params, seed: int) -> ExperimentConfig:
        """The recipe at a point."""
        values = {
            **self.settings,
            "training.seed": seed,
            "training.steps": self.rungs[-1],
            "training.log_every_steps": self.rungs[-1],
            "validation.every_steps": int(np.gcd.reduce(self.rungs)),
            **params,
        }
        return load_config(self.recipe, [f"{key}={value}" for key, value in values.items()]).config


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
    """Trains the runs of a recording; dataset and validator are made once."""

    def __init__(self, recording: Recording, datasets: str) -> None:
        self._recording = recording
        config = recording.config({}, 0)
        self.dataset = Dataset.open(ensure_phantom(config.data.phantom, datasets))
        every = np.arange(self.dataset.rows("train"))
        self._rows = self.dataset.read_rows("train", every, COLLATED_COLUMNS).combine_chunks()
        if config.image.crop_scale_min == 1.0 and config.image.crop_aspect_max == 1.0:
            self._rows = decoded(self._rows, config)
        # What is searched changes nothing in what is validated, so one validator serves all runs.
        self._validator = Parts(config, self.dataset).build_validator(torch.device("cpu"), 0, 1, "fp32")

    def record(self, params: Params, seed: int) -> Line:
        """One run's line. A run whose losses or embeddings are not finite has nulls from there on."""
        recording = self._recording
        config, rungs = recording.config(params, seed), recording.rungs
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
                name: [round(found[name], DIGITS) for found in validator.found] + missing
                for name in recording.metrics
            },
            "seconds_per_step": round(seconds / rungs[-1], DIGITS),
        }


def decoded(rows: pa.Table, config: ExperimentConfig) -> pa.Table:
    """The rows with their pictures decoded once: a crop that keeps all of a picture is always the same."""
    image = config.image
    cropper = Cropper(
        size=image.size,
        scale_min=image.crop_scale_min,
        scale_max=image.crop_scale_max,
        aspect_max=image.crop_aspect_max,
        flip=image.horizontal_flip,
        seed=config.training.seed,
    )
    number, other = np.arange(len(rows)), np.arange(len(rows))[::-1] + 7
    pixels = cropper(encoded_images(rows), number * 0, number, augment=True)
    few = rows.slice(0, 64)
    if not torch.equal(cropper(encoded_images(few), number[:64] + 1, other[:64], augment=True), pixels[:64]):
        raise ValueError("crops of one picture differ: they cannot be decoded once")
    flat = pa.py_buffer(pixels.numpy())
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(pixels[0].numel()), len(rows), [None, flat])
    return rows.append_column(PIXELS_COLUMN, column)


@dataclass(frozen=True)
class Curves:
    """A table of recorded runs: a whole grid, of as many seeds as are whole."""

    levels: dict[str, list[Any]]
    """Values of each key, ascending."""
    steps: tuple[int, ...]
    points: list[Params]
    """[N]: every combination."""
    runs: np.ndarray[Any, np.dtype[np.float64]]
    """[N, seeds, steps]: the metric; nan where a run broke down."""

    @classmethod
    def of(cls, table: Mapping[str, Any], metric: str) -> Curves:
        """The metric's curves. ValueError where not even the first seed has the whole grid."""
        found = {
            (tuple(line["params"][key] for key in table["keys"]), line["seed"]): line["values"][metric]
            for line in table["runs"]
        }
        seeds = sorted({seed for _, seed in found})
        grid = sorted({point for point, seed in found if seed == 0})
        levels = {key: sorted({point[i] for point in grid}) for i, key in enumerate(table["keys"])}
        points = list(itertools.product(*levels.values()))
        whole = [seed for seed in seeds if all((point, seed) in found for point in points)]
        if not whole:
            raise ValueError(f"{len(grid)} of {len(points)} points are recorded: record the rest")
        runs = np.array([[found[point, seed] for seed in whole] for point in points], np.float64)
        return cls(
            levels,
            tuple(table["steps"]),
            [dict(zip(levels, point, strict=True)) for point in points],
            runs,
        )

    @classmethod
    def read(cls, path: Path, metric: str | None = None) -> Curves:
        """From a table's file; without `metric` its first one."""
        table = json.loads(path.read_text())
        return cls.of(table, metric or next(iter(table["runs"][0]["values"])))


def left(recording: Recording, done: Sequence[Line], part: int, parts: int) -> Iterator[tuple[Params, int]]:
    """The runs that part `part` of `parts` (from 1) has still to record."""
    known = {(json.dumps(line["params"]), line["seed"]) for line in done}
    for number, (params, seed) in enumerate(recording.runs()):
        if number % parts == part - 1 and (json.dumps(params), seed) not in known:
            yield params, seed


def summary(table: Mapping[str, Any], metric: str) -> str:
    """Best and worst point at the end, and the deviation between seeds of one point."""
    ends: dict[tuple[Any, ...], list[float]] = {}
    for line in table["runs"]:
        if (end := line["values"][metric][-1]) is not None:
            ends.setdefault(tuple(line["params"].items()), []).append(end)
    lines = [f"{len(table['runs'])} runs of {len(ends)} points"]
    order = sorted(ends, key=lambda point: float(np.mean(ends[point])))
    for name, point in (("best", order[-1]), ("worst", order[0])) if order else ():
        lines.append(f"{name}: {np.mean(ends[point]):.4f} at {dict(point)}")
    several = [np.var(found, ddof=1) for found in ends.values() if len(found) > 1]
    if several:
        lines.append(f"standard deviation between seeds: {np.sqrt(np.mean(several)):.4f}")
    return "\n".join(lines)


def write(path: Path, table: Mapping[str, Any]) -> None:
    """The table as JSON, one run a line."""
    parts = []
    for key, value in table.items():
        if key == "runs":
            inner = ",\n  ".join(json.dumps(run) for run in value)
            parts.append(f' "{key}": [\n  {inner}\n ]' if value else f' "{key}": []')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def read_lines(paths: Sequence[Path]) -> list[Line]:
    """The runs in some files of a work folder."""
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]
