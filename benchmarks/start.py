"""Seconds from a command to its answer: help, check, and the end of the first training step.

    python -m benchmarks.start [--repeats 3] [--workers 1,2] [--against CHECKOUT] [--quick] [--out FILE]

Decisions: each program is started as a person starts it, in a process of its own, and the clock runs from
before that process exists. The first step of one worker and of a group of two is taken from the line that
the program prints when the step is done; of a group the driver hears of it within half a second. The run is
the demo recipe's, whose untrained model is validated on 512 pairs and a probe of 1,500: `untrained` says when
that was written too. The pairs are made before anything is timed. Every round starts everything once, so that
what is compared meets the same machine; with `--against` the same is done in another checkout of this
repository, alternately, and its figures end in `/before`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import figures

HERE: Final = Path(__file__).resolve().parents[1]
PROGRAMS: Final = ("pretrain", "ingest", "tune", "evaluate", "export", "embed")
FIGURES: Final = ("start/help/*", "start/check*", "start/first_step/*", "start/untrained/*")
DURATION: Final = "some minutes on two cores"
GROUPS: Final = {1: "one_worker", 2: "two_workers"}

_FIRST_STEP: Final = re.compile(r"first step [\d.]+ s after the command")
_UNTRAINED: Final = "validation at step 0"
_LONGEST_SECONDS: Final = 200.0

Measured = Iterator[tuple[str, float]]


def _environment(checkout: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, "PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"}


def _command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"orchestration.{program}", *arguments]


def answered(checkout: Path, place: Path, program: str, *arguments: str) -> float:
    """Seconds of a program from its start to its end. Raises RuntimeError where it fails."""
    begun = time.perf_counter()
    done = subprocess.run(
        _command(program, *arguments), cwd=place, env=_environment(checkout), capture_output=True, text=True
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)} failed:\n{done.stderr}")
    return seconds


def first_step(checkout: Path, place: Path, workers: int, name: str) -> tuple[float, float]:
    """Seconds to the end of the first step and to the untrained model's figures. Raises RuntimeError."""
    arguments = ["--config", str(checkout / "recipes" / "demo.yaml"), "--name", name]
    for override in (f"workers={workers}", "steps=2", "log_every_steps=1"):
        arguments += ["--set", f"training.{override}"]
    if workers > 1:
        # By its whole path: workers of a group have a working directory of their own.
        (data,) = (place / "datasets").resolve().glob("phantom-*")
        arguments += ["--data", str(data)]
    begun = time.perf_counter()
    process = subprocess.Popen(
        _command("pretrain", *arguments),
        cwd=place,
        env=_environment(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said: list[str] = []
    step = untrained = None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            now = time.perf_counter() - begun
            said.append(line)
            if step is None and _FIRST_STEP.search(line):
                step = now
            elif untrained is None and line.startswith(_UNTRAINED):
                untrained = now
            if now > _LONGEST_SECONDS or (step is not None and untrained is not None):
                break
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()
    if step is None or untrained is None:
        raise RuntimeError(f"no first step with {workers} workers:\n{''.join(said[-20:])}")
    return step, untrained


def one_round(checkout: Path, place: Path, workers: list[int], number: int) -> Measured:
    """Everything once, as (figure, seconds)."""
    for program in PROGRAMS:
        yield f"start/help/{program}", answered(checkout, place, program, "--help")
    yield "start/check", answered(checkout, place, "pretrain", "--check")
    for count in workers:
        step, untrained = first_step(checkout, place, count, f"start-{number}-{count}")
        yield f"start/first_step/{GROUPS[count]}", step
        yield f"start/untrained/{GROUPS[count]}", untrained


def made_pairs(place: Path) -> None:
    """Make the demo's phantom pairs below `place`, where they are not there yet."""
    code = (
        "from mpma.config import load_config; from orchestration.phantom_data import ensure_phantom; "
        f"ensure_phantom(load_config({str(HERE / 'recipes' / 'demo.yaml')!r}, []).config.data.phantom)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=place, env=_environment(HERE), check=True)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = figures.options(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median is reported")
    parser.add_argument("--workers", default="1,2", help="comma-separated: 1, 2")
    parser.add_argument("--against", type=Path, help="another checkout, measured alternately")
    parser.add_argument("--place", type=Path, help="folder for pairs and runs; default: one that is removed")
    arguments = parser.parse_args()
    workers = [int(count) for count in arguments.workers.split(",")]
    checkouts = {"": HERE} | ({"/before": arguments.against.resolve()} if arguments.against else {})
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as made:
        place = arguments.place or Path(made)
        place.mkdir(parents=True, exist_ok=True)
        made_pairs(place)
        for number in range(1 if arguments.quick else arguments.repeats):
            for suffix, checkout in checkouts.items():
                name = number * len(checkouts) + list(checkouts).index(suffix)
                runs = tempfile.mkdtemp(dir=place)
                (Path(runs) / "datasets").symlink_to(place.resolve() / "datasets")
                for figure, value in one_round(checkout, Path(runs), workers, name):
                    seconds[figure + suffix].append(value)
    settings = {"recipe": "recipes/demo.yaml"}
    with figures.report("start", arguments) as tell:
        for figure, values in seconds.items():
            tell(figures.of(figure, values, figures.SECONDS, settings))


if __name__ == "__main__":
    main()
