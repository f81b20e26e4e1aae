"""Rank correlation against scipy, brute force and cases worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from confirmation_samples import BASE, GAIN, RECALL, SCORE, made_space, several
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.config import changed_keys
from mpma.errors import UserError
from orchestration.search.rank_correlation import (
    FULL,
    Measured,
    evaluate,
    measurements,
    plan_points,
    table,
    top_1_regret,
    weighted_tau_b,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=12))
def test_tau_b_of_counts_is_scipys_of_copies(rows: list[tuple[int, int, int]]) -> None:
    one, other, counts = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = weighted_tau_b(one, other, np.stack([counts, np.ones_like(counts)]))
    for row, value in zip((counts, np.ones_like(counts)), found, strict=True):
        copies = np.repeat(np.arange(len(one)), row.astype(int))
        if len(copies) < 2:
            assert np.isnan(value)
            continue
        expected = scipy.stats.kendalltau(one[copies], other[copies]).statistic
        np.testing.assert_allclose(value, expected, atol=1e-12)


def test_the_interval_is_of_every_resample_of_configurations() -> None:
    # Of 4 configurations all 4**4 resamples can be listed.
    cheap, full = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])
    taus = []
    for chosen in itertools.product(range(4), repeat=4):
        tau = scipy.stats.kendalltau(cheap[list(chosen)], full[list(chosen)]).statistic
        if not np.isnan(tau):
            taus.append(tau)
    results = {(point, FULL): Measured({10: {SCORE: cheap[point]}, 90: {SCORE: full[point]}}, 1.0)
               for point in range(4)}  # fmt: skip
    (found,) = evaluate(made_space(confirmation={"resamples": 20_000}), results)
    assert found.tau == pytest.approx(4 / 6)
    assert found.interval is not None
    low, high = np.quantile(taus, [0.025, 0.975])
    assert found.interval == pytest.approx((low, high), abs=0.02)


def test_regret_is_what_the_cheap_choice_loses() -> None:
    full = np.array([0.1, 0.5, 0.4])
    assert top_1_regret(np.array([0.0, 0.2, 0.3]), full) == pytest.approx(0.1)
    assert top_1_regret(np.array([0.0, 0.9, 0.3]), full) == 0.0
    assert top_1_regret(np.array([0.3, 0.3, 0.0]), full) == pytest.approx(0.2)


def test_points_are_the_recipes_own_and_different_ones_of_the_space() -> None:
    space = made_space()
    points = plan_points(space, BASE, 9)
    assert points[0] == {"image.mask_ratio": 0.75, "report.mask_ratio": 0.5}
    assert len({tuple(point.values()) for point in points}) == 9
    assert all(space.objection(point) is None for point in points)
    assert plan_points(space, BASE, 5) == points[:5]
    # Quasi-random: eight points of a balanced sequence lie in all quarters.
    quarters = {(p["image.mask_ratio"] > 0.65, p["report.mask_ratio"] > 0.45) for p in points[1:]}
    assert len(quarters) == 4


def test_a_small_space_gives_all_that_it_has() -> None:
    space = made_space(parameters={"memory.kind": {"choice": ["shared", "none"]}})
    assert plan_points(space, BASE, 6) == [{"memory.kind": "shared"}, {"memory.kind": "none"}]


PROXIES = {"fewer_steps": {"training.steps": 30}, "smaller": {"image.width": 192, "image.heads": 3}}


def test_every_point_is_trained_in_full_and_at_each_proxy() -> None:
    space = made_space(proxies=PROXIES)
    points = plan_points(space, BASE, 5)
    planned = measurements(space, BASE, points)
    assert len(planned) == 15
    assert len({one.name for one in planned}) == 15
    full, fewer, smaller = planned[1], planned[6], planned[11]
    assert [one.name for one in (full, fewer, smaller)] == [
        "point-1-full",
        "point-1-fewer_steps",
        "point-1-smaller",
    ]
    assert full.rungs == (10, 30, 90)
    assert full.overrides == {}
    assert changed_keys(BASE, full.config) == ["image.mask_ratio", "report.mask_ratio"]
    assert changed_keys(full.config, fewer.config) == ["training.steps"]
    assert fewer.rungs == (30,)
    assert changed_keys(full.config, smaller.config) == ["image.width", "image.heads"]
    assert smaller.rungs == (90,)
    assert all(one.params == points[1] for one in (full, fewer, smaller))


def test_a_proxy_that_does_not_fit_is_refused() -> None:
    space = made_space(proxies={"odd": {"report.width": 100, "memory.heads": 3}})
    with pytest.raises(UserError, match="heads"):
        measurements(space, BASE, plan_points(space, BASE, 2))


def results_of(seed: int = 0, count: int = 20) -> dict[tuple[int, str], Measured]:
    """A proxy that agrees, a rung that agrees a little, a proxy that is turned round."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=count)
    found = {}
    for point, value in enumerate(truth):
        noisy = value + generator.normal(0, 2.0)
        curve = {10: {SCORE: noisy, RECALL: -noisy}, 90: {SCORE: value, RECALL: value}}
        found[point, FULL] = Measured(curve, 40.0)
        found[point, "fewer_steps"] = Measured({30: {SCORE: value * 2 + 1, RECALL: None}}, 10.0)
        found[point, "smaller"] = Measured({90: {SCORE: -value, RECALL: value}}, 20.0)
    return found


