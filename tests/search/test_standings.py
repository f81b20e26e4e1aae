"""What is kept about the rungs answers as a ranking of everybody would, at no more cost in a long search."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import promotion_by_definition as definition
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from search_stand_ins import Metric, RungSpace, Story

from benchmarks.scale_fleet import decided, search, written_space
from orchestration.search import promote
from orchestration.search.records import SearchState
from orchestration.search.standings import Standings, standings

TWO = (Metric("score"), Metric("loss", "minimise"))
SEARCH_CODE = str(Path(promote.__file__).parent)


def same_answers(space: RungSpace, state: SearchState) -> None:
    for step in space.rung_steps:
        assert promote.ranked(space, state, step) == definition.ranked(space, state, step)
    assert promote.best_first(space, state) == definition.best_first(space, state)
    assert promote.promotable(space, state) == definition.promotable(space, state)
    assert promote.drain(space, state) == definition.drain(space, state)
    assert promote.hopeless(space, state) == definition.hopeless(space, state)
    sizes = {trial.number: 100 + trial.number for trial in state.trials if trial.state == "waiting"}
    assert promote.over_disk_budget(space, state, sizes) == definition.over_disk_budget(space, state, sizes)
    for trial in state.trials:
        found = promote.stops(space, state, trial.number)
        assert found == definition.stops(space, state, trial.number)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    scheduler=st.sampled_from(["halving", "halving", "median", "none"]),
    objectives=st.sampled_from([(Metric(),), TWO]),
    trials=st.sampled_from([None, 6, 14]),
    memory=st.sampled_from([None, 3.0]),
    give_up=st.booleans(),
)
@example(seed=1543, scheduler="median", objectives=TWO, trials=None, memory=3.0, give_up=False)
def test_whatever_happens_every_question_has_the_answer_of_its_definition(
    seed: int,
    scheduler: str,
    objectives: tuple[Metric, ...],
    trials: int | None,
    memory: float | None,
    give_up: bool,
) -> None:
    space = RungSpace(
        scheduler_name=scheduler,
        objectives=objectives,
        trials=trials,
        memory_at_most=memory,
        disk_budget_bytes=250,
    )
    draw, story = random.Random(seed), Story()
    for _ in range(40):
        state = story.state
        same_answers(space, state)
        running = sorted(state.open)
        offers = promote.promotable(space, state) or promote.drain(space, state)
        if offers and draw.random() < 0.5:
            story.promote(*offers[0])
        elif running and draw.random() < 0.6:
            number = draw.choice(running)
            if draw.random() < 0.15:
                story.fail(number)
            else:
                score = draw.choice([None, float("nan"), *map(float, range(5))])
                story.report(number, score, loss=float(draw.randint(0, 4)), memory=float(draw.randint(0, 5)))
        elif trials is None or len(state.trials) < trials:
            story.begin()
        if give_up:
            for number, _ in promote.hopeless(space, state):
                story.prune(number)


def test_a_report_that_is_told_again_takes_the_place_of_the_first() -> None:
    space, story = RungSpace(), Story()
    for score in (0.1, 0.2, 0.3):
        story.report(story.begin(), score)
    assert promote.ranked(space, story.state, 1) == [2, 1, 0]
    story.report(0, 0.9, step=1)
    same_answers(space, story.state)
    assert promote.ranked(space, story.state, 1) == [0, 2, 1]


def test_standings_made_late_are_those_that_were_kept() -> None:
    space, story = RungSpace(trials=8), Story()
    for score in (0.1, 0.5, 0.3, 0.2):
        story.report(story.begin(), score)
        kept = standings(space, story.state)
    fresh = Standings(space, story.state)
    fresh.catch_up()
    assert fresh.at(1).order() == kept.at(1).order() == [1, 2, 3, 0]
    assert (fresh.waits, fresh.before(1), fresh.before(3)) == (kept.waits, kept.before(1), kept.before(3))
    assert (fresh.waits, fresh.before(1), fresh.before(3)) == (4, 0, 4)


def counting(after: int) -> Callable[[list[float]], contextlib.AbstractContextManager[None]]:
    """Counts the steps of the interpreter in the search's code, in every decision from the `after`th on."""
    made = 0

    @contextlib.contextmanager
    def count(taken: list[float]) -> Iterator[None]:
        nonlocal made
        made += 1
        if made <= after:
            yield
            return
        steps = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal steps
            if not frame.f_code.co_filename.startswith(SEARCH_CODE):
                return None
            frame.f_trace_opcodes = True
            steps += event == "opcode"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)
        taken.append(steps)

    return count


def steps_of_late_decisions(folder: Path, trials: int, slots: int, decisions: int, **parts: Any) -> float:
    """Interpreter steps of a late decision, the mean of those counted."""
    loaded = written_space(folder, trials, **parts)
    course = search(folder, loaded, slots, counting(decisions))
    assert len(course.deciding) > 100
    return sum(course.deciding) / len(course.deciding)


@pytest.mark.parametrize("scheduler", ["halving", "median"])
def test_a_decision_costs_no_more_in_a_search_of_eight_times_the_trials(
    tmp_path: Path, scheduler: str
) -> None:
    parts = {"scheduler": {"name": scheduler}}
    few = steps_of_late_decisions(tmp_path / "few", 60, 8, 60, **parts)
    many = steps_of_late_decisions(tmp_path / "many", 480, 8, 1_400, **parts)
    assert many < 1.5 * few  # linear would be eightfold, what grows with the logarithm is below 1.5


def test_a_decision_costs_no_more_with_sixteen_times_the_slots(tmp_path: Path) -> None:
    few = steps_of_late_decisions(tmp_path / "few", 240, 4, 600)
    many = steps_of_late_decisions(tmp_path / "many", 240, 64, 600)
    assert many < 1.5 * few


def test_the_same_simulation_decides_the_same_again(tmp_path: Path) -> None:
    for name in ("one", "other"):
        search(tmp_path / name, written_space(tmp_path / name, 40), 16)
    assert decided(tmp_path / "one") == decided(tmp_path / "other")
