"""Which trials are retrained after a search, and which of them is chosen on validation patients.

Decisions:
- The best of many trials looks better than it is. So the best few and the recipe's own values are
  retrained with seeds that no trial used, one of them is chosen on validation patients, and that one is
  compared, once, with the recipe's own values on the test patients (comparison.py).
- The default is the yardstick and never one of the k: it is retrained beside k others, so the cost is
  known beforehand. Trials that failed or broke a constraint, and repeated settings, are passed over.
- Choosing compares each candidate with the default on the seeds that both finished: first whether the
  constraints are kept, then the mean of the objective. With several objectives: the mean over seeds of
  the non-dominated rank among the candidates, then the mean place over objectives and seeds. The default
  wins where nothing is better.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from mpma.config import validate_tree
from orchestration.search.fronts import non_dominated_ranks
from orchestration.search.parameters import same
from orchestration.search.promote import best_first
from orchestration.search.records import SearchState
from orchestration.search.space import Objective, SearchSpace

DEFAULT: Final = "default"
"""Name of the candidate that has the recipe's own values."""

_Runs = Mapping[str, Mapping[int, Mapping[str, float | None]]]
"""Validation metrics by candidate and seed."""


def candidate_name(trial: int) -> str:
    """Name of a trial that is retrained."""
    return f"trial-{trial}"


def plan_confirmation(space: SearchSpace, state: SearchState) -> dict[str, Any]:
    """What is retrained: `candidates` (best first, the default last), `seeds`, `steps`.

    No candidates where none is wanted or none is left beside the default: there is nothing to compare.
    """
    assert state.begun is not None
    base = validate_tree(state.begun["config"])
    default = space.default_params(base)
    taken = [default]
    candidates: list[dict[str, Any]] = []
    for number in best_first(space, state):
        trial = state.trials[number]
        metrics = trial.reports[trial.step]
        if (
            len(candidates) < space.confirmation.candidates
            and trial.state != "failed"
            and trial.source != DEFAULT
            and not any(_same_params(trial.params, params) for params in taken)
            and all(objective.value(metrics) is not None for objective in space.objectives)
            and all(amount <= 0 for amount in space.violations(metrics))
        ):
            taken.append(trial.params)
            candidates.append({"name": candidate_name(number), "trial": number, "params": dict(trial.params)})
    if candidates:
        own = next((trial.number for trial in state.trials if _same_params(trial.params, default)), None)
        candidates.append({"name": DEFAULT, "trial": own, "params": default})
    used = {base.training.seed, *(trial.params.get("training.seed") for trial in state.trials)}
    fresh = (seed for seed in range(base.training.seed + 1, 2**63) if seed not in used)
    return {
        "candidates": candidates,
        "seeds": [next(fresh) for _ in range(space.confirmation.seeds)],
        "steps": space.confirmation.steps or state.full_steps,
    }


def _same_params(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())


def finished_runs(
    space: SearchSpace, state: SearchState, candidate: str
) -> dict[int, dict[str, float | None]]:
    """Validation metrics by seed of the retrainings that gave every objective."""
    return {
        seed: run.metrics
        for (name, seed), run in state.confirmations.items()
        if name == candidate
        and run.metrics is not None
        and all(objective.value(run.metrics) is not None for objective in space.objectives)
    }


def shared_seeds(space: SearchSpace, state: SearchState, candidate: str) -> list[int]:
    """Seeds that a candidate and the default both finished."""
    default = finished_runs(space, state, DEFAULT)
    return sorted(seed for seed in finished_runs(space, state, candidate) if seed in default)


def choose_winner(space: SearchSpace, state: SearchState) -> str:
    """Name of the best candidate on validation patients; `default` where no other is better.

    Where no retraining of the default was finished, the best of the others on their own seeds.
    """
    names = [candidate["name"] for candidate in state.candidates]
    finished = {name: finished_runs(space, state, name) for name in names}
    if finished.get(DEFAULT):
        finished = {
            name: {seed: found[seed] for seed in shared_seeds(space, state, name)}
            for name, found in finished.items()
        }
    standing = [name for name in names if finished[name]]
    if not standing:
        return DEFAULT

    def broken(name: str) -> float:
        runs = finished[name].values()
        return sum(max(0.0, amount) for run in runs for amount in space.violations(run)) / len(runs)

    if len(space.objectives) == 1:
        better = {name: (-_advantage(space.objectives[0], finished, name), 0.0) for name in standing}
    else:
        better = {name: _mean_places(space, finished, name) for name in standing}
    return min(standing, key=lambda name: (broken(name), better[name], name != DEFAULT, names.index(name)))


def _advantage(objective: Objective, finished: _Runs, name: str) -> float:
    """Mean over a candidate's seeds of what it is better by than the default with the same seed."""
    default = finished.get(DEFAULT, {})

    def gained(seed: int, metrics: Mapping[str, float | None]) -> float:
        own = objective.minimised(metrics)
        assert own is not None
        other = objective.minimised(default[seed]) if seed in default else 0.0
        assert other is not None
        return other - own

    return statistics.fmean(gained(seed, metrics) for seed, metrics in finished[name].items())


def _mean_places(space: SearchSpace, finished: _Runs, name: str) -> tuple[float, float]:
    """Means over a candidate's seeds: of its non-dominated rank, and of its place in each objective."""
    fronts, places = [], []
    for seed in finished[name]:
        names = [other for other, runs in finished.items() if seed in runs]
        losses = np.array(
            [[o.minimised(finished[other][seed]) for o in space.objectives] for other in names], dtype=float
        )
        own = names.index(name)
        fronts.append(non_dominated_ranks(losses)[own])
        places.append(float((losses < losses[own]).sum(axis=0).mean()))
    return statistics.fmean(fronts), statistics.fmean(places)


def needed_outcomes(space: SearchSpace, state: SearchState) -> list[tuple[str, int]]:
    """(candidate, seed) of the retrainings to be judged on test patients: the winner's and the default's."""
    winner = choose_winner(space, state)
    if winner == DEFAULT:
        return []
    return [(name, seed) for name in (winner, DEFAULT) for seed in shared_seeds(space, state, winner)]
