"""What a person sees while a search runs: a live table on a terminal, a line for each event elsewhere.

Decisions: everything shown comes from the journal's state and from the trials' own metrics.jsonl, so what
is shown is what was recorded; identifiers and text never appear, since none are in there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestration.search.promote import best_first
from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.space import SearchSpace

MOST_ROWS = 16


class SearchDisplay:
    """Shows a search's state whenever it changes."""

    def __init__(
        self,
        space: SearchSpace,
        state: SearchState,
        live: Callable[[], Mapping[str, int]],
        name: str,
    ) -> None:
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self._space, self._state, self._running, self._name = space, state, live, name
        self._live: Live | None = None
        self._said: dict[int, tuple[str, int]] = {
            trial.number: (trial.state, trial.step) for trial in state.trials
        }
        self._seen = len(state.touches)
        self._confirmed = {key for key, run in state.confirmations.items() if run.metrics or run.failed}

    def __enter__(self) -> SearchDisplay:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, get_renderable=self._renderable)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """A line for the person."""
        self.console.print(text, markup=False)

    def changed(self) -> None:
        """Say what is new, where no live table shows it."""
        touches = self._state.touches
        touched, self._seen = sorted(set(touches[self._seen :])), len(touches)
        for trial in (self._state.trials[number] for number in touched):
            now = (trial.state, trial.step)
            before = self._said.get(trial.number)
            if before == now:
                continue
            self._said[trial.number] = now
            if self._live is None:
                self.note(self._event_line(trial, before))
        for key, run in self._state.confirmations.items():
            if key not in self._confirmed and (run.metrics or run.failed):
                self._confirmed.add(key)
                if self._live is None:
                    done = run.failed or self._values(run.metrics or {})
                    self.note(f"confirmation of {run.candidate} with seed {run.seed}: {done}")

    def _event_line(self, trial: TrialRecord, before: tuple[str, int] | None) -> str:
        head = f"trial {trial.number}"
        if before is None and trial.state == "open":
            return f"{head} begins ({trial.source}): {params_text(trial.params)}"
        if trial.state == "open":
            return f"{head} is promoted to step {trial.target}"
        if trial.state in ("pruned", "failed"):
            at = f" at step {trial.step} ({self._values(trial.reports[trial.step])})" if trial.reports else ""
            return f"{head} {trial.state}{at}: {trial.reason}"
        what = "complete" if trial.state == "complete" else "at a rung"
        return f"{head} step {trial.step} ({what}): {self._values(trial.reports[trial.step])}"

    def _values(self, metrics: Mapping[str, Any]) -> str:
        return "  ".join(
            f"{objective.metric.removeprefix('val/')} {number(objective.value(metrics))}"
            for objective in self._space.objectives
        )

    def _renderable(self) -> Group:
        return Group(self.table(), self._summary())

    def _summary(self) -> Text:
        state, budget = self._state, self._space.budget
        parts = [f"{len(state.trials)}" + (f" of {budget.trials}" if budget.trials else "") + " trials"]
        for label, spent, most in (
            ("device hours", state.device_seconds / 3600, budget.gpu_hours),
            ("hours", state.wall_seconds / 3600, budget.wall_clock_hours),
        ):
            parts.append(f"{spent:.2f}" + (f" of {most:g}" if most else "") + f" {label}")
        full = len(state.trials) * state.full_steps
        if full:
            trained = sum(trial.step for trial in state.trials)
            parts.append(f"{100 * trained / full:.0f} % of the steps of full-length trials")
        if state.candidates:
            done = sum(1 for run in state.confirmations.values() if run.metrics or run.failed)
            parts.append(f"confirmation {done}/{len(state.confirmations)}")
        return Text("   ".join(parts), style="dim")

    def table(self) -> Table:
        """Trials, those at work first, then by rank; as many as a screen holds."""
        running = self._running()
        ranks = {trial: rank for rank, trial in enumerate(best_first(self._space, self._state))}
        rows = sorted(
            self._state.trials,
            key=lambda trial: (
                0 if str(trial.number) in running else 1,
                ranks.get(trial.number, len(ranks)),
                trial.number,
            ),
        )
        table = Table(title=f"search {self._name}", title_justify="left", expand=False)
        for heading in ("trial", "state", "step"):
            table.add_column(heading, justify="left" if heading == "state" else "right")
        for objective in self._space.objectives:
            table.add_column(objective.metric.removeprefix("val/"), justify="right")
        table.add_column("parameters", overflow="fold")
        for trial in rows[:MOST_ROWS]:
            at_work = str(trial.number) in running
            step = max(trial.step, running.get(str(trial.number), 0))
            table.add_row(
                str(trial.number),
                "training" if at_work else trial.state,
                f"{step}/{trial.target if at_work else self._state.full_steps}",
                *(
                    number(objective.value(trial.reports[trial.step])) if trial.reports else "-"
                    for objective in self._space.objectives
                ),
                params_text(trial.params),
                style="bold" if at_work else ("dim" if trial.state in ("pruned", "failed") else ""),
            )
        hidden = len(rows) - MOST_ROWS
        if hidden > 0:
            table.caption = f"and {hidden} more"
        return table


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters in one line, by the last part of their names where that says enough."""
    last = [key.rsplit(".", 1)[-1] for key in params]
    names = [name if last.count(name) == 1 else key for name, key in zip(last, params, strict=True)]
    return "  ".join(f"{name} {number(value)}" for name, value in zip(names, params.values(), strict=True))


def number(value: Any) -> str:
    """A figure for people."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s"
