"""Fine-tuning for labels: a copy of the image encoder and a linear head on the mean patch token.

Decisions: the model that is judged stays as it is, the copy is trained; the head starts from a normal
distribution of the seed, the loss is binary cross-entropy per label, or cross-entropy of classes; every
random crop is drawn from (seed, step, place in the batch), so a pair that comes twice is cut twice.
With an encoder rate of 0 only the head is trained, and the encoder makes no gradients.

Protocol: BCE on mean-pooled tokens as MRM fine-tunes; AdamW and the schedule are `mpma.downstream.fitting`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mpma.downstream.config import FitConfig
from mpma.downstream.features import centre_views
from mpma.downstream.fitting import fit, seeded
from mpma.downstream.labelled import FitImages, LabelledData, Rows, batches, fit_order
from mpma.loading import LoadedModel

_HEAD_DEVIATION = 0.01


class TunedEncoder(nn.Module):
    """The encoder's copy and its head."""

    def __init__(self, loaded: LoadedModel, labels: int, seed: int) -> None:
        super().__init__()
        self.pixels = loaded.model.pixels
        self.encoder = copy.deepcopy(loaded.model.image_encoder)
        self.encoder.requires_grad_(True)
        self.head = seeded(seed, lambda: _head(self.encoder.width, labels))

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B,1,S,S] -> logits [B, F]."""
        tokens = self.encoder(self.pixels.encoder_view(self.pixels(pixels)))
        logits: Tensor = self.head(tokens.patches.mean(dim=1))
        return logits


def fine_tune(
    loaded: LoadedModel,
    data: LabelledData,
    rows: Rows,
    labels: NDArray[np.float64],
    *,
    classes: bool,
    config: FitConfig,
    seed: int,
    cache_bytes: int,
) -> TunedEncoder:
    """Train on rows [n] of the train split with labels [n, F] of 1 and 0; exactly one 1 a row for `classes`.

    Raises `JobError` where the loss is not finite.
    """
    tuned = TunedEncoder(loaded, labels.shape[1], seed).to(loaded.device)
    images = FitImages(data, "train", rows, cache_bytes)
    cropper = loaded.cropper(seed)
    targets = torch.from_numpy(labels).float()
    frozen = config.encoder_learning_rate_factor == 0

    def order(epoch: int) -> NDArray[np.int64]:
        return fit_order(rows, images.row_groups, seed, epoch)

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        place = np.arange(config.batch_size)
        drawn = batches(len(rows), config.batch_size, config.steps, order)
        for step, (_, chosen) in enumerate(drawn):
            counters = np.full(config.batch_size, step)
            pixels = cropper(images.get(rows[chosen]), counters, place, augment=config.augment)
            yield pixels.to(loaded.device), targets[torch.from_numpy(chosen)].to(loaded.device)

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        pixels, truth = batch
        logits = tuned(pixels).float()
        if classes:
            return functional.cross_entropy(logits, truth)
        return functional.binary_cross_entropy_with_logits(logits, truth)

    if frozen:
        tuned.encoder.requires_grad_(False)
    fit(loaded, tuned.head, tuned.encoder, config, made(), loss_of)
    return tuned


def tuned_logits(
    loaded: LoadedModel, tuned: TunedEncoder, data: LabelledData, split: str, rows: Rows, batch_size: int
) -> NDArray[np.float64]:
    """Logits of the centre views of some rows: float64 [m, F]."""
    found = []
    with (
        torch.no_grad(),
        torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.precision == "bf16"),
    ):
        for start in range(0, len(rows), batch_size):
            pixels = centre_views(loaded, data, split, rows[start : start + batch_size])
            found.append(tuned(pixels).double().cpu().numpy())
    return np.concatenate(found)


def _head(width: int, labels: int) -> nn.Linear:
    head = nn.Linear(width, labels)
    nn.init.normal_(head.weight, std=_HEAD_DEVIATION)
    nn.init.zeros_(head.bias)
    return head
