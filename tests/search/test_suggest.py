"""Suggestions as a pure function of the state, by every searcher, over a conditional space."""

from __future__ import annotations

import copy
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_stand_ins import Story

from mpma.config import ExperimentConfig
from orchestration.search.samplers import (
    SWITCH,
    at_unit,
    axes,
    grid,
    observed,
    quasi_random_params,
    random_params,
    shuffled,
)
from orchestration.search.space import SearchSpace
from orchestration.search.suggest import Exhausted, Suggestion, expected_values, identity, suggest, told
from orchestration.search.warm_start import warm_start

CONDITIONAL: dict[str, Any] = {
    "image.mask_ratio": {"uniform": [0.4, 0.9], "step": 0.05},
    "training.learning_rate_per_256": {"log_uniform": [5.0e-5, 1.5e-3]},
    "fusion.layers": {"int": [1, 4]},
    "memory.kind": {"choice": ["shared", "key_value", "none"]},
    "memory.slots": [
        {"choice": [64, 256, 512], "when": {"memory.kind": "shared"}},
        {"choice": [8, 16, 40], "when": {"memory.kind": "key_value"}},
    ],
    "memory.top_k": {
        "choice": [8, 16, 32, 64],
        "when": {"memory.kind": "shared"},
        "at_most": {"memory.slots": 0.5},
    },
    "loss_weights.image_reconstruction": {"fixed": 1.0},
    "loss_weights.global_alignment": {"log_uniform": [0.1, 10.0], "or_zero": True},
}
SMALL: dict[str, Any] = {
    "image.mask_ratio": {"uniform": [0.4, 0.6], "step": 0.1},
    "memory.kind": {"choice": ["shared", "none"]},
    "memory.top_k": {"choice": [8, 16], "when": {"memory.kind": "shared"}},
}
MODELS = ("tpe", "gp", "nsga2", "cmaes")
SEARCHERS = (*MODELS, "quasi_random", "random", "grid")


def space_of(searcher: str = "tpe", parameters: dict[str, Any] = CONDITIONAL, **rest: Any) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "parameters": parameters,
            "objectives": [{"metric": "score"}],
            "fidelity": {"first_rung": 1},
            "searcher": {"name": searcher, "startup_trials": 4},
            "first": {"default": False},
            **rest,
        }
    )


@pytest.fixture(scope="module")
def base() -> ExperimentConfig:
    from mpma.config import ExperimentConfig

    return ExperimentConfig()


def score(params: dict[str, Any]) -> float:
    """Best at a masking ratio of 0.7, with a shared memory of two layers."""
    return -abs(params["image.mask_ratio"] - 0.7) - 0.1 * abs(params.get("fusion.layers", 2) - 2)


def begin(story: Story, suggestion: Suggestion) -> int:
    return story.begin(
        suggestion.params,
        suggestion.source,
        attrs=suggestion.attrs,
        study_attrs=suggestion.study_attrs,
        target=story.state.first_target,
    )


def search(space: SearchSpace, base: ExperimentConfig, trials: int, /, **begin_entries: Any) -> Story:
    """Trials one after the other; every third is promoted to full length, one fails, one is left open."""
    story = Story(**begin_entries)
    for number in range(trials):
        begin(story, suggest(space, base, story.state, number))
        if number == 3:
            story.fail(number)
            continue
        if number == 5:
            continue
        story.report(number, score(story.state.trials[number].params) - 1.0)
        if number % 3 == 0:
            for step, loss in ((3, 0.5), (9, 0.0)):
                story.promote(number, step)
                story.report(number, score(story.state.trials[number].params) - loss)
    return story


@pytest.mark.parametrize("searcher", SEARCHERS)
def test_every_searcher_stays_in_the_space_repeats_nothing_and_is_pure(
    searcher: str, base: ExperimentConfig
) -> None:
    space = space_of(searcher)
    story = search(space, base, 10)
    params = [trial.params for trial in story.state.trials]
    assert [space.objection(one) for one in params] == [None] * 10
    assert len({identity(one) for one in params}) == 10
    before = copy.deepcopy(story.state)
    once, again = (suggest(space, base, story.state, 10) for _ in range(2))
    assert once == again
    assert story.state == before


