"""From images and texts to vectors, as validation and evaluation see them, in one pass over a batch.

Decisions: centre view, whole report, eval mode, no gradient; vectors come back in fp32 whatever the
precision of the pass; an image is encoded once for its own vectors and the fused one. A pair without text has
no text vector and no fused vector: an empty report would only give the vector of emptiness.

Shape letters: B pairs, S crop side, A alignment width, D image width, E text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpma.errors import JobError

if TYPE_CHECKING:
    from mpma.loading import LoadedModel

Vectors = NDArray[np.float32]

KINDS: Final = ("image", "image_mean", "text", "fused")
"""Aligned image vector [A], mean patch token [D], aligned text vector [A], fused representation [E+D]."""

OF_THE_IMAGE: Final = ("image", "image_mean")
OF_THE_TEXT: Final = ("text", "fused")

BATCH_SIZE: Final = 64


def widths(loaded: LoadedModel) -> dict[str, int]:
    """Width of each kind of vector."""
    aligned, image = loaded.config.alignment.width, loaded.model.image_encoder.width
    return {
        "image": aligned,
        "image_mean": image,
        "text": aligned,
        "fused": loaded.config.report.width + image,
    }


def untrained_kinds(loaded: LoadedModel) -> dict[str, str]:
    """Kinds of vectors that the run's losses never reached, with the reason."""
    model, found = loaded.model, dict[str, str]()
    if not model.wants_global:
        reason = "loss_weights.global_alignment is 0, so its projection is random"
        found |= {"image": reason, "text": reason}
    if not model.wants_report:
        found["fused"] = "the report reconstruction has no weight, so the fusion is random"
    return found


def embed_batch(
    loaded: LoadedModel,
    images: Sequence[bytes | memoryview] | None,
    texts: Sequence[str] | None,
    kinds: Sequence[str] = KINDS,
    cropper: Callable[..., Tensor] | None = None,
) -> dict[str, Vectors]:
    """The asked kinds of vectors of one batch, float32 [B, width].

    `images`: encoded files; `texts`: reports, empty where a pair has none, whose rows of `text` and `fused`
    are NaN and must be read as absent. None where no asked kind needs them. `cropper` stands in for the
    model's own, to decode in threads. Raises `UserError` where an image cannot be decoded and `JobError`
    where a vector is not finite.
    """
    device = loaded.device.type
    written = np.array([bool(text) for text in texts or ()], dtype=bool)
    found: dict[str, Tensor] = {}
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=loaded.precision == "bf16"):
        image = None
        if images is not None and any(kind in kinds for kind in (*OF_THE_IMAGE, "fused")):
            rows = np.arange(len(images))
            pixels = (cropper or loaded.cropper())(images, np.zeros_like(rows), rows, augment=False)
            image = loaded.model.embed_images(pixels.to(loaded.device))
            found |= {"image": image.aligned, "image_mean": image.mean}
        if texts is not None and written.any() and any(kind in kinds for kind in OF_THE_TEXT):
            ids, attention, words = loaded.tokens([text for text in texts if text])
            if "text" in kinds:
                found["text"] = loaded.model.embed_reports(ids, attention)
            if "fused" in kinds:
                assert image is not None
                own = image.rows(torch.from_numpy(np.flatnonzero(written)).to(loaded.device))
                found["fused"] = loaded.model.fuse_pairs(own, ids, attention, words)
    return {kind: _placed(kind, found.get(kind), written, loaded) for kind in kinds}


def embed_all(
    loaded: LoadedModel,
    images: Sequence[bytes | memoryview] | None,
    texts: Sequence[str] | None,
    kind: str,
    batch_size: int,
) -> Vectors:
    """One kind of vector of any number of images or pairs, float32 [n, width], batch by batch."""
    count = len(images if images is not None else texts or ())
    parts = [
        embed_batch(
            loaded,
            None if images is None else images[start : start + batch_size],
            None if texts is None else texts[start : start + batch_size],
            (kind,),
        )[kind]
        for start in range(0, count, batch_size)
    ]
    return np.concatenate(parts) if parts else np.empty((0, widths(loaded)[kind]), np.float32)


def _placed(kind: str, values: Tensor | None, written: NDArray[np.bool_], loaded: LoadedModel) -> Vectors:
    made = None if values is None else values.float().cpu().numpy()
    if made is not None and not np.isfinite(made).all():
        raise JobError(
            f"{loaded.origin}: the {kind} vectors of a batch are not finite",
            "with bf16, try fp32; else the weights themselves are not finite",
        )
    if kind in OF_THE_IMAGE and made is not None:
        return made
    placed = np.full((len(written), widths(loaded)[kind]), np.nan, np.float32)
    if made is not None:
        placed[written] = made
    return placed
