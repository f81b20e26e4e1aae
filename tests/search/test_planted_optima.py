"""Searches on recorded runs and on a formula find what was planted there."""

from __future__ import annotations

import pytest

from benchmarks.planted import Curves, closed_form, found, measured_deviation, recorded, region


def test_the_planted_regions_lie_where_the_image_gives_most_per_hidden_word() -> None:
    low, high = region(3)
    assert low == pytest.approx(0.57, abs=0.02)
    assert high == pytest.approx(0.87, abs=0.02)
    assert region(2)[0] < low


@pytest.mark.parametrize("name", ["codes_2", "codes_3"])
def test_the_mean_of_the_recorded_runs_peaks_in_the_planted_region(name: str) -> None:
    curves = Curves.read(name)
    best = max(curves.means, key=lambda value: curves.means[value])
    assert found(name, best)
    ends = (min(curves.means), max(curves.means))
    assert all(curves.means[end] < 0.1 * curves.means[best] for end in ends)


@pytest.mark.parametrize("name", ["codes_2", "codes_3"])
def test_a_search_over_the_report_ratio_ends_in_the_planted_region(name: str) -> None:
    assert sum(recorded(name, seed)["found"] for seed in range(10)) >= 8


def test_a_search_of_the_formula_comes_close_and_leaves_the_idle_key_without_importance() -> None:
    deviation = measured_deviation()
    runs = [closed_form(seed, deviation) for seed in range(10)]
    assert sum(run["score"] >= 0.9 for run in runs) >= 9
    assert sum(run["idle_importance"] < 0.05 for run in runs) >= 9
