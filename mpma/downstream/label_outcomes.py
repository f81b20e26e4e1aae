"""From scores of labels to outcomes: what is judged, where thresholds lie, which figures exist.

Decisions:
- What is judged is decided by the judged split alone, the same for every model, method and fraction: the
  labels with a positive and a negative there. The others are named in the problems.
- Where every labelled pair of all splits carries exactly one label, the labels are classes: the decision
  is the class of the highest score and `accuracy` stands beside the rest. Else each label is decided by its
  own threshold.
- A threshold is the one of the best F1 on pairs that are not judged. It never moves AUROC or AUPRC.

Shapes: m judged examples · n other examples · L all labels · F judged labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.downstream.contract import Judged, NotPossible
from mpma.downstream.labelled import LabelledData, LabelledRows
from mpma.metrics.outcomes import Figure, Outcomes, identity_of, numbered_patients

Floats = NDArray[np.float64]

_MOST_NAMES: Final = 12
"""Labels named in one problem; the rest are counted."""

MOST_LABELS_SHOWN: Final = 40
"""Labels with a figure of their own: an open vocabulary has thousands, hardly ever positive."""

_SCORED: Final = {"scores": "scores", "labels": "labels"}
_DECIDED: Final = {"decisions": "decisions", "labels": "labels"}


@dataclass(frozen=True, kw_only=True)
class JudgedLabels(Judged):
    """Labelled pairs of the judged split."""

    label_names: Sequence[str]
    """All L."""
    truth: Floats
    """[m, L]: 1 or 0."""
    columns: NDArray[np.int64]
    """[F]: labels that are judged."""
    classes: bool
    """Whether every labelled pair carries exactly one label."""

    @property
    def judged_names(self) -> list[str]:
        """Names of the judged labels."""
        return [self.label_names[column] for column in self.columns]

    @property
    def judged_truth(self) -> Floats:
        """[m, F]."""
        return self.truth[:, self.columns]


def judge_labels(data: LabelledData, others: Sequence[LabelledRows]) -> JudgedLabels:
    """The judged split's labels. `others`: labelled pairs of further splits, which must fit for classes.

    Raises `NotPossible` where nothing is labelled there, or no label has both a positive and a negative.
    """
    split, names = data.judged_split, data.label_names
    judged = data.labelled(split)
    if not names or not len(judged.rows):
        raise NotPossible(f"no pair of the {split} split is labelled", "ingest with a column of labels")
    positives = judged.labels.sum(axis=0)
    usable = (positives > 0) & (positives < len(judged.labels))
    problems: dict[str, int] = {}
    for what, wrong in (("positive", positives == 0), ("negative", positives == len(judged.labels))):
        if wrong.any():
            missing = [names[column] for column in np.flatnonzero(wrong)]
            told = f"labels without a {what} in the {split} split, left out: {named(missing)}"
            problems[told] = len(missing)
    if not usable.any():
        raise NotPossible(f"no label has both a positive and a negative in the {split} split")
    return JudgedLabels(
        split=split,
        rows=judged.rows,
        patients=judged.patients,
        problems=problems,
        label_names=names,
        truth=judged.labels,
        columns=np.flatnonzero(usable),
        classes=all(bool((part.labels.sum(axis=1) == 1).all()) for part in (judged, *others)),
    )


def named(names: Sequence[str]) -> str:
    """Label names as a line of text, the first dozen of them."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def best_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """The threshold t of the best F1 of `scores >= t` on [n]; the highest of equals.

    It lies halfway between the neighbouring scores. Raises ValueError without a positive.
    """
    if not positive.any():
        raise ValueError("a threshold needs a positive")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(positive[order])[last]
    best = int(np.argmax(2.0 * hits / (last + 1 + positive.sum())))
    lowest = ranked[last[best]]
    if best + 1 == len(last):
        return float(lowest)
    between = 0.5 * (lowest + ranked[last[best + 1]])
    # Between neighbouring floats there is nothing halfway.
    return float(between if between > ranked[last[best + 1]] else lowest)


def class_decisions(scores: Floats) -> NDArray[np.bool_]:
    """[m, L] -> one-hot [m, L]: the class of the highest score, the first of equals."""
    return np.eye(scores.shape[1], dtype=bool)[scores.argmax(axis=1)]


def label_outcomes(
    judged: JudgedLabels, scores: Floats, decisions: NDArray[np.bool_], problems: Mapping[str, int]
) -> Outcomes:
    """Outcomes of scores and decisions [m, L]: `auroc`, `auprc`, `f1`, `accuracy`, and `auroc/LABEL` of the
    labels with most positives.

    Raises `NotPossible` where a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise NotPossible("the model's scores are not finite")
    columns, truth = judged.columns, judged.judged_truth
    arrays: dict[str, NDArray[np.float64] | NDArray[np.bool_]] = {
        "scores": scores[:, columns],
        "labels": truth,
        "decisions": decisions[:, columns],
    }
    figures = {
        "auroc": Figure("macro_auroc", _SCORED),
        "auprc": Figure("macro_auprc", _SCORED),
        "f1": Figure("macro_f1", _DECIDED),
    }
    if judged.classes:
        arrays["correct"] = (decisions & (judged.truth == 1)).any(axis=1).astype(np.float64)
        figures["accuracy"] = Figure("mean", {"value": "correct"})
    headline = tuple(figures)
    positives = np.nansum(truth, axis=0)
    shown = np.sort(np.argsort(-positives, kind="stable")[:MOST_LABELS_SHOWN])
    for place in shown.tolist():
        name = judged.judged_names[place]
        figures[f"auroc/{name}"] = Figure("macro_auroc", _SCORED, {"columns": [place]})
    names = judged.judged_names
    return Outcomes(
        patient=numbered_patients(judged.patients),
        arrays=arrays,
        figures=figures,
        headline=headline,
        identity=identity_of(judged.patients, judged.rows, truth),
        problems={**judged.problems, **problems},
        names={"scores": names, "labels": names, "decisions": names},
    ).checked()


def perfect_labels(judged: JudgedLabels) -> dict[str, NDArray[np.float64] | NDArray[np.bool_]]:
    """Scores and decisions [m, L] that are the truth."""
    return {"scores": judged.truth.copy(), "decisions": judged.truth == 1}


def constant_labels(
    judged: JudgedLabels, prior: NDArray[np.float64]
) -> dict[str, NDArray[np.float64] | NDArray[np.bool_]]:
    """The best scores and decisions [m, L] that ignore the image; `prior` [L]: shares of the classes.

    Equal scores for all; every label decided as present, which is the best constant F1, or, for classes,
    the most frequent one.
    """
    scores = np.zeros_like(judged.truth)
    if not judged.classes:
        return {"scores": scores, "decisions": np.ones(scores.shape, dtype=bool)}
    return {"scores": scores, "decisions": class_decisions(np.tile(prior, (len(scores), 1)))}
