"""Rules: every kind of figure as a function of the examples' weights.

Decisions:
- A rule reads arrays with one entry per example and weights [B, m]; an integer weight counts as that many
  copies of its example, so a rule at weights 1 is the textbook figure and at counts is a bootstrap's.
- A label that a resample cannot judge is left out of it: without both classes for the AUROC, without a
  positive for the average precision, without a positive in truth and in decisions for F1 (scikit-learn's
  `zero_division=nan`). A decision for a label that nobody has is judged: its F1 is 0.
- NaN among `labels`, or as a `value`, means not judged; that example is left out of that label.
- BLEU is not smoothed: a corpus without a match of some length scores 0.

Sources: average precision as scikit-learn defines it, sum_k (R_k - R_{k-1}) P_k over distinct scores.
BLEU: K. Papineni et al., ACL 2002, of a corpus. Both are tested against the libraries.
Shapes: m examples · L labels · B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.metrics.bootstrap import Floats, weighted_auroc, weighted_mean

Arrays = Mapping[str, NDArray[Any]]
Options = Mapping[str, Any]

Rule = Callable[[Arrays, Options, Floats], Floats]
"""(arrays by role, options, example weights [B, m]) -> values [B]; NaN where the figure does not exist."""

_MaskedMeasure = Callable[[Floats, NDArray[np.bool_], Floats], Floats]


def mean(arrays: Arrays, options: Options, weights: Floats) -> Floats:
    """Mean of `value` [m] over the examples that have one."""
    value = np.asarray(arrays["value"], dtype=np.float64)
    known = ~np.isnan(value)
    return weighted_mean(value[known], weights[:, known])


def ratio(arrays: Arrays, options: Options, weights: Floats) -> Floats:
    """Sum of `numerator` [m] over the sum of `denominator` [m], of the examples that have both."""
    above = np.asarray(arrays["numerator"], dtype=np.float64)
    below = np.asarray(arrays["denominator"], dtype=np.float64)
    known = ~(np.isnan(above) | np.isnan(below))
    kept = weights[:, known]
    return _quotient(kept @ above[known], kept @ below[known])


def macro_auroc(arrays: Arrays, options: Options, weights: Floats) -> Floats:
    """Mean over labels of the AUROC of `scores` [m, L] for `labels` [m, L] (1, 0 or NaN).

    `columns` (optional) chooses the labels. One-hot labels give the one-against-rest AUROC of classes.
    """
    return _over_labels(weighted_auroc, arrays, options, weights)


def macro_auprc(arrays: Arrays, options: Options, weights: Floats) -> Floats:
    """Mean over labels of the average precision; arrays and options of `macro_auroc`."""
    return _over_labels(weighted_average_precision, arrays, options, weights)


def macro_f1(arrays: Arrays, options: Options, weights: Floats) -> Floats:
    """Mean over labels of F1 of `decisions` bool [m, L] for `labels` [m, L], or those in `columns`."""
    hits, decided, true = _decision_counts(arrays, options, weights)
    return _mean_of_known(_quotient(2.0 * hits, decided + true))


def micro_f1(arrays: Arrays, options: Options, weights: Floats) -> Floats:
    """F1 of all decisions together; arrays and options of `macro_f1`."""
    hits, decided, true = _decision_counts(arrays, options, weights)
    return _quotient(2.0 * hits.sum(axis=1), (decided + true).sum(axis=1))


def bleu(arrays: Arrays, options: Options, weights: Floats) -> Floats:
    """BLEU-n of a corpus, 0 to 1, `n` = 1 to 4: geometric mean of n precisions times the brevity penalty.

    `matches` and `totals` [m, 4]: n-grams of the hypothesis that match (clipped), and all of them;
    `lengths` [m, 2]: words of the hypothesis and of the closest reference. Sums are taken over examples.
    """
    order = int(options["n"])
    if not 1 <= order <= 4:
        raise ValueError(f"BLEU-{order} is not BLEU-1 to BLEU-4")
    matches, totals, lengths = (
        weights @ np.asarray(arrays[role], dtype=np.float64) for role in ("matches", "totals", "lengths")
    )
    precisions = matches[:, :order] / np.maximum(totals[:, :order], 1.0)
    said, meant = lengths.T
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mean = np.log(precisions).mean(axis=1)
        log_penalty = np.minimum(0.0, 1.0 - meant / said)
        value = np.where(said > 0.0, np.exp(log_mean + log_penalty), 0.0)
    return np.where(meant + said > 0.0, value, np.nan)


def weighted_average_precision(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision under each row of weights [B, n], from one sort: [B].

    scores [n], positive bool [n]. Equal scores are one threshold. NaN where a row gives no positive any
    weight. Fastest where the weights of an example lie together in memory, as in the transpose of [n, B].
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], positive[order]
    last_of_ties = np.append(ranked[1:] != ranked[:-1], True) if len(ranked) else np.zeros(0, dtype=np.bool_)
    by_example = weights.T[order]
    # Only thresholds at which a positive is met add to the sum.
    group = np.cumsum(last_of_ties) - last_of_ties
    hit_groups = np.unique(group[truth])
    ends = np.flatnonzero(last_of_ties)[hit_groups]
    positives = by_example[truth]
    gained = np.zeros((len(hit_groups), len(weights)))
    np.add.at(gained, np.searchsorted(hit_groups, group[truth]), positives)
    found = np.cumsum(gained, axis=0)
    retrieved = np.cumsum(by_example, axis=0)[ends]
    precision = np.divide(found, retrieved, out=np.zeros_like(found), where=retrieved > 0.0)
    return _quotient(np.einsum("gb,gb->b", gained, precision), positives.sum(axis=0))


def _over_labels(measure: _MaskedMeasure, arrays: Arrays, options: Options, weights: Floats) -> Floats:
    scores, labels = arrays["scores"], arrays["labels"]
    by_example = np.ascontiguousarray(weights.T)
    found = []
    for column in _columns(options, scores.shape[1]):
        known = np.flatnonzero(~np.isnan(labels[:, column]))
        kept = by_example if len(known) == len(labels) else by_example[known]
        found.append(measure(scores[known, column], labels[known, column] == 1, kept.T))
    return _mean_of_known(np.stack(found, axis=1))


def _decision_counts(arrays: Arrays, options: Options, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """True positives, decided positives and real positives of each label: [B, L] each."""
    columns = list(_columns(options, arrays["labels"].shape[1]))
    labels = np.asarray(arrays["labels"], dtype=np.float64)[:, columns]
    decided = np.asarray(arrays["decisions"], dtype=np.bool_)[:, columns] & ~np.isnan(labels)
    true = labels == 1
    hits, decisions, positives = (
        weights @ table.astype(np.float64) for table in (decided & true, decided, true)
    )
    return hits, decisions, positives


def _columns(options: Options, labels: int) -> Sequence[int]:
    chosen: Sequence[int] = options.get("columns", range(labels))
    if not len(chosen):
        raise ValueError("a figure over labels needs at least one")
    return chosen


def _mean_of_known(table: Floats) -> Floats:
    """Mean along the second axis [B, L] of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(table)
    return _quotient(np.where(known, table, 0.0).sum(axis=1), known.sum(axis=1))


def _quotient(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below != 0.0, above / below, np.nan)


KINDS: Final[dict[str, Rule]] = {
    "mean": mean,
    "ratio": ratio,
    "macro_auroc": macro_auroc,
    "macro_auprc": macro_auprc,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "bleu": bleu,
}
"""Every rule by name."""
