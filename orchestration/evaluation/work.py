"""What runs in Ray tasks: one part of features, one job, one task's summary.

Decisions: a function here takes plans and returns plain values; tensors and tables stay where they are made.
A mistake in one job is its result and never ends the others; what is told of a defect is its kind and place,
never its message, which may hold report text.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpma.downstream.config import DEFAULT_BREAKDOWN
from mpma.downstream.contract import Job, NotPossible
from mpma.errors import UserError
from mpma.metrics.outcomes import Outcomes
from orchestration.defects import told, without_values
from orchestration.evaluation.plan import (
    ModelPlan,
    WorkPlan,
    open_config,
    open_data,
    open_features,
    open_model,
    prepared,
)
from orchestration.evaluation.store import ResultStore


@dataclass(frozen=True)
class Done:
    """How a job ended."""

    seconds: float
    state: str
    """`done`, `impossible` (by the data) or `failed`."""
    reason: str = ""
    shown: tuple[tuple[str, float], ...] = ()
    """Headline figures, for the line that is printed."""


@without_values
def describe_model(model: ModelPlan) -> dict[str, Any]:
    """Name, origin, hash of the weights and step of a model. Raises `UserError`."""
    loaded = open_model(model)
    return {
        "name": loaded.name,
        "origin": loaded.origin,
        "weights": loaded.weights_hash,
        "step": loaded.step,
        "data_fingerprint": loaded.data_fingerprint,
    }


@without_values
def extract_part(plan: WorkPlan, model: ModelPlan, kind: str, split: str, part: int) -> None:
    """Make one part of features where it is not there. What goes wrong fails the jobs that need it, and is
    told there: here it would stand with its message in Ray's logs."""
    _enter(plan)
    with contextlib.suppress(Exception):
        open_features(plan, model).ensure(kind, split, part)  # type: ignore[arg-type]


@without_values
def run_job(plan: WorkPlan, model: ModelPlan, job: Job, name: str, examples: int) -> Done:
    """Fit, predict, score and keep one job, with so many examples."""
    begun = time.time()
    try:
        _enter(plan)
        return _run(plan, model, job, name, examples, begun)
    except NotPossible as error:
        _store(plan).keep_impossible(name, error.message)
        return Done(time.time() - begun, "impossible", error.message)
    except UserError as error:
        return Done(time.time() - begun, "failed", error.message)
    except Exception as error:
        return Done(time.time() - begun, "failed", told(error))


def _run(plan: WorkPlan, model: ModelPlan, job: Job, name: str, examples: int, begun: float) -> Done:
    task, judged = prepared(plan, job.task)
    loaded, features = open_model(model), open_features(plan, model)
    fitted = task.fit(loaded, features, judged, job)
    predictions = task.predict(loaded, features, judged, job, fitted)
    outcomes = grouped(plan, judged, task.score(judged, predictions))
    shown_examples = None
    if examples:
        shown_examples = task.examples(loaded, features, judged, job, fitted, predictions, examples)
    _store(plan).keep(name, outcomes, shown_examples)
    values = outcomes.values()
    shown = tuple((figure, values[figure]) for figure in list(outcomes.headline)[:2])
    return Done(time.time() - begun, "done", shown=shown)


@without_values
def summarise(
    plan: WorkPlan,
    task_name: str,
    models: Sequence[str],
    jobs: Sequence[Job],
    names: dict[tuple[str, str], str],
    broken: dict[tuple[str, str], str],
) -> dict[str, Any]:
    """One task's section of `evaluation.json`, from the stored results. `names` by (model, job key).

    A summary that breaks is a failed section, so that the other tasks keep theirs.
    """
    try:
        _enter(plan)
        return _summarised(plan, task_name, models, jobs, names, broken)
    except UserError as error:
        return failed_section(models, error.message)
    except Exception as error:
        return failed_section(models, told(error))


def failed_section(models: Sequence[str], reason: str) -> dict[str, Any]:
    """What is left of a task that has no summary."""
    empty: dict[str, Any] = {
        name: {} for name in ("seeds", "jobs", "chance", "differences", "breakdown", "problems", "files")
    }
    return {
        "state": "failed",
        "reason": reason,
        "headline": [],
        "failures": [],
        **empty,
        **{model: {} for model in models},
    }


def _summarised(
    plan: WorkPlan,
    task_name: str,
    models: Sequence[str],
    jobs: Sequence[Job],
    names: dict[tuple[str, str], str],
    broken: dict[tuple[str, str], str],
) -> dict[str, Any]:
    from mpma.downstream.summary import Failure, summarise_task

    config, store = open_config(plan), _store(plan)
    found, failures = {}, []
    for (model, key), name in names.items():
        outcomes = store.outcomes(name)
        if outcomes is not None:
            found[model, key] = outcomes
            continue
        impossible = store.impossible(name)
        reason = impossible if impossible is not None else broken.get((model, key), "no result")
        failures.append(Failure(model, key, reason, impossible is None))
    chance = None
    if found:
        task, judged = prepared(plan, task_name)
        chance = task.score(judged, task.constant(judged))
    section = summarise_task(
        models,
        jobs,
        found,
        chance,
        failures,
        resamples=config.resamples,
        breakdown_least_patients=config.breakdown_least_patients,
    )
    section["files"] = {
        model: {key: name for (owner, key), name in names.items() if owner == model and (owner, key) in found}
        for model in models
    }
    return section


def grouped(plan: WorkPlan, judged: Any, outcomes: Outcomes) -> Outcomes:
    """Outcomes with the breakdown columns that the settings name; a default one may be absent."""
    data, wanted = open_data(plan), open_config(plan).breakdown
    groups = {}
    for column in wanted:
        if column in data.columns or column not in DEFAULT_BREAKDOWN:
            groups[column] = data.group_values(judged.split, judged.rows, column)
    return replace(outcomes, groups=groups)


def describe_data(plan: WorkPlan) -> dict[str, Any]:
    """What is judged on, in numbers. Raises `UserError` where a breakdown column is not there."""
    data = open_data(plan)
    for column in set(open_config(plan).breakdown) - set(DEFAULT_BREAKDOWN):
        data.group_values(data.judged_split, np.zeros(1, np.int64), column)
    info = data.dataset.info
    return {
        "fingerprint": data.fingerprint,
        "split": data.judged_split,
        "pairs": {name: split.pairs for name, split in info.splits.items()},
        "patients": {name: split.patients for name, split in info.splits.items()},
        "labels": list(data.label_names),
        "sources": dict(info.sources),
        "licenses": dict(info.licenses),
    }


def _store(plan: WorkPlan) -> ResultStore:
    from mpma.data.storage import open_storage

    return ResultStore(open_storage(plan.results))


def _enter(plan: WorkPlan) -> None:
    """Settings of the process: files for the owner alone, and the threads that scores depend on."""
    os.umask(0o077)
    import torch

    torch.set_num_threads(plan.threads)
