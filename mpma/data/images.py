"""From an archive's image file to the grey picture that is stored: the guards at the door.

Decisions: the first bytes and the declared size are looked at before anything is decoded, so a git-lfs
pointer, a saved web page, a bomb of declared pixels and one of scans or tiles (`mpma.data.decoding_cost`)
cost microseconds and no memory. Only raster formats are opened (Pillow would hand some others to outside
programs). A picture becomes grey uint8: colour by the ITU-R 601 weights (equal channels stay exactly what
they were), transparency over black, EXIF orientation applied, the first frame of an animation. 16-bit grey
is scaled linearly by the bit depth in use (the smallest of 8, 10, 12, 14 and 16 bits that holds the
brightest pixel), never stretched between its own minimum and maximum: archives store 12-bit radiographs in
16-bit files, where dividing by 65,535 gives a black picture, while a stretch per image would wipe out true
differences of exposure. DICOM is read by what its header says (`mpma.data.dicom`). What is stored is never
larger than what came in, and holds no metadata, which in hospital files may name the patient.

A JPEG that is to be shrunk far is decoded at a half, a quarter or an eighth of its size, which its blocks
give for less than the whole, to no less than 1.5 times what is wanted; bicubic does the rest. At 2,000
pixels that takes 21 ms where decoding and shrinking the whole takes 34. It is as near to it as matters: 52
dB and more on radiographs of 1,000 to 2,000 pixels, where storing as JPEG costs down to 46 to 50 dB; a
pattern of lines a few pixels apart, as a grid leaves them, keeps up to a tenth of its contrast as a coarser
one.
"""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from mpma.data.decoding_cost import refuse_costly
from mpma.data.dicom import is_dicom, read_dicom
from mpma.data.jpeg_segments import without_metadata
from mpma.data.sources.contract import UnreadableImage

GreyImage = NDArray[np.uint8]
"""uint8 [H, W]; 0 is black."""

ImageFormat = Literal["jpeg", "png"]

DEFAULT_MAX_PIXELS: Final = 64 * 1024 * 1024
"""Largest accepted declared size, 8192 x 8192: above any radiograph, 64 MiB once grey."""

HIGHEST_MAX_PIXELS: Final = 178_956_970
"""Above this Pillow refuses by itself, whatever is asked for here."""

FORMATS: Final = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM")

