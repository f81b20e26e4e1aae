"""Pictures of what the image branch does: original, masked, reconstructed, a row per pair.

Decisions: only into the run directory and readable by its owner alone (mode 0600 on a local disk), as
pixels may be confidential; never through a logger or tracker. Visible patches are shown as they are.
Where the target is standardised per patch the model does not predict a patch's mean and deviation, so
the true ones are used: such a picture shows predicted structure, not predicted brightness, and its
title says so. The pairs are the first of the validation gallery, with the reference mask.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mpma.config import ExperimentConfig
from mpma.data.storage import Storage
from mpma.data.tokenizer import ReportTokenizer
from mpma.training.reference_batches import CentreViews, ReferenceBatches, reference_collator
from mpma.training.validation import measuring
from mpma.training.validation_sets import ValidationDataset, choose_gallery

COLUMNS: Final = ("original", "masked", "reconstructed")
SMALLEST_TILE: Final = 160
"""Smaller pictures are enlarged by a whole factor, pixel for pixel."""

_GAP: Final = 6
_LINE: Final = 20


def picture_sheet(original: Tensor, masked: Tensor, reconstructed: Tensor, title: list[str]) -> Image.Image:
    """Grey sheet with one row per pair and one column per stage; [B,1,S,S] of grey 0..1 each."""
    count, _, side, _ = original.shape
    factor = max(1, -(-SMALLEST_TILE // side))
    tile = side * factor
    width = len(COLUMNS) * (tile + _GAP) + _GAP
    head = _LINE * (len(title) + 1) + 2 * _GAP
    sheet = Image.new("L", (width, head + count * (tile + _GAP)), color=16)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for number, line in enumerate(title):
        draw.text((_GAP, _GAP + number * _LINE), line, fill=255, font=font)
    for column, (name, stage) in enumerate(zip(COLUMNS, (original, masked, reconstructed), strict=True)):
        left = _GAP + column * (tile + _GAP)
        draw.text((left, _GAP + len(title) * _LINE), name, fill=200, font=font)
        grey = (stage.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        for row in range(count):
            enlarged = np.kron(grey[row, 0], np.ones((factor, factor), dtype=np.uint8))
            sheet.paste(Image.fromarray(enlarged), (left, head + row * (tile + _GAP)))
    return sheet


class PictureDrawer:
    """Writes `step_00000200.png` into a folder of the run directory; called as drawer(model, step)."""

    def __init__(
        self,
        dataset: ValidationDataset,
        config: ExperimentConfig,
        tokenizer: ReportTokenizer,
        folder: Storage,
        *,
        target_scale: int,
        device: torch.device,
        synthetic: bool,
        precision: str = "fp32",
    ) -> None:
        self._folder, self._device, self._precision = folder, device, precision
        validation = config.validation
        collator = reference_collator(config, tokenizer, target_scale)
        views = CentreViews(dataset, collator.cropper, threads=1, budget_bytes=0)
        rows, _ = choose_gallery(dataset, max(2, config.pictures.pairs), validation.seed)
        (batch,) = ReferenceBatches(dataset, collator, views).masked(
            rows[: config.pictures.pairs],
            validation.reference_image_mask_ratio,
            [validation.reference_report_mask_ratio],
        )
        self._batch = batch.to(device)
        hidden = 1 - batch.visible / batch.patch_order.shape[1]
        self._title = [f"{hidden:.0%} of the patches hidden"]
        if config.image.target_normalisation == "patch":
            self._title.append("brightness and contrast of each hidden patch are the true ones")
        self._kind = "SYNTHETIC phantom" if synthetic else "validation pairs"

    def __call__(self, model: Any, step: int) -> None:
        """Draw and write the sheet of a step. Raises `JobError` where the folder cannot be written."""
        with measuring(model, self._device, self._precision):
            result = model.reconstruct(self._batch)
        title = [f"{self._kind} · step {step:,}", *self._title]
        sheet = picture_sheet(result.original, result.masked, result.reconstructed, title)
        content = io.BytesIO()
        sheet.save(content, "PNG")
        self._folder.make_directory()
        self._folder.write(f"step_{step:08d}.png", content.getvalue())
