"""From stored image files to crops of one size, in threads.

Decisions: a crop's box is drawn from the counter hash, so decoding may happen in any process and any
thread with the same pixels as result. Cut first, then resize (bicubic, antialiased), so that no pixel
outside the crop is resized. Where the crop is at least twice as large as what is asked for, libjpeg
decodes at a half, a quarter or an eighth of the size, which is far cheaper. Otherwise torchvision's
operation decodes (256 pixels 0.29 ms, 512 pixels 1.04 ms, Pillow 0.34 and 1.11). It is called as an
operation: the function around it warns at each call, which takes a tenth of the time and keeps the
interpreter's lock. A JPEG's size is read from its frame header in 1 us, where Pillow's opening takes
25 us. Decoding and resizing release the lock. Pillow decodes what is not JPEG.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode

from mpma.data.counter_hash import uniform
from mpma.data.images import read_grey
from mpma.data.resizing import Grey, resized
from mpma.data.sources.contract import UnreadableImage
from mpma.errors import UserError

_SHARES_PER_THREAD: Final = 4

_START_OF_IMAGE: Final = b"\xff\xd8\xff"
_FRAME_HEADERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame header (ITU-T T.81, table B.1)."""


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
        return self.begin(images, epoch, position, augment=augment, executor=executor, threads=threads)()

    def begin(
        self,
        images: Sequence[bytes | memoryview],
        epoch: NDArray[np.int64],
        position: NDArray[np.int64],
        *,
        augment: bool,
        executor: Executor | None,
        threads: int,
    ) -> Callable[[], Tensor]:
        """As a call; the work is given to the executor at once, and the function returned waits for it."""
        out = torch.empty(len(images), 1, self.size, self.size, dtype=torch.uint8)
        crops = out.numpy()
        draws = (
            uniform(self.seed, "crop", epoch[:, None], position[:, None], np.arange(5)) if augment else None
        )

        def decode(first: int, last: int) -> None:
            for index in range(first, last):
                try:
                    crops[index, 0] = self._crop(images[index], None if draws is None else draws[index])
                except (UnreadableImage, OSError, RuntimeError, SyntaxError, ValueError) as error:
                    raise UserError(
                        f"the image of a stored pair cannot be decoded ({type(error).__name__}; "
                        f"row {index} of its batch, position {int(position[index])})",
                        "a shard is damaged: restore it from a copy or ingest the archive again",
                    ) from error

        parts: list[Future[None]] = []
        if executor is not None:
            count = min(len(images), threads * _SHARES_PER_THREAD)
            edges = np.linspace(0, len(images), count + 1).astype(int).tolist()
            parts = [executor.submit(decode, first, last) for first, last in pairwise(edges)]

        def finish() -> Tensor:
            if executor is None:
                decode(0, len(images))
            for part in parts:
                part.result()
            return out

        return finish

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

    def _crop(self, data: bytes | memoryview, draws: NDArray[np.float64] | None) -> Grey:
        """uint8 [S,S]"""
        size = jpeg_size(data)
        box = None if size is None else self.box(*size, draws)
        if box is not None and min(box.width, box.height) < 2 * self.size:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            whole: Grey = torch.ops.image.decode_jpeg(encoded, ImageReadMode.GRAY.value, False)[0].numpy()
        else:
            with Image.open(io.BytesIO(data)) as image:
                whole, box = _decoded_by_pillow(image, data, self.box(*image.size, draws), self.size)
        crop = resized(whole[box.top : box.top + box.height, box.left : box.left + box.width], self.size)
        flipped = self.flip and draws is not None and draws[4] < 0.5
        return crop[:, ::-1] if flipped else crop


def jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) in pixels as a JPEG's frame header has them; None where none is found."""
    if data[:3] != _START_OF_IMAGE:
        return None
    place, end = 2, len(data) - 9
    while place < end and data[place] == 0xFF:
        if data[place + 1] in _FRAME_HEADERS:
            return data[place + 7] << 8 | data[place + 8], data[place + 5] << 8 | data[place + 6]
        if data[place + 1] == 0xFF:  # A marker may be led in by any number of these.
            place += 1
            continue
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return None


def _decoded_by_pillow(image: Image.Image, data: bytes | memoryview, box: Box, size: int) -> tuple[Grey, Box]:
    """uint8 [H,W], perhaps at a fraction of the size, and the box in its pixels."""
    full_width, full_height = image.size
    if image.format == "JPEG":
        image.draft("L", (full_width * size // box.width, full_height * size // box.height))
    pixels = np.array(image) if image.mode == "L" else read_grey(bytes(data))
    across, down = pixels.shape[1] / full_width, pixels.shape[0] / full_height
    left, top = round(box.left * across), round(box.top * down)
    width, height = max(1, round(box.width * across)), max(1, round(box.height * down))
    return pixels, Box(left, top, width, height)
