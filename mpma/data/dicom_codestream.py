"""What a compressed picture says of itself, looked at before any decoder is called.

Decisions: the size that the codestream declares must be the header's, since a decoder believes the
codestream and reserves memory by it; a JPEG without its end marker is cut, which some decoders fill up with
grey in silence.
Headers: ITU-T T.81, annex B (JPEG, also for lossless and JPEG-LS, whose markers are alike); ITU-T T.800,
annex A.5.1 (JPEG 2000).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from mpma.data.sources.contract import UnreadableImage

_JPEG_START: Final = b"\xff\xd8"
_JPEG_END: Final = b"\xff\xd9"
_JPEG_2000_START: Final = b"\xff\x4f\xff\x51"
_FRAME_HEADERS: Final = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
_SCAN: Final = 0xDA
_LENGTHLESS: Final = frozenset((0x01, *range(0xD0, 0xD9)))
_BOXES_BYTES: Final = 4096


@dataclass(frozen=True)
class Codestream:
    """The header of a JPEG, JPEG-LS or JPEG 2000 picture."""

    width: int
    height: int
    components: int
    bits: int
    """Of the first component."""


def read_codestream(frame: bytes) -> Codestream:
    """The header of a compressed picture. Raises `UnreadableImage` where it has none or is cut short."""
    if frame.startswith(_JPEG_START):
        found = _jpeg(frame)
        if frame.rfind(_JPEG_END, 2) < 0:
            raise UnreadableImage("truncated_image", "the compressed pixels have no end")
    else:
        found = _jpeg_2000(frame)
    if found is None:
        raise UnreadableImage("unreadable_image", "the compressed pixels have no header")
    return found


def _jpeg(frame: bytes) -> Codestream | None:
    at = 2
    while at + 4 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _LENGTHLESS:
            at += 2
        elif marker in _FRAME_HEADERS:
            if at + 10 > len(frame):
                return None
            bits, height, width, components = struct.unpack_from(">BHHB", frame, at + 4)
            return Codestream(width, height, components, bits)
        elif marker == _SCAN:
            return None
        else:
            at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg_2000(frame: bytes) -> Codestream | None:
    # The boxes of a JP2 file do not belong into DICOM, and are met in front of the codestream all the same.
    at = frame.find(_JPEG_2000_START, 0, _BOXES_BYTES)
    if at < 0 or at + 43 > len(frame):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, at + 8)
    components, bits = struct.unpack_from(">HB", frame, at + 40)
    return Codestream(right - left, bottom - top, components, (bits & 0x7F) + 1)
