"""The one comparison of a search's winner with the recipe's own values, on patients nobody decided on.

Decisions:
- The difference is that of the means over seeds, and the interval is over patients, drawn for all runs at
  once; ranks and scores are those of the full test split (mpma.metrics.patient_outcomes). The interval
  does not hold the variance of training: the figures of every seed stand beside it.
- A winner is named only where the interval lies on the better side of zero; with m objectives where one
  does and none lies on the worse side. The level is then 1 - 0.05/m, as one of m intervals excludes zero
  by chance more easily than one alone.
- An objective that no single patient has (a loss, a speed) cannot be compared so. It is left out, or
  where none is left the representation score is compared; the reason says it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpma.errors import JobError
from mpma.metrics.bootstrap import LEVEL, Floats, Interval, bootstrap_interval
from mpma.metrics.patient_outcomes import REPRESENTATION_SCORE, PatientOutcomes, is_per_patient
from orchestration.search.confirm import DEFAULT, choose_winner, finished_runs, shared_seeds
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace

Outcomes = Mapping[tuple[str, int], PatientOutcomes]
"""Test outcomes by candidate and seed."""


def compare(space: SearchSpace, state: SearchState, outcomes: Outcomes) -> dict[str, Any]:
    """The one comparison; its result as plain values, as the journal keeps it.

    `outcomes` holds what `needed_outcomes` names. `default` and `winner` hold test figures by seed;
    `validation` those on validation patients of every candidate in the order of the planned seeds;
    `objectives` the same for each objective, of which the first stands at the top as well. Where nothing
    is compared `difference` and `interval` are None and `reason` says why. Raises `JobError` where the
    runs were judged on different patients.
    """
    winner = choose_winner(space, state)
    planned = sorted({seed for _, seed in state.confirmations})
    if not state.candidates:
        wanted = space.confirmation.candidates > 0
        why = (
            "no trial beside the recipe's own values could be retrained"
            if wanted
            else "confirmation.candidates is 0"
        )
        return _not_compared(space, state, None, f"Nothing was compared on test patients: {why}.")
    seeds = [
        seed
        for seed in shared_seeds(space, state, winner)
        if (winner, seed) in outcomes and (DEFAULT, seed) in outcomes
    ]
    if winner == DEFAULT and _rivals(space, state):
        return _not_compared(
            space,
            state,
            DEFAULT,
            "The search found nothing better than the recipe's own values: on validation patients they are "
            "best, so nothing was compared on test patients.",
        )
    if winner == DEFAULT or not seeds:
        why = _missing(space, state, winner)
        return _not_compared(space, state, winner, f"Nothing was compared on test patients: {why}.")
    pairs = [(outcomes[winner, seed], outcomes[DEFAULT, seed]) for seed in seeds]
    first = pairs[0][0]
    if not all(first.same_patients(one) for pair in pairs for one in pair):
        raise JobError("confirmation: its runs were judged on different patients and cannot be compared")
    metrics, remarks = _compared_metrics(space, first)
    level = 1 - (1 - LEVEL) / len(metrics)
    entries = [_entry(space, state, metric, way, pairs, planned, level) for metric, way in metrics]
    better = [entry for entry in entries if entry["verdict"] == "better"]
    worse = [entry for entry in entries if entry["verdict"] == "worse"]
    named = bool(better) and not worse
    if len(seeds) < len(planned):
        remarks.append(f"of {len(planned)} seeds {len(seeds)} could be compared, as the others failed")
    shown = better[0] if named else (worse or entries)[0]
    if len(seeds) > 1 and named:
        losing = sum(
            _signed(shown, one - other) <= 0
            for one, other in zip(shown["winner"]["per_seed"], shown["default"]["per_seed"], strict=True)
        )
        if losing:
            remarks.append(f"with {losing} of {len(seeds)} seeds it is not better")
    return {
        **entries[0],
        "candidate": winner,
        "seeds": seeds,
        "named": named,
        "reason": _sentence(winner, shown, named, remarks),
        "objectives": entries,
    }


def _rivals(space: SearchSpace, state: SearchState) -> bool:
    """Whether the default was up against another candidate on validation patients."""
    names = [candidate["name"] for candidate in state.candidates if candidate["name"] != DEFAULT]
    return any(shared_seeds(space, state, name) for name in names)


def _missing(space: SearchSpace, state: SearchState, winner: str) -> str:
    finished = {one["name"]: finished_runs(space, state, one["name"]) for one in state.candidates}
    if not any(finished.values()):
        return "every retraining failed"
    if not finished[DEFAULT]:
        return "every retraining of the recipe's own values failed"
    if winner == DEFAULT:
        return "no candidate finished a retraining with a seed that the recipe's own values finished"
    return f"{winner} and the recipe's own values have no seed in common that could be judged"


def _compared_metrics(
    space: SearchSpace, outcome: PatientOutcomes
) -> tuple[list[tuple[str, str]], list[str]]:
    """(metric without its split, direction) of what is compared, and what is to be said of the others."""
    found: list[tuple[str, str]] = []
    left_out = []
    for objective in space.objectives:
        name = objective.metric.removeprefix("val/")
        if objective.metric.startswith("val/") and is_per_patient(name) and outcome.has(name):
            found.append((name, objective.direction))
        else:
            left_out.append(objective.metric)
    if not left_out:
        return found, []
    names = " and ".join(left_out)
    if found:
        return found, [f"{names} cannot be told of single test patients and is left out"]
    return [(REPRESENTATION_SCORE, "maximise")], [
        f"{names} cannot be told of single test patients, so {REPRESENTATION_SCORE} is compared"
    ]


def _entry(
    space: SearchSpace,
    state: SearchState,
    metric: str,
    direction: str,
    pairs: Sequence[tuple[PatientOutcomes, PatientOutcomes]],
    planned: Sequence[int],
    level: float,
) -> dict[str, Any]:
    """Figures, difference and interval of one metric."""
    patients = pairs[0][0].patients
    statistics_of = [(one.statistic(metric), other.statistic(metric)) for one, other in pairs]
    everyone = np.ones((1, patients))
    winners, defaults = ([float(pair[side](everyone)[0]) for pair in statistics_of] for side in (0, 1))

    def difference(counts: Floats) -> Floats:
        return np.asarray(
            np.mean([winner(counts) - default(counts) for winner, default in statistics_of], axis=0)
        )

    interval = bootstrap_interval(
        difference, patients, resamples=space.confirmation.resamples, seed=space.seed, level=level
    )
    validation = {
        candidate["name"]: [_validated(state, candidate["name"], seed, metric) for seed in planned]
        for candidate in state.candidates
    }
    return {
        "metric": f"test/{metric}",
        "direction": direction,
        "default": {"mean": statistics.fmean(defaults), "per_seed": defaults},
        "winner": {"mean": statistics.fmean(winners), "per_seed": winners},
        "difference": statistics.fmean(winners) - statistics.fmean(defaults),
        "interval": [interval.low, interval.high] if interval.resamples else None,
        "level": level,
        "verdict": _verdict(interval, direction),
        "patients": patients,
        "resamples": interval.resamples,
        "seed_spread": {"winner": _spread(winners), "default": _spread(defaults)},
        "validation": validation,
    }


def _validated(state: SearchState, name: str, seed: int, metric: str) -> float | None:
    run = state.confirmations.get((name, seed))
    value = None if run is None or run.metrics is None else run.metrics.get(f"val/{metric}")
    return value if value is not None and math.isfinite(value) else None


def _verdict(interval: Interval, direction: str) -> str:
    higher, lower = interval.above_zero, interval.below_zero
    if direction == "minimise":
        higher, lower = lower, higher
    return "better" if higher else "worse" if lower else "undecided"


def _signed(entry: Mapping[str, Any], value: float) -> float:
    return value if entry["direction"] == "maximise" else -value


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None for a single one."""
    return statistics.stdev(values) if len(values) > 1 else None


