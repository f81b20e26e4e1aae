"""The simulation that searches are compared in: equal budgets, real decisions, honest regret."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.search_picture import picture
from benchmarks.search_quality import MUST_BEAT, Courses, interval, measure, problems
from benchmarks.search_simulation import (
    METHODS,
    Params,
    Problem,
    Segment,
    augmented_branin,
    augmented_hartmann,
    currin_exponential,
    quietly,
    recorded_curves,
    simulate,
)

RUNGS = (10, 30, 90)
HARTMANN_OPTIMUM = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)


class Noted:
    """Random trials in full, and what the workers did."""

    def __init__(self, problem: Problem) -> None:
        self._problem, self._draw = problem, random.Random(0)
        self.begun: list[Segment] = []
        self.ended: list[Segment] = []
        self.most_running = 0

    def next(self) -> Segment:
        self.begun.append(
            Segment(len(self.begun), self._problem.random_params(self._draw), 0, self._problem.full)
        )
        return self.begun[-1]

    def reached(self, segment: Segment, value: float) -> None:
        self.most_running = max(self.most_running, len(self.begun) - len(self.ended))
        self.ended.append(segment)

    def incumbent(self) -> Params:
        return self.ended[-1].params


def test_workers_overlap_and_no_step_is_trained_beyond_the_budget() -> None:
    problem = currin_exponential(RUNGS)
    method = Noted(problem)
    course = simulate(problem, method, budget=10 * 90 + 40, workers=4)
    assert len(method.ended) == 10
    assert method.most_running >= 4
    assert course[-1][0] == 900


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_to_the_budget_and_gives_a_configuration(name: str) -> None:
    problem = augmented_branin(RUNGS)
    course = quietly(problem, name, seed=3, budget=360, workers=4)
    assert course[-1][0] <= 360
    assert 0.0 <= course[-1][1] < 5.0
    assert course == quietly(problem, name, seed=3, budget=360, workers=4)


def test_the_published_functions_reach_their_published_optima() -> None:
    branin, currin, hartmann = (
        make(RUNGS) for make in (augmented_branin, currin_exponential, augmented_hartmann)
    )
    assert branin.regret({"x1": np.pi, "x2": 2.275}) == pytest.approx(0.0, abs=1e-6)
    assert currin.regret({"x1": 0.2166666, "x2": 0.0}) == pytest.approx(0.0, abs=1e-6)
    point = {f"x{i}": value for i, value in enumerate(HARTMANN_OPTIMUM, start=1)}
    assert hartmann.regret(point) == pytest.approx(0.0, abs=1e-5)
    assert branin.value({"x1": np.pi, "x2": 2.275}, 10) < branin.best


def recorded_table() -> dict[str, Any]:
    """A grid of 3 by 2 points whose best is the third by the second."""
    runs = [
        {
            "params": {"a": a, "b": b, "c": 1.0},
            "values": {"m": [0.1 * a, 0.1 * a + 0.02 * b, 0.2 * a + 0.1 * b]},
            "seed": 0,
            "seconds_per_step": 1.0,
        }
        for a in (0.1, 0.2, 0.3)
        for b in (0.2, 0.7)
    ]
    return {"keys": ["a", "b", "c"], "steps": [20, 60, 180], "runs": runs}


def test_recorded_curves_are_searched_by_their_grid(tmp_path: Path) -> None:
    path = tmp_path / "curves.json"
    path.write_text(json.dumps(recorded_table()))
    problem = recorded_curves(path, "m", (60, 180))
    assert problem.rungs == (60, 180)
    assert problem.parameters == {"a": {"int": [0, 2]}, "b": {"int": [0, 1]}}
    assert problem.value({"a": 2, "b": 1}, 180) == pytest.approx(0.13)
    assert problem.regret({"a": 2, "b": 1}) == 0.0
    course = quietly(problem, "ours", seed=0, budget=6 * 180, workers=2)
    assert course[-1][1] == 0.0


def test_the_interval_of_a_mean_covers_it_about_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = interval(draw.normal(1.0, 2.0, 30), resamples=500)
        covered += low <= 1.0 <= high
    assert 176 <= covered <= 198


def test_a_picture_has_a_line_and_a_band_for_each_method() -> None:
    regrets = {name: np.full((3, 8), 0.1) for name in METHODS}
    text = picture([Courses("one", regrets), Courses("two", regrets)], budget=8.0)
    assert text.count("<polyline") == text.count("<polygon") == 2 * len(METHODS)


@pytest.mark.slow
def test_no_other_way_to_spend_the_steps_ends_with_a_better_configuration() -> None:
    for problem in problems():
        lines = measure(problem, list(METHODS), seeds=100, budget=8.0, workers=4).lines()
        for line in lines:
            if line["figure"] == "ours_minus_other":
                low, high = line["interval"]
                assert low <= 0.0, line
                assert high < 0.0 or line["method"] not in MUST_BEAT, line
