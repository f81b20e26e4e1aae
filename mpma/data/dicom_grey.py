"""From the values that a DICOM file stores to the grey that its header says they mean.

Decisions: the steps and their order are the standard's (DICOM PS3.4, annex N.2): modality lookup table, or
slope and intercept; then the first VOI lookup table, or the first window, with its function; then
inversion. A window that the standard does not allow is as good as none. Without a window grey runs over the
range of the bits stored, never over the image's own minimum and maximum: a stretch per image would wipe out
true differences of exposure. One exception, for the reason and by the rule of `mpma.data.images`: where all
16 bits of a cell are said to be in use, the depth is that of the brightest pixel, since writers put 12-bit
radiographs so. MONOCHROME1 and the presentation shape INVERSE both say that large values are dark; either
of them inverts, both invert once. Padding is black. All of this is a table of at most 65,536 entries, made
once per file.
Formulas: PS3.3, C.11.1.1 (modality), C.11.2.1.1 (VOI table) and C.11.2.1.2 (windows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpma.data.dicom_frame import PALETTE, Pixels, Stored, whole_number
from mpma.data.sources.contract import UnreadableImage

Floats = NDArray[np.float64]
GreyPixels = NDArray[np.uint8]
"""uint8 [H, W]; 0 is black."""

_DEPTHS: Final = (8, 10, 12, 14, 16)
_TABLE_BITS: Final = 16
_BLOCK_ROWS: Final = 64
_COLOURS: Final = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class LookupTable:
    """A lookup table of the header."""

    values: NDArray[np.uint16]
    first: int
    """The input that meets the first value; what is below meets it too."""
    bits: int
    """Depth of the values."""

    def look_up(self, inputs: Floats) -> Floats:
        """float64 of any shape to float64 in [0, 2**bits - 1]."""
        place = np.clip(np.floor(inputs) - self.first, 0, len(self.values) - 1).astype(np.int64)
        return self.values[place].astype(np.float64)


@dataclass(frozen=True)
class Window:
    """A window of grey: what is in it is spread over the whole range."""

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

    def spread(self, inputs: Floats) -> Floats:
        """float64 of any shape to float64 in [0, 1]."""
        if self.function == "SIGMOID":
            with np.errstate(over="ignore"):
                return 1.0 / (1.0 + np.exp(-4.0 * (inputs - self.center) / self.width))
        if self.function == "LINEAR_EXACT":
            return np.clip((inputs - self.center) / self.width + 0.5, 0.0, 1.0)
        if self.width == 1:
            return (inputs > self.center - 0.5).astype(np.float64)
        return np.clip((inputs - (self.center - 0.5)) / (self.width - 1) + 0.5, 0.0, 1.0)


@dataclass(frozen=True)
class GreyRule:
    """Everything a header says of how stored values are shown."""

    modality: LookupTable | None
    slope: float
    intercept: float
    voi: LookupTable | Window | None
    inverted: bool
    padding: tuple[int, int] | None
    """Lowest and highest stored value that is no pixel."""

    @classmethod
    def of(cls, dataset: Any, pixels: Pixels, little: bool) -> GreyRule:
        """Read it from a header. Raises `UnreadableImage` where a lookup table is damaged."""
        slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
        modality = _first_table(dataset, "ModalityLUTSequence", pixels.signed, little)
        if slope is None or intercept is None or slope == 0:
            slope, intercept = 1.0, 0.0
        voi = _first_table(dataset, "VOILUTSequence", pixels.signed or intercept < 0, little)
        inverse = _text(dataset, "PresentationLUTShape") == "INVERSE"
        return cls(
            modality,
            slope,
            intercept,
            _window(dataset) if voi is None else voi,
            inverse or pixels.photometric == "MONOCHROME1",
            _padding(dataset, pixels),
        )

    def grey(self, values: Floats, lowest: float, highest: float) -> GreyPixels:
        """Stored values, signed where they are, to grey.

        Args:
            values: float64 of any shape.
            lowest: smallest value that can be stored.
            highest: largest value that can be stored.
        """
        if self.modality is not None:
            shown = self.modality.look_up(values)
            low, high = 0.0, float((1 << self.modality.bits) - 1)
        else:
            shown = values * self.slope + self.intercept
            ends = lowest * self.slope + self.intercept, highest * self.slope + self.intercept
            low, high = min(ends), max(ends)
        if isinstance(self.voi, LookupTable):
            fraction = self.voi.look_up(shown) / ((1 << self.voi.bits) - 1)
        elif self.voi is not None:
            fraction = self.voi.spread(shown)
        else:
            fraction = (shown - low) / (high - low)
        grey = np.floor(np.clip(fraction, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
        if self.inverted:
            grey = 255 - grey
        if self.padding is not None:
            grey[(values >= self.padding[0]) & (values <= self.padding[1])] = 0
        return grey


def to_grey(values: Stored, pixels: Pixels, dataset: Any, little: bool) -> GreyPixels:
    """Grey of stored values.

    Args:
        values: unsigned integers [H, W], or [H, W, 3] of colours.
        pixels: how they are stored.
        dataset: the header.
        little: whether the file is little endian.

    Returns:
        uint8 [H, W].

    Raises `UnreadableImage` with `unreadable_image` or `unsupported_pixels` where a table is damaged.
    """
    if pixels.samples == 3:
        return _grey_of_colours(values, pixels.bits_stored)
    if pixels.photometric == PALETTE:
        tables = _palette(dataset, pixels.signed, little)
        inputs = _signed(np.arange(1 << min(pixels.bits_stored, _TABLE_BITS), dtype=np.float64), pixels)
        colours = np.stack([table.look_up(inputs) for table in tables], axis=-1)
        scaled = np.floor(colours * 255.0 / ((1 << tables[0].bits) - 1) + 0.5).astype(np.uint8)
        return np.take(_luminance(scaled[None])[0], values)
    rule = GreyRule.of(dataset, pixels, little)
    count = 1 << pixels.bits_stored
    lowest, highest = (-(count >> 1), (count >> 1) - 1) if pixels.signed else (0, count - 1)
    if pixels.bits_stored > _TABLE_BITS:
        blocks = [
            rule.grey(_signed(values[at : at + _BLOCK_ROWS].astype(np.float64), pixels), lowest, highest)
            for at in range(0, pixels.rows, _BLOCK_ROWS)
        ]
        return np.concatenate(blocks)
    if pixels.bits_stored == 16 and not pixels.signed and rule.voi is None and rule.modality is None:
        highest = (1 << _depth_in_use(values, rule.padding)) - 1
    table = rule.grey(_signed(np.arange(count, dtype=np.float64), pixels), lowest, highest)
    return np.take(table, values)


def _signed(values: Floats, pixels: Pixels) -> Floats:
    """Stored bits read as the numbers that they mean."""
    if not pixels.signed:
        return values
    half = float(1 << (pixels.bits_stored - 1))
    return np.where(values >= half, values - 2 * half, values)


def _depth_in_use(values: Stored, padding: tuple[int, int] | None) -> int:
    inside = values if padding is None else values[(values < padding[0]) | (values > padding[1])]
    brightest = int(inside.max()) if inside.size else 0
    return next(bits for bits in _DEPTHS if brightest < 1 << bits)


def _grey_of_colours(values: Stored, bits: int) -> GreyPixels:
    if bits > 8:
        top = (1 << bits) - 1
        wide = np.minimum(values, top).astype(np.uint32)
        values = (wide * 255 + top // 2) // top
    return _luminance(np.ascontiguousarray(values, dtype=np.uint8))


def _luminance(colours: GreyPixels) -> GreyPixels:
    """uint8 [H, W, 3] to [H, W] by the weights that every other kind of file gets."""
    return np.asarray(Image.fromarray(colours, "RGB").convert("L"), dtype=np.uint8)


def _palette(dataset: Any, signed: bool, little: bool) -> list[LookupTable]:
    tables = [
        _table(
            dataset,
            f"{colour}PaletteColorLookupTableDescriptor",
            f"{colour}PaletteColorLookupTableData",
            signed,
            little,
        )
        for colour in _COLOURS
    ]
    found = [table for table in tables if table is not None]
    if len(found) != 3:
        # Segmented palettes can grow without bound; no radiograph has one.
        raise UnreadableImage("unsupported_pixels", "a palette that is missing or segmented")
    return found


def _first_table(dataset: Any, sequence: str, signed: bool, little: bool) -> LookupTable | None:
    try:
        items = dataset.get(sequence)
        item = items[0] if items else None
    except Exception as error:
        raise UnreadableImage("unreadable_image", f"lookup table, {type(error).__name__}") from None
    return None if item is None else _table(item, "LUTDescriptor", "LUTData", signed, little)


def _table(dataset: Any, descriptor: str, data: str, signed: bool, little: bool) -> LookupTable | None:
    """A lookup table by the keywords of its two elements; None where it is absent."""
    try:
        described, held = dataset.get(descriptor), dataset.get(data)
        if described is None or held is None:
            return None
        entries, first, bits = (int(number) for number in described)
        entries = entries & 0xFFFF or 1 << 16
        if signed and first > 0x7FFF:
            first -= 1 << 16
        if isinstance(held, bytes):
            narrow = bits <= 8 and entries <= len(held) < 2 * entries
            values = np.frombuffer(held, "u1" if narrow else f"{'<' if little else '>'}u2", count=-1)
        else:
            values = np.atleast_1d(np.asarray(held)).astype(np.int64) & 0xFFFF
    except Exception as error:
        raise UnreadableImage("unreadable_image", f"lookup table, {type(error).__name__}") from None
    if len(values) < entries or not 1 <= bits <= 16:
        raise UnreadableImage(
            "unreadable_image", f"a lookup table of {bits} bits that holds {len(values)} of {entries} values"
        )
    top = (1 << bits) - 1
    return LookupTable(np.minimum(values[:entries], top).astype(np.uint16), first, bits)


def _window(dataset: Any) -> Window | None:
    """The first window, where the standard allows it."""
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    named = _text(dataset, "VOILUTFunction")
    if center is None or width is None:
        return None
    if named == "SIGMOID" and width > 0:
        return Window(center, width, "SIGMOID")
    if named == "LINEAR_EXACT" and width > 0:
        return Window(center, width, "LINEAR_EXACT")
    return Window(center, width, "LINEAR") if named in ("", "LINEAR") and width >= 1 else None


def _padding(dataset: Any, pixels: Pixels) -> tuple[int, int] | None:
    first = whole_number(dataset, "PixelPaddingValue")
    if first is None:
        return None
    limit = whole_number(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(end, pixels) for end in (first, first if limit is None else limit)]
    return min(ends), max(ends)


def _as_stored(value: int, pixels: Pixels) -> int:
    """A value of the header that was perhaps written with the other sign than the pixels have."""
    count = 1 << pixels.bits_allocated
    wrapped = value % count
    return wrapped - count if pixels.signed and wrapped >= count >> 1 else wrapped


def _number(dataset: Any, keyword: str) -> float | None:
    """The first number of an element; None where it has none."""
    try:
        value = dataset.get(keyword)
        if isinstance(value, list | tuple) or hasattr(value, "append"):
            value = value[0]
        number = float(value)
    except Exception:  # absent, empty, or not a number
        return None
    return number if math.isfinite(number) else None


def _text(dataset: Any, keyword: str) -> str:
    try:
        return str(dataset.get(keyword) or "").strip().upper()
    except Exception:
        return ""