@pytest.mark.parametrize("searcher", [name for name in SEARCHERS if name != "gp"])
def test_another_seed_gives_another_search(searcher: str, base: ExperimentConfig) -> None:
    one, same, other = (search(space_of(searcher, seed=seed), base, 8).state for seed in (0, 0, 1))
    assert [trial.params for trial in one.trials] == [trial.params for trial in same.trials]
    assert [trial.params for trial in one.trials] != [trial.params for trial in other.trials]


@pytest.mark.parametrize("searcher", ["nsga2", "cmaes"])
def test_what_a_searcher_remembers_is_plain_and_survives_the_journal(
    searcher: str, base: ExperimentConfig
) -> None:
    story = search(space_of(searcher, budget={"trials": 24}), base, 14)
    for trial in story.state.trials:
        assert json.loads(json.dumps(trial.attrs)) == trial.attrs
    assert json.loads(json.dumps(story.state.study_attrs)) == story.state.study_attrs


def test_cma_es_moves_towards_the_better_half_of_the_space(base: ExperimentConfig) -> None:
    parameters = {
        "image.mask_ratio": {"uniform": [0.1, 0.9]},
        "training.learning_rate_per_256": {"uniform": [1e-4, 1e-3]},
    }
    space = space_of("cmaes", parameters)
    story = Story(first_target=9)
    for number in range(40):
        begin(story, suggest(space, base, story.state, number))
        story.report(number, -abs(story.state.trials[number].params["image.mask_ratio"] - 0.2))
    drawn = [trial.attrs.get("cma:generation") for trial in story.state.trials]
    generations = [generation for generation in drawn if generation is not None]
    late = [trial.params["image.mask_ratio"] for trial in story.state.trials[-8:]]
    assert generations == sorted(generations)
    assert generations[-1] >= 4
    assert sum(late) / len(late) < 0.35


@pytest.mark.parametrize(("searcher", "trials"), [("tpe", 40), ("gp", 18)])
def test_a_model_finds_a_better_region_than_its_startup(
    searcher: str, trials: int, base: ExperimentConfig
) -> None:
    parameters = {
        "image.mask_ratio": {"uniform": [0.3, 0.99]},
        "fusion.layers": {"int": [1, 4]},
        "memory.kind": CONDITIONAL["memory.kind"],
    }
    story = search(space_of(searcher, parameters), base, trials)
    scores = [score(trial.params) for trial in story.state.trials]
    assert sum(scores[-8:]) / 8 > sum(scores[:8]) / 8 + 0.05


def test_first_points_come_in_order_and_once(base: ExperimentConfig) -> None:
    space = space_of(
        parameters={"image.mask_ratio": {"uniform": [0.4, 0.9]}},
        first={"default": True, "points": [{"image.mask_ratio": 0.5}, {"image.mask_ratio": 0.5}]},
    )
    warm = {"points": [{"image.mask_ratio": 0.6}], "trials": []}
    story = Story(warm=warm)
    for number in range(4):
        begin(story, suggest(space, base, story.state, number))
    assert [trial.source for trial in story.state.trials] == ["default", "point", "warm_start", "tpe"]
    assert [t.params["image.mask_ratio"] for t in story.state.trials[:3]] == [base.image.mask_ratio, 0.5, 0.6]


def test_a_default_outside_the_space_is_told_at_its_nearest_point(base: ExperimentConfig) -> None:
    space = space_of(parameters={"image.mask_ratio": {"uniform": [0.4, 0.6], "step": 0.1}})
    assert observed(space, {"image.mask_ratio": 0.75}) == {"image.mask_ratio": 0.6}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_a_drawn_point_lies_in_the_space_and_is_found_again_among_the_parameters(seed: int) -> None:
    space = space_of()
    for params in (random_params(space, seed), quasi_random_params(space, seed, seed % 50)):
        assert space.objection(params) is None
        values = observed(space, params)
        assert values is not None
        assert set(values) <= set(axes(space))
        assert values.get("image.mask_ratio") == params["image.mask_ratio"]
        assert ("loss_weights.global_alignment" in values) == values["loss_weights.global_alignment" + SWITCH]
        assert ("memory.slots [memory.kind=shared]" in values) == (params["memory.kind"] == "shared")


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_a_unit_value_maps_into_every_range(unit: float) -> None:
    space = space_of()
    for one in axes(space).values():
        assert one._contains(one.to_internal_repr(at_unit(one, min(unit, 1 - 1e-12))))


