"""The `quality` section of `dataset.json`: what stands twice, and how the splits differ. Counts only.

Decisions: pairs are counted here and named in `near_duplicates.parquet` alone; histograms are stored in few
bins, enough for a page to be made of the marker without reading a shard.
"""

from __future__ import annotations

from typing import Final, Literal

from mpma.data.file_info import FileInfo
from mpma.strict import StrictConfig

NEAR_DUPLICATES_FILE: Final = "near_duplicates.parquet"

DEFAULT_DRIFT_EFFECT: Final = 0.2


class GroupsInfo(StrictConfig):
    """Groups of two or more pairs that share something."""

    groups: int
    """All groups."""
    pairs: int
    """Pairs in them."""
    one_patient: int
    """Groups whose pairs belong to one patient."""
    across_patients: int
    """Groups with pairs of several patients."""
    across_splits: int
    """Of these, groups with pairs of several splits."""
    held_out: dict[str, int]
    """Pairs of val and of test that share with a pair of train: leakage."""

    @property
    def held_out_total(self) -> int:
        """Pairs of `held_out` together."""
        return sum(self.held_out.values())


class HistogramInfo(StrictConfig):
    """Distribution of one characteristic in each split."""

    edges: list[int]
    """Lower edges of the bins; the last bin has no upper end."""
    counts: dict[str, list[int]]
    """Pairs in each bin, by split."""
    mean: dict[str, float]
    """Exact means, by split with pairs."""
    deviation: dict[str, float]
    """Exact standard deviations."""


class DriftInfo(StrictConfig):
    """One difference between a split and train."""

    characteristic: str
    """`short_side`, `aspect`, `grey_mean`, `report_words`, `view`, `source` or `label`."""
    split: str
    """`val` or `test`."""
    measure: Literal["mean", "shape", "share"]
    """`mean`: standardised difference of means (Cohen's d); `shape`: largest distance of the cumulated
    distributions (Kolmogorov-Smirnov); `share`: Cohen's h of two proportions."""
    value: str
    """The view, source or label whose share it is; else empty."""
    train: float
    """Mean or share in train; for `shape` 0."""
    other: float
    """Mean or share in the split; for `shape` 0."""
    effect: float
    """The effect, signed where it has a direction (positive: more than in train)."""
    chance: float
    """What chance alone exceeds once in a hundred times, for this many patients."""
    marked: bool
    """Whether the effect is above the threshold and above chance."""


class QualityInfo(StrictConfig):
    """What is known about the dataset as a whole."""

    near_duplicates: FileInfo
    """The file that names the pairs of the groups."""
    pictures: GroupsInfo | None
    """Pairs whose images show one picture. None: not compared."""
    pictures_by_bytes: int
    """Images that have no signs (nearly blank): compared by their bytes alone."""
    reports: GroupsInfo | None
    """Pairs whose reports are the same once case, punctuation and marks are folded. None: not compared."""
    histograms: dict[str, HistogramInfo]
    """By characteristic."""
    views: dict[str, dict[str, int]]
    """Pairs by split and view."""
    drift: list[DriftInfo]
    """Every comparison of a split with train; of labels the strongest."""
    drift_effect: float
    """The threshold of `marked`."""
