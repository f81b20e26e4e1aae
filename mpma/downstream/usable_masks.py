"""Which masks of a split can be used, and where a mask usually lies.

Decisions: what cannot be used is counted with its reason, never raised: one damaged file must not end an
evaluation. Masks are held as bits: a thousand of 256 pixels are 8 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.masks import read_mask
from mpma.data.sources.contract import UnreadableImage
from mpma.downstream.labelled import LabelledData
from mpma.downstream.mask_views import Mask, at_side, judged_view
from mpma.metrics.masks import mask_scores

MEAN_SIDE: Final = 128
"""Side in pixels at which training masks are averaged."""

_THRESHOLDS: Final = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
_CHOSEN_ON: Final = 512
"""Training masks on which the threshold is chosen."""
_READ_AT_ONCE: Final = 512


@dataclass(frozen=True)
class PackedMask:
    """bool [S, S] as bits."""

    bits: NDArray[np.uint8]
    side: int

    @classmethod
    def of(cls, mask: Mask) -> PackedMask:
        """Pack bool [S, S]."""
        return cls(np.packbits(mask), len(mask))

    def mask(self) -> Mask:
        """bool [S, S]."""
        area = self.side * self.side
        return np.unpackbits(self.bits, count=area).astype(np.bool_).reshape(self.side, self.side)


class UsableMasks:
    """The usable masks of a split, found in one pass over `read`."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.rows: list[int] = []
        """Rows of what was read so far."""
        self.problems: Counter[str] = Counter()
        """What was left out or is told."""

    def read(self, data: LabelledData, column: str) -> Iterator[tuple[Mask, Mask]]:
        """Foreground and judged pixels of every usable mask, bool [H, W] each, in row order."""
        for start in range(0, data.rows(self.split), _READ_AT_ONCE):
            rows = np.arange(start, min(start + _READ_AT_ONCE, data.rows(self.split)))
            sizes = data.table(self.split, ["width", "height"], rows)
            for row, mask, width, height in zip(
                rows.tolist(),
                data.masks(self.split, rows, column),
                sizes["width"].to_pylist(),
                sizes["height"].to_pylist(),
                strict=True,
            ):
                if mask is None:
                    continue
                try:
                    foreground, judged = read_mask(mask)
                except UnreadableImage:
                    self.problems["masks that cannot be read, left out"] += 1
                    continue
                if foreground.shape != (height, width):
                    self.problems["masks of another size than their image, left out"] += 1
                elif not judged_view(foreground, judged)[1].any():
                    self.problems["masks without a judged pixel, left out"] += 1
                else:
                    if not judged_view(foreground, judged)[0].any():
                        self.problems["empty masks: right only where nothing is predicted"] += 1
                    self.rows.append(row)
                    yield foreground, judged

    def told(self) -> str:
        """What was left out, for a message."""
        return "".join(f"; {count} {what}" for what, count in self.problems.items())


class UsualMask:
    """The mean of training masks, each place over the masks that judge it."""

    def __init__(self) -> None:
        self._foreground = np.zeros((MEAN_SIDE, MEAN_SIDE), np.int64)
        self._judged = np.zeros((MEAN_SIDE, MEAN_SIDE), np.int64)
        self._first: list[tuple[Mask, Mask]] = []

    def add(self, foreground: Mask, judged: Mask) -> None:
        """Count one mask, bool [H, W] each."""
        view, known = (at_side(one, MEAN_SIDE) for one in judged_view(foreground, judged, MEAN_SIDE))
        self._foreground += view & known
        self._judged += known
        if len(self._first) < _CHOSEN_ON:
            self._first.append((view, known))

    def mask(self) -> Mask:
        """bool [128, 128]: the mean at the threshold of the best mean Dice on the first masks."""
        mean = self._foreground / np.maximum(self._judged, 1)
        candidates = [mean >= threshold for threshold in _THRESHOLDS]
        true, known = ([pair[part] for pair in self._first] for part in (0, 1))
        scores = [mask_scores([one] * len(true), true, known)["dice"].mean() for one in candidates]
        return candidates[int(np.argmax(scores))]