def test_each_setting_is_told_with_its_cost() -> None:
    space = made_space(proxies=PROXIES)
    rung, fewer, smaller = evaluate(space, results_of())
    assert [one.setting for one in (rung, fewer, smaller)] == ["step 10", "fewer_steps", "smaller"]
    assert (fewer.tau, fewer.interval, fewer.regret) == (pytest.approx(1.0), pytest.approx((1.0, 1.0)), 0.0)
    assert smaller.tau == pytest.approx(-1.0)
    assert smaller.regret_share == pytest.approx(1.0)
    assert rung.tau is not None
    assert rung.interval is not None
    assert rung.interval[0] < rung.tau < rung.interval[1]
    assert rung.cost == pytest.approx(10 / 90)
    assert fewer.cost == pytest.approx(0.25)
    assert smaller.cost == pytest.approx(0.5)
    assert fewer.verdict == "ranks much as the full setting does"
    assert smaller.verdict == "ranks against it"
    assert {one.points for one in (rung, fewer, smaller)} == {20}


def test_the_direction_of_an_objective_is_heeded() -> None:
    metric = "val/loss/report_reconstruction"
    space = made_space(objectives=[{"metric": metric, "direction": "minimise"}])
    truth = [3.0, 1.0, 2.0, 5.0, 4.0]
    results = {
        (point, FULL): Measured({10: {metric: cheap}, 90: {metric: full}}, 1.0)
        for point, (cheap, full) in enumerate(zip([3.0, 2.0, 1.0, 5.0, 4.0], truth, strict=True))
    }
    (found,) = evaluate(space, results)
    assert found.regret == pytest.approx(1.0)
    assert found.regret_share == pytest.approx(0.25)
    assert found.tau == pytest.approx(0.8)


def test_several_objectives_are_told_apart_and_missing_values_left_out() -> None:
    space = made_space(objectives=several(SCORE, RECALL), proxies=PROXIES)
    results = results_of()
    del results[3, "smaller"]
    results[5, FULL] = Measured({10: {SCORE: 0.0, RECALL: 0.0}}, 9.0)
    found = {(one.metric, one.setting): one for one in evaluate(space, results)}
    assert len(found) == 6
    assert found[SCORE, "smaller"].points == 18
    assert found[RECALL, "smaller"].tau == pytest.approx(1.0)
    assert found[RECALL, "fewer_steps"].tau is None
    assert found[RECALL, "fewer_steps"].points == 0
    assert found[SCORE, "step 10"].points == 19
    assert found[SCORE, "step 10"].tau == pytest.approx(-(found[RECALL, "step 10"].tau or 0.0))


def test_a_setting_that_tells_nothing_apart_has_no_tau() -> None:
    results = {(p, FULL): Measured({10: {SCORE: 0.5}, 90: {SCORE: float(p)}}, 1.0) for p in range(6)}
    (found,) = evaluate(made_space(), results)
    assert found.tau is None
    assert found.interval is None
    assert found.verdict == "too little to tell"
    assert found.regret == pytest.approx(2.5)


def test_without_any_full_run_nothing_is_told() -> None:
    found = evaluate(made_space(proxies=PROXIES), {})
    assert [one.points for one in found] == [0, 0]
    assert "too little to tell" in table(found)


def test_the_table_has_a_line_for_each_setting() -> None:
    space = made_space(objectives=several(SCORE, GAIN), proxies=PROXIES)
    lines = table(evaluate(space, results_of())).splitlines()
    assert lines[0] == SCORE
    assert lines[1].split() == ["setting", "cost", "Kendall's", "tau", "(95", "%", "interval)", "top-1",
                                "regret", "points"]  # fmt: skip
    assert lines[3].split()[:6] == ["fewer_steps", "0.25", "+1.00", "(+1.00", "to", "+1.00)"]
    assert "0.0000 (0% of the range)" in lines[3]
    assert lines[3].endswith("20      ranks much as the full setting does")
    assert lines[5] == GAIN
    assert len(lines) == 10
