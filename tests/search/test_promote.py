"""Promotion against the definition it follows, and against whole searches played to their end."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_stand_ins import Metric, RungSpace, Story

from orchestration.search.fronts import crowding_distances, non_dominated_ranks
from orchestration.search.promote import (
    best_first,
    drain,
    hopeless,
    over_disk_budget,
    promotable,
    ranked,
    stops,
)

TWO = (Metric("score"), Metric("loss", "minimise"))


def reported(scores: list[float | None], space: RungSpace | None = None) -> Story:
    story = Story()
    for score in scores:
        story.report(story.begin(), score)
    return story


def test_ranked_puts_feasible_before_infeasible_before_not_a_number() -> None:
    space = RungSpace(memory_at_most=10.0)
    story = Story()
    for score, memory in [(0.9, 14.0), (0.1, 5.0), (math.nan, 5.0), (0.2, 5.0), (0.8, 11.0), (None, 5.0)]:
        story.report(story.begin(), score, memory=memory)
    assert ranked(space, story.state, 1) == [3, 1, 4, 0, 2, 5]


def test_a_metric_that_a_constraint_misses_ranks_behind_every_violation() -> None:
    space = RungSpace(memory_at_most=10.0)
    story = Story()
    story.report(story.begin(), 0.9)
    story.report(story.begin(), 0.1, memory=99.0)
    assert ranked(space, story.state, 1) == [1, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_fronts_are_what_remains_when_the_fronts_before_are_taken_away(points: list[tuple[int, int]]) -> None:
    ranks = non_dominated_ranks(np.array(points, dtype=float))

    def dominates(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    left = list(range(len(points)))
    front = 0
    while left:
        here = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        assert here == [i for i in left if ranks[i] == front]
        left = [i for i in left if i not in here]
        front += 1


def test_crowding_is_the_normalised_gap_between_neighbours() -> None:
    distances = crowding_distances(np.array([[0.0, 4.0], [1.0, 2.0], [4.0, 0.0]]))
    assert distances == [math.inf, pytest.approx(1.0 + 1.0), math.inf]


def test_several_objectives_rank_by_front_and_then_the_lonelier_first() -> None:
    space = RungSpace(objectives=TWO)
    story = Story()
    for score, loss in [(1.0, 1.0), (2.0, 2.0), (2.1, 2.1), (3.0, 9.0), (0.5, 5.0)]:
        story.report(story.begin(), score, loss=loss)
    assert ranked(space, story.state, 1) == [0, 3, 2, 1, 4]


def test_best_first_goes_by_the_highest_step_and_puts_the_failed_last() -> None:
    story = reported([0.9, 0.5, 0.7, 0.8])
    for trial in (1, 2, 3):
        story.promote(trial, 3)
    story.report(1, 0.5)
    story.report(2, 0.6)
    story.report(3, 0.7)
    story.fail(3)
    assert best_first(RungSpace(), story.state) == [2, 1, 0, 3]


@given(st.lists(st.integers(0, 9), min_size=0, max_size=20), st.integers(2, 4))
def test_promotable_at_one_rung_is_the_best_floor_of_n_over_the_reduction(
    scores: list[int], reduction: int
) -> None:
    story = reported([float(score) for score in scores])
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: len(scores) // reduction]
    assert promotable(RungSpace(reduction=reduction), story.state) == [(number, 3) for number in expected]


def test_the_highest_rung_is_served_first_and_a_promoted_trial_only_once() -> None:
    story = reported([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    space = RungSpace()
    assert promotable(space, story.state) == [(8, 3), (7, 3), (6, 3)]
    for trial, score in [(8, 0.1), (7, 0.2), (6, 0.3)]:
        story.promote(trial, 3)
        story.report(trial, score)
    for score in (0.95, 1.0, 0.92):
        story.report(story.begin(), score)
    assert promotable(space, story.state) == [(6, 9), (10, 3)]
    story.promote(10, 3)
    assert promotable(space, story.state) == [(6, 9)]


def test_of_a_rung_no_more_than_its_share_goes_on_until_the_last_call() -> None:
    story = reported([0.1, 0.2, 0.3, 0.9, 0.4, 0.5])
    space = RungSpace(trials=6)
    for trial in (2, 3):  # the second was the best when it reported
        story.promote(trial, 3)
    assert promotable(space, story.state) == []
    assert drain(space, story.state) == [(5, 3)]
    story.fail(2)
    assert promotable(space, story.state) == [(5, 3)]


def test_the_best_of_a_rung_goes_on_even_beyond_its_share() -> None:
    story = reported([0.1, 0.2, 0.3])
    story.promote(2, 3)
    story.report(story.begin(), 0.9)
    assert promotable(RungSpace(), story.state) == [(3, 3)]


def test_when_the_space_ends_before_the_budget_everyone_goes_on_in_the_end() -> None:
    story = reported([0.1, 0.3, 0.2])
    for step in (3, 9):
        story.promote(1, step)
        story.report(1, 0.5)
    assert drain(RungSpace(trials=3), story.state) == []
    assert drain(RungSpace(trials=9), story.state) == [(2, 3)]
    assert drain(RungSpace(), story.state) == [(2, 3)]


def test_without_a_scheduler_everyone_who_waits_goes_on() -> None:
    story = reported([0.1, 0.9])
    story.promote(0, 3)
    story.report(0, 0.2)
    space = RungSpace(scheduler_name="none")
    assert promotable(space, story.state) == [(0, 9), (1, 3)]
    assert hopeless(space, story.state) == []


@given(st.lists(st.integers(0, 6), min_size=1, max_size=14))
def test_the_median_rule_stops_whoever_more_than_half_of_the_others_beat(scores: list[int]) -> None:
    story = reported([float(score) for score in scores])
    space = RungSpace(scheduler_name="median")
    for trial in story.state.trials:
        mine = (-scores[trial.number], trial.number)
        better = sum((-scores[i], i) < mine for i in range(len(scores)))
        others = len(scores) - 1
        assert (stops(space, story.state, trial.number) is not None) == (others >= 4 and better > others / 2)


def test_the_median_rule_never_touches_a_full_length_trial() -> None:
    story = Story(first_target=9)
    for score in (0.1, 0.5, 0.6, 0.7, 0.8, 0.9):
        story.report(story.begin(), score)
    space = RungSpace(scheduler_name="median")
    assert [stops(space, story.state, number) for number in range(6)] == [None] * 6


def test_over_the_disk_budget_the_worst_waiting_go_and_the_best_stays() -> None:
    story = reported([0.4, 0.3, 0.9, 0.1])
    sizes = dict.fromkeys(range(4), 100)
    assert [n for n, _ in over_disk_budget(RungSpace(disk_budget_bytes=250), story.state, sizes)] == [3, 1]
    assert [n for n, _ in over_disk_budget(RungSpace(disk_budget_bytes=1), story.state, sizes)] == [3, 1, 0]
    assert over_disk_budget(RungSpace(), story.state, sizes) == []


def play(space: RungSpace, seed: int, budget: int, workers: int, give_up: bool) -> tuple[Story, set[int]]:
    """A whole search with random scores, failures and orders of arrival, and whom it called hopeless."""
    draw = random.Random(seed)
    story, doomed = Story(), set[int]()
    state = story.state
    while True:
        running = [trial.number for trial in state.trials if trial.state == "open"]
        more = len(state.trials) < budget
        offers = promotable(space, state) if more else drain(space, state)
        last_resort = not running and all(trial.state != "complete" for trial in state.trials)
        assert last_resort or not {trial for trial, _ in offers} & doomed
        if len(running) < workers and (offers or more):
            if offers:
                story.promote(*offers[0])
            else:
                story.begin()
        elif running:
            trial = draw.choice(running)
            if draw.random() < 0.15:
                story.fail(trial)
            else:
                story.report(trial, float(draw.randint(0, 5)), loss=float(draw.randint(0, 5)))
        else:
            return story, doomed
        for number, reason in hopeless(space, state):
            assert reason
            doomed.add(number)
            if give_up:
                story.prune(number)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 5), st.booleans(), st.booleans())
def test_the_hopeless_are_never_promoted_and_a_search_ends_with_a_complete_trial(
    seed: int, budget: int, workers: int, give_up: bool, several: bool
) -> None:
    space = RungSpace(objectives=TWO if several else (Metric(),), trials=budget)
    story, doomed = play(space, seed, budget, workers, give_up)
    states = [trial.state for trial in story.state.trials]
    assert len(states) == budget
    assert "open" not in states
    assert "complete" in states or all(state in ("failed", "pruned") for state in states)
    assert {state for state in states if state == "pruned"} == ({"pruned"} if give_up and doomed else set())


def test_giving_up_early_leaves_few_checkpoints_waiting() -> None:
    story, doomed = play(RungSpace(trials=25), seed=1, budget=25, workers=3, give_up=True)
    assert len(doomed) >= 12
    assert sum(trial.state == "waiting" for trial in story.state.trials) <= 8
