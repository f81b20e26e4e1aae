"""Who is retrained and who is chosen, worked by hand."""

from __future__ import annotations

import math

import pytest
from confirmation_samples import BASE, GAIN, RECALL, SCORE, confirmed, made_space, searched, several

from orchestration.search.confirm import choose_winner, needed_outcomes, plan_confirmation, shared_seeds


def names(plan: dict[str, object]) -> list[str]:
    return [candidate["name"] for candidate in plan["candidates"]]  # type: ignore[attr-defined,index]


def test_the_best_two_are_retrained_beside_the_recipes_own_values() -> None:
    state = searched([(90, 0.2), (90, 0.1), (30, 0.9), (90, 0.4), (90, 0.3)])
    plan = plan_confirmation(made_space(), state)
    assert names(plan) == ["trial-3", "trial-4", "default"]
    assert [one["trial"] for one in plan["candidates"]] == [3, 4, 0]
    assert plan["candidates"][0]["params"] == state.trials[3].params
    assert plan["candidates"][2]["params"] == {"image.mask_ratio": 0.75, "report.mask_ratio": 0.5}
    assert plan["seeds"] == [5, 6, 7]
    assert plan["steps"] == 90


@pytest.mark.parametrize("own", [0.5, 0.35])
def test_the_default_takes_no_place_of_a_candidate_however_good_it_is(own: float) -> None:
    plan = plan_confirmation(made_space(), searched([(90, own), (90, 0.1), (90, 0.4), (90, 0.3)]))
    assert names(plan) == ["trial-2", "trial-3", "default"]


def test_a_default_that_was_no_trial_is_retrained_all_the_same() -> None:
    plan = plan_confirmation(made_space(), searched([(90, 0.1), (90, 0.4)], default_first=False))
    assert names(plan) == ["trial-1", "trial-0", "default"]
    assert plan["candidates"][-1]["trial"] is None


def test_what_the_space_asks_for_is_planned() -> None:
    space = made_space(confirmation={"candidates": 1, "seeds": 2, "steps": 300})
    plan = plan_confirmation(space, searched([(90, 0.2), (90, 0.4), (90, 0.3)]))
    assert names(plan) == ["trial-1", "default"]
    assert len(plan["seeds"]) == 2
    assert plan["steps"] == 300
    none = made_space(confirmation={"candidates": 0})
    assert plan_confirmation(none, searched([(90, 0.2), (90, 0.4)]))["candidates"] == []


def test_failed_infeasible_unreported_and_repeated_trials_are_passed_over() -> None:
    heavy = {SCORE: 0.9, "peak_memory_bytes": 9.0}
    light = {SCORE: 0.3, "peak_memory_bytes": 1.0}
    best = {**light, SCORE: 0.8}
    state = searched([(90, light), (90, heavy), (30, best), (30, {**best, SCORE: 0.7}), (30, light)])
    state.apply({"event": "fail", "time": 1e4, "trial": 2, "reason": "not finite"})
    state.trials[4].params = dict(state.trials[3].params)
    space = made_space(constraints=[{"metric": "peak_memory_bytes", "at_most": 5.0}])
    assert names(plan_confirmation(space, state)) == ["trial-3", "default"]
    assert names(plan_confirmation(made_space(), state)) == ["trial-1", "trial-3", "default"]
    state.trials[3].reports[30][SCORE] = math.nan
    assert names(plan_confirmation(space, state)) == ["trial-4", "default"]


def test_a_trial_with_the_recipes_values_is_the_default() -> None:
    state = searched([(90, 0.2), (90, 0.4), (90, 0.3)], default_first=False)
    state.trials[1].params = {"image.mask_ratio": 0.75, "report.mask_ratio": 0.5}
    plan = plan_confirmation(made_space(), state)
    assert names(plan) == ["trial-2", "trial-0", "default"]
    assert plan["candidates"][-1]["trial"] == 1


def test_without_another_trial_nothing_is_retrained() -> None:
    assert plan_confirmation(made_space(), searched([(90, 0.2)]))["candidates"] == []


def test_of_several_objectives_the_front_is_retrained_its_extremes_first() -> None:
    trials = [(90, {RECALL: r, GAIN: g}) for r, g in [(0.1, 0.1), (0.3, 0.2), (0.5, 0.1), (0.2, 0.5)]]
    plan = plan_confirmation(made_space(objectives=several(RECALL, GAIN)), searched(trials))
    assert names(plan) == ["trial-2", "trial-3", "default"]