def test_the_quasi_random_startup_covers_every_eighth_of_a_range() -> None:
    space = space_of(parameters={"image.mask_ratio": {"uniform": [0.0, 0.8]}})
    points = [quasi_random_params(space, 7, index)["image.mask_ratio"] for index in range(8)]
    assert sorted(int(point * 10) for point in points) == list(range(8))


@given(st.integers(1, 60), st.integers(0, 99))
def test_a_shuffled_range_holds_every_index_once(size: int, seed: int) -> None:
    assert sorted(shuffled(size, seed, place) for place in range(size)) == list(range(size))


def test_the_grid_is_every_point_of_the_conditional_tree_once(base: ExperimentConfig) -> None:
    space = space_of("grid", SMALL)
    story = Story()
    for number in range(9):
        begin(story, suggest(space, base, story.state, number))
    expected = [
        {"image.mask_ratio": ratio, **memory}
        for ratio in (0.4, 0.5, 0.6)
        for memory in (
            {"memory.kind": "shared", "memory.top_k": 8},
            {"memory.kind": "shared", "memory.top_k": 16},
            {"memory.kind": "none"},
        )
    ]
    assert sorted(map(identity, expected)) == sorted(identity(t.params) for t in story.state.trials)
    assert sorted(map(identity, expected)) == sorted(map(identity, grid(space)))
    with pytest.raises(Exhausted, match="every point of the grid"):
        suggest(space, base, story.state, 9)


@pytest.mark.parametrize("searcher", ["tpe", "random", "gp"])
def test_a_small_space_is_exhausted_without_one_repeat(searcher: str, base: ExperimentConfig) -> None:
    space = space_of(searcher, SMALL)
    story = Story(first_target=9)
    for number in range(9):
        begin(story, suggest(space, base, story.state, number))
        story.report(number, score(story.state.trials[number].params))
    assert len({identity(trial.params) for trial in story.state.trials}) == 9
    with pytest.raises(Exhausted, match="all 9 points"):
        suggest(space, base, story.state, 9)


def test_a_waiting_trial_is_valued_at_what_those_that_went_on_gained() -> None:
    story = Story()
    for value in (0.1, 0.2, 0.5, 0.4):
        story.report(story.begin(), value)
    for trial, value in ((2, 0.8), (3, 0.6)):
        story.promote(trial, 3)
        story.report(trial, value)
    story.promote(2, 9)
    story.report(2, 0.9)
    story.begin()
    values = expected_values(space_of(), story.state)
    expected = {0: 0.1 + 0.25 + 0.1, 1: 0.2 + 0.25 + 0.1, 2: 0.9, 3: 0.6 + 0.1}
    assert {number: value[0] for number, value in values.items()} == pytest.approx(expected)


def test_the_sampler_is_told_of_failures_and_of_what_runs(base: ExperimentConfig) -> None:
    space = space_of(constraints=[{"metric": "peak_memory_bytes", "at_most": 10.0}])
    story = Story()
    for _ in range(4):
        begin(story, suggest(space, base, story.state, len(story.state.trials)))
    story.report(0, 0.5, peak_memory_bytes=12.0)
    story.fail(1)
    story.report(2, math.nan, peak_memory_bytes=4.0)
    story.prune(2)
    trials = told(space, story.state)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "FAIL", "RUNNING"]
    assert trials[0].constraints == {"0": 2.0}


def test_earlier_results_are_believed_only_on_the_same_data_and_objective(base: ExperimentConfig) -> None:
    space = space_of()
    earlier = search(space, base, 10, data_fingerprint="a", space=space.resolved()).state
    same = warm_start(space, base, 9, "a", [earlier])
    other = warm_start(space, base, 9, "b", [earlier])
    completes = [trial.params for trial in earlier.trials if trial.state == "complete"]
    assert len(same["points"]) == 3
    assert same["points"] == other["points"]
    assert sorted(map(identity, completes)) == sorted(identity(trial["params"]) for trial in same["trials"])
    assert other["trials"] == []
    story = Story(warm=same)
    assert [trial.values for trial in told(space, story.state)] == [t["values"] for t in same["trials"]]


def test_five_hundred_trials_leave_a_suggestion_under_a_second(base: ExperimentConfig) -> None:
    space = space_of()
    story = Story()
    for number in range(500):
        begin(story, Suggestion(random_params(space, number), "random"))
        story.report(number, score(story.state.trials[number].params))
    suggest(space, base, story.state, 500)
    start = time.process_time()
    suggest(space, base, story.state, 500)
    assert time.process_time() - start < 1.0
