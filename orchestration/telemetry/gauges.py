"""Sets the gauges of the catalogue through Ray's own metrics, which every node shows at its metrics port."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestration.telemetry.catalogue import gauge_name, metric_of

if TYPE_CHECKING:
    from orchestration.search.records import SearchState
    from orchestration.search.space import SearchSpace


class _Gauges:
    """Gauges that are made when their first value comes, all with the same name of a run or search."""

    def __init__(self, kind: str, name: str) -> None:
        self._kind, self._name = kind, name
        self._gauges: dict[str, Any] = {}

    def set(self, figure: str, value: float, **tag: str) -> None:
        metric = metric_of(figure)
        assert metric is not None, figure
        if figure not in self._gauges:
            from ray.util.metrics import Gauge

            keys = (self._kind,) if metric.tag is None else (self._kind, metric.tag)
            gauge = Gauge(gauge_name(figure), description=metric.meaning, tag_keys=keys)
            gauge.set_default_tags({self._kind: self._name})
            self._gauges[figure] = gauge
        self._gauges[figure].set(value, tags=tag or None)


class RunGauges:
    """The figures of a run, from the lines of its metrics.jsonl."""

    def __init__(self, run_name: str, steps: int) -> None:
        self._gauges, self._steps = _Gauges("run", run_name), steps

    def set(self, values: Mapping[str, Any]) -> None:
        """Publish the numbers of a line, and what memory the process has now."""
        figures = {**values, **_memory()}
        if "loss/total" in values:
            figures["progress"] = values["step"] / self._steps
        for figure, value in figures.items():
            metric = metric_of(figure)
            if metric is None or metric.of != "run" or isinstance(value, bool):
                continue
            if isinstance(value, int | float):
                self._gauges.set(figure, float(value))


def _memory() -> dict[str, float]:
    import psutil

    found = {"resident_bytes": float(psutil.Process().memory_info().rss)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu_peak_bytes"] = float(torch.cuda.max_memory_allocated())
    return found


class SearchGauges:
    """The figures of a search, from its state."""

    def __init__(self, name: str, space: SearchSpace) -> None:
        self._gauges, self._space = _Gauges("search", name), space

    def set(self, state: SearchState) -> None:
        """Publish where the search stands."""
        from orchestration.search.promote import best_first

        states = dict.fromkeys(("open", "waiting", "complete", "pruned", "failed"), 0)
        rungs: dict[int, int] = {}
        for trial in state.trials:
            states[trial.state] += 1
            for step in trial.reports:
                rungs[step] = rungs.get(step, 0) + 1
        for name, count in states.items():
            self._gauges.set("search/trials", count, state=name)
        for step, count in rungs.items():
            self._gauges.set("search/rung_trials", count, step=str(step))
        self._gauges.set("search/retries", sum(trial.retries for trial in state.trials))
        self._gauges.set("search/device_seconds", state.device_seconds)
        self._gauges.set("search/budget_left", self._left(state))
        for number in best_first(self._space, state)[:1]:
            trial = state.trials[number]
            self._gauges.set("search/best_trial", number)
            for objective in self._space.objectives:
                value = objective.value(trial.reports[trial.step])
                if value is not None:
                    self._gauges.set("search/best_value", float(value), objective=objective.metric)

    def _left(self, state: SearchState) -> float:
        budget = self._space.budget
        shares = [
            spent / most
            for spent, most in (
                (float(sum(trial.final for trial in state.trials)), budget.trials),
                (state.device_seconds / 3600, budget.gpu_hours),
                (state.wall_seconds / 3600, budget.wall_clock_hours),
            )
            if most
        ]
        return max(0.0, 1.0 - max(shares))
