"""Masks as their images are seen: the same crop, nearest neighbour.

Decisions:
- A true mask is judged on the image's centre view, the largest central square, at the mask's own resolution
  up to `JUDGED_SIDE` pixels: what is judged does not depend on the size that a model works at.
- Only nearest neighbour is used: a mean of two values would be a third that nobody drew.

Shapes: H, W pixels of a stored mask · S side of a square view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpma.data.counter_hash import uniform
from mpma.data.decoding import Box, Cropper
from mpma.data.masks import read_mask

Mask = NDArray[np.bool_]

JUDGED_SIDE: Final = 256
"""Most pixels of the side of a judged view."""


def cut(mask: Mask, box: Box, side: int) -> Mask:
    """The box of bool [H, W] at [side, side], nearest neighbour by pixel centres."""
    part = mask[box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape == (side, side):
        return part
    lines, columns = (
        np.minimum(((np.arange(side) + 0.5) * length / side).astype(np.int64), length - 1)
        for length in part.shape
    )
    return part[lines[:, None], columns[None, :]]


def at_side(mask: Mask, side: int) -> Mask:
    """A square mask at another size, nearest neighbour."""
    return cut(mask, Box(0, 0, len(mask), len(mask)), side)


def judged_view(foreground: Mask, judged: Mask, most: int = JUDGED_SIDE) -> tuple[Mask, Mask]:
    """Centre view of a mask and of what is judged of it, bool [S, S] each; S at most `most`."""
    height, width = foreground.shape
    length = min(height, width)
    box = Box((width - length) // 2, (height - length) // 2, length, length)
    side = min(length, most)
    return cut(foreground, box, side), cut(judged, box, side)


def mask_crops(
    masks: Sequence[bytes | memoryview],
    cropper: Cropper,
    epoch: NDArray[np.int64],
    position: NDArray[np.int64],
    *,
    augment: bool,
) -> tuple[Tensor, Tensor]:
    """Foreground and judged pixels, bool [B,S,S] each, of the crops that `cropper` makes of the images.

    Arguments as the cropper's. Raises `UnreadableImage` where a mask is damaged.
    """
    shape = (len(masks), cropper.size, cropper.size)
    foreground, judged = np.empty(shape, np.bool_), np.empty(shape, np.bool_)
    draws = (
        uniform(cropper.seed, "crop", epoch[:, None], position[:, None], np.arange(5)) if augment else None
    )
    for index, data in enumerate(masks):
        own = None if draws is None else draws[index]
        true, known = read_mask(bytes(data))
        box = cropper.box(true.shape[1], true.shape[0], own)
        flip = cropper.flip and own is not None and own[4] < 0.5
        for out, source in ((foreground, true), (judged, known)):
            view = cut(source, box, cropper.size)
            out[index] = view[:, ::-1] if flip else view
    return torch.from_numpy(foreground), torch.from_numpy(judged)
