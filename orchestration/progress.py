"""The progress bar that every program shows."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar(console: Console, title: str = "{task.description}", *more: ProgressColumn) -> Progress:
    """Title, bar, count, time taken and time left, then `more`; shows nothing unless on a terminal.

    `title` is rich's markup with the task's fields in braces.
    """
    return Progress(
        TextColumn(title),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *more,
        console=console,
        disable=not console.is_terminal,
    )
