"""Which pictures of one dataset are the same, and which reports: groups of rows, in bounded time and memory.

Decisions:
- Two rows show one picture where their stored bytes are equal or where their signs agree under the radii of
  `mpma.data.picture_signs`. Groups are the connected rows.
- Rows are compared only where they share a band: the 1,024 signs are cut into bands of 16 to 24 signs, wider
  for more rows, so that chance puts about as many rows into one bucket whatever their number (locality
  sensitive hashing, Indyk and Motwani, "Approximate Nearest Neighbors", 1998). Within a bucket rows lie
  sorted by the signs that follow, and each is compared with the next `_NEIGHBOURS` alone. So time is
  n log n, and memory a few words a row, however many rows look alike.
- Copies that differ in fewer signs than there are bands (42 to 64) share one for certain; of copies at the
  edge of the radii a few may go unseen. docs/data.md tells what was measured.
- A band is complemented where its first sign is set, so that an inverted picture falls into the same bucket.
- Reports are the same where 64 bits of the normalised text that a model reads are.

What is handled here are hashes and numbers of rows; no identifier, text or pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mpma.data.picture_signs import Fingerprints, has_signs, same_picture

Groups = NDArray[np.int64]
"""[n]: the number of a row's group, which is the number of its first row; rows alone are groups of one."""

_NARROWEST: Final = 16
_WIDEST: Final = 24
_SIGNS: Final = 1024
_NEIGHBOURS: Final = 64
_AT_ONCE: Final = 1 << 18
"""Candidate pairs that are compared at once; 128 bytes each."""


def picture_groups(pictures: Fingerprints) -> Groups:
    """Groups of rows that show one picture, from fingerprints [n, WORDS]."""
    groups = equal_groups(pictures[:, 0])
    # Equal bytes are one row from here on; what has no signs is compared by its bytes alone.
    rows = np.flatnonzero(has_signs(pictures) & (groups == np.arange(len(pictures))))
    if len(rows) < 2:
        return groups
    signs = np.ascontiguousarray(pictures[rows, 1:])
    found = _connected(signs)
    first = rows[found]
    merged = np.arange(len(pictures), dtype=np.int64)
    merged[rows] = first
    return _smallest(merged[groups])


def equal_groups(values: NDArray[np.uint64]) -> Groups:
    """Groups of rows with equal values [n]."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def band_width(rows: int) -> int:
    """Signs of a band for so many rows."""
    return min(max(rows.bit_length() + 1, _NARROWEST), _WIDEST)


def _connected(signs: NDArray[np.uint64]) -> Groups:
    """Groups [n] of signs [n, 16]."""
    groups = np.arange(len(signs), dtype=np.int64)
    width = band_width(len(signs))
    # Signs lie in bytes from the highest bit on; as big-endian words a shift moves along the bands.
    words = np.ascontiguousarray(signs.byteswap().T)
    for start in range(0, _SIGNS - width + 1, width):
        edges: list[NDArray[np.int64]] = []
        for first, second in _candidates(_window(words, start), width):
            apart = groups[first] != groups[second]
            first, second = first[apart], second[apart]
            same = same_picture(signs[first], signs[second])
            edges.append(np.stack([first[same], second[same]]))
            # Where everything looks alike they are joined at once, so that memory stays in bounds.
            if sum(part.shape[1] for part in edges) > len(signs):
                groups, edges = _joined(groups, edges), []
        groups = _joined(groups, edges)
    return groups


def _window(words: NDArray[np.uint64], start: int) -> NDArray[np.uint64]:
    """The 64 signs [n] from the `start`-th on, cyclic, complemented where the first is set."""
    place, shift = divmod(start, 64)
    window = words[place]
    if shift:
        following = words[(place + 1) % len(words)]
        window = (window << np.uint64(shift)) | (following >> np.uint64(64 - shift))
    return np.where(window >> np.uint64(63), ~window, window)


def _candidates(
    window: NDArray[np.uint64], width: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows of one bucket, near each other in the order of the signs that follow."""
    order = np.argsort(window, kind="stable")
    bucket = window[order] >> np.uint64(64 - width)
    # Places whose bucket reaches `distance` further; fewer with every step.
    places = np.arange(len(order) - 1)
    for distance in range(1, _NEIGHBOURS + 1):
        places = places[places < len(order) - distance]
        places = places[bucket[places] == bucket[places + distance]]
        for begin in range(0, len(places), _AT_ONCE):
            some = places[begin : begin + _AT_ONCE]
            yield order[some], order[some + distance]


def _joined(groups: Groups, edges: Sequence[NDArray[np.int64]]) -> Groups:
    """Groups [n] after further pairs of rows, [2, m] each, are known to be one."""
    if not any(part.shape[1] for part in edges):
        return groups
    first, second = np.concatenate([*edges, np.stack([groups, np.arange(len(groups))])], axis=1)
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(groups), len(groups)))
    return _smallest(connected_components(graph, directed=False)[1])


def _smallest(labels: NDArray[np.int64]) -> Groups:
    """Each label [n] replaced by the first row that has it."""
    return equal_groups(labels.astype(np.uint64))
