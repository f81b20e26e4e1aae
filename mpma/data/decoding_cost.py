"""Pictures that cost a decoder far more than their size: told from their headers, before it is called.

Decisions: the declared width and height are judged elsewhere; here stands what multiplies them. A
progressive JPEG goes over all of its blocks once a scan, so a few kilobytes of scans take minutes; real
ones have up to a dozen. A JPEG 2000 header may cut the picture into precincts and code blocks of a few
pixels, each of which costs its decoder half a kilobyte before a pixel is read. A TIFF may hold JPEG, and
tiles larger than itself. Looking costs microseconds: marker bytes are counted, and only a suspicious file
is walked through. Markers: ITU-T T.81, annex B; ITU-T T.800, annexes A and B; TIFF 6.0, sections 2 and 15.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

from PIL import ExifTags, Image

from mpma.data.sources.contract import UnreadableImage

MAX_SCANS: Final = 100
"""Scans of a JPEG, however small it is."""
MAX_SCANNED_PIXELS: Final = 1_500_000_000
"""Scans times pixels: 23 scans of the largest picture that is read by default, seconds of decoding."""
MAX_BLOCKS: Final = 500_000
"""Precincts and code blocks of a JPEG 2000 picture, over all components."""
MAX_TILES: Final = 4_096
"""Tiles of a JPEG 2000 picture."""

_SCAN: Final = b"\xff\xda"
_START_OF_SCAN: Final = 0xFFDA
_SEQUENTIAL: Final = (0xFFC0, 0xFFC1)
_MARKERS: Final = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])", re.DOTALL)
_CODESTREAM: Final = b"\xff\x4f\xff\x51"
_SIZE: Final = struct.Struct(">8I")
_CODING, _COMPONENT_CODING, _TILE_PART, _TILE_DATA = 0xFF52, 0xFF53, 0xFF90, 0xFF93
_MOST_STEPS: Final = 100_000
_MOST_CODESTREAMS: Final = 16


def refuse_costly(data: bytes, image: Image.Image, max_pixels: int) -> None:
    """Refuse a picture that costs far more to decode than its declared size.

    Args:
        data: the file's bytes.
        image: the same file as Pillow opened it, nothing decoded yet.
        max_pixels: the limit of the declared size, which a size that only the decoder sees must keep as well.

    Raises `UnreadableImage` with `too_large`, or `unreadable_image` where the header makes no sense.
    """
    try:
        if image.format in ("JPEG", "MPO"):
            _refuse_scans(data, image.width * image.height)
        elif image.format == "JPEG2000":
            _refuse_blocks(data, max_pixels)
        elif image.format == "PNG":
            _refuse_chunks(data)
        elif image.format == "TIFF":
            _refuse_tiles(getattr(image, "tag_v2", {}), max_pixels)
    except UnreadableImage:
        raise
    except Exception as error:  # a damaged header may hold anything
        raise UnreadableImage("unreadable_image", type(error).__name__) from None


def _refuse_scans(data: bytes, pixels: int) -> None:
    if _is_single_pass(data):
        return
    most = min(MAX_SCANS, max(1, MAX_SCANNED_PIXELS // max(1, pixels)))
    # The two bytes cannot stand in coded pixels; in metadata they may, so the count only bounds.
    if data.count(_SCAN) > most:
        scans = count_scans(data)
        if scans > most:
            raise UnreadableImage("too_large", f"{scans} scans of {pixels} pixels, the most is {most}")


def _is_single_pass(data: bytes) -> bool:
    """Whether a decoder stops after the first scan: a sequential JPEG with all components in it."""
    at, sequential = 2, -1
    for _ in range(_MOST_STEPS):
        marker, length = struct.unpack(">HH", data[at : at + 4].ljust(4, b"\0"))
        if marker in _SEQUENTIAL:
            sequential = data[at + 9] if at + 9 < len(data) else -1
        elif marker == _START_OF_SCAN:
            return at + 4 < len(data) and data[at + 4] == sequential
        if marker < 0xFF02 or length < 2:
            return False
        at += 2 + length
    return False


def count_scans(data: bytes) -> int:
    """Scans of a JPEG file, those of thumbnails in its metadata left out; endless segments count too."""
    scans, at = 0, 2
    for _ in range(_MOST_STEPS):
        found = _MARKERS.search(data, at)
        if found is None or found.group(1) == b"\xd9":
            return scans
        at = found.end()
        if found.group(1) not in (b"\xd8", b"\x01"):
            at += int.from_bytes(data[at : at + 2], "big")
        scans += found.group(1) == b"\xda"
    return scans + _MOST_STEPS


def _refuse_blocks(data: bytes, max_pixels: int) -> None:
    # The decoder reads the size from the codestream, Pillow from the box before it; a decoy costs nothing.
    for number, start in enumerate(_places(data, _CODESTREAM)):
        if number == _MOST_CODESTREAMS:
            raise UnreadableImage("unreadable_image", f"more than {_MOST_CODESTREAMS} codestreams")
        if start + 42 > len(data):
            return
        right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = _SIZE.unpack_from(
            data, start + 8
        )
        width, height = right - left, bottom - top
        if width * height > max_pixels:
            raise UnreadableImage(
                "too_large", f"declares {width} x {height}, the limit is {max_pixels} pixels"
            )
        tiles = -(-(right - tile_left) // max(1, tile_width)) * -(-(bottom - tile_top) // max(1, tile_height))
        if tiles > MAX_TILES:
            raise UnreadableImage("too_large", f"{tiles} tiles, the most is {MAX_TILES}")
        components = int.from_bytes(data[start + 40 : start + 42], "big")
        for levels, block, precincts in _coding_styles(data, start, components):
            blocks = components * _blocks(width, height, levels, block, precincts)
            if blocks > MAX_BLOCKS:
                raise UnreadableImage("too_large", f"{blocks} blocks and precincts, the most is {MAX_BLOCKS}")


def _coding_styles(
    data: bytes, start: int, components: int
) -> Iterator[tuple[int, tuple[int, int], list[tuple[int, int]]]]:
    """Levels, code blocks and precincts (powers of two) of each coding style in main and tile headers."""
    at = start + 4 + int.from_bytes(data[start + 4 : start + 6], "big")
    next_part = 0
    for _ in range(_MOST_STEPS):
        marker, length = struct.unpack(">HH", data[at : at + 4].ljust(4, b"\0"))
        body = data[at + 4 : at + 2 + length]
        if marker == _TILE_PART and len(body) >= 6:
            next_part = at + int.from_bytes(body[2:6], "big")
        if marker == _TILE_DATA:
            if next_part <= at:
                return
            at = next_part
            continue
        if marker in (_CODING, _COMPONENT_CODING):
            # Scod and the progression's four bytes, or the component's number and Scoc, come first.
            skipped = 5 if marker == _CODING else 2 + (components > 256)
            given = body[skipped - 1 if marker == _COMPONENT_CODING else 0 :][:1]
            style = body[skipped:]
            if len(style) >= 5:
                own = style[5:] if given and given[0] & 1 else b""
                precincts = [(size & 15, size >> 4) for size in own]
                yield style[0], (2 + (style[1] & 15), 2 + (style[2] & 15)), precincts
        elif marker < 0xFF4F or length < 2:
            return
        at += 2 + length


def _blocks(
    width: int, height: int, levels: int, block: tuple[int, int], precincts: list[tuple[int, int]]
) -> int:
    """Precincts and code blocks of one component."""
    count = 0
    for level in range(min(levels, 32) + 1):
        across, down = _cut(width, levels - level), _cut(height, levels - level)
        wide, high = precincts[min(level, len(precincts) - 1)] if precincts else (15, 15)
        count += _cut(across, wide) * _cut(down, high)
        detail = level > 0
        block_wide, block_high = min(block[0], max(0, wide - detail)), min(block[1], max(0, high - detail))
        count += (3 if detail else 1) * (
            _cut(_cut(across, detail), block_wide) * _cut(_cut(down, detail), block_high)
        )
    return count


def _cut(length: int, power: int) -> int:
    """How many pieces of 2^power a length is cut into."""
    return (length + (1 << power) - 1) >> power


def _places(data: bytes, what: bytes) -> Iterator[int]:
    at = data.find(what)
    while at >= 0:
        yield at
        at = data.find(what, at + 1)


def _refuse_chunks(data: bytes) -> None:
    at = 8
    for _ in range(_MOST_STEPS):
        length, name = struct.unpack(">I4s", data[at : at + 8].ljust(8, b"\0"))
        if name in (b"IEND", b"\0\0\0\0"):
            return
        at += 12 + length
    raise UnreadableImage("too_large", f"more than {_MOST_STEPS} chunks")


def _refuse_tiles(tags: Mapping[int, Any], max_pixels: int) -> None:
    pixels = int(tags.get(ExifTags.Base.TileWidth, 0)) * int(tags.get(ExifTags.Base.TileLength, 0))
    if pixels > max_pixels:
        raise UnreadableImage("too_large", f"has tiles of {pixels} pixels, the limit is {max_pixels}")
