"""Images as a person has them at hand, made into what the model's cropper takes: encoded grey files.

Decisions: an encoded file that is grey and upright, as every stored one is, goes on byte for byte, so its
vectors are those that the same pair has in a dataset; anything else (arrays, Pillow images, colour, 16 bits,
a turned photograph) becomes grey by the rules of ingest and is packed without loss. Nothing is shrunk.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from mpma.data.images import DEFAULT_MAX_PIXELS, FORMATS, read_grey, sniff
from mpma.data.sources.contract import UnreadableImage
from mpma.errors import UserError

GivenImage = bytes | memoryview | NDArray[np.uint8] | Image.Image
"""An encoded file's bytes, uint8 [H,W] or [H,W,3], or a Pillow image."""


def encoded_grey(images: Sequence[GivenImage]) -> list[bytes]:
    """Encoded grey images. Raises `UserError` naming the place in the list of what cannot be read."""
    return [_encoded(image, place, len(images)) for place, image in enumerate(images)]


def _encoded(image: GivenImage, place: int, count: int) -> bytes:
    try:
        if isinstance(image, np.ndarray):
            return _packed(Image.fromarray(_checked(image)))
        if isinstance(image, Image.Image):
            return _packed(image)
        if isinstance(image, (bytes, bytearray, memoryview)):
            return _as_stored(bytes(image))
    except UnreadableImage as refused:
        raise UserError(
            f"image {place} of {count} cannot be read: {refused.reason.replace('_', ' ')} ({refused.detail})"
        ) from None
    raise UserError(
        f"image {place} of {count} is a {type(image).__name__}",
        "give the bytes of an image file (open(path, 'rb').read()), a uint8 array [H,W] or a Pillow image",
    )


def _checked(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (grey or colour) or not array.size:
        raise UnreadableImage(
            "unsupported_pixels", f"{array.dtype} {list(array.shape)}; uint8 [H,W] or [H,W,3] is expected"
        )
    return np.ascontiguousarray(array)


def _as_stored(data: bytes) -> bytes:
    sniff(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            small = image.size[0] * image.size[1] <= DEFAULT_MAX_PIXELS
            if image.mode == "L" and "transparency" not in image.info and upright and small:
                return data
    except Exception:  # noqa: S110 - the full reader below says what is wrong with it
        pass
    return _packed(Image.fromarray(read_grey(data)))


def _packed(image: Image.Image) -> bytes:
    """A lossless grey PNG of the image; whatever is not 8-bit grey goes through the reader's rules once."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    out = io.BytesIO()
    try:
        image.save(out, format="TIFF" if image.mode == "F" else "PNG")
    except (OSError, ValueError) as error:  # Pillow cannot write every mode that it can hold.
        raise UnreadableImage("unsupported_pixels", f"mode {image.mode}") from error
    if image.mode == "L":
        return out.getvalue()
    return _packed(Image.fromarray(read_grey(out.getvalue())))
