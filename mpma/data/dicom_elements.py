"""Where the elements of a DICOM file are, found by walking over them without reading what is not asked for.

Decisions: a file is walked here and only the few elements that are wanted are handed to pydicom, so that
identifying and private elements are never decoded, memory does not grow with what a file nests, and the
pixels are a slice of the file's own bytes. The walk is a loop with a stated depth and number of steps, not a
recursion. Whether value representations are written out is told by looking at the first element, not
believed from the header, where it is often missing or wrong. A deflated file is inflated up to a limit.
Layout of elements: DICOM PS3.5, section 7; of files: PS3.10, section 7.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from mpma.data.sources.contract import UnreadableImage

PREFIX_AT: Final = 128
PREFIX: Final = b"DICM"
UNDEFINED: Final = 0xFFFFFFFF

PIXEL_DATA: Final = 0x7FE00010
FLOAT_PIXELS: Final = (0x7FE00008, 0x7FE00009)
TRANSFER_SYNTAX: Final = 0x00020010
SOP_CLASS: Final = 0x00080016

DEFLATED: Final = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

MAX_DEPTH: Final = 64
"""Deepest nesting of sequences that is walked; a radiograph's header has three or four levels."""
MAX_STEPS: Final = 200_000
"""Most elements that are looked at before the pixels; a radiograph's header has some hundred."""
MAX_VALUE_BYTES: Final = 2 * 1024 * 1024
"""Longest element that is handed to pydicom: several lookup tables of 65,536 entries."""

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG_LENGTHS: Final = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)


class Encoding(NamedTuple):
    """How elements are written."""

    implicit: bool
    """Without their value representations."""
    little: bool


class Element(NamedTuple):
    """Where an element is in the bytes."""

    start: int
    value: int
    end: int
    """Behind the value, and behind the delimiter of one of undefined length."""
    undefined: bool
    vr: bytes
    """Two letters; empty where none are written."""


_IMPLICIT: Final = Encoding(True, True)
_META: Final = Encoding(False, True)


@dataclass(frozen=True)
class DicomFile:
    """A walked file: the bytes, and where the wanted elements are in them."""

    data: bytes
    """The file, or what a deflated one inflates to."""
    transfer_syntax: str
    """Its UID; empty where the file names none."""
    encoding: Encoding
    elements: dict[int, Element]
    complete: bool
    """Whether the walk got to the last tag that was asked for; False where the bytes end before."""

    def dataset(self) -> Any:
        """A pydicom dataset of the wanted elements, pixels left out.

        Raises `UnreadableImage` where one of them is longer than is sensible, or pydicom cannot read it.
        """
        from pydicom.filereader import read_dataset

        parts = []
        for tag, element in sorted(self.elements.items()):
            if tag == PIXEL_DATA or tag in FLOAT_PIXELS:
                continue
            if element.end - element.start > MAX_VALUE_BYTES:
                raise UnreadableImage(
                    "unreadable_image", f"a header element of {element.end - element.start} bytes"
                )
            parts.append(self.data[element.start : element.end])
        try:
            return read_dataset(io.BytesIO(b"".join(parts)), self.encoding.implicit, self.encoding.little)
        except Exception as error:  # pydicom reports a broken header in many ways, and quotes it
            raise UnreadableImage("unreadable_image", f"header, {type(error).__name__}") from None


