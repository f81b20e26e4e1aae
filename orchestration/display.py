"""What a person sees while a run trains, and the table it closes with.

Decisions: a live line on a terminal, a plain line now and then elsewhere (a log file, a job's output);
the figures come from the lines of metrics.jsonl, so that what is shown is what was recorded.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from mpma.data.storage import Storage
from mpma.training.metrics_log import MetricsReader
from orchestration.progress import progress_bar

PLAIN_SECONDS = 20.0


class Display:
    """Notes, progress and validation results of a run, on standard output."""

    def __init__(self, steps: int, started: float) -> None:
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._steps = steps
        self._started = started
        self._first_step_shown = False
        self.making_pairs_seconds = 0.0
        """Time that went into making synthetic pairs, once for all runs."""
        self._last_plain = 0.0
        self._progress: Progress | None = None
        self._task: Any = None
        if self.console.is_terminal:
            figures = TextColumn("{task.fields[figures]}")
            self._progress = progress_bar(self.console, "[bold]training", figures)
            self._task = self._progress.add_task("training", total=steps, figures="")

    def __enter__(self) -> Display:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def note(self, text: str) -> None:
        """A line for the person."""
        self.console.print(text, markup=False)

    def progress(self, step: int) -> None:
        """A step is done."""
        self.first_step()
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def first_step(self) -> None:
        """The first step of this program is done; said once."""
        if self._first_step_shown:
            return
        self._first_step_shown = True
        seconds = time.time() - self._started - self.making_pairs_seconds
        apart = ", making the pairs not counted" if self.making_pairs_seconds else ""
        self.note(f"first step {seconds:.1f} s after the command{apart}")

    def line(self, values: Mapping[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        if any(name.startswith("val/") for name in values):
            self._show_validation(values)
            return
        text = _figures_text(values)
        if self._progress is not None:
            self._progress.update(self._task, completed=values["step"], figures=text)
        elif time.monotonic() - self._last_plain >= PLAIN_SECONDS or values["step"] == self._steps:
            self._last_plain = time.monotonic()
            self.note(f"step {values['step']}/{self._steps}  {text}  {self._left(values)}")

    def _left(self, values: Mapping[str, Any]) -> str:
        pairs = values.get("pairs_per_second") or 0
        if not pairs or not values["step"]:
            return ""
        batch = values["pairs_seen"] / values["step"]
        return f"left {_duration((self._steps - values['step']) * batch / pairs)}"

    def _show_validation(self, values: Mapping[str, Any]) -> None:
        parts = [f"validation at step {values['step']}:"]
        recall, chance = (
            values.get("val/retrieval/mean_recall"),
            values.get("val/retrieval/chance_mean_recall"),
        )
        if recall is not None and chance:
            parts.append(f"mean recall {recall:.4f} ({recall / chance:.1f} x chance)")
        for name, label in (
            ("val/probe/auroc", "probe AUROC"),
            ("val/report_reconstruction/visual_gain", "visual gain"),
            ("val/representation_score", "score"),
        ):
            if values.get(name) is not None:
                parts.append(f"{label} {values[name]:.4f}")
        self.note("  ".join(parts))


class MetricsTail:
    """Follows metrics.jsonl of a run whose workers are other processes, and feeds the display."""

    def __init__(self, run: Storage, display: Display) -> None:
        self._display = display
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="metrics-tail")
        self._reader = MetricsReader(run)
        self._before = {_identity(line) for line in self._reader.new_lines()}

    def __enter__(self) -> MetricsTail:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=5)
        self._show_new()

    def _follow(self) -> None:
        while not self._end.wait(0.5):
            self._show_new()

    def _show_new(self) -> None:
        for line in self._reader.new_lines():
            key = _identity(line)
            if key in self._before:
                continue
            self._before.add(key)
            if "loss/total" in line:
                self._display.progress(line["step"])
            self._display.line(line)


def _identity(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line.get("step"), line.get("loss/total"), line.get("val/retrieval/mean_recall")


def closing_table(lines: Iterable[Mapping[str, Any]], title: str) -> Table:
    """What training changed: first and last losses, validation before and after."""
    training: list[Mapping[str, Any]] = []
    validation: list[Mapping[str, Any]] = []
    for line in lines:
        (validation if any(name.startswith("val/") for name in line) else training).append(line)
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "first", "last"):
        table.add_column(heading, justify="left" if heading == "figure" else "right", overflow="fold")
    if training:
        first, last = training[0], training[-1]
        for name in (key for key in first if key.startswith("loss/")):
            # The unmasked tail has no image reconstruction: its last value is the one before the tail.
            final = next((line for line in reversed(training) if line.get(name) is not None), last)
            table.add_row(name, _number(first.get(name)), _number(final.get(name)))
    if validation:
        first, last = validation[0], validation[-1]
        for name in (key for key in last if key.startswith("val/")):
            table.add_row(name, _number(first.get(name)), _number(last.get(name)))
        recall = "val/retrieval/mean_recall"
        chance = last.get("val/retrieval/chance_mean_recall")
        if chance and recall in last and recall in first:
            table.add_row(
                "mean recall over chance", f"{first[recall] / chance:.1f} x", f"{last[recall] / chance:.1f} x"
            )
    return table


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 1):
        return f"{int(value)}"
    return f"{value:.4f}" if math.isfinite(value) else str(value)


def _figures_text(values: Mapping[str, Any]) -> str:
    short = {
        "loss/total": "total",
        "loss/image_reconstruction": "image",
        "loss/report_reconstruction": "report",
        "loss/global_alignment": "global",
        "loss/local_alignment": "local",
    }
    parts = [f"{label} {values[name]:.3f}" for name, label in short.items() if values.get(name) is not None]
    if values.get("pairs_per_second") is not None:
        parts.append(f"{values['pairs_per_second']:.0f} pairs/s")
    if values.get("data_wait_fraction") is not None:
        parts.append(f"wait {100 * values['data_wait_fraction']:.0f} %")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
