"""One searched key: what values it may take, and when.

Decisions: a parameter is written as one of six forms, so that a file reads like a sentence; a value that
comes from a step grid is rounded to 12 digits, since 0.15000000000000002 would be another configuration
than 0.15; several parameters of one key are alternatives under different conditions, of which at most
one applies. What a key may hold at all is the experiment tree's to say (see space_checks.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from mpma.strict import StrictConfig

Scalar = bool | int | float | str | None

Kind = Literal["uniform", "log_uniform", "int", "log_int", "choice", "fixed"]
KINDS: tuple[Kind, ...] = ("uniform", "log_uniform", "int", "log_int", "choice", "fixed")

MOST_LISTED = 100_000
"""A range with more values than this counts as continuous."""


def clean(value: float) -> float:
    """The shortest float near a value of a step grid: 0.15000000000000002 -> 0.15."""
    return float(round(value, 12))


def same(one: Any, other: Any) -> bool:
    """Equal, and both or neither a truth value: True is not 1 here, while 1.0 is."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def among(value: Any, values: Iterable[Any]) -> bool:
    """Whether a value is one of those."""
    return any(same(value, other) for other in values)


def _listed(value: Any) -> Any:
    return (
        {key: one if isinstance(one, list) else [one] for key, one in value.items()}
        if isinstance(value, dict)
        else value
    )


