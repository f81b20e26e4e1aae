"""Classification: findings read from an image by a linear probe, by nearest neighbours, or by fine-tuning.

Decisions:
- All methods read the mean patch token of the centre view. Labels are judged as `label_outcomes` says:
  the same ones for every share of the labels, so that shares can be compared.
- The subset of a share is drawn by patient among the labelled training pairs; with the whole of them the
  linear probe and the nearest neighbours depend on no seed, so they are fitted once there, with seed 0.
- A label without a positive (or a negative) in the subset cannot be fitted: it scores the same for all
  images, AUROC 0.5, and the problems name it. It stays in the means, since what a method cannot learn
  from few labels is part of what it is worth.
- The threshold behind F1 is chosen on the val split where that is not judged and holds a positive, else
  on the fitted pairs (which flatters it there, not on the judged pairs).

Shapes: m judged examples · L all labels · F fitted labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Example, Job, NotPossible, Predictions
from mpma.downstream.features import FeatureStore, centre_views
from mpma.downstream.fine_tune import fine_tune, tuned_logits
from mpma.downstream.knn import remember
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
from mpma.downstream.labelled import LabelledData, LabelledRows, Rows, patients_within
from mpma.downstream.linear_probe import fit_linear
from mpma.loading import LoadedModel
from mpma.metrics.outcomes import Outcomes

_LONGEST_FIRST: Final = ("fine_tune", "linear_probe", "knn")

Score = Callable[[str, Rows], Floats]
"""Split and rows [m] -> scores of the fitted labels [m, F]."""


@dataclass(frozen=True, kw_only=True)
class PreparedClassification(JudgedLabels):
    """What is judged, and the labelled pairs of the splits that are not."""

    train: LabelledRows
    val: LabelledRows | None
    """Where thresholds are chosen; None where it is the judged split or holds no label."""


@dataclass(frozen=True)
class FittedClassifier:
    """A fitted method: how it scores, and what it decides from scores."""

    score: Score
    columns: NDArray[np.int64]
    """[F]: the labels that it knows."""
    thresholds: Floats
    """[F]; unused for classes."""
    problems: Mapping[str, int] = field(default_factory=dict)


def build(config: EvaluationConfig) -> Classification:
    """The task."""
    return Classification(config)


@dataclass(frozen=True)
class Classification:
    """See the module."""

    config: EvaluationConfig

    name = "classification"

    def jobs(self) -> list[Job]:
        """Methods x shares x seeds, the long ones first."""
        own = self.config.classification
        made = []
        for method in (one for one in _LONGEST_FIRST if one in own.methods):
            shares = own.fine_tune_fractions if method == "fine_tune" else None
            for fraction in sorted(set(shares or own.label_fractions), reverse=True):
                seeded = method == "fine_tune" or fraction < 1.0
                several = self.config.resolved_fit_seeds if method == "fine_tune" else self.config.seeds
                seeds = range(several) if seeded else range(1)
                made += [Job(self.name, method, fraction, seed) for seed in seeds]
        return made

    def prepare(self, data: LabelledData) -> PreparedClassification:
        """Labelled pairs of every split. Raises `NotPossible` where one that is needed has none."""
        train = data.labelled("train")
        if not len(train.rows):
            raise NotPossible("no pair of the train split is labelled", "ingest with a column of labels")
        val = data.labelled("val") if data.judged_split != "val" else None
        judged = judge_labels(data, [train] if val is None else [train, val])
        return PreparedClassification(
            **vars(judged), train=train, val=val if val is not None and len(val.rows) else None
        )

    def fit(
        self, model: LoadedModel, features: FeatureStore, prepared: PreparedClassification, job: Job
    ) -> FittedClassifier:
        """One method on one share. Raises `NotPossible` where the share shows no label both ways."""
        train = prepared.train
        inside = patients_within(train.patients, job.fraction, job.seed)
        rows, labels = train.rows[inside], train.labels[inside]
        positives = labels.sum(axis=0)
        known = (positives > 0) & (positives < len(labels))
        share = f"{100 * job.fraction:g}% of the labels, seed {job.seed}"
        if not known.any():
            raise NotPossible(
                f"{share}: none of its {len(rows)} pairs' labels has both a positive and a negative",
                "give a larger classification.label_fractions",
            )
        columns = np.flatnonzero(known)
        score = self._fitted(model, features, prepared, job, rows, labels[:, columns], train.patients[inside])
        problems = {}
        for what, wrong in (("positive", positives == 0), ("negative", positives == len(labels))):
            missing = [prepared.label_names[column] for column in prepared.columns if wrong[column]]
            if missing:
                told = f"labels without a {what} in {share}, scored the same for all: {named(missing)}"
                problems[told] = len(missing)
        thresholds = np.zeros(len(columns))
        if not prepared.classes:
            thresholds = self._thresholds(prepared, score, rows, labels[:, columns], columns)
        return FittedClassifier(score, columns, thresholds, problems)

    def predict(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: PreparedClassification,
        job: Job,
        fitted: FittedClassifier,
    ) -> Predictions:
        """`scores` [m, L], `decisions` bool [m, L], and `problems` of the fit."""
        known = fitted.score(prepared.split, prepared.rows)
        scores, decisions = np.zeros(prepared.truth.shape), np.zeros(prepared.truth.shape, dtype=bool)
        scores[:, fitted.columns] = known
        decisions[:, fitted.columns] = (
            class_decisions(known) if prepared.classes else known >= fitted.thresholds
        )
        return {"scores": scores, "decisions": decisions, "problems": fitted.problems}

    def score(self, prepared: PreparedClassification, predictions: Predictions) -> Outcomes:
        """Figures of `label_outcomes`. Raises `NotPossible` where a score is not finite."""
        return label_outcomes(
            prepared, predictions["scores"], predictions["decisions"], predictions.get("problems", {})
        )

    def perfect(self, prepared: PreparedClassification) -> Predictions:
        """The truth."""
        return perfect_labels(prepared)

    def constant(self, prepared: PreparedClassification) -> Predictions:
        """Equal scores; every label decided as present, or the most frequent class of the training pairs."""
        return constant_labels(prepared, prepared.train.labels.mean(axis=0))

    def examples(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: PreparedClassification,
        job: Job,
        fitted: FittedClassifier,
        predictions: Predictions,
        count: int,
    ) -> list[Example]:
        """Images with their true labels and the decided ones."""
        return label_examples(
            model, features, prepared, predictions, count, f"findings by {job.variant.replace('_', ' ')}"
        )

    def _fitted(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: PreparedClassification,
        job: Job,
        rows: Rows,
        labels: Floats,
        patients: NDArray[np.str_],
    ) -> Score:
        own, data = self.config.classification, features.data
        if job.method == "fine_tune":
            tuned = fine_tune(
                model,
                data,
                rows,
                labels,
                classes=prepared.classes,
                config=own.fine_tune,
                seed=job.seed,
                cache_bytes=self.config.image_cache_bytes,
            )
            return lambda split, asked: tuned_logits(model, tuned, data, split, asked, self.config.batch_size)
        fitted = finite_means(features, "train", rows)
        if job.method == "linear_probe":
            head = fit_linear(fitted, labels, patients)
            return lambda split, asked: head.logits(finite_means(features, split, asked))
        kept = remember(fitted, labels, own.neighbours)
        return lambda split, asked: kept.shares(
            finite_means(features, split, asked), themselves=split == "train"
        )

    def _thresholds(
        self,
        prepared: PreparedClassification,
        score: Score,
        rows: Rows,
        labels: Floats,
        columns: NDArray[np.int64],
    ) -> Floats:
        """[F]; on the val split where it holds a positive, else on the fitted pairs."""
        thresholds = np.zeros(len(columns))
        left = np.ones(len(columns), dtype=bool)
        if prepared.val is not None:
            truth = prepared.val.labels[:, columns] == 1
            left = ~truth.any(axis=0)
            scores = score("val", prepared.val.rows)
            for place in np.flatnonzero(~left):
                thresholds[place] = best_threshold(scores[:, place], truth[:, place])
        if left.any():
            scores = score("train", rows)
            for place in np.flatnonzero(left):
                thresholds[place] = best_threshold(scores[:, place], labels[:, place] == 1)
        return thresholds


def finite_means(features: FeatureStore, split: str, rows: Rows) -> NDArray[np.float32]:
    """Mean patch tokens [n, D]. Raises `NotPossible` where one is not finite."""
    found = features.image_means(split, rows)
    if not np.isfinite(found).all():
        raise NotPossible("the model's image features are not finite")
    return found


def label_examples(
    model: LoadedModel,
    features: FeatureStore,
    judged: JudgedLabels,
    predictions: Mapping[str, Any],
    count: int,
    title: str,
) -> list[Example]:
    """Images of the first judged pairs with their true and their decided labels."""
    if count < 1:
        return []
    pixels = centre_views(model, features.data, judged.split, judged.rows[:count]).cpu().numpy()

    def told(marks: NDArray[np.bool_]) -> str:
        present = [judged.label_names[column] for column in judged.columns if marks[column]]
        return ", ".join(present) or "none"

    return [
        Example(title, image[0], {"labels": told(truth == 1), "given": told(decided)})
        for image, truth, decided in zip(pixels, judged.truth[:count], predictions["decisions"], strict=False)
    ]
