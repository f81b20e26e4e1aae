"""The next trial's params: Optuna as a pure function of the search's state.

Decisions: nothing is kept between suggestions. The study is built in memory from the state each time and
the sampler's seed is a hash of the space's seed and the trial's number, so a search that was interrupted
suggests what an unbroken one would have. The first points are the recipe's own, those of the space file
and the best of earlier searches; then a quasi-random startup; then the searcher by name.

What the sampler is told of a trial that has not (yet) trained in full: the value that it would reach if
it gained what those that went on gained (`expected_values`), so that every sampler can learn from it, a
rung's order is kept, and a trial stopped early is not taken for one that was trained in full and is worse
for it. A trial without any report counts as running (TPE: as a poor one, so that others go elsewhere).
study.db, which people look at, has only what was measured.

A run is never spent on an exact repeat: where the sampler insists, the nearest point not yet tried is
taken, and once there is none the space is exhausted.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from orchestration.search import samplers
from orchestration.search.records import SearchState, identity

if TYPE_CHECKING:
    from mpma.config import ExperimentConfig
    from orchestration.search.space import SearchSpace

RE_ASKS: Final = 4
"""Times that a sampler which repeats a trial is asked again, with another seed."""

MOST_ENUMERATED: Final = 20_000
"""A larger finite space is not listed to find a point that was not tried; random points find one."""

RANDOM_ATTEMPTS: Final = 200

SAMPLER_ATTRS: Final = ("NSGAIISampler:", "cma:")
"""Optuna's system attributes that later suggestions need; the rest describes one moment."""

VIOLATION_UNKNOWN: Final = 1e6
"""Of a constraint whose metric is missing: samplers model finite numbers."""

QUASI_RANDOM: Final = "quasi_random"
"""Attribute of a trial: its index in the quasi-random sequence."""

GRID: Final = "grid"
"""Attribute of a trial: its place in the shuffled grid."""


class Exhausted(Exception):  # noqa: N818 - an end, not an error
    """Every point of the space was tried."""


@dataclass(frozen=True)
class Suggestion:
    """A trial to begin."""

    params: dict[str, Any]
    source: str
    attrs: dict[str, Any] = field(default_factory=dict)
    study_attrs: dict[str, Any] = field(default_factory=dict)


def suggest(space: SearchSpace, base: ExperimentConfig, state: SearchState, number: int) -> Suggestion:
    """Params of trial `number`, the next one. Raises `Exhausted` where every point was tried."""
    tried = state.tried
    for point in first_points(space, base, state):
        if identity(point.params) not in tried:
            return point
    name = space.searcher.name
    if name == "grid":
        return _next_of_grid(space, state, tried)
    suggestion = None
    for attempt in range(1 + RE_ASKS):
        suggestion = _ask(space, state, number, attempt)
        if identity(suggestion.params) not in tried:
            return suggestion
    assert suggestion is not None
    return Suggestion(_untried(space, tried, suggestion.params, number), name)


def first_points(space: SearchSpace, base: ExperimentConfig, state: SearchState) -> list[Suggestion]:
    """What is tried before the searcher is asked, each once."""
    points = [Suggestion(space.default_params(base), "default")] if space.first.default else []
    points += [Suggestion(space.completed(point, base), "point") for point in space.first.points]
    warm = (state.begun or {}).get("warm") or {}
    points += [Suggestion(dict(point), "warm_start") for point in warm.get("points", [])]
    return list({identity(point.params): point for point in reversed(points)}.values())[::-1]


def expected_values(space: SearchSpace, state: SearchState) -> dict[int, list[float]]:
    """Per trial with a report and not failed: the objectives' values, in full or as they may be expected.

    Of a trial at a rung: its value there, plus for each later rung the median of what the trials that
    were trained from the rung before it to it gained.
    """
    rungs = space.fidelity.rungs(state.full_steps)
    columns = []
    for objective in space.objectives:
        found = {
            trial.number: {step: objective.value(metrics) for step, metrics in trial.reports.items()}
            for trial in state.trials
            if trial.state != "failed"
        }
        gains = {}
        for rung, following in pairwise(rungs):
            pairs = [(values.get(rung), values.get(following)) for values in found.values()]
            seen = [after - before for before, after in pairs if before is not None and after is not None]
            gains[rung] = statistics.median(seen) if seen else 0.0
        column = {}
        for trial_number, values in found.items():
            last = max(values, default=0)
            value = values.get(last)
            if value is not None and math.isfinite(value):
                column[trial_number] = value + sum(gain for rung, gain in gains.items() if rung >= last)
        columns.append(column)
    everywhere = set.intersection(*(set(column) for column in columns))
    return {number: [column[number] for column in columns] for number in sorted(everywhere)}


def told(space: SearchSpace, state: SearchState) -> list[optuna.trial.FrozenTrial]:
    """The trials as the sampler gets to know them, earlier searches' first; one number each, in order."""
    values = expected_values(space, state)
    known = samplers.axes(space)
    warm = (state.begun or {}).get("warm") or {}
    trials = [
        _frozen(space, known, trial["params"], {}, TrialState.COMPLETE, trial["values"], trial["metrics"])
        for trial in warm.get("trials", [])
    ]
    for trial in state.trials:
        now = TrialState.COMPLETE if trial.number in values else TrialState.RUNNING
        if trial.state == "failed" or (trial.final and now == TrialState.RUNNING):
            now = TrialState.FAIL
        metrics = trial.reports[trial.step] if now == TrialState.COMPLETE else None
        trials.append(
            _frozen(space, known, trial.params, trial.attrs, now, values.get(trial.number), metrics)
        )
    return [trial for trial in trials if trial is not None]


