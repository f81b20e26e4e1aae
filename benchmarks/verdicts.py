"""The figures of all benchmarks as one table, each held against its target.

Decisions: a figure that should be there and is not is a row too, so that nothing is left out in silence:
blank with the benchmark's own reason, or `not measured`. The verdict is on the median alone; its spread
stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Literal

from rich.markup import escape
from rich.table import Table

from benchmarks import figures
from benchmarks.catalogue import Benchmark
from benchmarks.figures import Figure
from benchmarks.targets import TARGETS, target_of

Verdict = Literal["met", "missed", "blank", ""]
_COLOURS: Final = {"met": "green", "missed": "red", "blank": "yellow", "": "default"}


@dataclass(frozen=True)
class Row:
    """One line of the table, as text."""

    figure: str
    value: str
    unit: str
    target: str
    verdict: Verdict
    """Empty where there is a value and no target, or the run was a quick one."""
    reason: str = ""


def rows(told: Sequence[Figure], benchmarks: Mapping[str, Benchmark]) -> list[Row]:
    """A row a figure, then one for every target of these benchmarks that no figure answers."""
    found = [_row(figure) for figure in told]
    for name, target in TARGETS.items():
        answered = any(fnmatchcase(figure.figure, name) for figure in told)
        if not answered and any(one.gives(name) for one in benchmarks.values()):
            found.append(Row(name, "", "", f"{target}", "blank", "not measured"))
    return sorted(found, key=lambda row: row.figure)


def _row(figure: Figure) -> Row:
    target = target_of(figure.figure)
    wanted = str(target or "")
    if figure.value is None:
        return Row(figure.figure, "", figure.unit, wanted, "blank", figure.reason)
    if figure.settings.get("quick"):
        return Row(figure.figure, _value(figure), figure.unit, wanted, "", "quick run, not judged")
    verdict: Verdict = "" if target is None else "met" if target.met_by(figure.value) else "missed"
    return Row(figure.figure, _value(figure), figure.unit, wanted, verdict)


def _value(figure: Figure) -> str:
    if figure.interval is not None:
        return f"{figure.value:g} [{figure.interval[0]:g}, {figure.interval[1]:g}]"
    if figure.lowest is not None and figure.highest is not None and figure.repeats > 1:
        return f"{figure.value:g} ({figure.lowest:g} to {figure.highest:g})"
    return f"{figure.value:g}"


def table(found: Sequence[Row]) -> Table:
    """For a terminal."""
    made = Table(caption="median (lowest to highest), or [95 % interval] of the median of alternated turns")
    for heading in ("figure", "value", "unit", "target", ""):
        made.add_column(heading, overflow="fold", justify="right" if heading == "value" else "left")
    for row in found:
        verdict = ": ".join(part for part in (row.verdict, row.reason) if part)
        colour = _COLOURS[row.verdict]
        cells = map(escape, (row.figure, row.value, row.unit, row.target))
        made.add_row(*cells, f"[{colour}]{escape(verdict)}[/{colour}]")
    return made


def left_out(benchmark: Benchmark, told: Sequence[Figure], other_lines: int) -> list[str]:
    """What a benchmark printed that the table does not show, or that it did not declare."""
    notes = []
    if other_lines:
        notes.append(f"{benchmark.name}: {_lines(other_lines)}")
    undeclared = [figure.figure for figure in told if not benchmark.gives(figure.figure)]
    if undeclared:
        notes.append(f"{benchmark.name}: its FIGURES do not name {', '.join(undeclared)}")
    return notes


def _lines(count: int) -> str:
    return f"{count} line{'s' if count > 1 else ''} of another shape"


def summary(found: Sequence[Row]) -> str:
    """One sentence of counts."""
    counts = {name: sum(row.verdict == name for row in found) for name in ("met", "missed", "blank")}
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def recorded(folder: Path) -> tuple[list[Figure], list[str]]:
    """Figures in a folder's *.jsonl, and which of its files hold lines that are left out."""
    told: dict[str, Figure] = {}
    left_out = []
    for file in sorted(folder.glob("*.jsonl")):
        found, others = figures.read(file)
        told |= {figure.figure: figure for figure in found}
        if others:
            left_out.append(f"{file.name}: {_lines(others)}")
    return list(told.values()), left_out