_MAGIC: Final = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\x00", b"MM\x00*"),
}
_BIT_DEPTHS: Final = (8, 10, 12, 14, 16)
_LINES_AT_ONCE: Final = 256
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it."""
_LYING: Final = (5, 6, 7, 8)
"""Orientations whose width and height change places."""
_JPEG_MARGIN: Final = 1.5
"""How many times the wanted size a JPEG is decoded at; at 1.0 nothing is left to average (44 dB)."""
_LONGEST_JPEG_SIDE: Final = 65_500
_TORN_WORDS: Final = ("truncated", "broken", "incomplete", "unrecognized")

# Our own limit answers first; Pillow's softer warning would only be printed beside it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# A damaged EXIF block costs its orientation and nothing else (see `_orientation`).
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True)
class StoredImage:
    """What goes into a dataset row: the encoded file, its size, and its pixels for the statistics."""

    data: bytes
    width: int
    height: int
    pixels: GreyImage
    original_width: int
    original_height: int


def sniff(data: bytes) -> None:
    """Refuse by the first bytes alone what is no image file.

    Raises `UnreadableImage` with reason `empty_file`, `git_lfs_pointer` or `html_page`.
    """
    if not data:
        raise UnreadableImage("empty_file", "0 bytes")
    if data.startswith(b"version https://git-lfs"):
        raise UnreadableImage("git_lfs_pointer", f"{len(data)} bytes")
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<svg")):
        raise UnreadableImage("html_page", f"{len(data)} bytes")


def read_grey(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> GreyImage:
    """Decode an image file of any accepted format to grey.

    Args:
        data: the file's bytes.
        max_pixels: largest accepted width x height as declared in the header.

    Returns:
        uint8 [H, W], upright; the module's docstring says how each kind of file gets there.

    Raises:
        UnreadableImage: with a code of `mpma.data.quality.REASONS`.
    """
    if is_dicom(data):
        return read_dicom(data, max_pixels)
    with _open(data, max_pixels) as image:
        grey = _grey(_decoded(image))
        return np.array(_turned(grey, _orientation(image)))


def encode_grey(
    pixels: GreyImage, short_side: int | None = 512, quality: int = 95, image_format: ImageFormat = "jpeg"
) -> tuple[bytes, int, int]:
    """Encode grey pixels, shrunk so that the shorter side has `short_side` pixels; never enlarged.

    Args:
        pixels: uint8 [H, W].
        short_side: pixels of the shorter side; None keeps the size.
        quality: of JPEG, 1..100; PNG is lossless and ignores it.
        image_format: `jpeg` or `png`.

    Returns:
        The encoded file, its width and its height in pixels.
    """
    shrunk = shrink_grey(pixels, short_side)
    height, width = shrunk.shape
    return _encode(Image.fromarray(shrunk), quality, image_format), width, height


def shrink_grey(pixels: GreyImage, short_side: int | None) -> GreyImage:
    """Shrink uint8 [H, W] to a shorter side of `short_side`, aspect kept, never enlarged.

    Every pixel counts: Pillow widens the bicubic filter by the scale, so thin lines are averaged rather than
    dropped.
    """
    height, width = pixels.shape
    size = _target_size(width, height, short_side)
    return pixels if size == (width, height) else np.asarray(_shrunk(Image.fromarray(pixels), size))


def store_image(
    data: bytes,
    short_side: int | None = 512,
    quality: int = 95,
    image_format: ImageFormat = "jpeg",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> StoredImage:
    """Decode, shrink and encode an archive's image for a dataset row.

    A grey upright JPEG that is small enough already keeps its coded pixels, less its metadata, since a
    second JPEG round would only lose. Raises `UnreadableImage` as `read_grey`.
    """
    if is_dicom(data):
        grey = Image.fromarray(read_dicom(data, max_pixels))
        return _stored(grey, _target_size(*grey.size, short_side), grey.size, quality, image_format)
    with _open(data, max_pixels) as image:
        size, is_grey_jpeg = image.size, image.format == "JPEG" and image.mode == "L"
        target = _target_size(*size, short_side)
        # Only a JPEG can be decoded at a fraction; others ignore the request.
        near = (math.ceil(target[0] * _JPEG_MARGIN), math.ceil(target[1] * _JPEG_MARGIN))
        drafted = image.draft(None, near) if target != size else None
        grey = _grey(_decoded(image))
        orientation = _orientation(image)
    if is_grey_jpeg and target == size and orientation == 1 and image_format == "jpeg":
        bare = without_metadata(data)
        if bare is not None:
            return StoredImage(bare, *size, np.asarray(grey), *size)
    if target != size:
        # The fraction of an odd size ends inside its last pixel.
        grey = _shrunk(grey, target, None if drafted is None else drafted[1])
    grey = _turned(grey, orientation)
    original = size if orientation not in _LYING else size[::-1]
    return _stored(grey, grey.size, original, quality, image_format)


def _stored(
    grey: Image.Image,
    target: tuple[int, int],
    original: tuple[int, int],
    quality: int,
    image_format: ImageFormat,
) -> StoredImage:
    if target != grey.size:
        grey = _shrunk(grey, target)
    if image_format == "jpeg" and max(grey.size) > _LONGEST_JPEG_SIDE:
        raise UnreadableImage(
            "too_large", f"{grey.width} x {grey.height} once shrunk, a JPEG has {_LONGEST_JPEG_SIDE} at most"
        )
    return StoredImage(_encode(grey, quality, image_format), *grey.size, np.asarray(grey), *original)


def _target_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height of which the shorter is `short_side`, or as they are where that is no less."""
    if short_side is None or min(height, width) <= short_side:
        return width, height
    scale = short_side / min(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _shrunk(
    grey: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    return grey.resize(size, Image.Resampling.BICUBIC, box)


def _encode(grey: Image.Image, quality: int, image_format: ImageFormat) -> bytes:
    out = io.BytesIO()
    if image_format == "jpeg":
        grey.save(out, format="JPEG", quality=quality)
    else:
        grey.save(out, format="PNG")
    return out.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only: Pillow decodes pixels at the first use, after the declared size passed."""
    sniff(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage("too_large", f"declares more than {HIGHEST_MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        known = next((name for name, magic in _MAGIC.items() if data.startswith(magic)), None)
        if known is None:
            raise UnreadableImage("not_an_image", f"{len(data)} bytes of no known format") from None
        raise UnreadableImage("truncated_image", f"{known} header, {len(data)} bytes") from None
    except Exception as error:  # a broken header may raise nearly anything
        raise UnreadableImage("unreadable_image", type(error).__name__) from None
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise UnreadableImage("too_large", f"declares {width} x {height}, the limit is {max_pixels} pixels")
    try:
        refuse_costly(data, image, max_pixels)
    except UnreadableImage:
        image.close()
        raise
    return image


def _decoded(image: Image.Image) -> Image.Image:
    """The image, its pixels loaded."""
    try:
        image.load()
    except Image.DecompressionBombError:
        raise UnreadableImage("too_large", "grows beyond its declared size") from None
    except MemoryError:
        raise UnreadableImage("too_large", "does not fit in memory") from None
    except Exception as error:  # decoders report damage as OSError, SyntaxError, ValueError and others
        torn = any(word in str(error).lower() for word in _TORN_WORDS)
        raise UnreadableImage(
            "truncated_image" if torn else "unreadable_image", f"{image.format}, {type(error).__name__}"
        ) from None
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none or the block is damaged: the pixels are sound."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _turned(grey: Image.Image, orientation: int) -> Image.Image:
    """Upright, by the number that EXIF gives; any other number turns nothing."""
    turn = _UPRIGHT.get(orientation)
    return grey if turn is None else grey.transpose(turn)


def _grey(image: Image.Image) -> Image.Image:
    """8-bit grey of a loaded image; the image itself where it is that."""
    mode = image.mode
    if mode.startswith("I"):
        return Image.fromarray(_scaled_to_8_bits(np.asarray(image)))
    if mode == "F":
        raise UnreadableImage("unsupported_pixels", "floating point: the range of grey is not known")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return Image.fromarray(_over_black(image))
    if mode == "P":
        image = image.convert("RGB")
    return image if mode == "L" else image.convert("L")


def _over_black(image: Image.Image) -> GreyImage:
    """A picture with transparency, uint8 [H, W]; by lines, since each step holds four channels."""
    grey = np.empty((image.height, image.width), np.uint8)
    for top in range(0, image.height, _LINES_AT_ONCE):
        bottom = min(top + _LINES_AT_ONCE, image.height)
        over = image.crop((0, top, image.width, bottom)).convert("RGBA")
        black = Image.new("RGBA", over.size, (0, 0, 0, 255))
        grey[top:bottom] = np.asarray(Image.alpha_composite(black, over).convert("RGB").convert("L"))
    return grey


def _scaled_to_8_bits(values: NDArray[np.generic]) -> GreyImage:
    """Integer grey [H, W] of up to 16 bits to uint8, linear, zero stays zero."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise UnreadableImage("unsupported_pixels", f"integer grey from {lowest} to {highest}")
    depth = next(bits for bits in _BIT_DEPTHS if highest < 1 << bits)
    top = (1 << depth) - 1
    scaled = ((np.arange(highest + 1) * 255 + top // 2) // top).astype(np.uint8)
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), _LINES_AT_ONCE):
        # By lines, since an index takes eight bytes a pixel.
        grey[first : first + _LINES_AT_ONCE] = scaled[values[first : first + _LINES_AT_ONCE]]
    return grey