def test_no_seed_of_a_trial_is_used_again() -> None:
    state = searched([(90, 0.2), (90, 0.4)])
    state.trials[1].params["training.seed"] = 6
    assert plan_confirmation(made_space(), state)["seeds"] == [5, 7, 8]
    assert BASE.training.seed == 4


def chosen(space_options: dict, results: dict) -> str:
    space = made_space(**space_options)
    trials = [(90, next(iter(values for values in results["default"] if values is not None)))] * 3
    state = searched(trials)
    return choose_winner(space, confirmed(state, plan_confirmation(space, state), results))


def test_the_mean_over_seeds_on_validation_patients_decides() -> None:
    results = {"trial-1": [0.9, 0.1, 0.2], "trial-2": [0.5, 0.45, 0.5], "default": [0.4, 0.4, 0.4]}
    assert chosen({}, results) == "trial-2"
    assert chosen({}, {**results, "default": [0.5, 0.5, 0.5]}) == "default"


def test_of_equals_the_recipes_own_values_win() -> None:
    assert chosen({}, {"trial-1": [0.4] * 3, "trial-2": [0.4] * 3, "default": [0.4] * 3}) == "default"


def test_a_candidate_is_compared_on_the_seeds_that_it_shares_with_the_default() -> None:
    # The second seed is a good one for all: trial-1's mean is higher only for having missed the others.
    results = {"trial-1": [None, 0.70, None], "trial-2": [0.3, 0.8, 0.3], "default": [0.2, 0.75, 0.2]}
    assert chosen({}, results) == "trial-2"


def test_a_metric_to_be_minimised_is() -> None:
    objectives = [{"metric": "val/loss/report_reconstruction", "direction": "minimise"}]
    results = {
        name: [{"val/loss/report_reconstruction": value}] * 3
        for name, value in (("trial-1", 2.0), ("trial-2", 1.0), ("default", 1.5))
    }
    assert chosen({"objectives": objectives}, results) == "trial-2"


def test_a_winner_keeps_the_constraints() -> None:
    results = {
        name: [{SCORE: score, "pairs_per_second": speed}] * 3
        for name, score, speed in (("trial-1", 0.9, 50.0), ("trial-2", 0.5, 150.0), ("default", 0.4, 150.0))
    }
    space = {"constraints": [{"metric": "pairs_per_second", "at_least": 100.0}]}
    planned = made_space()
    state = searched([(90, results["default"][0])] * 3)
    confirmed(state, plan_confirmation(planned, state), results)
    assert choose_winner(made_space(**space), state) == "trial-2"
    assert choose_winner(planned, state) == "trial-1"


def test_of_several_objectives_the_mean_rank_over_seeds_decides() -> None:
    results = {
        # On the front in every seed, though never the best in recall.
        "trial-1": [{RECALL: 0.3, GAIN: 0.4}] * 3,
        # On it in one seed, where it is far ahead.
        "trial-2": [{RECALL: 0.9, GAIN: 0.3}, {RECALL: 0.1, GAIN: 0.1}, {RECALL: 0.1, GAIN: 0.1}],
        "default": [{RECALL: 0.2, GAIN: 0.2}] * 3,
    }
    assert chosen({"objectives": several(RECALL, GAIN)}, results) == "trial-1"


def test_of_equal_rank_the_mean_place_over_objectives_decides() -> None:
    results = {
        "trial-1": [{RECALL: 0.3, GAIN: 0.4, SCORE: 0.5}] * 3,
        "trial-2": [{RECALL: 0.4, GAIN: 0.1, SCORE: 0.1}] * 3,
        "default": [{RECALL: 0.2, GAIN: 0.5, SCORE: 0.4}] * 3,
    }
    assert chosen({"objectives": several(RECALL, GAIN, SCORE)}, results) == "trial-1"


def test_the_winner_and_the_default_are_judged_on_test_patients_and_nobody_else() -> None:
    space, state = made_space(), searched([(90, 0.2), (90, 0.4), (90, 0.3)])
    results = {"trial-1": [0.9, None, 0.8], "trial-2": [0.5, 0.5, 0.5], "default": [0.4, 0.4, 0.4]}
    confirmed(state, plan_confirmation(space, state), results)
    assert shared_seeds(space, state, "trial-1") == [5, 7]
    assert needed_outcomes(space, state) == [
        ("trial-1", 5),
        ("trial-1", 7),
        ("default", 5),
        ("default", 7),
    ]
    state = searched([(90, 0.2), (90, 0.4), (90, 0.3)])
    results = {"trial-1": [0.1] * 3, "trial-2": [0.1] * 3, "default": [0.4] * 3}
    confirmed(state, plan_confirmation(space, state), results)
    assert needed_outcomes(space, state) == []
