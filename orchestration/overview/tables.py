"""The listing and the comparison as tables of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestration.overview.difference import Difference, Row
from orchestration.overview.entries import SHOWN_METRICS, Entry
from orchestration.overview.search_difference import SearchDifference

FIGURES: Final = {"metrics": "no figure in both", "spent": "nothing", "best": "no objective"}
"""Topics that show values of both whether they differ or not, and what is said where there are none."""


def console() -> Console:
    """A terminal's width where there is one; whole lines elsewhere, since a file has none."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def show_entries(place: str, entries: Sequence[Entry]) -> None:
    """Print the runs and the searches of a place, then what is wrong with any."""
    screen = console()
    if not entries:
        screen.print(f"{place}: nothing there", markup=False)
    runs = [entry for entry in entries if entry.kind == "run"]
    searches = [entry for entry in entries if entry.kind == "search"]
    if runs:
        screen.print(_runs_table(place, runs))
    if searches:
        screen.print(_searches_table(place, searches))
    for entry in entries:
        if entry.problem:
            screen.print(f"{entry.name}: {entry.problem}", markup=False)


def _runs_table(place: str, entries: Sequence[Entry]) -> Table:
    title = f"{escape(place)}: best validation figures @ their steps"
    table = Table(title=title, title_justify="left", pad_edge=False, box=SIMPLE_HEAD)
    for heading in ("run", "state", "steps", "pairs/s", *SHOWN_METRICS.values(), "config"):
        # In a narrow terminal the step goes below its figure; names are never cut.
        table.add_column(heading, no_wrap=heading not in SHOWN_METRICS.values())
    for entry in entries:
        speed = entry.last.get("pairs_per_second")
        found = (entry.best.get(name) for name in SHOWN_METRICS)
        table.add_row(
            escape(entry.name),
            entry.state,
            f"{entry.done}/{entry.of if entry.of is not None else '?'}",
            "" if speed is None else f"{speed:.4g}",
            *("" if best is None else f"{best[0]:.3f} @{best[1]}" for best in found),
            entry.config[:6],
        )
    return table


def _searches_table(place: str, entries: Sequence[Entry]) -> Table:
    table = Table(title=f"{escape(place)}, best complete trials", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("search", "state", "trials", "best", "data"):
        table.add_column(heading, no_wrap=heading not in ("search", "best"), overflow="fold")
    for entry in entries:
        best = "\n".join(
            f"{_short(name)} {value:.4g} (trial {number})" for name, (value, number) in entry.best.items()
        )
        of = "" if entry.of is None else f"/{entry.of}"
        table.add_row(escape(entry.name), entry.state, f"{entry.done}{of}", escape(best), entry.data[:8])
    return table


def _short(metric: str) -> str:
    return metric.rsplit("/", 1)[-1]


def show_difference(first: str, second: str, found: Difference | SearchDifference) -> None:
    """Print what differs, a table a topic."""
    screen = console()
    for name, rows in vars(found).items():
        topic = name.replace("_", " ")
        if not rows:
            screen.print(f"{topic}: {FIGURES.get(name, 'equal')}", markup=False)
            continue
        table = Table(title=topic, title_justify="left")
        for heading in ("", escape(first), escape(second), "difference" if name in FIGURES else ""):
            table.add_column(heading, overflow="fold")
        for row in rows:
            change = _change(row) if name in FIGURES else ""
            cells = (row.what, _shown(row.first), _shown(row.second), row.note or change)
            table.add_row(*map(escape, cells))
        screen.print(table)


def _change(row: Row) -> str:
    if isinstance(row.first, int | float) and isinstance(row.second, int | float):
        return f"{row.second - row.first:+.4g}"
    return ""


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
