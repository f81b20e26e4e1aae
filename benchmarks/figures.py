"""The one shape in which every benchmark tells its figures: a JSON line each, on a terminal and in a file.

    from benchmarks import figures

    parser = figures.options(__doc__)                 # --quick and --out; add the benchmark's own
    arguments = parser.parse_args()
    with figures.report("step", arguments) as tell:   # the word before the first `/` of its figures
        tell(figures.of("step/seconds/fp32", samples, "s", {"batch": 8}))
        tell(figures.ratio("step/share_of_floor/fp32", floors, steps, {"batch": 8}))
        tell(figures.blank("step/over_peer", "ratio", "the extra `peers` is not installed"))

Decisions:
- A figure is the median of its samples with the lowest and the highest: a shared machine has slow turns.
- A ratio is the median of the ratios turn by turn, since two ways that alternate meet the same machine;
  its 95 % interval is a percentile bootstrap over the turns (scipy.stats.bootstrap, fixed seed).
- What could not be measured is a line too, its value null and the reason beside it.
- Lines are printed as they come, and written to `--out` only after the last one, aside and then renamed:
  a run that was broken off leaves the file as it was.
- Writing replaces this benchmark's lines and keeps the others'. A blank one does not replace a value that
  another machine gave (the GPU's, where there is none), so each line names its own machine.
- A quick run says so in its settings and is for seeing that things work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

RATIO: Final = "ratio"
FRACTION: Final = "fraction"
SECONDS: Final = "s"
_SIGNIFICANT_DIGITS: Final = 4
_RESAMPLES: Final = 2_000


@dataclass(frozen=True)
class Figure:
    """One figure: `benchmark/what[/variant]`, and how it was got."""

    figure: str
    value: float | None
    unit: str
    lowest: float | None = None
    highest: float | None = None
    repeats: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    """95 % interval of the value, of ratios alone."""
    reason: str = ""
    """Why there is no value."""
    machine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert "/" in self.figure, f"{self.figure}: a figure is named benchmark/what"
        assert (self.value is None) == bool(self.reason), f"{self.figure}: a value, or the reason for none"

    @property
    def benchmark(self) -> str:
        """The word before the first slash."""
        return self.figure.partition("/")[0]

    def line(self) -> str:
        """One line of JSON, what is empty left out."""
        kept = {key: value for key, value in asdict(self).items() if value not in (None, "", {})}
        return json.dumps({"figure": self.figure, "value": self.value} | kept)


def of(figure: str, samples: Sequence[float], unit: str, settings: Mapping[str, Any] | None = None) -> Figure:
    """Median, lowest and highest of at least one sample."""
    return Figure(
        figure,
        _rounded(statistics.median(samples)),
        unit,
        _rounded(min(samples)),
        _rounded(max(samples)),
        len(samples),
        settings or {},
    )


def ratio(
    figure: str,
    numerators: Sequence[float],
    denominators: Sequence[float],
    settings: Mapping[str, Any] | None = None,
) -> Figure:
    """Median of `numerators[turn] / denominators[turn]`, with its bootstrap interval from three turns on."""
    ratios = [above / below for above, below in zip(numerators, denominators, strict=True)]
    found = of(figure, ratios, RATIO, settings)
    return Figure(**{**vars(found), "interval": bootstrap_interval(ratios)})


def blank(figure: str, unit: str, reason: str, settings: Mapping[str, Any] | None = None) -> Figure:
    """A figure that could not be measured here, and why."""
    return Figure(figure, None, unit, settings=settings or {}, reason=reason)


def bootstrap_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the median; None of fewer than three samples."""
    if len(samples) < 3:
        return None
    if min(samples) == max(samples):
        return _rounded(samples[0]), _rounded(samples[0])
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.asarray(samples, dtype=float),),
        np.median,
        n_resamples=_RESAMPLES,
        method="percentile",  # the median has no derivative for BCa to correct by
        rng=np.random.default_rng(0),
    ).confidence_interval
    return _rounded(float(found.low)), _rounded(float(found.high))


def _rounded(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a figure must be finite, not {value}")
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def options(documentation: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; `--help` prints the module's docstring."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it works")
    parser.add_argument("--out", type=Path, default=None, help="also write the lines to this file at the end")
    return parser


@contextmanager
def report(benchmark: str, arguments: argparse.Namespace) -> Iterator[Callable[[Figure], None]]:
    """Yields what prints a figure's line; at the end, if nothing was raised, `arguments.out` is written.

    Figures of other benchmarks than the one named may be told too (a benchmark may measure two things):
    in the file, the lines of all benchmarks that were told are replaced.
    """
    facts = machine()
    told: list[Figure] = []

    def tell(figure: Figure) -> None:
        settings = dict(figure.settings) | ({"quick": True} if arguments.quick else {})
        whole = Figure(**{**vars(figure), "settings": settings, "machine": facts})
        assert figure.figure not in {one.figure for one in told}, f"{figure.figure} was told twice"
        told.append(whole)
        print(whole.line(), flush=True)

    yield tell
    if arguments.out is not None:
        replace(arguments.out, told, {benchmark})


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names this machine among others of its kind."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "gpu": _gpu_names(),
        "torch": metadata.version("torch"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _gpu_names() -> str:
    """Names of the GPUs that the driver shows, without importing torch; `none` where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none"
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return ", ".join(found.stdout.strip().splitlines()) if found.returncode == 0 else "none"


def parse(line: str) -> Figure | None:
    """A figure from its line; None of a line of another shape."""
    try:
        found = json.loads(line)
        return Figure(**{**found, "interval": tuple(found["interval"]) if found.get("interval") else None})
    except (ValueError, TypeError, AssertionError):
        return None


def read(file: Path) -> tuple[list[Figure], int]:
    """The figures of a file, and how many of its lines have another shape."""
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    found = [figure for line in lines if (figure := parse(line)) is not None]
    return found, len(lines) - len(found)


def replace(file: Path, told: Sequence[Figure], benchmarks: set[str]) -> None:
    """Put `told` in the place of the lines of these benchmarks (and of those told); all or nothing."""
    benchmarks = benchmarks | {figure.benchmark for figure in told}
    before = read(file)[0] if file.exists() else []
    values = {figure.figure for figure in before if figure.value is not None}
    blanks = {figure.figure for figure in told if figure.value is None} & values
    kept = [figure for figure in before if figure.benchmark not in benchmarks or figure.figure in blanks] + [
        figure for figure in told if figure.figure not in blanks
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with aside.open("w") as out:
            out.writelines(figure.line() + "\n" for figure in kept)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
