"""A picture by the signs of its cosine transform, whatever its size, compression or window.

Decisions:
- A picture is named by 1,024 signs (after the perceptual hash of Zauner, "Implementation and Benchmarking of
  Perceptual Image Hash Functions", 2010, with the lowest frequencies, which all chest radiographs share,
  left out). Size, compression and windowing hardly move the signs, an inverted picture flips all of them.
  Radii and what they find: docs/overlap.md.
- Of two sets every pair of pictures is compared on 128 of the signs, in blocks that fit a cache, and few
  survive: exact under the stated radii and linear in memory. Within one set: `mpma.data.near_duplicates`.

No identifier and no pixel leaves this module: fingerprints do.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpma.data.images import GreyImage, read_grey
from mpma.data.sources.contract import UnreadableImage

Fingerprints = NDArray[np.uint64]
"""[n, WORDS]: hash of the stored bytes, then the signs of the picture, which are all 0 where it has none."""

WORDS: Final = 17

FINGERPRINT_VERSION: Final = 1
"""Raise when fingerprints change: kept ones are made again."""

CORE_RADIUS: Final = 36
"""Most of the 128 core signs in which two copies of one picture differ."""

RADIUS: Final = 160
"""Most of all 1,024 signs in which two copies of one picture differ."""

_SIDE: Final = 64
_LOWEST: Final = 2
_BAND: Final = 32
_CORE: Final = 128
_SIGNS: Final = _BAND * _BAND
_LEAST_STRUCTURE: Final = 0.5
"""Share of coefficients that must stand out from rounding; below it signs are noise (a blank picture)."""
_QUERIES, _REFERENCES = 16, 4096  # a block's intermediate values stay in the second-level cache


def fingerprints(images: Sequence[bytes | memoryview]) -> Fingerprints:
    """Fingerprints [n, WORDS] of encoded images; about 1 ms each for 512 pixels."""
    found = np.zeros((len(images), WORDS), dtype=np.uint64)
    for row, image in enumerate(images):
        found[row, 0] = bytes_hash(image)
        small = _small_grey(image)
        if small is not None:
            found[row, 1:] = _signs(small)
    return found


def bytes_hash(image: bytes | memoryview) -> int:
    """64 bits of the stored bytes."""
    return int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little")


def picture_signs(pixels: GreyImage) -> NDArray[np.uint64]:
    """Signs [WORDS - 1] of decoded pixels, uint8 [H, W]; zeros where the picture has no structure.

    About 0.35 ms for 512 pixels.
    """
    return _signs(_shrunk(Image.fromarray(pixels)))


def find_pictures(
    queries: Fingerprints, references: Fingerprints, threads: int = 1
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of [n, WORDS] are among [m, WORDS] others: (the picture, the same bytes), bool [n] each."""
    identical = np.isin(queries[:, 0], references[:, 0])
    seen = identical.copy()
    left = np.flatnonzero(~identical & has_signs(queries))
    asked = queries[left, 1:]
    others = np.ascontiguousarray(references[has_signs(references), 1:])
    core = np.ascontiguousarray(others[:, : _CORE // 64].T)

    def search(start: int) -> None:
        seen[left[start : start + _QUERIES]] = _search_block(asked[start : start + _QUERIES], others, core)

    starts = range(0, len(left), _QUERIES)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(search, starts):
            pass
    return seen, identical


def has_signs(found: Fingerprints) -> NDArray[np.bool_]:
    """Which of [n, WORDS] have signs, bool [n]; the others are blank or damaged."""
    return np.asarray(found[:, 1:].any(axis=1))


def _search_block(queries: Fingerprints, references: Fingerprints, core: Fingerprints) -> NDArray[np.bool_]:
    """bool [q] for signs [q, 16] among [m, 16]; `core` [2, m] are their first words, contiguous."""
    found = np.zeros(len(queries), dtype=bool)
    words = np.empty((len(queries), _REFERENCES), dtype=np.uint64)
    for start in range(0, core.shape[1], _REFERENCES):
        part = core[:, start : start + _REFERENCES]
        space = words[:, : part.shape[1]]
        np.bitwise_xor(queries[:, :1], part[0], out=space)
        differ = np.bitwise_count(space)
        np.bitwise_xor(queries[:, 1:2], part[1], out=space)
        differ += np.bitwise_count(space)
        # Near 0, or near 128 for an inverted picture: both come to lie around the radius.
        differ += np.uint8(CORE_RADIUS)
        differ &= np.uint8(_CORE - 1)
        near = differ <= 2 * CORE_RADIUS
        if near.any():
            query, reference = np.nonzero(near)
            close = _within_radius(queries[query] ^ references[start + reference])
            found[query[close]] = True
    return found


def same_picture(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether signs [n, WORDS - 1] are those of the same pictures as others, row by row, bool [n]."""
    core = np.bitwise_count(first[:, : _CORE // 64] ^ second[:, : _CORE // 64]).sum(axis=1, dtype=np.int64)
    near = np.flatnonzero(np.minimum(core, _CORE - core) <= CORE_RADIUS)
    found = np.zeros(len(first), dtype=bool)
    found[near] = _within_radius(first[near] ^ second[near])
    return found


def _within_radius(differing: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """bool [n] for [n, 16] words of the signs that differ."""
    distance = np.bitwise_count(differing).sum(axis=1, dtype=np.int64)
    return np.minimum(distance, _SIGNS - distance) <= RADIUS


def _small_grey(image: bytes | memoryview) -> NDArray[np.float32] | None:
    """Grey [_SIDE, _SIDE] whatever the aspect; None where the image cannot be decoded."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.format == "JPEG":
                # libjpeg decodes at a fraction of the size, at least twice what is needed.
                opened.draft("L", (2 * _SIDE, 2 * _SIDE))
            grey = opened.convert("L") if opened.mode in ("L", "RGB") else None
        if grey is None:
            grey = Image.fromarray(read_grey(bytes(image)))
        return _shrunk(grey)
    except (UnreadableImage, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _shrunk(grey: Image.Image) -> NDArray[np.float32]:
    return np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)


def _signs(small: NDArray[np.float32]) -> NDArray[np.uint64]:
    """[16] words of signs of a grey [_SIDE, _SIDE] picture; zeros where it has no structure."""
    coefficients = (_COSINES @ small @ _COSINES.T).reshape(-1)[_ORDER]
    if (np.abs(coefficients) > 1.0).mean() < _LEAST_STRUCTURE:
        return np.zeros(_SIGNS // 64, dtype=np.uint64)
    return np.packbits(coefficients > 0).view(np.uint64)


def _sign_order() -> NDArray[np.int64]:
    """Coefficients [_SIGNS] in the order of their bits: first the core, every second of the lower quarter."""
    down, across = np.indices((_BAND, _BAND))
    core = (down < _BAND // 2) & (across < _BAND // 2) & ((down + across) % 2 == 0)
    return np.argsort(~core.reshape(-1), kind="stable")


def _cosines() -> NDArray[np.float32]:
    """[_BAND, _SIDE] rows of the cosine transform (type 2, not normalised), the lowest left out."""
    frequency = np.arange(_LOWEST, _LOWEST + _BAND)[:, None]
    place = 2 * np.arange(_SIDE)[None] + 1
    return np.cos(np.pi * frequency * place / (2 * _SIDE)).astype(np.float32)


_COSINES: Final = _cosines()
_ORDER: Final = _sign_order()
