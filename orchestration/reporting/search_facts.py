"""What a search's state says, in figures: which trials compare, what was spent, what was confirmed.

Decisions: trials are only compared at the same training step, so everything about parameters is told per
rung, and by default at the longest rung that enough trials reached; a winner is named only where the
confirmation's interval lies wholly on the better side of zero, whatever else the state says; seconds of a
trial are dealt to its rungs by steps, as all steps of a trial cost about the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, stdev
from typing import Any, Final

import numpy as np

from orchestration.search.promote import best_first, ranked
from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.sections import finite
from orchestration.search.space import SearchSpace

ENOUGH: Final = 8
"""Trials at a rung before its picture of the parameters is shown first."""

RECALL_RESOLUTION: Final = ((250.0, 0.028), (1000.0, 0.011), (2000.0, 0.005))
"""Paired standard deviation of mean recall between two equally good models, by size of the gallery
(simulated; docs/method.md)."""


def values_at(space: SearchSpace, trial: TrialRecord, step: int) -> list[float] | None:
    """All objectives of a trial at a step; None where one is missing or not finite."""
    found = [objective.value(trial.reports.get(step, {})) for objective in space.objectives]
    whole = [value for value in found if value is not None]
    return whole if len(whole) == len(found) else None


def feasible(space: SearchSpace, trial: TrialRecord, step: int) -> bool:
    """Whether every constraint was kept at that step."""
    return all(amount <= 0 for amount in space.violations(trial.reports.get(step, {})))


def comparable(space: SearchSpace, state: SearchState) -> dict[int, list[TrialRecord]]:
    """Trials with all objectives by step, ascending; the trials of a step best first."""
    steps = sorted({step for trial in state.trials for step in trial.reports})
    found = {
        step: [
            state.trials[number]
            for number in ranked(space, state, step)
            if values_at(space, state.trials[number], step) is not None
        ]
        for step in steps
    }
    return {step: trials for step, trials in found.items() if trials}


def first_shown(by_step: Mapping[int, Sequence[TrialRecord]]) -> int:
    """The longest step that enough trials reached; else the one that most reached."""
    enough = [step for step, trials in by_step.items() if len(trials) >= ENOUGH]
    return max(enough) if enough else max(by_step, key=lambda step: (len(by_step[step]), step))


def default_trial(state: SearchState) -> TrialRecord | None:
    """The trial of the recipe's own values."""
    return next((trial for trial in state.trials if trial.source == "default"), None)


def best_trial(space: SearchSpace, state: SearchState) -> TrialRecord | None:
    """The first of all trials that have a value; None before there is one."""
    for number in best_first(space, state):
        trial = state.trials[number]
        if trial.state != "failed" and values_at(space, trial, trial.step) is not None:
            return trial
    return None


