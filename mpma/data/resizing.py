"""A grey picture to a square, bicubic and antialiased, at less than half of what torch takes for one channel.

Decisions: the pixels are those of `torch.nn.functional.interpolate(..., "bicubic", antialias=True)`, bit
for bit. Torch's fast path for bytes works on four channels at once and spends three of them on nothing
where there is one. Torch resizes along the lines first, then along the columns, and a pass down the
columns treats every column alike: four neighbouring columns can be the four channels, without a copy. So
the first pass is made as a pass down the columns of the transposed picture. 256 -> 224 pixels took 0.13 ms
in place of 0.22, 512 -> 448 0.32 in place of 0.78 (one thread; `python -m benchmarks.decoding`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Grey = NDArray[np.uint8]

_CHANNELS: Final = 4
"""Channels of the fast path."""


def resized(pixels: Grey, size: int) -> Grey:
    """uint8 [H,W] to [size,size]; a picture of that size is given back as it is."""
    lines, columns = pixels.shape
    if size % _CHANNELS:
        whole = _interpolated(torch.from_numpy(np.ascontiguousarray(pixels))[None, None], size, size)
        return np.asarray(whole[0, 0].numpy())
    if columns != size:
        # The lines that fill up the last four channels are never looked at again.
        filled = np.empty((-(-lines // _CHANNELS) * _CHANNELS, columns), np.uint8)
        filled[:lines] = pixels
        pixels = np.ascontiguousarray(_down_the_columns(np.ascontiguousarray(filled.T), size).T)[:lines]
    return pixels if lines == size else _down_the_columns(np.ascontiguousarray(pixels), size)


def _down_the_columns(pixels: Grey, size: int) -> Grey:
    """uint8 [H,W], W a multiple of the channels, to [size,W]."""
    lines, columns = pixels.shape
    quarter = columns // _CHANNELS
    channels = torch.from_numpy(pixels).view(1, lines, quarter, _CHANNELS).permute(0, 3, 1, 2)
    shrunk = _interpolated(channels, size, quarter).permute(0, 2, 3, 1)
    return np.asarray(shrunk.reshape(size, columns).numpy())


def _interpolated(pictures: Tensor, lines: int, columns: int) -> Tensor:
    return functional.interpolate(
        pictures, (lines, columns), mode="bicubic", antialias=True, align_corners=False
    )
