"""How much the held-out splits differ from train, in standard effect sizes, from mergeable histograms.

Decisions:
- Means are compared by Cohen's d (difference over the root of the mean variance), shares by Cohen's h, both
  of "Statistical Power Analysis for the Behavioral Sciences", 1988, where 0.2 is small, 0.5 medium and 0.8
  large, and whole distributions by the Kolmogorov-Smirnov distance, which sees a mixture of the same mean.
- A difference is marked where it is above the threshold and above what chance alone exceeds once in a hundred
  times. Chance is reckoned with patients, not images, since images of one patient are alike; for shares it
  allows for as many looks as there are values.
- Values are whole numbers, so a variance of 1/12 stands for their rounding: two splits of one constant size
  each have a difference, not a division by zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.pairs import SPLITS
from mpma.data.quality_info import DriftInfo, HistogramInfo
from mpma.data.statistics import PairStatistics, quantile

Counts = Mapping[int, int]
"""Pairs by whole value."""

NUMERIC: Final = ("short_side", "aspect", "grey_mean", "report_words")
"""Shorter side as the image came in pixels, width by height in hundredths, mean grey level 0..255, words."""

_ROUNDING: Final = 1 / 12
_UNLIKELY: Final = 0.01
_BINS: Final = 32
_LABELS: Final = 10


def drift(statistics: Mapping[str, PairStatistics], threshold: float) -> list[DriftInfo]:
    """Every comparison of val and test with train, where both have pairs."""
    train = statistics["train"]
    found = []
    for split in SPLITS[1:]:
        other = statistics[split]
        if not (train.pairs and other.pairs):
            continue
        spread = math.sqrt(1 / max(1, len(train.patients)) + 1 / max(1, len(other.patients)))
        for name in NUMERIC:
            found += _numeric(name, split, numeric_counts(train, name), numeric_counts(other, name), spread)
        shares = {
            "view": (train.views, train.pairs, other.views, other.pairs),
            "source": (train.sources, train.pairs, other.sources, other.pairs),
            "label": (train.labels, train.labelled_pairs, other.labels, other.labelled_pairs),
        }
        for name, (ours, of_ours, theirs, of_theirs) in shares.items():
            found += _shares(name, split, ours, of_ours, theirs, of_theirs, spread)
    labels = [one for one in found if one.characteristic == "label"]
    labels.sort(key=lambda one: -abs(one.effect))
    strongest = list(dict.fromkeys(one.value for one in labels))[:_LABELS]
    return [
        one.model_copy(update={"marked": abs(one.effect) > max(threshold, one.chance)})
        for one in found
        if one.characteristic != "label" or one.value in strongest
    ]


def numeric_counts(statistics: PairStatistics, name: str) -> Counts:
    """The histogram of one of `NUMERIC`."""
    return {
        "short_side": statistics.original_sides,
        "aspect": statistics.aspects,
        "grey_mean": statistics.grey_means,
        "report_words": statistics.report_words,
    }[name]


def mean_and_deviation(counts: Counts) -> tuple[float, float]:
    """Exact mean and standard deviation of counted whole values; 0 for none."""
    total = sum(counts.values())
    if not total:
        return 0.0, 0.0
    first = sum(value * count for value, count in counts.items())
    second = sum(value * value * count for value, count in counts.items())
    # Whole numbers up to here, so that the order of counting does not matter.
    return first / total, math.sqrt(max(0, second * total - first * first)) / total


def standardised_difference(train: Counts, other: Counts) -> float:
    """Cohen's d of two histograms: (mean of other - mean of train) / root of the mean variance."""
    (ours, our_spread), (theirs, their_spread) = mean_and_deviation(train), mean_and_deviation(other)
    return (theirs - ours) / math.sqrt((our_spread**2 + their_spread**2) / 2 + _ROUNDING)


def distribution_distance(train: Counts, other: Counts) -> float:
    """Kolmogorov-Smirnov distance of two histograms, 0..1."""
    ours, theirs = sum(train.values()), sum(other.values())
    reached, largest = [0, 0], 0
    for value in sorted({*train, *other}):
        reached[0] += train.get(value, 0)
        reached[1] += other.get(value, 0)
        largest = max(largest, abs(reached[0] * theirs - reached[1] * ours))
    return largest / (ours * theirs) if ours and theirs else 0.0


def share_difference(train: float, other: float) -> float:
    """Cohen's h of two proportions: 2 arcsin sqrt(other) - 2 arcsin sqrt(train)."""
    return 2 * math.asin(math.sqrt(other)) - 2 * math.asin(math.sqrt(train))


def histogram(by_split: Mapping[str, Counts]) -> HistogramInfo | None:
    """At most 32 bins of equal width up to the value that 99 of 100 do not exceed; None without values."""
    together: dict[int, int] = {}
    for counts in by_split.values():
        for value, count in counts.items():
            together[value] = together.get(value, 0) + count
    if not together:
        return None
    low, high = min(together), quantile(together, 0.99)
    step = max(1, -(-(high - low + 1) // _BINS))
    edges = list(range(low, high + 1, step))
    told = {split: mean_and_deviation(counts) for split, counts in by_split.items() if counts}
    return HistogramInfo(
        edges=edges,
        counts={split: _binned(counts, edges, step).tolist() for split, counts in by_split.items()},
        mean={split: mean for split, (mean, _) in told.items()},
        deviation={split: deviation for split, (_, deviation) in told.items()},
    )


def _binned(counts: Counts, edges: Sequence[int], step: int) -> NDArray[np.int64]:
    bins = np.zeros(len(edges), dtype=np.int64)
    for value, count in counts.items():
        bins[min((value - edges[0]) // step, len(edges) - 1)] += count
    return bins


def _numeric(name: str, split: str, train: Counts, other: Counts, spread: float) -> list[DriftInfo]:
    if not (train and other):
        return []
    (ours, _), (theirs, _) = mean_and_deviation(train), mean_and_deviation(other)
    difference, distance = standardised_difference(train, other), distribution_distance(train, other)
    least_distance = math.sqrt(-math.log(_UNLIKELY / 2) / 2) * spread
    return [
        _info(name, split, "mean", "", ours, theirs, difference, _normal(1) * spread),
        _info(name, split, "shape", "", 0.0, 0.0, distance, least_distance),
    ]


def _shares(
    name: str,
    split: str,
    train: Mapping[str, int],
    of_train: int,
    other: Mapping[str, int],
    of_other: int,
    spread: float,
) -> list[DriftInfo]:
    """Shares of each value, the largest effect first."""
    if not (of_train and of_other):
        return []
    values = sorted({*train, *other})
    found: list[DriftInfo] = []
    for value in values:
        ours, theirs = train.get(value, 0) / of_train, other.get(value, 0) / of_other
        if name != "label" and ours == theirs == 1.0:
            continue  # the only view or source there is
        chance = _normal(len(values)) * spread
        found.append(_info(name, split, "share", value, ours, theirs, share_difference(ours, theirs), chance))
    return sorted(found, key=lambda one: (-abs(one.effect), one.value))


def _normal(looks: int) -> float:
    """Standard deviations that chance exceeds in any of so many looks once in a hundred times."""
    return NormalDist().inv_cdf(1 - _UNLIKELY / 2 / max(1, looks))


def _info(
    name: str, split: str, measure: str, value: str, train: float, other: float, effect: float, chance: float
) -> DriftInfo:
    return DriftInfo.model_validate(
        {
            "characteristic": name,
            "split": split,
            "measure": measure,
            "value": value,
            "train": train,
            "other": other,
            "effect": effect,
            "chance": chance,
            "marked": False,
        }
    )