@dataclass(frozen=True)
class Confirmed:
    """One metric of the one comparison on patients that the search never saw, as far as it is known."""

    metric: str
    candidate: str
    maximise: bool
    winner: float | None
    default: float | None
    difference: float | None
    """Winner minus default."""
    interval: tuple[float, float] | None
    """Over patients."""
    level: float
    """Of the interval."""
    winner_per_seed: list[float]
    default_per_seed: list[float]
    patients: int | None
    resamples: int | None
    reason: str
    """The comparison's own sentence."""
    validation: dict[str, list[float]]
    """Metric of each candidate's seeds on validation patients."""
    seed_spread: dict[str, float]
    named: bool
    """Whether a winner is named: an interval lies on the better side of zero, and none on the other."""

    @property
    def better(self) -> bool:
        """Whether the whole interval lies on the better side of zero."""
        return self.interval is not None and (self.interval[0] > 0 if self.maximise else self.interval[1] < 0)

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies on the worse side of zero."""
        return self.interval is not None and (self.interval[1] < 0 if self.maximise else self.interval[0] > 0)


def comparisons(space: SearchSpace, state: SearchState) -> list[Confirmed]:
    """What the comparison says of each metric; empty before it was made.

    Missing entries are missing, not an error.
    """
    told = state.comparison
    if told is None:
        return []
    entries = [_compared(space, {**told, **_mapping(one)}) for one in told.get("objectives") or [told]]
    named = bool(told.get("named")) and any(one.better for one in entries)
    named = named and not any(one.worse for one in entries)
    return [replace(one, named=named) for one in entries]


def confirmed(space: SearchSpace, state: SearchState) -> Confirmed | None:
    """The metric that the answer rests on: the first that is better where a winner is named, or the first."""
    found = comparisons(space, state)
    if not found:
        return None
    return next((one for one in found if one.named and one.better), found[0])


def _compared(space: SearchSpace, told: Mapping[str, Any]) -> Confirmed:
    objective = space.objectives[0]
    winner, default = _mapping(told.get("winner")), _mapping(told.get("default"))
    bounds = _numbers(told.get("interval"))
    spread = _mapping(told.get("seed_spread"))
    found = {name: _numbers(values) for name, values in _mapping(told.get("validation")).items()}
    return Confirmed(
        metric=str(told.get("metric", objective.metric)),
        candidate=str(told.get("candidate") or ""),
        maximise=str(told.get("direction", objective.direction)) != "minimise",
        winner=finite(winner.get("mean")),
        default=finite(default.get("mean")),
        difference=finite(told.get("difference")),
        interval=(bounds[0], bounds[1]) if len(bounds) == 2 else None,
        level=finite(told.get("level")) or 0.95,
        winner_per_seed=_numbers(winner.get("per_seed")),
        default_per_seed=_numbers(default.get("per_seed")),
        patients=_whole(told.get("patients")),
        resamples=_whole(told.get("resamples")),
        reason=str(told.get("reason") or ""),
        validation={name: values for name, values in found.items() if values},
        seed_spread={name: float(value) for name, value in spread.items() if finite(value) is not None},
        named=False,
    )


def candidate_params(state: SearchState, name: str) -> dict[str, Any] | None:
    """Params of a candidate of the confirmation."""
    found = next((one for one in state.candidates if one.get("name") == name), None)
    return None if found is None else dict(found.get("params") or {})


def default_params(state: SearchState) -> dict[str, Any] | None:
    """The recipe's own values of the searched keys."""
    own = candidate_params(state, "default")
    if own is not None:
        return own
    trial = default_trial(state)
    return None if trial is None else trial.params


def validation_by_candidate(space: SearchSpace, state: SearchState) -> dict[str, list[float]]:
    """First objective of each candidate's confirmation runs on validation patients, by seed."""
    objective = space.objectives[0]
    found: dict[str, list[float]] = {}
    for run in state.confirmations.values():
        value = None if run.metrics is None else objective.value(run.metrics)
        if value is not None:
            found.setdefault(run.candidate, []).append(value)
    return found


@dataclass(frozen=True)
class Spent:
    """Time on devices, in seconds."""

    by_rung: dict[int, float]
    """Dealt to rungs by steps."""
    trials_by_rung: dict[int, int]
    trials: float
    confirmation: float
    full_length: float | None
    """What all trials would have taken at full length; None where no trial was timed."""
    retries: int
    failures: list[tuple[str, int]]
    """Reasons and how often each."""


