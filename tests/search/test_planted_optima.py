"""Searches on recorded runs and on a formula find what was planted there."""

from __future__ import annotations

import pytest

from benchmarks.planted import (
    RESULTS,
    closed_form,
    found,
    inside,
    means,
    measured_deviation,
    recorded,
    region,
)
from benchmarks.recording import Curves


def test_the_planted_regions_lie_where_the_image_gives_most_per_hidden_word() -> None:
    low, high = region(3)
    assert low == pytest.approx(0.57, abs=0.02)
    assert high == pytest.approx(0.87, abs=0.02)
    assert region(2)[0] < low


@pytest.mark.parametrize("name", ["codes_2", "codes_3"])
def test_the_mean_of_the_recorded_runs_peaks_in_the_planted_region(name: str) -> None:
    curve = means(Curves.read(RESULTS / f"planted_{name}.json"))
    best = max(curve, key=curve.__getitem__)
    assert found(name, best)
    assert all(curve[end] < 0.1 * curve[best] for end in (min(curve), max(curve)))


@pytest.mark.parametrize("name", ["codes_2", "codes_3"])
def test_a_search_over_the_report_ratio_ends_in_the_planted_region(name: str) -> None:
    assert sum(recorded(name, seed)["found"] for seed in range(10)) >= 8


def test_recorded_runs_with_either_extreme_weight_are_worse_than_with_one_inside() -> None:
    curve = means(Curves.read(RESULTS / "planted_weights.json"))
    best = max(curve, key=curve.__getitem__)
    low, high = inside()
    assert low <= best <= high
    assert max(curve[min(curve)], curve[max(curve)]) < curve[best] - 0.02


def test_a_search_over_the_weight_ends_inside_the_extremes() -> None:
    assert sum(recorded("weights", seed)["found"] for seed in range(5)) >= 4


def test_a_search_of_the_formula_comes_close_and_leaves_the_idle_key_without_importance() -> None:
    deviation = measured_deviation()
    runs = [closed_form(seed, deviation) for seed in range(10)]
    assert sum(run["score"] >= 0.9 for run in runs) >= 9
    assert sum(run["idle_importance"] < 0.05 for run in runs) >= 9
