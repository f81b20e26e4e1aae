"""From stored image files to crops of one size, in threads.

Decisions: a crop's box is drawn from the counter hash, so decoding may happen in any process and any
thread with the same pixels as result. Cut first, then resize (bicubic, antialiased), so that no pixel
outside the crop is resized. Where the crop is at least twice as large as what is asked for, libjpeg
decodes at a half, a quarter or an eighth of the size, which is far cheaper. Otherwise torchvision
decodes: together with torch's resize it took 0.56 ms for 256 -> 224 pixels and 1.75 ms for 512 -> 224
where Pillow took 0.73 and 2.15 ms (one thread; 512 -> 448: 2.04 and 2.6 ms). Both release the
interpreter's lock. Pillow reads the header in both cases, and decodes what is not JPEG.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from mpma.data.counter_hash import uniform
from mpma.data.images import read_grey
from mpma.data.sources.contract import UnreadableImage
from mpma.errors import UserError

_SHARES_PER_THREAD: Final = 4


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Cropper:
    """Cuts and resizes: random-resized crops for training, the centre view for validation. Picklable."""

    size: int
    """S, side of the crop in pixels."""
    scale_min: float
    """Smallest share of the image's area that a random crop keeps."""
    scale_max: float
    """Largest share of the image's area that a random crop keeps."""
    aspect_max: float
    """The crop's aspect ratio is log-uniform between 1/aspect_max and aspect_max."""
    flip: bool
    """Mirror half of the random crops."""
    seed: int

    def __call__(
        self,
        images: Sequence[bytes | memoryview],
        epoch: NDArray[np.int64],
        position: NDArray[np.int64],
        *,
        augment: bool,
        executor: Executor | None = None,
        threads: int = 1,
    ) -> Tensor:
        """uint8 [B,1,S,S] from B encoded images and int64 [B] counters.

        `augment` False gives the centre view: the largest central square. With an `executor` the
        images are shared out in parts; the pixels do not depend on it. Raises `UserError` naming the
        position in the batch where an image cannot be decoded.
        """
        out = torch.empty(len(images), 1, self.size, self.size, dtype=torch.uint8)
        draws = (
            uniform(self.seed, "crop", epoch[:, None], position[:, None], np.arange(5)) if augment else None
        )

        def decode(first: int, last: int) -> None:
            for index in range(first, last):
                try:
                    out[index] = self._crop(images[index], None if draws is None else draws[index])
                except (UnreadableImage, OSError, RuntimeError, SyntaxError, ValueError) as error:
                    raise UserError(
                        f"the image of a stored pair cannot be decoded ({type(error).__name__}; "
                        f"row {index} of its batch, position {int(position[index])})",
                        "a shard is damaged: restore it from a copy or ingest the archive again",
                    ) from error

        if executor is None:
            decode(0, len(images))
        else:
            parts = min(len(images), threads * _SHARES_PER_THREAD)
            edges = np.linspace(0, len(images), parts + 1).astype(int).tolist()
            for done in [executor.submit(decode, first, last) for first, last in pairwise(edges)]:
                done.result()
        return out

    def box(self, width: int, height: int, draws: NDArray[np.float64] | None) -> Box:
        """The crop of an image of `width` x `height` pixels from float64 [5] draws; None: the centre view."""
        if draws is None:
            side = min(width, height)
            return Box((width - side) // 2, (height - side) // 2, side, side)
        scale, aspect, across, down, _ = draws.tolist()
        area = width * height * (self.scale_min + (self.scale_max - self.scale_min) * scale)
        ratio = math.exp((2 * aspect - 1) * math.log(self.aspect_max))
        wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
        # A box that would stick out keeps its area as far as the image allows, and gives up its aspect.
        if wide > width:
            wide, high = width, min(height, area / width)
        elif high > height:
            wide, high = min(width, area / height), height
        columns, lines = max(1, round(wide)), max(1, round(high))
        left, top = int(across * (width - columns + 1)), int(down * (height - lines + 1))
        return Box(left, top, columns, lines)

    def _crop(self, data: bytes | memoryview, draws: NDArray[np.float64] | None) -> Tensor:
        """uint8 [1,S,S]"""
        with Image.open(io.BytesIO(data)) as image:
            box = self.box(*image.size, draws)
            if image.format == "JPEG" and min(box.width, box.height) < 2 * self.size:
                whole = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.GRAY)
            else:
                whole, box = _decoded_by_pillow(image, data, box, self.size)
        part = whole[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
        if part.shape[2:] != (self.size, self.size):
            part = torch.nn.functional.interpolate(
                part, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
            )
        flipped = self.flip and draws is not None and draws[4] < 0.5
        return part[0].flip(-1) if flipped else part[0]


def _decoded_by_pillow(
    image: Image.Image, data: bytes | memoryview, box: Box, size: int
) -> tuple[Tensor, Box]:
    """uint8 [1,H,W], perhaps at a fraction of the size, and the box in its pixels."""
    full_width, full_height = image.size
    if image.format == "JPEG":
        image.draft("L", (full_width * size // box.width, full_height * size // box.height))
    pixels = np.array(image) if image.mode == "L" else read_grey(bytes(data))
    across, down = pixels.shape[1] / full_width, pixels.shape[0] / full_height
    left, top = round(box.left * across), round(box.top * down)
    width, height = max(1, round(box.width * across)), max(1, round(box.height * down))
    return torch.from_numpy(pixels)[None], Box(left, top, width, height)
