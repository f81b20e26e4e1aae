"""Stored pairs as validation sees them: the centre view, and masks that depend on pair and seed alone.

Decisions: a picture is decoded once, and kept as bytes as long as all that is kept fits into a budget;
what does not fit is decoded again each time. The masks of a pair are drawn from the validation seed
and the pair's row, so they are the same in every run, at every step and in any batch; hidden words are
drawn exactly, whatever report.mask_draw is in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
from torch import Tensor

from mpma.config import ExperimentConfig
from mpma.data.batches import Batch, Collator
from mpma.data.decoding import Cropper
from mpma.data.rows import PIXELS_COLUMN, encoded_images
from mpma.data.tokenizer import ReportTokenizer
from mpma.training.validation_sets import TEXT_COLUMNS, Rows, ValidationDataset


def reference_collator(config: ExperimentConfig, tokenizer: ReportTokenizer, target_scale: int) -> Collator:
    """The collator of reference batches: seeded by validation.seed, words drawn exactly."""
    report = config.report.model_copy(update={"mask_draw": "exact"})
    return Collator(tokenizer, config.image, report, config.validation.seed, target_scale, decode_threads=1)


class CentreViews:
    """Centre views of stored pairs, decoded when first asked for and kept while they fit into a budget."""

    def __init__(self, dataset: ValidationDataset, cropper: Cropper, threads: int, budget_bytes: int) -> None:
        self._dataset, self._cropper, self._threads = dataset, cropper, threads
        self._left = budget_bytes
        self._kept: dict[tuple[str, bytes], Tensor] = {}

    def get(self, split: str, rows: Rows) -> Tensor:
        """uint8 [n,1,S,S] of n rows of a split. Raises `UserError` where an image cannot be decoded."""
        key = (split, rows.tobytes())
        if key in self._kept:
            return self._kept[key]
        images = encoded_images(self._dataset.read_rows(split, rows, ["image"]))
        with ThreadPoolExecutor(self._threads) as executor:
            pixels = self._cropper(
                images,
                np.zeros_like(rows),
                rows,
                augment=False,
                executor=executor if self._threads > 1 else None,
                threads=self._threads,
            )
        if pixels.nbytes <= self._left:
            self._left -= pixels.nbytes
            self._kept[key] = pixels
        return pixels


class ReferenceBatches:
    """Batches of stored pairs with masks that depend on pair and seed alone."""

    def __init__(
        self, dataset: ValidationDataset, collator: Collator, views: CentreViews, split: str = "val"
    ) -> None:
        self._dataset, self._collator, self._views, self._split = dataset, collator, views, split

    def masked(self, rows: Rows, image_ratio: float, report_ratios: Sequence[float]) -> list[Batch]:
        """One batch of these rows of the split per report ratio, on the host; pixels are shared."""
        pixels = self._views.get(self._split, rows)
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(pixels[0].numel()), len(rows), [None, pa.py_buffer(pixels.numpy())]
        )
        table = self._dataset.read_rows(self._split, rows, [*TEXT_COLUMNS, "study_id"])
        table = table.append_column(PIXELS_COLUMN, column)
        batches = [
            self._collator.collate(
                table,
                np.zeros_like(rows),
                rows,
                image_mask_ratio=image_ratio,
                report_mask_ratio=ratio,
                augment=False,
            )
            for ratio in report_ratios
        ]
        return [replace(batch, pixels=pixels) for batch in batches]
