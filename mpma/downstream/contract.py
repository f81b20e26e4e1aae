"""What a downstream task is: prepare, fit, predict, score; the same for all of them.

Decisions:
- `prepare` looks at the data alone and says what is judged; `fit` and `predict` see one model, `score` sees
  no model. So a model cannot move what it is judged on, and every model meets the same examples.
- Each task can state the predictions of a perfect and of a constant predictor: the first is what its tests
  hold it to, the second is the chance level that stands beside every figure.
- What cannot be judged (a label without a positive, an unknown answer, an empty mask) is counted in
  `problems` and told, never a silent NaN; where nothing is left to judge, `NotPossible` says why.
- What comes back are outcomes by patient, without text, identifier or pixel; examples are made only where
  the user asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpma.downstream.config import EvaluationConfig
from mpma.errors import UserError

if TYPE_CHECKING:
    from mpma.downstream.features import FeatureStore
    from mpma.downstream.labelled import LabelledData
    from mpma.loading import LoadedModel
    from mpma.metrics.outcomes import Outcomes

Predictions = Mapping[str, Any]
"""A task's own arrays and lists, one entry per judged example."""


class NotPossible(UserError):  # noqa: N818 - a verdict on data, told in the report and not a failure
    """The data (or the model) do not allow this task or job; the message says what is missing."""


@dataclass(frozen=True)
class Job:
    """One model is fitted once: the unit that is spread over the cluster and resumed."""

    task: str
    method: str = ""
    """Way of the task (`linear_probe`), empty where there is one."""
    fraction: float = 1.0
    """Share of the labelled training patients."""
    seed: int = 0
    """Of label subset and training."""

    @property
    def variant(self) -> str:
        """Prefix of the figures that seeds share: `linear_probe/10%`, or empty."""
        parts = [self.method] if self.method else []
        if self.method in ("linear_probe", "knn", "fine_tune"):
            parts.append(f"{100 * self.fraction:g}%")
        return "/".join(parts)

    @property
    def key(self) -> str:
        """Name of the job's files."""
        parts = [self.task, *self.variant.replace("%", "pct").split("/"), f"seed{self.seed}"]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Judged:
    """The examples that every model is judged on, in order; tasks extend it with their truth."""

    split: str
    rows: NDArray[np.int64]
    """[m]: row of the split that each example stands on; a row may serve several examples."""
    patients: NDArray[np.str_]
    """[m]: keyed hash of each example's patient; never stored."""
    problems: Mapping[str, int] = field(default_factory=dict)
    """What could not be judged or had to be treated: a line of text and how often."""


@dataclass(frozen=True)
class Related:
    """What a retrieval example found, best first."""

    score: float
    hit: bool
    text: str | None = None
    image: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Example:
    """One judged example as a report page shows it. Confidential: made only where the user asks."""

    title: str
    """What is shown, such as `report to image`; no identifier."""
    image: NDArray[np.uint8] | None
    """[S, S] grey, as the model saw it."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Texts by what they are: `report`, `generated`, `question`, `answer`, `given`."""
    overlays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """[h, w] in 0..1 by name, drawn over the image: `true mask`, `predicted mask`, a word's attention."""
    related: Sequence[Related] = ()


class Task(Protocol):
    """One downstream task. Instances are built from an `EvaluationConfig` and hold nothing else."""

    @property
    def name(self) -> str:
        """A member of `mpma.downstream.config.TASKS`."""
        ...

    def jobs(self) -> list[Job]:
        """All jobs of one model, in the order in which they are best started (long ones first)."""
        ...

    def prepare(self, data: LabelledData) -> Any:
        """What is fitted on and judged (a `Judged`). Raises `NotPossible` where the data lack something."""
        ...

    def fit(self, model: LoadedModel, features: FeatureStore, prepared: Any, job: Job) -> Any:
        """A fitted predictor; a pure function of its arguments. Raises `NotPossible`."""
        ...

    def predict(
        self, model: LoadedModel, features: FeatureStore, prepared: Any, job: Job, fitted: Any
    ) -> Predictions:
        """Predictions of every judged example, in order."""
        ...

    def score(self, prepared: Any, predictions: Predictions) -> Outcomes:
        """Figures by patient. Raises `NotPossible` where predictions are not finite."""
        ...

    def perfect(self, prepared: Any) -> Predictions:
        """Predictions of one who knows the truth."""
        ...

    def constant(self, prepared: Any) -> Predictions:
        """The best predictions that ignore the example: their score is chance."""
        ...

    def examples(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: Any,
        job: Job,
        fitted: Any,
        predictions: Predictions,
        count: int,
    ) -> list[Example]:
        """The first `count` judged examples to be shown; confidential."""
        ...


def task(name: str, config: EvaluationConfig) -> Task:
    """The task of that name. Modules are imported only when asked for."""
    import importlib

    module = importlib.import_module(f"mpma.downstream.{name}")
    made: Task = module.build(config)
    return made