def spent(space: SearchSpace, state: SearchState) -> Spent:
    """What the search took, and what training every trial in full would have."""
    rungs = space.fidelity.rungs(state.full_steps)
    by_rung, reached = dict.fromkeys(rungs, 0.0), dict.fromkeys(rungs, 0)
    rates = [trial.seconds / trial.step for trial in state.trials if trial.step and trial.seconds]
    usual = median(rates) if rates else None
    full = 0.0
    for trial in state.trials:
        rate = trial.seconds / trial.step if trial.step and trial.seconds else usual
        full += max(trial.seconds, (rate or 0.0) * state.full_steps)
        if not trial.step:
            # It failed on the way to its first rung, where its time was spent.
            by_rung[rungs[0]] += trial.seconds
            continue
        before = 0
        for rung in rungs:
            if rung > trial.step:
                break
            by_rung[rung] += trial.seconds * (rung - before) / trial.step
            reached[rung] += 1
            before = rung
    runs = state.confirmations.values()
    failures = Counter(trial.reason or "no reason given" for trial in state.trials if trial.state == "failed")
    failures.update(f"confirmation: {run.failed}" for run in runs if run.failed)
    return Spent(
        by_rung,
        reached,
        state.device_seconds,
        sum(run.seconds for run in runs),
        full if usual is not None else None,
        sum(trial.retries for trial in state.trials),
        failures.most_common(),
    )


@dataclass(frozen=True)
class Resolution:
    """Differences up to this say nothing."""

    difference: float
    reasons: list[str]


def resolution(space: SearchSpace, state: SearchState) -> Resolution | None:
    """The smallest difference in the first objective that could mean anything; None where nothing is known.

    The larger of two: the paired deviation from having few patients, for measures of retrieval, and the
    deviation between seeds that the confirmation saw, times the root of 2 for a difference.
    """
    objective = space.objectives[0]
    found: list[tuple[float, str]] = []
    latest = next((trial.reports[trial.step] for trial in reversed(state.trials) if trial.reports), {})
    gallery = finite(latest.get("val/retrieval/gallery_size"))
    if gallery and gallery > 1:
        deviation = recall_resolution(gallery)
        chance = finite(latest.get("val/retrieval/chance_mean_recall")) or 0.0
        if objective.metric.endswith("retrieval/mean_recall"):
            found.append((deviation, f"mean recall on a gallery of {gallery:,.0f} patients"))
        elif objective.metric.endswith("representation_score"):
            share = 2.0 if finite(latest.get("val/probe/auroc")) is not None else 1.0
            part = deviation / max(1e-9, 1 - chance) / share
            found.append((part, f"the retrieval in it, on a gallery of {gallery:,.0f} patients"))
    deviations = [
        stdev(values) for values in validation_by_candidate(space, state).values() if len(values) > 1
    ]
    if deviations:
        pooled = math.sqrt(2 * fmean(one**2 for one in deviations))
        found.append((pooled, "what the seeds of the confirmation differ by"))
    if not found:
        return None
    return Resolution(max(value for value, _ in found), [f"{value:.3f} ({why})" for value, why in found])


def recall_resolution(gallery: float) -> float:
    """Paired deviation of mean recall at a gallery's size, between and beyond the simulated sizes."""
    sizes, deviations = np.log(np.array(RECALL_RESOLUTION)).T
    place = math.log(gallery)
    at = min(max(int(np.searchsorted(sizes, place)), 1), len(sizes) - 1)
    slope = (deviations[at] - deviations[at - 1]) / (sizes[at] - sizes[at - 1])
    return float(math.exp(deviations[at - 1] + slope * (place - sizes[at - 1])))


def chance_level(metric: str, metrics: Mapping[str, Any]) -> float | None:
    """What a model that knows nothing would get; None where that is not known."""
    if metric.endswith(("representation_score", "visual_gain")):
        return 0.0
    if metric.endswith("auroc"):
        return 0.5
    if metric.endswith("retrieval/mean_recall"):
        return finite(metrics.get(metric.replace("mean_recall", "chance_mean_recall")))
    return None


def synthetic(state: SearchState) -> bool | None:
    """Whether the search ran on phantom pairs; None where the journal does not say."""
    config = _mapping((state.begun or {}).get("config"))
    return None if "data" not in config else _mapping(config["data"]).get("path") is None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _numbers(value: Any) -> list[float]:
    if not isinstance(value, (list, tuple)):
        return []
    return [one for one in map(finite, value) if one is not None]


def _whole(value: Any) -> int | None:
    number = finite(value)
    return None if number is None else round(number)
