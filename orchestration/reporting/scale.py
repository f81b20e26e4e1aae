"""Where a hyper-parameter's value stands on an axis from 0 to 1, whatever kind of parameter it is.

Decisions: alternatives of one key under different conditions share one axis, so that a chart has one axis
a key; choices stand evenly, numbers among them in order; a range that may be switched off has 0 at its
foot, apart from the range; values outside (the recipe's own may be) widen the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from orchestration.reporting.wording import compact, setting
from orchestration.search.parameters import Parameter, among

FOOT: Final = 0.12
"""Share of an axis that stands between 0 and the range above it."""


def is_number(value: Any) -> bool:
    """Whether a value has a place on a range."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Scale:
    """One axis."""

    categories: tuple[Any, ...] = ()
    """The values of a choice; empty for a range."""
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    zero: bool = False
    """Whether 0 has a place of its own."""

    @classmethod
    def of(cls, alternatives: Sequence[Parameter], observed: Iterable[Any]) -> Scale:
        """The axis of a key, from its alternatives and the values that trials had."""
        observed = [value for value in observed if value is not None]
        if any(not one.is_range for one in alternatives):
            values: list[Any] = []
            corners = [corner for one in alternatives for corner in one.corners()]
            for value in [*corners, *observed]:
                if not among(value, values):
                    values.append(value)
            if all(is_number(value) for value in values):
                values.sort()
            return cls(tuple(values))
        zero = any(one.or_zero for one in alternatives) or any(value == 0 for value in observed)
        log = any(one.log for one in alternatives)
        numbers = [float(value) for value in observed if is_number(value)]
        numbers += [float(end) for one in alternatives for end in (one.low, one.high)]
        return cls.over(numbers, log=log, zero=(zero and log) or any(one.or_zero for one in alternatives))

    @classmethod
    def over(cls, numbers: Iterable[float], *, log: bool = False, zero: bool = False) -> Scale:
        """The axis of plain numbers."""
        kept = [value for value in numbers if value > 0] if log else list(numbers)
        low, high = min(kept, default=0.0), max(kept, default=1.0)
        return cls((), low, high if high > low else low + (abs(low) or 1.0), log, zero)

    def place(self, value: Any) -> float | None:
        """0 to 1; None for a value without a place."""
        if self.categories:
            found = [at for at, one in enumerate(self.categories) if among(value, [one])]
            return found[0] / max(1, len(self.categories) - 1) if found else None
        if not is_number(value):
            return None
        if self.zero and value == 0:
            return 0.0
        if self.log and value <= 0:
            return None
        low, high, here = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        foot = FOOT if self.zero else 0.0
        return foot + (1 - foot) * (here - low) / (high - low)

    def ticks(self, most: int = 5) -> list[tuple[float, str]]:
        """Places and what stands there, at most about `most`."""
        if self.categories:
            every = math.ceil(len(self.categories) / most) if self.ordered else 1
            return [(self.place(one) or 0.0, setting(one)) for one in self.categories[::every]]
        if self.log:
            factor = self.high / self.low
            values = [self.low * factor ** (at / (most - 1)) for at in range(1, most - 1)]
            values = [self.low, *(float(f"{value:.1g}") for value in values), self.high]
        else:
            values = _round_values(self.low, self.high, most)
        found = [(self.place(value) or 0.0, compact(value)) for value in values]
        return [(0.0, "0"), *found] if self.zero else found

    @property
    def ordered(self) -> bool:
        """Whether neighbours can be guessed, so that not every category needs its name."""
        return len(self.categories) > 8 and all(is_number(one) for one in self.categories)


def _round_values(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], at most `most`."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20, 50)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(place * step, 12) for place in range(first, last + 1)]
    return [low, high]
