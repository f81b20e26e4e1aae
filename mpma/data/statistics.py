"""What is counted about pairs while they are written: exact, and the same in whatever order parts end.

Decisions: grey levels are counted as a histogram of integers, so that sums over shards are exact and
the mean does not depend on how the work was shared out; medians, and whatever is compared between splits,
come from histograms of whole numbers for the same reason; patients and studies are sets of keyed hashes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL import Image

from mpma.data.dataset_info import ImagesInfo
from mpma.data.masks import is_empty_mask
from mpma.data.pairs import model_text

_LEVELS: Final = np.arange(256)
_COUNTS: Final = ("pairs", "labelled_pairs", "reports", "masks", "empty_masks", "questions")
_COUNTERS: Final = (
    "short_sides",
    "original_sides",
    "aspects",
    "grey_means",
    "report_words",
    "views",
    "labels",
    "sources",
    "licenses",
)


@dataclass
class PairStatistics:
    """Counts over some pairs of one split. `add` and `merge` commute."""

    pairs: int = 0
    labelled_pairs: int = 0
    reports: int = 0
    masks: int = 0
    empty_masks: int = 0
    questions: int = 0
    patients: set[str] = field(default_factory=set)
    studies: set[str] = field(default_factory=set)
    grey_levels: list[int] = field(default_factory=lambda: [0] * 256)
    short_sides: Counter[int] = field(default_factory=Counter)
    original_sides: Counter[int] = field(default_factory=Counter)
    """Shorter sides of the images as they came, in pixels, where that is known."""
    aspects: Counter[int] = field(default_factory=Counter)
    """Hundredths of width by height."""
    grey_means: Counter[int] = field(default_factory=Counter)
    """Mean grey level of each image, 0..255."""
    report_words: Counter[int] = field(default_factory=Counter)
    """Words of the text that a model reads, of pairs that have one."""
    views: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)

    def add(
        self, row: Mapping[str, Any], levels: np.ndarray, original_size: tuple[int, int] | None = None
    ) -> None:
        """Count one pair; `levels` int64 [256] is how many pixels have each grey level.

        `original_size`: width and height of the image as it came, where that is known.
        """
        self.pairs += 1
        self.patients.add(row["patient_id"])
        self.studies.add(row["study_id"])
        self.grey_levels = [a + b for a, b in zip(self.grey_levels, levels.tolist(), strict=True)]
        self.short_sides[min(row["width"], row["height"])] += 1
        if original_size is not None:
            self.original_sides[min(original_size)] += 1
        self.aspects[round(100 * row["width"] / row["height"])] += 1
        self.grey_means[round(int(levels @ _LEVELS) / int(levels.sum()))] += 1
        self.views[row["view"]] += 1
        self.sources[row["source"]] += 1
        self.licenses[row["license"]] += 1
        if row["labels"] is not None:
            self.labelled_pairs += 1
            self.labels.update(set(row["labels"]))
        if text := model_text(row["report"], row["findings"], row["impression"]):
            self.reports += 1
            self.report_words[len(text.split())] += 1
        if row.get("mask") is not None:
            self.masks += 1
            self.empty_masks += is_empty_mask(row["mask"])
        self.questions += len(row.get("questions") or ())

    def merge(self, other: PairStatistics) -> None:
        """Add the counts of another part of the same split."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.patients |= other.patients
        self.studies |= other.studies
        self.grey_levels = [a + b for a, b in zip(self.grey_levels, other.grey_levels, strict=True)]
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` turns them back."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "patients": sorted(self.patients),
            "studies": sorted(self.studies),
            "grey_levels": self.grey_levels,
            **{name: sorted(getattr(self, name).items()) for name in _COUNTERS},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PairStatistics:
        """The statistics that `to_json` wrote."""
        counts: dict[str, Any] = {name: data[name] for name in _COUNTS}
        counts |= {name: Counter(dict(data[name])) for name in _COUNTERS}
        return cls(
            patients=set(data["patients"]),
            studies=set(data["studies"]),
            grey_levels=list(data["grey_levels"]),
            **counts,
        )

    def images(self) -> ImagesInfo:
        """Grey mean and deviation over all pixels scaled 0..1, and shorter sides; at least one pair."""
        pixels = sum(self.grey_levels)
        mean = sum(level * count for level, count in enumerate(self.grey_levels)) / pixels
        square = sum(level * level * count for level, count in enumerate(self.grey_levels)) / pixels
        return ImagesInfo(
            grey_mean=mean / 255,
            grey_deviation=math.sqrt(max(square - mean * mean, 0.0)) / 255,
            short_side_median=quantile(self.short_sides, 0.5),
            short_side_min=min(self.short_sides),
            short_side_max=max(self.short_sides),
        )


def grey_histogram(grey: np.ndarray) -> np.ndarray:
    """int64 [256]: pixels of a uint8 image [H, W] by grey level."""
    # Pillow counts bytes as they are; NumPy would first make whole words of them, at three times the cost.
    return np.array(Image.fromarray(grey).histogram(), dtype=np.int64)


def quantile(counts: Mapping[int, int], fraction: float) -> int:
    """The smallest value that at least `fraction` of the counted values do not exceed; 0 for none."""
    total = sum(counts.values())
    passed = 0
    for value in sorted(counts):
        passed += counts[value]
        if passed >= fraction * total:
            return value
    return 0


def merged(parts: Iterable[PairStatistics]) -> PairStatistics:
    """The sum of several parts."""
    total = PairStatistics()
    for part in parts:
        total.merge(part)
    return total
