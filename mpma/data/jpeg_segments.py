"""A JPEG file without its metadata, the coded pixels untouched.

EXIF blocks, comments and vendor segments may name a patient, a place or a camera; decoding and encoding
again would remove them at the price of a second loss. Walking the file's segments removes them for free.
Markers and segment lengths: ITU-T T.81, annex B.
"""

from __future__ import annotations

import re
from typing import Final

_EOI: Final = 0xD9
_SOS: Final = 0xDA
_COMMENT: Final = 0xFE
_JFIF: Final = 0xE0
_LENGTHLESS: Final = {0x01, *range(0xD0, 0xD9)}
_MARKER_AFTER_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)


def without_metadata(data: bytes) -> bytes | None:
    """The same coded picture with its JFIF header alone: no other APPn segment, no comment, no tail.

    Returns None where the segments cannot be followed to the end-of-image marker.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    kept = [data[:2]]
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == _EOI:
            return b"".join((*kept, data[at : at + 2]))
        if marker in _LENGTHLESS:
            kept.append(data[at : at + 2])
            at += 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end < at + 4 or end > len(data):
            return None
        metadata = 0xE1 <= marker <= 0xEF or marker == _COMMENT
        if not metadata and not (marker == _JFIF and _is_extension(data, at)):
            kept.append(data[at:end])
        if marker == _SOS:
            following = _MARKER_AFTER_SCAN.search(data, end)
            if following is None:
                return None
            kept.append(data[end : following.start()])
            end = following.end() - 2
        at = end
    return None


def _is_extension(data: bytes, at: int) -> bool:
    """APP0 that is not the plain JFIF header (a thumbnail, a vendor's block)."""
    return data[at + 4 : at + 9] != b"JFIF\x00" or data[at + 2 : at + 4] != b"\x00\x10"
