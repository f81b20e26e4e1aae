"""Masks: which pixels of an image belong to a structure, and which are not judged at all.

Decisions: a stored mask is a single-channel PNG of its image's size, in which 0 is background, 127 is
ignored (neither of the two, left out of training and of scores) and any other value is foreground; 255 is
what this software writes. A mask that comes as such a PNG is kept to the byte. Lossy files are refused
where values are taken as they stand, since their noise around 0 would count as foreground. Masks are
resized by nearest neighbour only: a mean of two values would be a third that nobody drew.
"""

from __future__ import annotations

import io
import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpma.data.decoding_cost import refuse_costly
from mpma.data.images import DEFAULT_MAX_PIXELS, sniff
from mpma.data.sources.contract import UnreadableImage

FOREGROUND: Final = 255
IGNORED: Final = 127

Values = NDArray[np.uint8]
"""uint8 [H, W]: the values of a mask's pixels."""

_LOSSLESS: Final = ("PNG", "BMP", "GIF", "TIFF")
_SINGLE_CHANNEL: Final = ("1", "L", "P", "I", "I;16")


def read_mask(data: bytes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What a stored mask says: foreground bool [H, W], and judged bool [H, W], False where ignored.

    Raises `UnreadableImage` with `unreadable_mask` where the file is damaged.
    """
    values = mask_values(data)
    judged = values != IGNORED
    return (values != 0) & judged, judged


def mask_values(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, lossy: bool = False) -> Values:
    """The values of a mask file, uint8 [H, W]: one-bit files as 0 and 255, colours as their common grey.

    Args:
        data: the file's bytes.
        max_pixels: most pixels that it may declare.
        lossy: whether JPEG is read, for callers that compare with a threshold.

    Raises `UnreadableImage` with `unreadable_mask`, the detail saying why.
    """
    formats = (*_LOSSLESS, "JPEG") if lossy else _LOSSLESS
    try:
        sniff(data)
    except UnreadableImage as error:
        raise UnreadableImage("unreadable_mask", error.reason) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=formats) as mask:
                if mask.width * mask.height > max_pixels:
                    raise UnreadableImage("unreadable_mask", f"declares {mask.width} x {mask.height} pixels")
                refuse_costly(data, mask, max_pixels)
                return _grey(mask)
    except UnreadableImage as error:
        raise UnreadableImage("unreadable_mask", error.detail) from None
    except Exception as error:  # Pillow reports damage in many ways
        detail = f"not one of {', '.join(formats)}, or damaged ({type(error).__name__})"
        raise UnreadableImage("unreadable_mask", detail) from None


def encode_mask(values: Values) -> bytes:
    """PNG of mask values, uint8 [H, W]."""
    out = io.BytesIO()
    Image.fromarray(values).save(out, format="PNG")
    return out.getvalue()


def fitted_mask(data: bytes, stored: tuple[int, int], original: tuple[int, int], max_pixels: int) -> bytes:
    """A mask as it is stored beside its image.

    A single-channel PNG of the stored size stays as it came; any other mask is encoded anew, resized by
    nearest neighbour where it has the size that the image had before it was shrunk.

    Args:
        data: the mask file.
        stored: width and height of the image as stored.
        original: width and height of the image as it came, upright.
        max_pixels: most pixels that the mask may declare.

    Raises `UnreadableImage` with `mask_size` or `unreadable_mask`.
    """
    values = mask_values(data, max_pixels)
    height, width = values.shape
    if (width, height) not in (stored, original):
        raise UnreadableImage("mask_size", f"mask {width} x {height}, image {original[0]} x {original[1]}")
    with Image.open(io.BytesIO(data), formats=_LOSSLESS) as mask:
        as_it_came = mask.format == "PNG" and mask.mode in _SINGLE_CHANNEL
        if (width, height) == stored:
            return data if as_it_came else encode_mask(values)
        # The file's own kind of pixels (one bit, a palette) is kept where it has one channel.
        source = mask if as_it_came else Image.fromarray(values)
        out = io.BytesIO()
        source.resize(stored, Image.Resampling.NEAREST).save(out, format="PNG")
        return out.getvalue()


def is_empty_mask(data: bytes) -> bool:
    """Whether a stored mask is readable and has no foreground."""
    try:
        foreground, _ = read_mask(data)
    except UnreadableImage:
        return False
    return not foreground.any()


def _grey(mask: Image.Image) -> Values:
    if mask.mode in ("I", "I;16", "I;16B", "I;16L"):
        deep = np.asarray(mask)
        # Values that a byte cannot hold only tell something from nothing.
        fits = deep.min() >= 0 and deep.max() <= 255
        return (deep if fits else FOREGROUND * (deep != 0)).astype(np.uint8)
    if mask.mode in ("1", "L"):
        return np.asarray(mask.convert("L"))
    colours = np.asarray(mask.convert("RGB"))
    if (colours[..., :1] == colours).all():
        return np.ascontiguousarray(colours[..., 0])
    if mask.mode == "P":
        # A palette's colours only name the structures; the first entry is the background.
        return np.where(np.asarray(mask) != 0, FOREGROUND, 0).astype(np.uint8)
    raise UnreadableImage("unreadable_mask", "has colours; a mask has one channel")
