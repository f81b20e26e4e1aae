"""Receiver operating curves with few points, of scores that outcomes keep.

Decisions: a curve has at most a hundred points, kept where it bends most evenly along its length, since a
page of many labels would else be mostly curves; the mean curve is that of true positive rates over labels
at the same false positive rate (vertical averaging: T. Fawcett, An introduction to ROC analysis, Pattern
Recognition Letters 27 (2006), section 8.1).

Shapes: n examples · L labels · q points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.metrics.outcomes import Outcomes

MOST_POINTS: Final = 100

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Rates from (0, 0) to (1, 1), both rising."""

    false_positive_rate: Floats
    """[q]."""
    true_positive_rate: Floats
    """[q]."""


def roc_curve(scores: NDArray[Any], positive: NDArray[np.bool_]) -> Curve | None:
    """Of scores [n], positive bool [n]; ties are one step. None without both classes."""
    positives = int(positive.sum())
    if not positives or positives == len(positive):
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], positive[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = np.cumsum(truth)[last]
    false = last + 1 - found
    return Curve(
        np.concatenate([[0.0], false / (len(positive) - positives)]),
        np.concatenate([[0.0], found / positives]),
    )


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """The curve through at most `most` of its points, evenly along it, both ends included."""
    x, y = curve.false_positive_rate, curve.true_positive_rate
    if len(x) <= most:
        return curve
    along = x + y
    wanted = np.linspace(0.0, along[-1], most)
    kept = np.unique(np.clip(np.searchsorted(along, wanted), 0, len(x) - 1))
    kept[0], kept[-1] = 0, len(x) - 1
    return Curve(x[kept], y[kept])


def mean_curve(curves: Sequence[Curve], points: int = MOST_POINTS) -> Curve | None:
    """Mean true positive rate over labels at the same false positive rates; None without a curve."""
    if not curves:
        return None
    at = np.linspace(0.0, 1.0, points - 1)
    heights = []
    for curve in curves:
        # Of several points over one place the last is the highest, where the next step begins.
        x, last = np.unique(curve.false_positive_rate[::-1], return_index=True)
        heights.append(np.interp(at, x, curve.true_positive_rate[::-1][last]))
    mean = np.mean(heights, axis=0)
    return Curve(np.concatenate([[0.0], at]), np.concatenate([[0.0], mean]))


def label_curves(outcomes: Outcomes) -> dict[str, Curve]:
    """Whole curves by label, of the arrays that the first AUROC of the outcomes reads; empty without one."""
    figure = next((one for one in outcomes.figures.values() if one.kind == "macro_auroc"), None)
    if figure is None:
        return {}
    scores, labels = (outcomes.arrays[figure.arrays[role]] for role in ("scores", "labels"))
    columns = figure.options.get("columns", range(scores.shape[1]))
    names = outcomes.names.get(figure.arrays["labels"]) or [
        f"label {at + 1}" for at in range(scores.shape[1])
    ]
    found = {}
    for column in columns:
        known = ~np.isnan(labels[:, column])
        curve = roc_curve(scores[known, column], labels[known, column] == 1)
        if curve is not None:
            found[str(names[column])] = curve
    return found
