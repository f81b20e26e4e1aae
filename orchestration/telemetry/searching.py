"""Figures of a search from its state: a pure function, so that a continued search shows what it was.

Decisions: every state of trials and rungs is given, those that nobody is in as 0, so that a count never
stays behind; a rung counts whoever was sent to it, so a rung's numbers add up to the trials that came there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestration.search.promote import best_first
from orchestration.search.records import SearchState
from orchestration.telemetry.gauges import Gauges

if TYPE_CHECKING:
    from orchestration.search.space import SearchSpace

TRIAL_STATES: Final = ("open", "waiting", "complete", "pruned", "failed")
AT_RUNG: Final = {
    "open": "running",
    "waiting": "waiting",
    "complete": "complete",
    "pruned": "stopped",
    "failed": "stopped",
}
RUNG_STATES: Final = ("running", "waiting", "promoted", "stopped", "complete")


@dataclass(frozen=True)
class Sample:
    """A figure of the catalogue with the tags that it has beside `search`."""

    name: str
    value: float
    tags: tuple[tuple[str, str], ...] = ()


def search_samples(space: SearchSpace, state: SearchState) -> list[Sample]:
    """All figures of a search as it stands."""
    states = Counter(trial.state for trial in state.trials)
    samples = [Sample("search/trials", states[name], (("state", name),)) for name in TRIAL_STATES]
    samples += [
        Sample("search/failed_trials", states["failed"]),
        Sample("search/retries", sum(trial.retries for trial in state.trials)),
        Sample("search/device_seconds", state.device_seconds),
    ]
    samples += _rungs(space, state)
    samples += _best(space, state)
    budget = space.budget
    if budget.trials is not None:
        samples.append(Sample("search/trials_left", max(0, budget.trials - len(state.trials))))
    for name, hours, spent in (
        ("search/device_seconds_left", budget.gpu_hours, state.device_seconds),
        ("search/wall_seconds_left", budget.wall_clock_hours, state.wall_seconds),
    ):
        if hours is not None:
            samples.append(Sample(name, max(0.0, hours * 3600 - spent)))
    return samples


def _rungs(space: SearchSpace, state: SearchState) -> list[Sample]:
    if not state.full_steps:
        return []
    counts: Counter[tuple[int, str]] = Counter()
    rungs = {*space.fidelity.rungs(state.full_steps), *(trial.target for trial in state.trials)}
    if space.scheduler.name == "none":
        rungs = {state.full_steps}
    for trial in state.trials:
        counts.update((rung, "promoted") for rung in rungs if rung < trial.target)
        counts[trial.target, AT_RUNG[trial.state]] += 1
    return [
        Sample("search/rung_trials", counts[rung, name], (("state", name), ("step", str(rung))))
        for rung in sorted(rungs)
        for name in RUNG_STATES
    ]


def _best(space: SearchSpace, state: SearchState) -> list[Sample]:
    order = best_first(space, state)
    if not order:
        return []
    best = state.trials[order[0]]
    metrics = best.reports[best.step]
    samples = [Sample("search/best_trial", best.number)]
    for objective in space.objectives:
        value = objective.value(metrics)
        if value is not None:
            samples.append(Sample("search/best_value", value, (("objective", objective.metric),)))
    return samples


class SearchGauges:
    """The figures of a search, published whenever it changes."""

    def __init__(self, name: str, space: SearchSpace) -> None:
        self._space, self._gauges = space, Gauges("search", name)

    def show(self, state: SearchState) -> None:
        """Publish the search as it stands."""
        for sample in search_samples(self._space, state):
            self._gauges.set({sample.name: sample.value}, **dict(sample.tags))

    def close(self) -> None:
        """The search is no longer led by this process."""
        self._gauges.close()