def _frozen(
    space: SearchSpace,
    known: Mapping[str, Any],
    params: Mapping[str, Any],
    attrs: Mapping[str, Any],
    state: TrialState,
    values: Sequence[float] | None,
    metrics: Mapping[str, float | None] | None,
) -> optuna.trial.FrozenTrial | None:
    """None where the params have no place among the sampler's parameters."""
    seen = samplers.observed(space, params)
    if seen is None:
        return None
    system = {key: value for key, value in attrs.items() if key.startswith(SAMPLER_ATTRS)}
    if space.constraints and metrics is not None:
        system["constraints"] = [min(amount, VIOLATION_UNKNOWN) for amount in space.violations(metrics)]
    return optuna.trial.create_trial(
        state=state,
        params=seen,
        distributions={name: known[name] for name in seen},
        values=list(values) if values is not None and state == TrialState.COMPLETE else None,
        system_attrs=system,
    )


def _ask(space: SearchSpace, state: SearchState, number: int, attempt: int) -> Suggestion:
    """What the searcher says, asked for the (attempt + 1)th time."""
    name, seed = space.searcher.name, samplers.seed_of(space.seed, number, attempt)
    if name == "random":
        return Suggestion(samplers.random_params(space, seed), name)
    trials = told(space, state)
    seen = sum(trial.state == TrialState.COMPLETE for trial in trials)
    if name == "quasi_random" or (name in ("tpe", "gp", "cmaes") and seen < space.searcher.startup_trials):
        index = _last(state, QUASI_RANDOM) + 1 + attempt
        params = samplers.quasi_random_params(space, space.seed, index)
        return Suggestion(params, name, {QUASI_RANDOM: index})
    with _quiet():
        study = _study(space, state, trials, samplers.sampler(name, seed, _population(space)))
        asked = study.ask()
        params = samplers.drawn(space, lambda axis, one: _value(asked, axis, one))
        attrs = study.trials[-1].system_attrs
        study_attrs = study._storage.get_study_system_attrs(study._study_id)
    return Suggestion(
        params,
        name,
        {key: value for key, value in attrs.items() if key.startswith(SAMPLER_ATTRS)},
        {
            key: value
            for key, value in study_attrs.items()
            if key.startswith(SAMPLER_ATTRS) and state.study_attrs.get(key) != value
        },
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's notes about a study in memory and about experimental arguments are nobody's concern."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _study(
    space: SearchSpace,
    state: SearchState,
    trials: Sequence[optuna.trial.FrozenTrial],
    sampler: optuna.samplers.BaseSampler,
) -> optuna.Study:
    study = optuna.create_study(
        directions=[
            StudyDirection.MAXIMIZE if objective.direction == "maximise" else StudyDirection.MINIMIZE
            for objective in space.objectives
        ],
        sampler=sampler,
    )
    study.add_trials(trials)
    for key, value in state.study_attrs.items():
        study._storage.set_study_system_attr(study._study_id, key, value)
    return study


def _value(trial: optuna.Trial, name: str, one: optuna.distributions.BaseDistribution) -> Any:
    if isinstance(one, CategoricalDistribution):
        return trial.suggest_categorical(name, one.choices)
    if isinstance(one, IntDistribution):
        return trial.suggest_int(name, one.low, one.high, step=one.step, log=one.log)
    assert isinstance(one, FloatDistribution)
    return trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log)


def _population(space: SearchSpace) -> int:
    """Members of a generation: Optuna's 50 where the budget has room for several, else a sixth of it."""
    most = space.budget.trials
    return 50 if most is None else min(50, max(4, most // 6))


def _last(state: SearchState, counted: str) -> int:
    """The count that the latest trial with one carries, since counts only grow; -1 where none does."""
    return next((int(trial.attrs[counted]) for trial in reversed(state.trials) if counted in trial.attrs), -1)


def _next_of_grid(space: SearchSpace, state: SearchState, tried: set[str]) -> Suggestion:
    """The grid's points in a shuffled order, so that a search that is cut short has seen all of it."""
    size = samplers.grid_size(space)
    for place in range(_last(state, GRID) + 1, size):
        point = samplers.grid_point(space, samplers.shuffled(size, space.seed, place))
        if point is not None and identity(point) not in tried:
            return Suggestion(point, "grid", {GRID: place})
    raise Exhausted("every point of the grid was tried")


def _untried(space: SearchSpace, tried: set[str], near: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A point that no trial had: of a finite space the nearest to `near`, else a random one."""
    seed = samplers.seed_of(space.seed, number, 1 + RE_ASKS)
    if samplers.is_finite(space) and samplers.grid_size(space) <= MOST_ENUMERATED:
        points = {identity(point): point for point in samplers.grid(space)}
        left = sorted(points.keys() - tried)
        if not left:
            raise Exhausted(f"all {len(points)} points of the space were tried")
        # Equally near ones in a random order, not by name.
        left.sort(
            key=lambda one: (_distance(space, points[one], near), samplers.seed_of(seed, *one.encode()))
        )
        return points[left[0]]
    for attempt in range(RANDOM_ATTEMPTS):
        params = samplers.random_params(space, samplers.seed_of(seed, attempt))
        if identity(params) not in tried:
            return params
    raise Exhausted(f"{RANDOM_ATTEMPTS} random points of the space were all tried before")


def _distance(space: SearchSpace, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Sum over keys: difference in the range's width; 1 for another choice or a key that one lacks."""
    total = 0.0
    for key in space.parameters:
        if (key in one) != (key in other):
            total += 1.0
        elif key in one and one[key] != other[key]:
            parameter = space.active(one, key)
            if parameter is not None and parameter.is_range and other[key] is not None:
                total += abs(float(one[key]) - float(other[key])) / (parameter.high - parameter.low)
            else:
                total += 1.0
    return total
