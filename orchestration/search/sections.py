"""The sections of a space file: what is sought, what may be spent, and who decides.

Decisions: a metric that is missing or not finite is no value, and breaks every bound; a loss or a cost
can only be minimised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from mpma.comparability import lower_is_better
from mpma.strict import StrictConfig

Direction = Literal["maximise", "minimise"]
Metrics = Mapping[str, float | None]


def finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


class Objective(StrictConfig):
    """A metric that trials are ranked by."""

    metric: str
    """Name of a metric as metrics.jsonl has it."""
    direction: Direction = "maximise"
    """Which way is better."""

    @model_validator(mode="after")
    def _has_its_direction(self) -> Objective:
        if self.direction == "maximise" and lower_is_better(self.metric):
            raise ValueError(f"{self.metric}: lower is better; write direction: minimise")
        return self

    def value(self, metrics: Metrics) -> float | None:
        """The metric; None where it is missing or not finite."""
        return finite(metrics.get(self.metric))

    def minimised(self, metrics: Metrics) -> float | None:
        """The metric with its sign turned so that lower is better; None where it is missing."""
        value = self.value(metrics)
        return value if value is None or self.direction == "minimise" else -value


class Constraint(StrictConfig):
    """A bound that a trial must keep to be the winner."""

    metric: str
    """Name of a metric as metrics.jsonl has it, or peak_memory_bytes."""
    at_most: float | None = None
    """Highest value."""
    at_least: float | None = None
    """Lowest value."""

    @model_validator(mode="after")
    def _is_one_bound(self) -> Constraint:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"{self.metric}: exactly one of at_most and at_least is expected")
        return self

    def violation(self, metrics: Metrics) -> float:
        """How far the bound is broken: at most 0 where it is kept, infinite where nothing is known."""
        value = finite(metrics.get(self.metric))
        if value is None:
            return math.inf
        return value - self.at_most if self.at_most is not None else (self.at_least or 0.0) - value


class Budget(StrictConfig):
    """What the search may spend; it ends at whichever is reached first. Confirmation is not counted."""

    trials: int | None = Field(default=None, ge=1, le=1_000_000)
    """Configurations that are tried."""
    gpu_hours: float | None = Field(default=None, gt=0.0)
    """Hours of devices; a worker on CPU counts as one device."""
    wall_clock_hours: float | None = Field(default=None, gt=0.0)
    """Hours that the search's programs run, over all sessions."""

    @model_validator(mode="after")
    def _ends(self) -> Budget:
        if self.trials is None and self.gpu_hours is None and self.wall_clock_hours is None:
            raise ValueError("at least one of trials, gpu_hours and wall_clock_hours is expected")
        return self


class Fidelity(StrictConfig):
    """How long trials train, and where they are compared on the way."""

    steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Steps of a full-length trial. None: the recipe's training.steps."""
    first_rung: int | None = Field(default=None, ge=1)
    """Steps of the first rung. None: the full length over reduction squared, so two rungs below it."""
    reduction: int = Field(default=3, ge=2, le=100)
    """Each rung is this many times longer than the one before; one trial in so many is promoted."""

    def rungs(self, full_steps: int) -> tuple[int, ...]:
        """Steps at which trials are compared, ascending; the last is the full length."""
        rung = self.first_rung or -(-full_steps // self.reduction**2)
        found = []
        while rung < full_steps:
            found.append(rung)
            rung *= self.reduction
        return (*found, full_steps)


class Searcher(StrictConfig):
    """Who suggests the next trial."""

    name: Literal["tpe", "gp", "nsga2", "cmaes", "quasi_random", "random", "grid"] = "tpe"
    """tpe: tree-structured Parzen estimators, several keys at once; gp: Gaussian process; nsga2: genetic,
    for several objectives; cmaes: evolution strategy, for ranges; quasi_random, random, grid."""
    startup_trials: int = Field(default=8, ge=1, le=100_000)
    """Trials before a model is believed; random until then."""


class Scheduler(StrictConfig):
    """Who trains on."""

    name: Literal["halving", "median", "none"] = "halving"
    """halving: the best of each rung are promoted from their checkpoints; median: what lies under the
    median at a rung is stopped; none: every trial trains in full."""


class First(StrictConfig):
    """What is tried before the searcher suggests anything, and what it is told of earlier searches."""

    default: bool = True
    """The recipe's own values are trial 0."""
    points: list[dict[str, Any]] = Field(default_factory=list)
    """Points of the space; keys that are left out have the recipe's value."""
    searches: list[str] = Field(default_factory=list)
    """Folders of earlier searches whose completed trials the searcher is told."""


class Confirmation(StrictConfig):
    """Retraining of the best trials and of the recipe's own values, with new seeds at full length."""

    candidates: int = Field(default=2, ge=0, le=100)
    """Best trials that are retrained beside the default. 0: no confirmation."""
    seeds: int = Field(default=3, ge=1, le=100)
    """Retrainings of each."""
    steps: int | None = Field(default=None, ge=1, le=100_000_000)
    """Steps of each. None: those of a full-length trial."""
    resamples: int = Field(default=2000, ge=100, le=1_000_000)
    """Bootstrap resamples of the test patients."""
