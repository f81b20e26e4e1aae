"""From outcomes to figures with intervals: what `evaluation.json` says of one task.

Decisions:
- All figures of all models of a task are drawn under the same resamples of patients, so every difference is
  paired and nothing is measured twice.
- A figure is the mean over seeds; the values of the seeds stand beside it, since an interval over patients
  does not contain the variance of training.
- Chance is the score of the task's own constant predictor on the same examples.
- A figure that does not exist is null with a problem that says why, never a NaN in a file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mpma.downstream.contract import Job
from mpma.errors import JobError
from mpma.metrics.bootstrap import LEVEL, Floats, Statistic, resample_counts
from mpma.metrics.outcomes import Outcomes, mean_over_seeds

JUDGED_MODEL: Final = "pretrained"
"""The model that the others are compared with."""

BOOTSTRAP_SEED: Final = 0


@dataclass(frozen=True)
class Failure:
    """A job that gave no outcome."""

    model: str
    job: str
    reason: str
    """One line."""
    possible: bool
    """False where the data do not allow the job; True where it broke."""


def summarise_task(
    models: Sequence[str],
    jobs: Sequence[Job],
    outcomes: Mapping[tuple[str, str], Outcomes],
    chance: Outcomes | None,
    failures: Sequence[Failure],
    *,
    resamples: int,
    breakdown_least_patients: int,
) -> dict[str, Any]:
    """The section of one task in `evaluation.json`.

    `outcomes` by (model, job key). Raises `JobError` where models were judged on different examples.
    """
    section: dict[str, Any] = {
        "state": _state(outcomes, failures),
        "reason": None if outcomes else _reason(failures),
        "headline": [],
        "seeds": {},
        "jobs": {},
        **{model: {} for model in models},
        "chance": {},
        "differences": {},
        "breakdown": {},
        "problems": _problems(outcomes),
        "failures": [failure.__dict__ for failure in failures],
    }
    if not outcomes:
        return section
    _check_same_examples(outcomes)
    by_variant: dict[str, list[Job]] = defaultdict(list)
    for job in sorted(jobs, key=lambda job: (job.method, job.fraction, job.seed)):
        by_variant[job.variant].append(job)
    sample = next(iter(outcomes.values()))
    for variant, members in by_variant.items():
        there = {
            model: [(job, outcomes[model, job.key]) for job in members if (model, job.key) in outcomes]
            for model in models
        }
        if not any(there.values()):
            continue
        # Where a seed is missing for one model, it is left out for all: differences stay paired by seed.
        shared = [
            job for job in members if all((model, job.key) in outcomes for model in models if there[model])
        ]
        section["seeds"][variant] = [job.seed for job in shared]
        section["jobs"][variant] = [job.key for job in shared]
        found = {
            model: [outcomes[model, job.key] for job in shared] for model in models if there[model] and shared
        }
        if not found:
            continue
        first = next(iter(found.values()))[0]
        section["headline"] += [prefixed(variant, name) for name in first.headline]
        _add_figures(section, variant, found, resamples)
        _add_breakdown(section, variant, found, resamples, breakdown_least_patients)
        if chance is not None:
            values = chance.values()
            section["chance"] |= {
                prefixed(variant, name): _plain(values[name]) for name in first.figures if name in values
            }
    section["patients"] = sample.patients
    section["examples"] = len(sample.patient)
    return section


def paired_differences(
    ours: Mapping[str, Sequence[Outcomes]], theirs: Mapping[str, Sequence[Outcomes]], resamples: int
) -> dict[str, dict[str, Any]]:
    """Figure -> ours, theirs and their difference with its interval, for the variants that both have.

    Outcomes of the seeds by variant. Raises `JobError` where the examples are not the same.
    """
    table: dict[str, dict[str, Any]] = {}
    for variant in ours:
        if variant not in theirs:
            continue
        seeds = min(len(ours[variant]), len(theirs[variant]))
        a, b = list(ours[variant])[:seeds], list(theirs[variant])[:seeds]
        _check_same_examples(dict(enumerate([*a, *b])))
        names = [name for name in a[0].figures if all(name in one.figures for one in [*a, *b])]
        statistics = {
            (side, name): mean_over_seeds(outcomes, name)
            for side, outcomes in (("a", a), ("b", b))
            for name in names
        }
        values, drawn = _drawn(statistics, a[0].patients, resamples)
        for name in names:
            one, other = ("a", name), ("b", name)
            table[prefixed(variant, name)] = {
                "a": _plain(values[one]),
                "b": _plain(values[other]),
                "difference": _interval(values[one] - values[other], drawn[one] - drawn[other]),
                "headline": name in a[0].headline,
            }
    return table


def prefixed(variant: str, name: str) -> str:
    """Name of a figure of a variant."""
    return f"{variant}/{name}" if variant else name


def _add_figures(
    section: dict[str, Any], variant: str, found: Mapping[str, list[Outcomes]], resamples: int
) -> None:
    first = next(iter(found.values()))
    everyone = [one for outcomes in found.values() for one in outcomes]
    names = [name for name in first[0].figures if all(name in one.figures for one in everyone)]
    statistics: dict[tuple[str, str], Statistic] = {
        (model, name): mean_over_seeds(outcomes, name) for model, outcomes in found.items() for name in names
    }
    values, drawn = _drawn(statistics, first[0].patients, resamples)
    for model, outcomes in found.items():
        seeds = [one.values() for one in outcomes]
        for name in names:
            entry = _interval(values[model, name], drawn[model, name])
            entry["by_seed"] = [_plain(seed[name]) for seed in seeds]
            section[model][prefixed(variant, name)] = entry
        if model != JUDGED_MODEL and JUDGED_MODEL in found:
            section["differences"].setdefault(model, {}).update(
                {
                    prefixed(variant, name): _interval(
                        values[JUDGED_MODEL, name] - values[model, name],
                        drawn[JUDGED_MODEL, name] - drawn[model, name],
                    )
                    for name in names
                }
            )


def _add_breakdown(
    section: dict[str, Any],
    variant: str,
    found: Mapping[str, list[Outcomes]],
    resamples: int,
    least_patients: int,
) -> None:
    first = next(iter(found.values()))[0]
    for column in first.groups:
        sizes = {v: n for v, n in first.group_sizes(column).items() if n >= least_patients}
        if len(sizes) < 2:
            continue  # One value alone would repeat the table above.
        for value, patients in sizes.items():
            statistics = {
                (model, name): mean_over_seeds(outcomes, name, column, value)
                for model, outcomes in found.items()
                for name in first.headline
            }
            values, drawn = _drawn(statistics, first.patients, resamples)
            place = (
                section["breakdown"]
                .setdefault(column, {})
                .setdefault(value, {"patients": patients, "figures": {model: {} for model in found}})
            )
            for (model, name), measured in values.items():
                place["figures"].setdefault(model, {})[prefixed(variant, name)] = _interval(
                    measured, drawn[model, name]
                )


def _drawn(
    statistics: Mapping[tuple[str, str], Statistic], patients: int, resamples: int
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], Floats]]:
    """Each statistic on all patients, and on every resample; the same resamples for all."""
    everyone = np.ones((1, patients))
    values = {key: float(statistic(everyone)[0]) for key, statistic in statistics.items()}
    parts: dict[tuple[str, str], list[Floats]] = {key: [] for key in statistics}
    for counts in resample_counts(patients, resamples, BOOTSTRAP_SEED):
        for key, statistic in statistics.items():
            parts[key].append(statistic(counts))
    return values, {key: np.concatenate(found) for key, found in parts.items()}


def _interval(value: float, drawn: Floats) -> dict[str, Any]:
    known = drawn[~np.isnan(drawn)]
    if not len(known) or math.isnan(value):
        return {"value": _plain(value), "low": None, "high": None, "resamples": 0}
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": value, "low": float(low), "high": float(high), "resamples": len(known)}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _state(outcomes: Mapping[Any, Any], failures: Sequence[Failure]) -> str:
    if not outcomes:
        return "failed" if any(failure.possible for failure in failures) else "skipped"
    # What the data do not allow is told, and nothing is left to do about it.
    return "partly" if any(failure.possible for failure in failures) else "done"


def _reason(failures: Sequence[Failure]) -> str:
    reasons = list(dict.fromkeys(failure.reason for failure in failures))
    return "; ".join(reasons[:3]) if reasons else "nothing was run"


def _problems(outcomes: Mapping[Any, Outcomes]) -> dict[str, int]:
    worst: dict[str, int] = {}
    for one in outcomes.values():
        for text, count in one.problems.items():
            worst[text] = max(worst.get(text, 0), count)
    return worst


def _check_same_examples(outcomes: Mapping[Any, Outcomes]) -> None:
    if len({one.identity for one in outcomes.values()}) > 1:
        raise JobError("the models were judged on different examples and cannot be compared")
