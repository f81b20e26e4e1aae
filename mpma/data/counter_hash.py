"""Random numbers as a pure function of counters, so that no generator's state has to be kept.

Decisions: a crop or a mask is drawn from (seed, what it is for, epoch, position, column) by hashing
these numbers. Any worker can then draw any pair's choices in any order, and a run that is continued
draws what the unbroken run would have drawn. The mixing function is the finaliser of SplitMix64
(Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), applied once per
counter. Its values are frozen by a test: changing them would change every continued run.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_WEYL: Final = 0x9E3779B97F4A7C15
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_MASK: Final = (1 << 64) - 1


def counter_hash(seed: int, stream: str, *counters: ArrayLike) -> NDArray[np.uint64]:
    """64 mixed bits per element of the broadcast `counters` (integers); uint64 of their shape.

    `stream` names the purpose, so that two purposes never share numbers for the same counters.
    """
    state: NDArray[np.uint64] = _mixed(
        np.asarray((_stream_constant(stream) + seed * _WEYL) & _MASK, np.uint64)
    )
    for counter in counters:
        values = np.asarray(counter).astype(np.uint64)
        with np.errstate(over="ignore"):
            # The sum keeps the counters' places apart: the state was mixed before, so h(a, b) != h(b, a).
            state = _mixed(state + _mixed(values + np.uint64(_WEYL)))
    return state


def uniform(seed: int, stream: str, *counters: ArrayLike) -> NDArray[np.float64]:
    """float64 in [0, 1) with 53 random bits per element of the broadcast `counters`."""
    bits = counter_hash(seed, stream, *counters) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def text_hash(text: str) -> int:
    """int64 of a text by BLAKE2b: equal texts, equal numbers, on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


@lru_cache(maxsize=64)
def _stream_constant(stream: str) -> int:
    return text_hash(stream) & _MASK


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
        return state ^ (state >> np.uint64(31))
