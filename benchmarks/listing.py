"""Seconds in which `python -m orchestration.report` lists a thousand runs of a local folder.

    python -m benchmarks.listing [--runs 1000] [--repeats 3] [--quick] [--out FILE]

Decisions: every run has a configuration of its own and a record of 200 training lines and 20 validations, so
that nothing is read once for all; the program is started as a person starts it, and its lines go to a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import figures
from mpma.config import to_yaml, validate_tree
from mpma.data.storage import open_storage
from mpma.training.run_directory import RunDirectory
from orchestration.overview.entries import entries_of

HERE: Final = Path(__file__).resolve().parents[1]
FIGURES: Final = ("listing/seconds/*",)
DURATION: Final = "half a minute on two cores"
LINES: Final = 200


def make_runs(place: Path, count: int) -> None:
    """Runs that stopped at a checkpoint, no two of one configuration."""
    lines = []
    for step in range(1, LINES + 1):
        told = {f"loss/part{part}": 1.0 / (step + part) for part in range(12)}
        lines.append({"step": step, "loss/total": 9.0 / step, "pairs_per_second": 100.0} | told)
        if step % 10 == 0:
            figure = {"val/retrieval/mean_recall": step / LINES, "val/probe/auroc": 0.5 + step / 2 / LINES}
            lines.append({"step": step} | figure)
    record = "".join(json.dumps(line) + "\n" for line in lines)
    first = RunDirectory.at(place, "run0")
    first.begin_or_continue(validate_tree({}), "sha256:ab")
    origin = (place / "run0" / "provenance.json").read_bytes()
    for number in range(count):
        folder = place / f"run{number}"
        (folder / "checkpoints" / f"step_{LINES:08d}").mkdir(parents=True)
        config = validate_tree({"training": {"seed": number}})
        (folder / "config.yaml").write_text(to_yaml(config))
        (folder / "provenance.json").write_bytes(origin)
        (folder / "metrics.jsonl").write_text(record)


def listed(place: Path, *options: str) -> float:
    """Seconds of the program from its start to its end. Raises where it fails."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "orchestration.report", *options, str(place)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


def main() -> None:
    """Make the runs, list them several times, tell the figures."""
    parser = figures.options(__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    count = 50 if arguments.quick else arguments.runs
    settings = {"runs": count, "lines": LINES}
    with (
        tempfile.TemporaryDirectory(prefix="mpma-listing-") as place,
        figures.report("listing", arguments) as tell,
    ):
        folder = Path(place) / "runs"
        make_runs(folder, count)
        page = f"{place}/overview.html"
        ways: dict[str, list[float]] = {"entries": [], "table": [], "json": [], "page": []}
        for _ in range(arguments.repeats):
            begun = time.perf_counter()
            assert len(list(entries_of(open_storage(folder)))) == count
            ways["entries"].append(time.perf_counter() - begun)
            ways["table"].append(listed(folder))
            ways["json"].append(listed(folder, "--json"))
            ways["page"].append(listed(folder, "--html", page))
        for way, seconds in ways.items():
            tell(figures.of(f"listing/seconds/{way}", seconds, figures.SECONDS, settings))


if __name__ == "__main__":
    main()