def _sentence(winner: str, entry: Mapping[str, Any], named: bool, remarks: Sequence[str]) -> str:
    figures = f"{entry['metric']} {entry['winner']['mean']:.4f} against {entry['default']['mean']:.4f}"
    who = f"{entry['patients']} test patients whom the search never saw"
    interval = entry["interval"]
    if interval is None:
        how = f"{entry['difference']:+.4f}, without an interval, as no resample of patients has the figure"
    else:
        how = (
            f"{entry['difference']:+.4f}, {100 * entry['level']:.3g} % interval over patients "
            f"{interval[0]:+.4f} to {interval[1]:+.4f}"
        )
    if named:
        text = f"{winner} is better than the recipe's own values: {figures} on {who} ({how})"
    else:
        verdict = "is worse" if entry["verdict"] == "worse" else "is not shown to be better"
        text = (
            "The search found nothing better than the recipe's own values: "
            f"{winner}, the best on validation patients, {verdict} on {who}: {figures} ({how})"
        )
    return "; ".join([text, *remarks]) + "."


def _not_compared(space: SearchSpace, state: SearchState, winner: str | None, reason: str) -> dict[str, Any]:
    """The result where the test patients were left alone."""
    planned = sorted({seed for _, seed in state.confirmations})
    objective = space.objectives[0]
    metric = objective.metric.removeprefix("val/")
    nothing: dict[str, Any] = {"mean": None, "per_seed": []}
    return {
        "metric": f"test/{metric}",
        "direction": objective.direction,
        "default": nothing,
        "winner": nothing,
        "difference": None,
        "interval": None,
        "level": LEVEL,
        "verdict": "undecided",
        "patients": 0,
        "resamples": 0,
        "seed_spread": {"winner": None, "default": None},
        "validation": {
            candidate["name"]: [_validated(state, candidate["name"], seed, metric) for seed in planned]
            for candidate in state.candidates
        },
        "candidate": winner,
        "seeds": [],
        "named": False,
        "reason": reason,
        "objectives": [],
    }