def has_prefix(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does: 128 bytes for anybody's use, then `DICM`."""
    return data[PREFIX_AT : PREFIX_AT + len(PREFIX)] == PREFIX


def looks_like_bare_dicom(data: bytes) -> bool:
    """Whether the bytes begin with DICOM elements without the preamble that a file should have.

    The first element of such files is of group 2 or 8, and says within its first 8 bytes how it is written.
    """
    if len(data) < 8:
        return False
    little, big = struct.unpack_from("<H", data)[0], struct.unpack_from(">H", data)[0]
    if not (little in (0x0002, 0x0008) or big == 0x0008):
        return False
    if _is_vr(data[4:6]):
        return True
    # Without a written representation the length is all there is to go by.
    number, length = struct.unpack_from("<HI", data, 2)
    return bool(little == 0x0008 and number < 0x3000 and length <= 4096)


def walk_file(data: bytes, wanted: Collection[int], last: int, max_inflated_bytes: int) -> DicomFile:
    """Find elements of a file's data set.

    Args:
        data: the file, or its beginning.
        wanted: tags of the elements that are to be found.
        last: the walk ends behind this tag.
        max_inflated_bytes: most bytes that a deflated file may become.

    Raises `UnreadableImage` where the elements cannot be followed or a deflated file is damaged or too large.
    """
    start = PREFIX_AT + len(PREFIX) if has_prefix(data) else 0
    meta, at, whole = _walk(data, start, _META, {TRANSFER_SYNTAX}, 0x0002FFFF)
    syntax = ""
    if TRANSFER_SYNTAX in meta:
        named = meta[TRANSFER_SYNTAX]
        syntax = data[named.value : min(named.end, named.value + 64)].decode("ascii", "replace").strip("\0 ")
    if not whole:
        return DicomFile(data, syntax, _META, {}, False)
    if syntax == DEFLATED:
        data, at = _inflated(data, at, max_inflated_bytes), 0
    encoding = _encoding(data, at, syntax)
    elements, _, complete = _walk(data, at, encoding, wanted, last)
    return DicomFile(data, syntax, encoding, elements, complete)


def _encoding(data: bytes, at: int, syntax: str) -> Encoding:
    implicit = not _is_vr(data[at + 4 : at + 6])
    swapped = len(data) >= at + 2 and struct.unpack_from("<H", data, at)[0] >= 0x0400
    return Encoding(implicit, not (syntax == BIG_ENDIAN or (not syntax and swapped and not implicit)))


def _is_vr(letters: bytes) -> bool:
    return len(letters) == 2 and all(0x41 <= letter <= 0x5A for letter in letters)


def _inflated(data: bytes, at: int, limit: int) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = engine.decompress(memoryview(data)[at:], limit)
    except zlib.error:
        raise UnreadableImage("unreadable_image", "the deflated elements are damaged") from None
    if engine.unconsumed_tail:
        raise UnreadableImage("too_large", f"inflates to more than {limit} bytes")
    return inflated


def _walk(
    data: bytes, at: int, encoding: Encoding, wanted: Collection[int], last: int
) -> tuple[dict[int, Element], int, bool]:
    """Wanted elements from `at` up to the tag `last`, where the walk ended, and whether it got there."""
    found: dict[int, Element] = {}
    budget = _Budget()
    while at < len(data):
        budget.spend()
        head = _head(data, at, encoding)
        if head is None:
            return found, at, False
        tag, vr, length, value = head
        if tag > last or tag >> 16 == 0xFFFE:
            return found, at, True
        if length == UNDEFINED:
            end = _end_of_undefined(data, value, _inner(encoding, vr), budget)
        else:
            end = value + length if value + length <= len(data) else None
        if tag in wanted:
            # One that the bytes end in is noted all the same: a file cut within its pixels is told by it.
            found[tag] = Element(at, value, len(data) if end is None else end, length == UNDEFINED, vr)
        if end is None:
            return found, at, False
        at = end
        if tag == last:
            return found, at, True
    return found, at, True


class _Budget:
    """The steps that are left."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UnreadableImage("unreadable_image", f"more than {MAX_STEPS} elements before the pixels")


def _head(data: bytes, at: int, encoding: Encoding) -> tuple[int, bytes, int, int] | None:
    """Tag, representation, length and place of the value; None where the bytes end before they are known."""
    if at + 8 > len(data):
        return None
    order = "<" if encoding.little else ">"
    group, number = struct.unpack_from(f"{order}HH", data, at)
    tag = group << 16 | number
    vr = data[at + 4 : at + 6]
    if encoding.implicit or group == 0xFFFE or not _is_vr(vr):
        return tag, b"", struct.unpack_from(f"{order}I", data, at + 4)[0], at + 8
    if vr not in _LONG_LENGTHS:
        return tag, vr, struct.unpack_from(f"{order}H", data, at + 6)[0], at + 8
    if at + 12 > len(data):
        return None
    return tag, vr, struct.unpack_from(f"{order}I", data, at + 8)[0], at + 12


def _inner(encoding: Encoding, vr: bytes) -> Encoding:
    # PS3.5, section 6.2.2: what is in a sequence of unknown representation is written implicitly.
    return _IMPLICIT if vr == b"UN" else encoding


def _end_of_undefined(data: bytes, at: int, encoding: Encoding, budget: _Budget) -> int | None:
    """Behind the delimiter of a value of undefined length; None where the bytes end before it."""
    # Each entry is a sequence (or the fragments of pixels), or an item of one, that is still open.
    open_: list[tuple[bool, Encoding]] = [(True, encoding)]
    while open_:
        budget.spend()
        is_sequence, how = open_[-1]
        head = _head(data, at, how)
        if head is None:
            return None
        tag, vr, length, value = head
        if tag in (_ITEM_END, _SEQUENCE_END):
            open_.pop()
            at = value
            continue
        if is_sequence != (tag == _ITEM):
            raise UnreadableImage("unreadable_image", "a sequence whose items cannot be told apart")
        if length == UNDEFINED:
            if len(open_) >= MAX_DEPTH:
                raise UnreadableImage("unreadable_image", f"sequences nested more than {MAX_DEPTH} deep")
            open_.append((not is_sequence, _inner(how, vr)))
            at = value
        else:
            at = value + length
            if at > len(data):
                return None
    return at
