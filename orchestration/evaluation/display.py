"""What a person sees while an evaluation runs, and the table at its end.

Decisions: figures, counts and names of tasks only; the table has each task's first figure beside the
untrained model and chance, with the paired difference; all others stand in evaluation.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from mpma.downstream.config import TASKS
from mpma.downstream.contract import Job
from mpma.downstream.summary import JUDGED_MODEL
from orchestration.evaluation.work import Done
from orchestration.progress import progress_bar


class Display:
    """Notes, a progress bar on a terminal, lines elsewhere."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        # In a file the table is as wide as it needs to be.
        self.console = Console(highlight=False, soft_wrap=not terminal, width=None if terminal else 160)

    def note(self, text: str) -> None:
        """A line for the person."""
        self.console.print(text, markup=False)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar of `total` things; call the result once for each that is done."""
        with progress_bar(self.console) as bar:
            number = bar.add_task(what, total=total)
            yield lambda: bar.advance(number)

    def job(self, model: str, job: Job, done: Done) -> None:
        """One job has ended."""
        what = " ".join(part for part in (job.task, job.variant, f"seed {job.seed}", model) if part)
        if done.state == "done":
            figures = "  ".join(f"{name} {value:.4f}" for name, value in done.shown)
            self.note(f"{what}: {figures}  ({done.seconds:.1f} s)")
        else:
            told = "not possible" if done.state == "impossible" else "failed"
            self.note(f"{what}: {told}: {done.reason}")

    def table(self, summary: Mapping[str, Any]) -> None:
        """The lead figure of every way of every task."""
        models = [model["name"] for model in summary["models"]]
        others = [name for name in models if name != JUDGED_MODEL]
        table = Table(title="SYNTHETIC phantom patients" if summary["synthetic"] else None)
        table.add_column("task", no_wrap=True)
        table.add_column("figure", no_wrap=True)
        for name in [*models, "chance", *(f"over {name}" for name in others)]:
            table.add_column(name, justify="right")
        for name in TASKS:
            section = summary.get(name)
            if section is None:
                continue
            if not section["headline"]:
                table.add_row(name, f"{section['state']}: {section['reason']}")
                continue
            for place, figure in enumerate(lead_figures(section)):
                cells = [shown(section[model].get(figure)) for model in models]
                chance = section["chance"].get(figure)
                cells.append("" if chance is None else f"{chance:.3f}")
                cells += [
                    shown(section["differences"].get(other, {}).get(figure), signed=True) for other in others
                ]
                table.add_row(name if not place else "", figure, *cells)
        self.console.print(table)
        if summary["overlap"]["marked"]:
            self.note(f"MARKED: {summary['overlap']['line']}")
        for name in TASKS:
            for text, count in (summary.get(name) or {}).get("problems", {}).items():
                self.note(f"{name}: {text}: {count}")


def lead_figures(section: Mapping[str, Any]) -> list[str]:
    """The first headline figure of each variant of a task."""
    leads: list[str] = []
    for variant in section["jobs"]:
        inside = f"{variant}/" if variant else ""
        leads += [name for name in section["headline"] if name.startswith(inside)][:1]
    return leads


def shown(entry: Mapping[str, Any] | None, signed: bool = False) -> str:
    """`0.712 [0.690, 0.733]`; empty where the figure does not exist."""
    if entry is None or entry["value"] is None:
        return ""
    sign = "+" if signed else ""
    value = f"{entry['value']:{sign}.3f}"
    if entry.get("low") is None:
        return value
    return f"{value} [{entry['low']:{sign}.3f}, {entry['high']:{sign}.3f}]"
