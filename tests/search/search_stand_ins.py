"""Searches made of plain events, without training: what the pure rooms of the search are tested on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from orchestration.search.records import SearchState


@dataclass(frozen=True)
class Metric:
    """An objective over the metric of its name."""

    metric: str = "score"
    direction: str = "maximise"

    def value(self, metrics: dict[str, Any]) -> float | None:
        return metrics.get(self.metric)

    def minimised(self, metrics: dict[str, Any]) -> float | None:
        value = self.value(metrics)
        return value if value is None or self.direction == "minimise" else -value


@dataclass
class RungSpace:
    """The part of a space that ranking and promotion look at."""

    rung_steps: tuple[int, ...] = (1, 3, 9)
    reduction: int = 3
    scheduler_name: str = "halving"
    objectives: tuple[Metric, ...] = (Metric(),)
    memory_at_most: float | None = None
    disk_budget_bytes: int | None = None
    trials: int | None = None
    budget: Any = field(init=False)
    scheduler: Any = field(init=False)
    fidelity: Any = field(init=False)

    def __post_init__(self) -> None:
        self.budget = SimpleNamespace(trials=self.trials)
        self.scheduler = SimpleNamespace(name=self.scheduler_name)
        self.fidelity = SimpleNamespace(reduction=self.reduction, rungs=lambda full_steps: self.rung_steps)

    def violations(self, metrics: dict[str, Any]) -> list[float]:
        if self.memory_at_most is None:
            return []
        memory = metrics.get("memory")
        return [math.inf if memory is None else memory - self.memory_at_most]


class Story:
    """A search told event by event; the clock advances one second an event."""

    def __init__(self, full_steps: int = 9, first_target: int = 1, **begin: Any) -> None:
        self.state = SearchState()
        self.clock = 0.0
        self.tell("begin", full_steps=full_steps, first_target=first_target, **begin)

    def tell(self, event: str, **entries: Any) -> None:
        self.clock += 1.0
        self.state.apply({"event": event, "time": self.clock, **entries})

    def begin(self, params: dict[str, Any] | None = None, source: str = "tpe", **entries: Any) -> int:
        number = len(self.state.trials)
        self.tell("suggest", trial=number, params=params or {}, source=source, **entries)
        return number

    def report(self, trial: int, score: float | None, step: int | None = None, **metrics: Any) -> None:
        self.tell(
            "report",
            trial=trial,
            step=self.state.trials[trial].target if step is None else step,
            metrics={"score": score, **metrics},
            seconds=1.0,
        )

    def promote(self, trial: int, target: int) -> None:
        self.tell("promote", trial=trial, target=target)

    def fail(self, trial: int) -> None:
        self.tell("fail", trial=trial, reason="crashed", seconds=1.0)

    def prune(self, trial: int) -> None:
        self.tell("prune", trial=trial, reason="hopeless")