class Parameter(StrictConfig):
    """The values of one key: exactly one of uniform, log_uniform, int, log_int, choice, fixed."""

    model_config = ConfigDict(**{**StrictConfig.model_config, "populate_by_name": True})

    uniform: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """Lowest and highest value; with `step`, only every step of it."""
    log_uniform: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """Lowest and highest value, uniform in the logarithm."""
    int_range: list[int] | None = Field(default=None, alias="int", min_length=2, max_length=2)
    """Lowest and highest whole number; with `step`, only every step of it."""
    log_int: list[int] | None = Field(default=None, min_length=2, max_length=2)
    """Lowest and highest whole number, uniform in the logarithm."""
    choice: list[Scalar] | None = Field(default=None, min_length=1)
    """The values themselves, in no order."""
    fixed: bool | int | float | str | None = None
    """A value that no trial changes; in the default point too."""
    step: float | None = Field(default=None, gt=0.0)
    """Distance of neighbouring values (`uniform`, `int`); divides the range."""
    or_zero: bool = False
    """A `uniform` or `log_uniform` range that may also be switched off: 0, or within the range."""
    when: Annotated[
        dict[str, list[Scalar]] | None,
        BeforeValidator(_listed, json_schema_input_type=dict[str, Scalar | list[Scalar]] | None),
    ] = None
    """Applies only in trials where these keys have this value, or one of these."""
    at_most: dict[str, Annotated[float, Field(gt=0.0)]] | None = None
    """Never above this factor times the value of that searched key: a larger value is lowered to the
    largest allowed one."""

    @model_validator(mode="after")
    def _is_one_form(self) -> Parameter:
        given = [kind for kind in KINDS if self._given(kind) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} given" if given else "none given"
            raise ValueError(f"exactly one of {', '.join(KINDS)} is expected; {found}")
        if self.when is not None and not self.when:
            raise ValueError("when: an empty condition; leave `when` out where the key always applies")
        for key, values in (self.when or {}).items():
            if not values:
                raise ValueError(f"when: {key}: an empty list of values can never be met")
        if self.step is not None and self.kind not in ("uniform", "int"):
            raise ValueError(f"step: only uniform and int have steps, not {self.kind}")
        if self.or_zero and self.kind not in ("uniform", "log_uniform"):
            raise ValueError(f"or_zero: only uniform and log_uniform can be switched off, not {self.kind}")
        if self.at_most is not None and (self.kind == "fixed" or not self.at_most):
            raise ValueError("at_most: names a searched key and a factor, and limits no fixed value")
        if self.kind == "choice":
            self._check_choices()
        elif self.kind != "fixed":
            self._check_range()
        return self

    def _check_choices(self) -> None:
        for place, value in enumerate(self.choices):
            if among(value, self.choices[:place]):
                raise ValueError(f"choice: {value!r} stands twice")
            if self.at_most and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"at_most: {value!r} is not a number")

    def _check_range(self) -> None:
        low, high = self.low, self.high
        if low >= high:
            raise ValueError(f"{self.kind}: [{low:g}, {high:g}] holds no range; low must be below high")
        if self.log and low <= 0:
            raise ValueError(f"{self.kind}: the lowest value {low:g} has no logarithm; it must be above 0")
        if self.or_zero and low <= 0:
            raise ValueError(f"or_zero: the range [{low:g}, {high:g}] must lie above 0")
        if self.step is not None:
            if self.is_int and self.step != int(self.step):
                raise ValueError(f"step: {self.step:g} is not a whole number, as int needs")
            steps = (high - low) / self.step
            if abs(steps - round(steps)) > 1e-6 or round(steps) < 1:
                raise ValueError(f"step: {self.step:g} does not divide the range [{low:g}, {high:g}]")

    def _given(self, kind: Kind) -> Any:
        return getattr(self, "int_range" if kind == "int" else kind)

    @property
    def kind(self) -> Kind:
        """Which of the six forms it is."""
        return next(kind for kind in KINDS if self._given(kind) is not None)

    @property
    def searched(self) -> bool:
        """Whether trials differ in it."""
        return self.kind != "fixed"

    @property
    def is_int(self) -> bool:
        """Whether it is a range of whole numbers."""
        return self.kind in ("int", "log_int")

    @property
    def log(self) -> bool:
        """Whether its range is uniform in the logarithm."""
        return self.kind in ("log_uniform", "log_int")

    @property
    def is_range(self) -> bool:
        """Whether it has a lowest and a highest value."""
        return self.kind not in ("choice", "fixed")

    @property
    def low(self) -> float:
        """Lowest value of the range, an int where the range is one; `or_zero` is not counted."""
        value: float = self._given(self.kind)[0]
        return value if self.is_int else float(value)

    @property
    def high(self) -> float:
        """Highest value of the range, an int where the range is one."""
        value: float = self._given(self.kind)[1]
        return value if self.is_int else float(value)

    @property
    def choices(self) -> list[Any]:
        """The values of a choice; of `fixed`, its one value."""
        return list(self.choice) if self.choice is not None else [self.fixed]

    @property
    def grid_step(self) -> float | None:
        """Distance of neighbouring values; 1 for whole numbers, None where continuous."""
        if self.kind == "int":
            return int(self.step or 1)
        return self.step

    def values(self) -> list[Any] | None:
        """Every value it may take, in order; None where it is continuous."""
        if not self.is_range:
            return self.choices
        step = 1 if self.kind == "log_int" else self.grid_step
        if step is None or (self.high - self.low) / step >= MOST_LISTED:
            return None
        count = round((self.high - self.low) / step) + 1
        found = [self.low + place * step for place in range(count)]
        found = [int(value) for value in found] if self.is_int else [clean(value) for value in found]
        return [0.0, *found] if self.or_zero else found

    def corners(self) -> list[Any]:
        """Every choice, or both ends of the range, and 0 where it may be switched off."""
        if not self.is_range:
            return self.choices
        return [*([0.0] if self.or_zero else []), self.low, self.high]

    def contains(self, value: Any) -> bool:
        """Whether it may take this value; a value within 1e-9 of a step counts."""
        if not self.is_range:
            return among(value, self.choices)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if self.or_zero and value == 0:
            return True
        slack = 1e-9 * max(1.0, abs(self.high))
        if not self.low - slack <= value <= self.high + slack:
            return False
        if self.is_int and value != int(value):
            return False
        step = self.grid_step
        return step is None or abs((value - self.low) / step - round((value - self.low) / step)) < 1e-6

    def normalised(self, value: Any) -> Any:
        """A contained or sampled value as it is written into a configuration: on the grid, clean."""
        if not self.is_range:
            return next((choice for choice in self.choices if same(choice, value)), value)
        if self.or_zero and value == 0:
            return 0.0
        value = min(max(value, self.low), self.high)
        step = self.grid_step
        if step is not None:
            value = self.low + round((value - self.low) / step) * step
        return round(value) if self.is_int else clean(value) if step is not None else float(value)

    def nearest(self, value: Any) -> Any:
        """The value it may take that is closest to one that it may not; its first for what has no order."""
        if self.contains(value):
            return self.normalised(value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.is_range:
            return self.normalised(value if number and math.isfinite(value) else self.low)
        numbers = [one for one in self.choices if isinstance(one, (int, float)) and not isinstance(one, bool)]
        return min(numbers, key=lambda one: abs(one - value)) if number and numbers else self.choices[0]

    def limit(self, params: Mapping[str, Any]) -> float:
        """The largest value that `at_most` allows beside these params; infinite where nothing limits."""
        limits = [
            factor * float(params[key])
            for key, factor in (self.at_most or {}).items()
            if isinstance(params.get(key), (int, float))
        ]
        return min(limits, default=math.inf)

    def clamped(self, value: Any, params: Mapping[str, Any]) -> Any:
        """The value, or the largest allowed one below it. Raises ValueError where none is allowed."""
        limit = self.limit(params)
        if value <= limit if self.at_most else True:
            return value
        if self.is_range:
            zero = 0.0 if self.or_zero else None
            step = self.grid_step or (1 if self.is_int else None)
            lowered = self.low + math.floor((limit - self.low) / step + 1e-9) * step if step else limit
            found = self.normalised(lowered) if limit >= self.low else zero
        else:
            found = max((one for one in self.choices if one <= limit), default=None)
        if found is None:
            raise ValueError(f"no value is at most {limit:g}, as at_most asks")
        return found

    def applies(self, params: Mapping[str, Any]) -> bool:
        """Whether its condition is met by the values that the trial has."""
        return all(key in params and among(params[key], values) for key, values in (self.when or {}).items())

    @property
    def depends_on(self) -> list[str]:
        """Keys whose values it must know: those of its condition and of its limit."""
        return [*(self.when or {}), *(key for key in self.at_most or {} if key not in (self.when or {}))]
