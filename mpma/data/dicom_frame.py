"""The one frame of a DICOM file as stored values, with every declared size checked before it is decoded.

Decisions: a file of several frames is no radiograph but a film or a stack of slices, and is refused rather
than represented by its first; what the header leaves out is taken as most files have it (one sample,
unsigned, all allocated bits in use), but sizes and bits are not guessed. One decoder is named for each kind
of compression: Pillow where it knows the kind, being the one that is maintained for hostile files, and
GDCM, in a process of its own, for lossless JPEG and JPEG-LS. Colour comes as RGB. Bits that are not the
pixel's (old overlays, and whatever the writer left there) are cut away; if they can be neither, the header
is not to be trusted and the file is refused.
Pixel attributes: DICOM PS3.3, C.7.6.3; how they are packed: PS3.5, section 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.dicom_codestream import read_codestream
from mpma.data.dicom_elements import FLOAT_PIXELS, PIXEL_DATA, DicomFile
from mpma.data.dicom_gdcm import decode_by_gdcm
from mpma.data.dicom_rle import unpack_rle
from mpma.data.sources.contract import UnreadableImage

Stored = NDArray[Any]
"""Unsigned integers: [H, W] of stored bits (two's complement where signed), or [H, W, 3] of colours."""

GREY: Final = ("MONOCHROME1", "MONOCHROME2")
PALETTE: Final = "PALETTE COLOR"

_EXPLICIT: Final = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"
_IMPLICIT: Final = "1.2.840.10008.1.2"
_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_RLE: Final = "1.2.840.10008.1.2.5"
_NATIVE: Final = ("", _IMPLICIT, _EXPLICIT, _EXPLICIT_BIG, _DEFLATED)
_JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
_BY_PILLOW: Final = (
    "1.2.840.10008.1.2.4.50",
    _JPEG_EXTENDED,
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
)
_OVERLAYS: Final = 0x60
"""First byte of the groups of overlays."""
_TORN_WORDS: Final = ("truncated", "less than expected", "broken data stream", "end of")


@dataclass(frozen=True)
class Pixels:
    """How a file's pixels are stored."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    shift: int
    """Bits of each cell below the pixel's own."""
    signed: bool
    photometric: str
    planar: int
    overlays: bool
    """Whether old overlays stand in bits that the pixels leave free."""


def describe_pixels(file: DicomFile, dataset: Any, max_pixels: int) -> Pixels:
    """The pixel attributes of a file, checked.

    Raises `UnreadableImage` with `no_pixels`, `multiple_frames`, `too_large` or `unsupported_pixels`.
    """
    rows, columns = whole_number(dataset, "Rows"), whole_number(dataset, "Columns")
    if any(tag in file.elements for tag in FLOAT_PIXELS):
        raise UnreadableImage("unsupported_pixels", "floating point: the range of grey is not known")
    if PIXEL_DATA not in file.elements or not rows or not columns:
        if not file.complete and PIXEL_DATA not in file.elements:
            raise UnreadableImage("truncated_image", f"{len(file.data)} bytes, which end before the pixels")
        raise UnreadableImage("no_pixels", f"{rows or 0} rows, {columns or 0} columns")
    frames = whole_number(dataset, "NumberOfFrames") or 1
    if frames != 1:
        raise UnreadableImage("multiple_frames", f"{frames} frames")
    samples = whole_number(dataset, "SamplesPerPixel") or 1
    if rows * columns > max_pixels:
        raise UnreadableImage("too_large", f"declares {columns} x {rows}, the limit is {max_pixels} pixels")
    allocated = whole_number(dataset, "BitsAllocated") or 0
    stored = whole_number(dataset, "BitsStored") or allocated
    high = whole_number(dataset, "HighBit")
    shift = 0 if high is None else high + 1 - stored
    photometric = _photometric(dataset, samples)
    grey = photometric in GREY or photometric == PALETTE
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or not 0 <= shift <= allocated - stored:
        raise UnreadableImage("unsupported_pixels", f"{stored} bits from bit {shift} in {allocated}")
    if samples != (1 if grey else 3) or (not grey and allocated == 32):
        raise UnreadableImage("unsupported_pixels", f"{samples} samples of {allocated} bits")
    overlays = any(tag >> 24 == _OVERLAYS and _overlay_bit(dataset, tag) for tag in file.elements)
    signed = whole_number(dataset, "PixelRepresentation") == 1
    planar = whole_number(dataset, "PlanarConfiguration") or 0
    return Pixels(
        rows, columns, samples, allocated, stored, shift, signed, photometric, int(planar == 1), overlays
    )


def stored_values(file: DicomFile, pixels: Pixels) -> Stored:
    """Decode the frame.

    Raises `UnreadableImage` with `truncated_image`, `unreadable_image`, `unsupported_compression` or
    `unsupported_pixels`.
    """
    element = file.elements[PIXEL_DATA]
    native = file.transfer_syntax in _NATIVE
    if native and element.undefined:
        # What kind of compression it is cannot be told from the fragments.
        raise UnreadableImage("unsupported_compression", file.transfer_syntax or "the file does not name it")
    values = _native(file, pixels) if native else _compressed(file, pixels)
    if pixels.samples == 3:
        return values
    # A codestream holds the pixels alone, wherever they were in their cells before.
    return _own_bits(values, pixels, pixels.shift if native or file.transfer_syntax == _RLE else 0)


def whole_number(dataset: Any, keyword: str) -> int | None:
    """The whole number of an element; None where it is absent or none."""
    try:
        value = dataset.get(keyword)
        return None if value is None else int(value)
    except Exception:  # pydicom converts when asked, and reports what it cannot convert in many ways
        return None


def _photometric(dataset: Any, samples: int) -> str:
    try:
        named = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    except Exception:
        named = ""
    known = (*GREY, PALETTE, "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    if named in known:
        return named
    if named:
        raise UnreadableImage("unsupported_pixels", "an unknown photometric interpretation")
    return "MONOCHROME2" if samples == 1 else "RGB"


def _overlay_bit(dataset: Any, tag: int) -> int:
    try:
        return int(dataset[tag].value)
    except Exception:
        return 0


def _native(file: DicomFile, pixels: Pixels) -> Stored:
    from pydicom.pixels import get_decoder

    # Whatever the header calls it, the elements were found to be written so.
    order = file.encoding.little
    decoder = get_decoder(_EXPLICIT if order else _EXPLICIT_BIG)
    element = file.elements[PIXEL_DATA]
    data = memoryview(file.data)[element.value : element.end]
    if not file.complete:
        raise UnreadableImage(
            "truncated_image", f"{len(data)} bytes of pixels, which end before their length"
        )
    native = {"pixel_vr": element.vr.decode("ascii") or "OW", "view_only": True}
    return _unsigned(_decoded(decoder, data, "", {**_options(pixels), **native}))


def _compressed(file: DicomFile, pixels: Pixels) -> Stored:
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    syntax = file.transfer_syntax
    element = file.elements[PIXEL_DATA]
    if not file.complete:
        raise UnreadableImage("truncated_image", "the bytes end before the compressed pixels do")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImage("unsupported_compression", _uid(syntax)) from None
    plugin = "pillow" if syntax in _BY_PILLOW else "gdcm"
    if syntax != _RLE and plugin not in decoder.available_plugins:
        raise UnreadableImage("unsupported_compression", _uid(syntax))
    source = file.data[element.value : element.end]
    try:
        frame = get_frame(source, 0, number_of_frames=1)
    except Exception as error:
        raise UnreadableImage("unreadable_image", f"fragments, {type(error).__name__}") from None
    if syntax == _RLE:
        return _run_lengths(frame, pixels)
    picture = read_codestream(frame)
    declared = (pixels.columns, pixels.rows, pixels.samples)
    if (picture.width, picture.height, picture.components) != declared:
        raise UnreadableImage(
            "unreadable_image",
            f"compressed {picture.width} x {picture.height} x {picture.components}, "
            f"declared {declared[0]} x {declared[1]} x {declared[2]}",
        )
    if plugin == "pillow" and picture.bits > 8 and (pixels.samples > 1 or not _is_jpeg_2000(syntax)):
        raise UnreadableImage("unsupported_compression", f"{_uid(syntax)} of {picture.bits} bits")
    if plugin == "gdcm":
        return _unsigned(decode_by_gdcm(syntax, _options(pixels), source))
    return _unsigned(_decoded(decoder, source, plugin, _options(pixels)))


def _options(pixels: Pixels) -> dict[str, Any]:
    """pydicom's decoding options."""
    return {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "samples_per_pixel": pixels.samples,
        "bits_allocated": pixels.bits_allocated,
        "bits_stored": pixels.bits_stored,
        "pixel_representation": int(pixels.signed),
        "photometric_interpretation": pixels.photometric,
        "planar_configuration": pixels.planar,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "allow_excess_frames": False,
        "correct_unused_bits": False,
    }


def _decoded(decoder: Any, source: Any, plugin: str, options: dict[str, Any]) -> NDArray[Any]:
    try:
        values, _ = decoder.as_array(source, index=0, decoding_plugin=plugin, **options)
    except MemoryError:
        raise UnreadableImage("too_large", "does not fit in memory") from None
    except Exception as error:  # decoders report damage in many ways, and quote what they met
        torn = any(word in str(error).lower() for word in _TORN_WORDS)
        raise UnreadableImage(
            "truncated_image" if torn else "unreadable_image", type(error).__name__
        ) from None
    return np.asarray(values)


def _unsigned(values: NDArray[Any]) -> Stored:
    return values.view(f"{values.dtype.byteorder}u{values.dtype.itemsize}")


def _run_lengths(frame: bytes, pixels: Pixels) -> Stored:
    planes = unpack_rle(frame, pixels.rows * pixels.columns, pixels.samples, pixels.bits_allocated // 8)
    values = np.moveaxis(planes.reshape(pixels.samples, pixels.rows, pixels.columns), 0, -1)
    if pixels.samples == 1:
        return values[..., 0]
    if pixels.photometric.startswith("YBR_FULL"):
        from pydicom.pixels.processing import convert_color_space

        return np.asarray(convert_color_space(np.ascontiguousarray(values), "YBR_FULL", "RGB"))
    return values


def _own_bits(values: Stored, pixels: Pixels, shift: int) -> Stored:
    """The pixels' own bits of each cell. Raises where others are set that nothing explains."""
    bits = pixels.bits_stored
    width = 8 * values.dtype.itemsize
    if bits + shift > width:
        raise UnreadableImage("unsupported_pixels", f"{bits} bits from bit {shift} in {width}")
    top = (1 << bits) - 1
    if not shift and (bits == width or int(values.max()) <= top):
        return values
    own = (values >> shift) & top
    if pixels.overlays:
        return own
    above = values >> (shift + bits) if bits + shift < width else np.zeros_like(values)
    sign = np.where(own >> (bits - 1), (1 << (width - bits - shift)) - 1, 0) if pixels.signed else 0
    below = int((values & ((1 << shift) - 1)).max())
    if below or not bool(((above == 0) | (above == sign)).all()):
        raise UnreadableImage(
            "unsupported_pixels", f"values beyond the {bits} bits that are said to be stored"
        )
    return own


def _is_jpeg_2000(syntax: str) -> bool:
    return syntax.endswith((".90", ".91"))


def _uid(syntax: str) -> str:
    """A UID for the quarantine; what is none is not shown."""
    plain = syntax.replace(".", "")
    return syntax if plain.isdigit() and len(syntax) <= 64 else "not a UID"
