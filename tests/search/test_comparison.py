"""The one comparison on test patients: what it finds, what it says, and what it does not claim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from confirmation_samples import (
    GAIN,
    RECALL,
    SCORE,
    Values,
    confirmed,
    made_outcomes,
    made_space,
    searched,
    several,
)

from mpma.errors import JobError
from mpma.metrics.bootstrap import resample_counts
from mpma.metrics.patient_outcomes import PatientOutcomes
from orchestration.search.comparison import compare
from orchestration.search.confirm import plan_confirmation
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace

GOOD: dict[str, Sequence[Values]] = {"trial-1": [0.5] * 3, "trial-2": [0.3] * 3, "default": [0.4] * 3}


def ended(space: SearchSpace, results: Mapping[str, Sequence[Values]]) -> SearchState:
    figure = next(value for values in results.values() for value in values if value is not None)
    state = searched([(90, figure)] * 3)
    return confirmed(state, plan_confirmation(space, state), results)


def judged(skill: float, default: float, **options: Any) -> dict[tuple[str, int], PatientOutcomes]:
    found = {("trial-1", seed): made_outcomes(skill, seed, **options) for seed in (5, 6, 7)}
    return found | {("default", seed): made_outcomes(default, seed + 100) for seed in (5, 6, 7)}


def test_a_better_winner_is_named_with_its_figures() -> None:
    space = made_space()
    outcomes = judged(0.7, 0.3)
    result = compare(space, ended(space, GOOD), outcomes)
    assert result["named"]
    assert result["candidate"] == "trial-1"
    assert result["metric"] == "test/representation_score"
    for side, name in (("winner", "trial-1"), ("default", "default")):
        figures = [outcomes[name, seed].figures()["representation_score"] for seed in (5, 6, 7)]
        assert result[side]["per_seed"] == pytest.approx(figures)
        assert result[side]["mean"] == pytest.approx(np.mean(figures))
        assert result["seed_spread"][side] == pytest.approx(np.std(figures, ddof=1))
    assert result["difference"] == pytest.approx(result["winner"]["mean"] - result["default"]["mean"])
    assert 0 < result["interval"][0] < result["difference"] < result["interval"][1]
    assert result["seeds"] == [5, 6, 7]
    assert (result["patients"], result["resamples"], result["level"]) == (200, 2000, 0.95)
    assert result["validation"] == {"trial-1": [0.5] * 3, "trial-2": [0.3] * 3, "default": [0.4] * 3}
    assert result["reason"].startswith(
        "trial-1 is better than the recipe's own values: test/representation_score "
        f"{result['winner']['mean']:.4f} against {result['default']['mean']:.4f} on 200 test patients"
    )
    assert result["objectives"][0]["interval"] == result["interval"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_the_interval_is_of_the_difference_of_means_over_seeds_for_patients_drawn_together() -> None:
    space = made_space(confirmation={"resamples": 300}, seed=11)
    outcomes = judged(0.5, 0.4)
    result = compare(space, ended(space, GOOD), outcomes)
    counts = np.concatenate(list(resample_counts(200, 300, seed=11)))
    found = {key: one.statistic("representation_score")(counts) for key, one in outcomes.items()}
    means = [np.mean([found[name, seed] for seed in (5, 6, 7)], axis=0) for name in ("trial-1", "default")]
    expected = np.quantile(means[0] - means[1], [0.025, 0.975])
    assert result["interval"] == pytest.approx(expected.tolist())


def test_nothing_better_is_said_where_the_interval_holds_zero() -> None:
    space = made_space()
    result = compare(space, ended(space, GOOD), judged(0.4, 0.4))
    assert result["interval"][0] < 0 < result["interval"][1]
    assert not result["named"]
    assert result["reason"].startswith(
        "The search found nothing better than the recipe's own values: trial-1, the best on validation "
        "patients, is not shown to be better on 200 test patients whom the search never saw"
    )


def test_a_winner_that_is_worse_on_test_patients_is_said_to_be() -> None:
    space = made_space()
    result = compare(space, ended(space, GOOD), judged(0.2, 0.6))
    assert result["interval"][1] < 0
    assert not result["named"]
    assert "trial-1, the best on validation patients, is worse on 200 test patients" in result["reason"]


def test_equal_models_are_seldom_told_apart() -> None:
    space = made_space(confirmation={"resamples": 400})
    state = ended(space, GOOD)
    named = 0
    for trial in range(40):
        outcomes = {
            (name, seed): made_outcomes(0.4, 1000 * trial + seed + (500 if name == "default" else 0))
            for name in ("trial-1", "default")
            for seed in (5, 6, 7)
        }
        named += compare(space, state, outcomes)["named"]
    # Binomial(40, 0.025) exceeds 6 in one of 30,000 searches; training noise adds a little.
    assert named <= 6


def test_where_the_default_is_best_on_validation_patients_nothing_is_compared() -> None:
    space = made_space()
    state = ended(space, {"trial-1": [0.3] * 3, "trial-2": [0.3] * 3, "default": [0.4] * 3})
    result = compare(space, state, {})
    assert not result["named"]
    assert result["candidate"] == "default"
    assert result["difference"] is None
    assert result["interval"] is None
    assert result["reason"] == (
        "The search found nothing better than the recipe's own values: on validation patients they are "
        "best, so nothing was compared on test patients."
    )
    assert result["validation"]["default"] == [0.4] * 3
    json.dumps(result, allow_nan=False)


def test_failed_retrainings_are_left_out_on_both_sides_and_said() -> None:
    space = made_space()
    state = ended(space, {**GOOD, "trial-1": [0.5, None, 0.5]})
    result = compare(space, state, judged(0.7, 0.3))
    assert result["seeds"] == [5, 7]
    assert len(result["default"]["per_seed"]) == 2
    assert result["validation"]["trial-1"] == [0.5, None, 0.5]
    assert result["reason"].endswith("; of 3 seeds 2 could be compared, as the others failed.")
    assert result["named"]


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ({**GOOD, "default": [None] * 3}, "every retraining of the recipe's own values failed"),
        ({**GOOD, "default": [0.4, None, None], "trial-1": [None, 0.5, 0.5], "trial-2": [None] * 3},
         "no candidate finished a retraining with a seed that the recipe's own values finished"),
    ],
)  # fmt: skip
def test_without_a_common_seed_nothing_is_compared(results: dict[str, list[Values]], why: str) -> None:
    space = made_space()
    result = compare(space, ended(space, results), {})
    assert not result["named"]
    assert result["interval"] is None
    assert result["reason"] == f"Nothing was compared on test patients: {why}."


def test_where_every_retraining_failed_it_is_said() -> None:
    space = made_space()
    state = searched([(90, 0.1)] * 3)
    nothing: dict[str, list[Values]] = {name: [None] * 3 for name in GOOD}
    confirmed(state, plan_confirmation(space, state), nothing)
    assert compare(space, state, {})["reason"] == (
        "Nothing was compared on test patients: every retraining failed."
    )


def test_runs_that_could_not_be_judged_are_missing_like_failed_ones() -> None:
    space = made_space()
    outcomes = judged(0.7, 0.3)
    del outcomes["default", 6]
    assert compare(space, ended(space, GOOD), outcomes)["seeds"] == [5, 7]
    reason = compare(space, ended(space, GOOD), {})["reason"]
    assert "trial-1 and the recipe's own values have no seed in common that could be judged" in reason


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "no trial beside the recipe's own values could be retrained"),
        ({"confirmation": {"candidates": 0}}, "confirmation.candidates is 0"),
    ],
)
def test_without_candidates_it_says_why(options: dict[str, Any], why: str) -> None:
    space, state = made_space(**options), searched([(90, 0.2)])
    state.apply({"event": "confirm", "time": 1e5, **plan_confirmation(space, state)})
    result = compare(space, state, {})
    assert result["reason"] == f"Nothing was compared on test patients: {why}."
    assert result["candidate"] is None


def test_a_seed_that_goes_the_other_way_is_told() -> None:
    space = made_space()
    outcomes = judged(0.8, 0.3) | {("trial-1", 6): made_outcomes(0.2, 6)}
    result = compare(space, ended(space, GOOD), outcomes)
    assert result["named"]
    assert result["reason"].endswith("; with 1 of 3 seeds it is not better.")


def test_an_objective_that_no_patient_has_is_replaced_by_the_representation_score() -> None:
    space = made_space(objectives=several("pairs_per_second"))
    values: Any = {"pairs_per_second": 5.0, SCORE: 0.5}
    results = {"trial-1": [values] * 3, "trial-2": [values] * 3,
               "default": [{"pairs_per_second": 4.0, SCORE: 0.6}] * 3}  # fmt: skip
    result = compare(space, ended(space, results), judged(0.7, 0.3))
    assert result["metric"] == "test/representation_score"
    assert result["reason"].endswith(
        "; pairs_per_second cannot be told of single test patients, so representation_score is compared."
    )
    assert result["validation"]["default"] == [0.6] * 3


OBJECTIVES = several(RECALL, GAIN)
BOTH: dict[str, Sequence[Values]] = {
    "trial-1": [{RECALL: 0.5, GAIN: 0.5}] * 3,
    "trial-2": [{RECALL: 0.1, GAIN: 0.1}] * 3,
    "default": [{RECALL: 0.4, GAIN: 0.4}] * 3,
}


@pytest.mark.parametrize(
    ("skill", "gain", "named", "verdicts"),
    [
        (0.7, 0.2, True, ["better", "undecided"]),
        (0.7, 0.6, True, ["better", "better"]),
        (0.3, 0.6, True, ["undecided", "better"]),
        (0.7, -0.2, False, ["better", "worse"]),
        (0.3, 0.2, False, ["undecided", "undecided"]),
    ],
)
def test_of_several_objectives_one_must_be_better_and_none_worse(
    skill: float, gain: float, named: bool, verdicts: list[str]
) -> None:
    space = made_space(objectives=OBJECTIVES)
    result = compare(space, ended(space, BOTH), judged(skill, 0.3, gain=gain))
    assert [entry["verdict"] for entry in result["objectives"]] == verdicts
    assert result["named"] is named
    assert [entry["metric"] for entry in result["objectives"]] == [
        "test/retrieval/mean_recall",
        "test/report_reconstruction/visual_gain",
    ]
    assert result["level"] == pytest.approx(0.975)
    assert result["metric"] == "test/retrieval/mean_recall"
    told = next((entry for entry, verdict in zip(result["objectives"], verdicts, strict=True)
                 if verdict == ("better" if named else "worse")), result["objectives"][0])  # fmt: skip
    assert told["metric"] in result["reason"]
    assert result["objectives"][1]["validation"]["default"] == [0.4] * 3


def test_of_several_objectives_those_without_patients_are_left_out() -> None:
    space = made_space(objectives=[*several(RECALL), {"metric": "pairs_per_second"}])
    results = {
        name: [{RECALL: recall, "pairs_per_second": 9.0}] * 3
        for name, recall in (("trial-1", 0.5), ("trial-2", 0.1), ("default", 0.4))
    }
    result = compare(space, ended(space, results), judged(0.7, 0.3))
    assert len(result["objectives"]) == 1
    assert result["level"] == pytest.approx(0.95)
    assert "; pairs_per_second cannot be told of single test patients and is left out" in result["reason"]


def test_runs_judged_on_other_patients_are_refused() -> None:
    space = made_space()
    outcomes = judged(0.7, 0.3) | {("default", 6): made_outcomes(0.3, 6, patients=150)}
    with pytest.raises(JobError, match="different patients"):
        compare(space, ended(space, GOOD), outcomes)
