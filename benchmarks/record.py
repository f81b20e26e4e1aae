"""Record a grid of real runs for the benchmarks of the search.

    python -m benchmarks.record masking [--work runs/recorded] [--part 1/2] [--seconds 2000]

What is recorded stands in RECORDINGS. The table is written to benchmarks/results/ once every point has a
run; what is there already is not recorded again. With `--part 1/2` and `--part 2/2` two processes share a
recording, each on one core.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Final

import torch

from benchmarks.recording import Curves, Recorder, Recording, left, read_lines, summary, write

RESULTS: Final = Path("benchmarks/results")
GAIN: Final = "val/report_reconstruction/visual_gain"

RECORDINGS: Final = {
    # The masking search's own recipe in full, at a third and a ninth of its length.
    "masking": Recording(
        recipe=Path("recipes/search.yaml"),
        axes={
            "image.mask_ratio": (0.75, 0.4, 0.5, 0.6, 0.9),
            "report.mask_ratio": (0.5, 0.15, 0.75),
            "training.learning_rate_per_256": (6.0e-3, 2.0e-2),
        },
        metrics=(
            "val/representation_score",
            "val/retrieval/mean_recall",
            "val/probe/auroc",
            "val/report_reconstruction/visual_gain",
        ),
        rungs=(40, 120, 360),
        default_seeds=3,
    ),
    # Three keys of a recipe that is cheap enough for a dense grid.
    "codes": Recording(
        recipe=Path("recipes/planted_codes_3.yaml"),
        axes={
            "report.mask_ratio": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
            "training.learning_rate_per_256": (3.0e-2, 1.0e-2, 2.0e-2, 6.0e-2, 1.0e-1),
            "training.warmup_fraction": (0.1, 0.0, 0.3),
        },
        metrics=(GAIN,),
        rungs=(200, 600),
    ),
    # The learning rate is fixed: a high one was seen to move the best ratio.
    "planted_codes_2": Recording(
        recipe=Path("recipes/planted_codes_2.yaml"),
        axes={"report.mask_ratio": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)},
        metrics=(GAIN,),
        rungs=(100, 200, 400),
        seeds=5,
    ),
    "planted_codes_3": Recording(
        recipe=Path("recipes/planted_codes_3.yaml"),
        axes={"report.mask_ratio": (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)},
        metrics=(GAIN,),
        rungs=(100, 200, 400),
        seeds=5,
    ),
    "planted_weights": Recording(
        recipe=Path("recipes/planted_weights.yaml"),
        axes={"loss_weights.global_alignment": (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 1000.0)},
        metrics=("val/probe/auroc",),
        rungs=(400, 800),
        seeds=5,
    ),
}


FIGURES: Final = ()  # it records runs for other benchmarks
LONG: Final = True
ARGUMENTS: Final = ("masking",)  # which of RECORDINGS


def main() -> None:
    """Record what is not there yet, as long as there is time."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("name", choices=sorted(RECORDINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/recorded"))
    parser.add_argument("--part", default="1/1", help="which of how many processes this one is")
    parser.add_argument("--datasets", default="datasets")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after this long")
    given = parser.parse_args()
    part, parts = (int(number) for number in given.part.split("/"))
    torch.set_num_threads(1)
    recording = RECORDINGS[given.name]
    given.work.mkdir(parents=True, exist_ok=True)
    files = sorted(given.work.glob(f"{given.name}.*.jsonl"))
    done = read_lines(files)
    recorder = Recorder(recording, given.datasets)
    end = time.monotonic() + given.seconds
    for params, seed in left(recording, done, part, parts):
        if time.monotonic() > end:
            break
        line = json.dumps(recorder.record(params, seed))
        with (given.work / f"{given.name}.{part}-{parts}.jsonl").open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)
    runs = read_lines(sorted(given.work.glob(f"{given.name}.*.jsonl")))
    table = {
        "keys": list(recording.axes),
        "steps": list(recording.rungs),
        "runs": sorted(runs, key=lambda run: (run["seed"], *run["params"].values())),
        "settings": {
            "recipe": str(recording.recipe),
            **recording.settings,
            "cost": "processor seconds of one thread, validation left out",
            "data_fingerprint": recorder.dataset.fingerprint,
        },
    }
    print(summary(table, recording.metrics[0]))
    try:
        Curves.of(table, recording.metrics[0])
    except ValueError as error:
        raise SystemExit(f"no table was written: {error}") from None
    name = given.name if given.name.startswith("planted") else f"curves_{given.name}"
    write(RESULTS / f"{name}.json", table)


if __name__ == "__main__":
    main()
