"""Runs on the planted sets over the values that decide there, recorded once: searches are replayed on them.

    python -m benchmarks.record_planted codes_3 [--work runs/planted] [--seconds 1200]

Every run is the project's own training loop, one after another in this process and on one thread. All
values of one seed come before the next seed, so that a recording that is broken off is whole for the
seeds it has; taken up again it goes on. The learning rate is fixed: a high one was seen to move the best
ratio. The tables in `benchmarks/results/` are what benchmarks/planted.py and its tests read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from benchmarks.record_curves import KeptStream, RungValidator, write
from mpma.config import ExperimentConfig, load_config
from mpma.data.dataset import Dataset
from mpma.data.decoding import Cropper
from mpma.data.rows import COLLATED_COLUMNS, PIXELS_COLUMN, encoded_images
from mpma.training.loop import Silent, Task, TrainingLoop
from mpma.training.run_directory import RunDirectory
from orchestration.assembly import Parts
from orchestration.phantom_data import ensure_phantom

RESULTS: Final = Path("benchmarks/results")

GAIN: Final = "val/report_reconstruction/visual_gain"


@dataclass(frozen=True)
class Recording:
    """One key of a recipe over its values."""

    recipe: Path
    key: str
    values: tuple[float, ...]
    metrics: tuple[str, ...]
    rungs: tuple[int, ...]
    seeds: int

    def runs(self) -> Iterator[tuple[dict[str, Any], int]]:
        """(parameters, seed), the seeds slowest."""
        for seed in range(self.seeds):
            for value in self.values:
                yield {self.key: value}, seed


RECORDINGS: Final = {
    "codes_2": Recording(
        recipe=Path("recipes/planted_codes_2.yaml"),
        key="report.mask_ratio",
        values=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        metrics=(GAIN,),
        rungs=(100, 200, 400),
        seeds=5,
    ),
    "codes_3": Recording(
        recipe=Path("recipes/planted_codes_3.yaml"),
        key="report.mask_ratio",
        values=(0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
        metrics=(GAIN,),
        rungs=(100, 200, 400),
        seeds=5,
    ),
}


class Recorder:
    """Trains the runs of a recording; dataset and validator are made once."""

    def __init__(self, recording: Recording, datasets: str) -> None:
        self._recording = recording
        config = self.config({}, 0)
        self.dataset = Dataset.open(ensure_phantom(config.data.phantom, datasets))
        every = np.arange(self.dataset.rows("train"))
        self._rows = self.dataset.read_rows("train", every, COLLATED_COLUMNS).combine_chunks()
        if config.image.crop_scale_min == 1.0 and config.image.crop_aspect_max == 1.0:
            self._rows = decoded(self._rows, config)
        # Validation draws in its own way whatever is searched, so one validator serves all runs.
        self._validator = Parts(config, self.dataset).build_validator(torch.device("cpu"), 0, 1, "fp32")

    def config(self, params: dict[str, Any], seed: int) -> ExperimentConfig:
        """The recipe at a point."""
        rungs = self._recording.rungs
        values = {
            **params,
            "training.seed": seed,
            "training.steps": rungs[-1],
            "training.log_every_steps": rungs[-1],
            "validation.every_steps": int(np.gcd.reduce(rungs)),
        }
        return load_config(self._recording.recipe, [f"{key}={value}" for key, value in values.items()]).config

    def record(self, params: dict[str, Any], seed: int) -> dict[str, Any]:
        """One run's line of the table."""
        config, rungs = self.config(params, seed), self._recording.rungs
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
            TrainingLoop(task, Silent()).run()
        seconds = time.process_time() - began - validator.seconds
        return {
            "params": params,
            "seed": seed,
            "values": {
                name: [round(found[name], 5) for found in validator.found] for name in self._recording.metrics
            },
            "seconds_per_step": round(seconds / rungs[-1], 5),
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


def means(lines: list[dict[str, Any]], metric: str) -> dict[tuple[Any, ...], tuple[float, float, int]]:
    """Per point: mean and standard deviation over seeds at the last rung, and how many seeds."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for line in lines:
        found.setdefault(tuple(line["params"].values()), []).append(line["values"][metric][-1])
    return {
        point: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0, len(v))
        for point, v in found.items()
    }


def main() -> None:
    """Record what is not there yet, as long as there is time."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("set", choices=sorted(RECORDINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/planted"))
    parser.add_argument("--datasets", default="datasets")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this long")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recording = RECORDINGS[given.set]
    given.work.mkdir(parents=True, exist_ok=True)
    work = given.work / f"{given.set}.jsonl"
    lines = [json.loads(line) for line in work.read_text().splitlines()] if work.exists() else []
    done = {(json.dumps(line["params"]), line["seed"]) for line in lines}
    recorder = Recorder(recording, given.datasets)
    end = time.monotonic() + given.seconds
    for params, seed in recording.runs():
        if (json.dumps(params), seed) in done:
            continue
        if time.monotonic() > end:
            break
        lines.append(recorder.record(params, seed))
        with work.open("a") as stream:
            stream.write(json.dumps(lines[-1]) + "\n")
        print(json.dumps(lines[-1]), flush=True)
    settings = {
        "recipe": str(recording.recipe),
        "cost": "processor seconds of one thread, validation left out",
        "data_fingerprint": recorder.dataset.fingerprint,
    }
    whole = {"keys": [recording.key], "steps": list(recording.rungs), "runs": lines, "settings": settings}
    write(RESULTS / f"planted_{given.set}.json", whole)
    for point, (mean, deviation, seeds) in sorted(means(lines, recording.metrics[0]).items()):
        values = ", ".join(f"{value:g}" for value in point)
        print(f"{values}: {mean:.4f} (standard deviation {deviation:.4f}, {seeds} seeds)")


if __name__ == "__main__":
    main()
