"""What an evaluation works on, as plain values that any process can open: models, data, jobs, places.

Decisions: everything a task on another machine needs travels as a small picklable plan, never a tensor or a
table; a process opens data and models once and keeps them for its next job. A job's result is named by all
that decides it (weights, data, settings of its task), so a changed setting runs anew exactly what it changes
and an interrupted evaluation goes on from what is there.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mpma.downstream.contract import Job, Task
from mpma.metrics.outcomes import FORMAT_VERSION

if TYPE_CHECKING:
    from mpma.downstream.config import EvaluationConfig
    from mpma.downstream.features import FeatureStore
    from mpma.downstream.labelled import LabelledData
    from mpma.loading import LoadedModel

RESULT_VERSION: Final = 1
"""Raised with every change of what a task judges or how it fits, so that older results are run anew."""


@dataclass(frozen=True)
class ModelPlan:
    """How to load one model. Hashable."""

    name: str
    """As tables call it."""
    kind: str
    """`run` (the judged one), `untrained`, or `baseline`."""
    run: str
    """Folder of the judged run, which untrained models and baselines are built like."""
    spec: str = ""
    """Of a baseline: `NAME=run:PATH`, `NAME=image:FILE` and so on."""
    device: str = "cpu"
    precision: str = "fp32"
    step: int | None = None
    """Checkpoint of the judged run. None: the newest, which `Engine.describe` then pins for all jobs."""


@dataclass(frozen=True)
class WorkPlan:
    """Shared by all jobs of an evaluation. Hashable."""

    data: str
    """Place of the labelled dataset."""
    config: str
    """JSON of the `EvaluationConfig`."""
    results: str
    """Folder of the jobs' results."""
    features: str
    """Folder of the features that are kept."""
    threads: int = 1


def open_config(plan: WorkPlan) -> EvaluationConfig:
    """The settings."""
    from mpma.downstream.config import EvaluationConfig

    return EvaluationConfig.model_validate_json(plan.config, strict=False)


@functools.lru_cache(maxsize=1)
def open_data(plan: WorkPlan) -> LabelledData:
    """The data, opened once in a process."""
    from mpma.data.dataset import Dataset
    from mpma.downstream.labelled import LabelledData

    return LabelledData(Dataset.open(plan.data), open_config(plan).split)


@functools.lru_cache(maxsize=2)
def open_model(model: ModelPlan) -> LoadedModel:
    """A model, loaded once in a process. Raises `UserError`."""
    from mpma.loading import load_run, untrained
    from mpma.training.run_directory import RunDirectory

    judged = load_run(
        RunDirectory.opened(model.run),
        device=model.device,
        precision=model.precision,
        name=model.name,
        step=model.step,
    )
    if model.kind == "run":
        return judged
    if model.kind == "untrained":
        return untrained(judged, model.name)
    from mpma.baselines import baseline

    return baseline(model.spec, judged)


@functools.lru_cache(maxsize=2)
def open_features(plan: WorkPlan, model: ModelPlan) -> FeatureStore:
    """Features of a model on the data."""
    from mpma.data.storage import open_storage
    from mpma.downstream.features import FeatureStore

    return FeatureStore(
        open_model(model), open_data(plan), open_storage(plan.features), open_config(plan).batch_size
    )


@functools.lru_cache(maxsize=8)
def prepared(plan: WorkPlan, name: str) -> tuple[Task, Any]:
    """A task and what it judges on the data. Raises `NotPossible`."""
    from mpma.downstream.contract import task

    made = task(name, open_config(plan))
    return made, made.prepare(open_data(plan))


def result_name(config: EvaluationConfig, job: Job, model: ModelPlan, weights: str, fingerprint: str) -> str:
    """Name of a job's result without its ending: readable parts, and a digest of all that decides it."""
    section = getattr(config, job.task).model_dump()
    # What only says which jobs there are, or belongs to another method, does not decide a job.
    for key in ("label_fractions", "fine_tune_fractions", "methods"):
        section.pop(key, None)
    for key, method in (("neighbours", "knn"), ("fine_tune", "fine_tune")):
        if job.method and job.method != method:
            section.pop(key, None)
    decides = [
        RESULT_VERSION,
        FORMAT_VERSION,
        section,
        _content(section.get("prompts")),
        [weights, model.precision, model.device, fingerprint],
        [config.split, config.breakdown, config.breakdown_least_patients],
        [config.threads_per_job, config.batch_size, config.image_cache_bytes],
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
    return f"{job.key}--{model.name}--{digest}"


def _content(path: str | None) -> str:
    """Hash of a file that the settings name: another content under the same name is another setting."""
    return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
