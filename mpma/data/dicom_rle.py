"""Pixels that DICOM's own run-length code packs, unpacked up to the size that is declared and no further.

Decisions: a run of two bytes becomes up to 128, so a decoder that unpacks first and measures afterwards can
be made to fill the memory; this one stops where the picture is full. One segment holds one byte of every
sample.
Format: DICOM PS3.5, annex G.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.sources.contract import UnreadableImage

_HEADER: Final = struct.Struct("<16I")


def unpack_rle(frame: bytes, pixels: int, samples: int, bytes_per_sample: int) -> NDArray[np.generic]:
    """Unpack one frame.

    Args:
        frame: the packed bytes, their header included.
        pixels: how many the picture has.
        samples: of each pixel.
        bytes_per_sample: 1, 2 or 4.

    Returns:
        Unsigned integers [samples, pixels].

    Raises `UnreadableImage` with `truncated_image` or `unreadable_image`.
    """
    if len(frame) < _HEADER.size:
        raise UnreadableImage("truncated_image", "the packed pixels have no header")
    count, *starts = _HEADER.unpack_from(frame)
    if count != samples * bytes_per_sample:
        raise UnreadableImage(
            "unreadable_image", f"{count} packed segments, {samples * bytes_per_sample} are needed"
        )
    edges = [*starts[:count], len(frame)]
    planes = np.empty((samples, pixels, bytes_per_sample), np.uint8)
    for segment in range(count):
        sample, place = divmod(segment, bytes_per_sample)
        # The most significant byte comes first.
        planes[sample, :, bytes_per_sample - 1 - place] = _unpacked(
            frame[edges[segment] : edges[segment + 1]], pixels
        )
    return planes.reshape(samples, -1).view(f"<u{bytes_per_sample}")


def _unpacked(segment: bytes, length: int) -> NDArray[np.uint8]:
    out = bytearray()
    at = 0
    while len(out) < length:
        if at + 1 >= len(segment):
            raise UnreadableImage("truncated_image", f"unpacks to {len(out)} of {length} bytes")
        control = segment[at]
        if control < 128:
            out += segment[at + 1 : at + 2 + control]
            at += 2 + control
        else:
            if control > 128:
                out += segment[at + 1 : at + 2] * (257 - control)
                at += 1
            at += 1
    return np.frombuffer(out, np.uint8, count=length)
