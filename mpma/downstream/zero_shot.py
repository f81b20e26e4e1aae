"""Zero-shot classification: labels named in words, nothing learned from labels.

Decisions:
- The score of a label is the mean cosine of the image's aligned vector to the label's positive prompts less
  that to its negative ones. The temperature would scale it, which moves no figure.
- Positive pairs of the val split, where that is not judged, choose the threshold behind F1; a label without
  one is decided at 0, where both kinds of prompts are equally near, and the problems name it.
- Labels are judged as in classification, so the figures can be set side by side.

K. Huang et al., GLoRIA, ICCV 2021 (prompts of findings); E. Tiu et al., CheXzero, Nature Biomedical
Engineering 2022 (positive against negative prompts).
Shapes: m judged examples · L all labels · F judged labels · A alignment width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from mpma.downstream.classification import label_examples
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Example, Job, NotPossible, Predictions
from mpma.downstream.features import FeatureStore
from mpma.downstream.label_outcomes import (
    Floats,
    JudgedLabels,
    best_threshold,
    class_decisions,
    constant_labels,
    judge_labels,
    label_outcomes,
    named,
    perfect_labels,
)
from mpma.downstream.labelled import LabelledData, LabelledRows, Rows
from mpma.downstream.prompting import PromptBook, Prompts, prompt_book
from mpma.loading import LoadedModel
from mpma.metrics.outcomes import Outcomes


@dataclass(frozen=True, kw_only=True)
class PreparedZeroShot(JudgedLabels):
    """What is judged, and in which words."""

    prompts: Sequence[Prompts]
    """[L]."""
    val: LabelledRows | None
    """Where thresholds are chosen; None where it is the judged split or holds no label."""


@dataclass(frozen=True)
class FittedZeroShot:
    """Directions of the labels in the aligned space, and thresholds."""

    directions: Floats
    """[A, L]."""
    thresholds: Floats
    """[L]; unused for classes."""
    problems: Mapping[str, int] = field(default_factory=dict)


def build(config: EvaluationConfig) -> ZeroShot:
    """The task. Raises `UserError` where the user's prompt file is wrong."""
    task = ZeroShot(config)
    if config.zero_shot.prompts is not None:
        _ = task.given_prompts
    return task


@dataclass(frozen=True)
class ZeroShot:
    """See the module."""

    config: EvaluationConfig

    name = "zero_shot"

    @cached_property
    def given_prompts(self) -> PromptBook:
        """The user's prompts."""
        return prompt_book(self.config.zero_shot.prompts, synthetic=False)

    def jobs(self) -> list[Job]:
        """One: nothing is fitted but thresholds."""
        return [Job(self.name)]

    def prepare(self, data: LabelledData) -> PreparedZeroShot:
        """Labelled pairs of the judged split, and prompts. Raises `NotPossible` where there are none."""
        val = data.labelled("val") if data.judged_split != "val" else None
        judged = judge_labels(data, [part for part in (data.labelled("train"), val) if part is not None])
        book = self.given_prompts if self.config.zero_shot.prompts else None
        book = book or prompt_book(None, synthetic=data.synthetic)
        prompts = [book.of(label) for label in judged.label_names]
        plain = [judged.label_names[column] for column in judged.columns if not prompts[column].own]
        told = {f"labels without prompts of their own, asked for by name: {named(plain)}": len(plain)}
        return PreparedZeroShot(
            **{**vars(judged), "problems": {**judged.problems, **(told if plain else {})}},
            prompts=prompts,
            val=val if val is not None and len(val.rows) else None,
        )

    def fit(
        self, model: LoadedModel, features: FeatureStore, prepared: PreparedZeroShot, job: Job
    ) -> FittedZeroShot:
        """Directions from the prompts, thresholds from the val split."""
        directions = label_directions(model, prepared.prompts, self.config.batch_size)
        thresholds, problems = np.zeros(len(prepared.prompts)), {}
        if not prepared.classes:
            chosen = np.zeros(len(thresholds), dtype=bool)
            if prepared.val is not None:
                truth = prepared.val.labels == 1
                chosen = truth.any(axis=0)
                scores = _scores(features, "val", prepared.val.rows, directions)
                for column in np.flatnonzero(chosen):
                    thresholds[column] = best_threshold(scores[:, column], truth[:, column])
            missing = [prepared.label_names[column] for column in prepared.columns if not chosen[column]]
            if missing:
                told = f"labels without a positive to choose a threshold on, decided at 0: {named(missing)}"
                problems[told] = len(missing)
        return FittedZeroShot(directions, thresholds, problems)

    def predict(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: PreparedZeroShot,
        job: Job,
        fitted: FittedZeroShot,
    ) -> Predictions:
        """`scores` [m, L], `decisions` bool [m, L], and `problems` of the fit."""
        scores = _scores(features, prepared.split, prepared.rows, fitted.directions)
        decisions = class_decisions(scores) if prepared.classes else scores >= fitted.thresholds
        return {"scores": scores, "decisions": decisions, "problems": fitted.problems}

    def score(self, prepared: PreparedZeroShot, predictions: Predictions) -> Outcomes:
        """Figures of `label_outcomes`. Raises `NotPossible` where a score is not finite."""
        return label_outcomes(
            prepared, predictions["scores"], predictions["decisions"], predictions.get("problems", {})
        )

    def perfect(self, prepared: PreparedZeroShot) -> Predictions:
        """The truth."""
        return perfect_labels(prepared)

    def constant(self, prepared: PreparedZeroShot) -> Predictions:
        """Equal scores; every label decided as present, or the first class, since no prior is known."""
        return constant_labels(prepared, np.zeros(len(prepared.label_names)))

    def examples(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: PreparedZeroShot,
        job: Job,
        fitted: FittedZeroShot,
        predictions: Predictions,
        count: int,
    ) -> list[Example]:
        """Images with their true labels and the decided ones."""
        return label_examples(model, features, prepared, predictions, count, "findings by prompts")


def label_directions(model: LoadedModel, prompts: Sequence[Prompts], batch_size: int) -> Floats:
    """Mean vector of the positive prompts less that of the negative ones, per label: [A, L].

    Raises `NotPossible` where a vector is not finite.
    """
    texts = list(dict.fromkeys(text for one in prompts for text in (*one.positive, *one.negative)))
    place = {text: number for number, text in enumerate(texts)}
    parts = []
    with (
        torch.no_grad(),
        torch.autocast(model.device.type, torch.bfloat16, enabled=model.precision == "bf16"),
    ):
        for start in range(0, len(texts), batch_size):
            ids, attention, _ = model.tokens(texts[start : start + batch_size])
            parts.append(model.model.embed_reports(ids, attention).double().cpu().numpy())
    vectors: NDArray[np.float64] = np.concatenate(parts)
    if not np.isfinite(vectors).all():
        raise NotPossible("the model's vectors of the prompts are not finite")

    def mean(sentences: Sequence[str]) -> NDArray[np.float64]:
        return np.asarray(vectors[[place[text] for text in sentences]].mean(axis=0))

    return np.stack([mean(one.positive) - mean(one.negative) for one in prompts], axis=1)


def _scores(features: FeatureStore, split: str, rows: Rows, directions: Floats) -> Floats:
    images = features.image_vectors(split, rows)
    if not np.isfinite(images).all():
        raise NotPossible("the model's aligned image vectors are not finite")
    return np.asarray(images.astype(np.float64) @ directions)
