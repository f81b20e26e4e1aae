"""Random numbers of the phantom: counter based, one independent stream per use.

Decisions: a Philox generator is keyed by (seed, index) and its counter starts at the stream's own
place, so that the wording of a pair never depends on how many numbers its rendering took, a report
is known without drawing a pixel, and any pair is made without making those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np

STREAMS: Final = ("anatomy", "findings", "wording", "texture", "noise", "leads", "planted")

_Choice = TypeVar("_Choice")
_WORD = 2**64


def generator(index: int, seed: int, stream: str) -> np.random.Generator:
    """The generator of one pair's stream; `index` and `seed` are taken modulo 2**64.

    Raises ValueError for a stream that is not in `STREAMS`.
    """
    counter = [0, 0, 0, STREAMS.index(stream) + 1]
    return np.random.Generator(np.random.Philox(key=[seed % _WORD, index % _WORD], counter=counter))


class Draws:
    """Scalar draws from one stream, taken in blocks because single numpy draws are slow."""

    _BLOCK = 128

    def __init__(self, index: int, seed: int, stream: str) -> None:
        self._generator = generator(index, seed, stream)
        self._values: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._values:
            self._values = self._generator.random(self._BLOCK).tolist()
        return self._values.pop()

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def integer(self, low: int, high: int) -> int:
        """Uniform among low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.unit() < probability

    def choice(self, options: Sequence[_Choice]) -> _Choice:
        """One of the options, all equally likely."""
        return options[int(self.unit() * len(options))]

    def weighted(self, options: Sequence[tuple[_Choice, float]]) -> _Choice:
        """One of (option, weight); weights are positive and need not sum to one."""
        place = self.unit() * sum(weight for _, weight in options)
        for option, weight in options:
            place -= weight
            if place < 0:
                return option
        return options[-1][0]

    def shuffled(self, options: Sequence[_Choice]) -> list[_Choice]:
        """The options in a random order."""
        rest = list(options)
        for last in range(len(rest) - 1, 0, -1):
            other = int(self.unit() * (last + 1))
            rest[last], rest[other] = rest[other], rest[last]
        return rest
