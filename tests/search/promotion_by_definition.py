"""Ranking and promotion as they are defined: everything is looked at anew for every question.

What orchestration/search/promote.py answers from standings that it keeps is compared with this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from orchestration.search.fronts import crowding_distances, non_dominated_ranks
from orchestration.search.records import SearchState, TrialRecord

SearchSpace = Any


def ranked(space: SearchSpace, state: SearchState, step: int) -> list[int]:
    """Numbers of the trials that reported at `step`, best first.

    Feasible ones first, the others by their total violation; then one objective by its value, several by
    non-dominated rank and crowding distance; values that are missing or not finite last; ties by number.
    """
    standings = _standings(space, state, step)
    several = len(space.objectives) > 1
    crowded = _fronts_and_crowding(standings) if several else {}
    return [
        standing.number
        for standing in sorted(
            standings,
            key=lambda standing: (
                *standing.group,
                crowded.get(standing.number, ()) if several else standing.losses,
                standing.number,
            ),
        )
    ]


@dataclass(frozen=True)
class _Standing:
    """What a trial's report at a rung is worth."""

    number: int
    violation: float
    losses: tuple[float, ...]
    """All objectives, minimised; empty where one is missing or not finite."""

    @property
    def group(self) -> tuple[bool, float]:
        """Whoever is in a lesser group ranks before, whatever the objectives say."""
        return not self.losses, self.violation


def _standings(space: SearchSpace, state: SearchState, step: int) -> list[_Standing]:
    standings = []
    for trial in state.trials:
        if step in trial.reports:
            metrics = trial.reports[step]
            violation = sum(max(0.0, amount) for amount in space.violations(metrics))
            losses = [objective.minimised(metrics) for objective in space.objectives]
            finite = tuple(loss for loss in losses if loss is not None and math.isfinite(loss))
            standings.append(_Standing(trial.number, violation, finite if len(finite) == len(losses) else ()))
    return standings


def _fronts_and_crowding(standings: Sequence[_Standing]) -> dict[int, tuple[int, float]]:
    """Per trial: front and minus crowding distance, each among the trials of its group."""
    groups: dict[tuple[bool, float], list[_Standing]] = {}
    for standing in standings:
        if standing.losses:
            groups.setdefault(standing.group, []).append(standing)
    order: dict[int, tuple[int, float]] = {}
    for members in groups.values():
        table = np.array([member.losses for member in members])
        ranks = non_dominated_ranks(table)
        for rank in set(ranks):
            front = [index for index, other in enumerate(ranks) if other == rank]
            for index, distance in zip(front, crowding_distances(table[front]), strict=True):
                order[members[index].number] = (rank, -distance)
    return order


def _surely_ahead(space: SearchSpace, state: SearchState, step: int) -> dict[int, int]:
    """Per trial that reported at `step`: how many rank before it whatever is reported there later.

    With one objective that is its place. With several a place can improve, when those beside it are
    pushed to a later front; but whoever dominates a trial stays before it.
    """
    if len(space.objectives) == 1:
        return {number: place for place, number in enumerate(ranked(space, state, step))}
    standings = _standings(space, state, step)
    return {
        one.number: sum(
            other.group < one.group
            or (
                other.group == one.group
                and other.losses != one.losses
                and all(a <= b for a, b in zip(other.losses, one.losses, strict=True))
            )
            for other in standings
        )
        for one in standings
    }


def best_first(space: SearchSpace, state: SearchState) -> list[int]:
    """All trials that reported: by the highest step reached, then as `ranked` there; failed ones last."""
    steps = sorted({trial.step for trial in state.trials if trial.reports}, reverse=True)
    numbers = [
        number for step in steps for number in ranked(space, state, step) if state.trials[number].step == step
    ]
    return sorted(numbers, key=lambda number: state.trials[number].state == "failed")


def promotable(space: SearchSpace, state: SearchState) -> list[tuple[int, int]]:
    """(trial, step to train to) of the trials that may go on now, the most urgent first.

    Halving: of the n trials that reported at a rung, those that still wait there and are among its best
    floor(n / reduction), until so many went on; the best of all in any case; the highest rung first.
    Median: whoever waits and is not stopped. None: whoever waits.
    """
    if space.scheduler.name == "halving":
        return _promotions(space, state, last_call=False)
    waiting = [trial for trial in state.trials if trial.state == "waiting"]
    waiting.sort(key=lambda trial: (-trial.step, trial.number))
    return [
        (trial.number, target)
        for trial in waiting
        if (target := next_rung(space, state, trial)) is not None
        and stops(space, state, trial.number) is None
    ]


def drain(space: SearchSpace, state: SearchState) -> list[tuple[int, int]]:
    """As `promotable`, for when no further trial can begin: nobody else will come to fill a rung.

    Halving then lets all go on that are among the best of their rung, however many went before them, and
    at least the best of every rung; where nothing goes on and no trial is complete, or the space was
    exhausted before the budget, the best that waits: a search ends with a full-length trial unless every
    trial failed, and does not give back hours that it could use.
    """
    if space.scheduler.name != "halving":
        return promotable(space, state)
    if promotions := _promotions(space, state, last_call=True):
        return promotions
    begun, most = len(state.trials), space.budget.trials
    exhausted = most is None or begun < most  # the space ended before the budget: hours are left to use
    if not exhausted and any(trial.state in ("complete", "open") for trial in state.trials):
        return []
    for number in best_first(space, state):
        trial = state.trials[number]
        if trial.state == "waiting" and (target := next_rung(space, state, trial)) is not None:
            return [(number, target)]
    return []


def next_rung(space: SearchSpace, state: SearchState, trial: TrialRecord) -> int | None:
    """The step that the trial would train to next; None at full length."""
    return next((rung for rung in space.fidelity.rungs(state.full_steps) if rung > trial.step), None)


def _promotions(space: SearchSpace, state: SearchState, last_call: bool) -> list[tuple[int, int]]:
    rungs = space.fidelity.rungs(state.full_steps)
    found: list[tuple[int, int]] = []
    for rung, target in reversed(list(pairwise(rungs))):
        order = ranked(space, state, rung)
        places = len(order) // space.fidelity.reduction
        gone = sum(state.trials[n].target > rung and state.trials[n].state != "failed" for n in order)
        best = [state.trials[number] for number in order[: max(int(last_call), places)]]
        waiting = [trial.number for trial in best if trial.state == "waiting" and trial.step == rung]
        leads = waiting[:1] == order[:1]
        free = len(order) if last_call else max(places - gone, int(leads))
        found += [(number, target) for number in waiting[:free]]
    return found


def hopeless(space: SearchSpace, state: SearchState) -> list[tuple[int, str]]:
    """(trial, reason) of waiting trials that can never go on, however the trials still to come turn out.

    Halving: a place at a rung only ever worsens, and the trials that may yet report there are counted:
    those on their way, those that wait below with a chance, those not yet begun. Without a budget of
    trials nobody is hopeless. Median: whoever `stops` names. None: nobody.
    """
    trials_budget = space.budget.trials
    if space.scheduler.name == "median":
        waiting = [trial.number for trial in state.trials if trial.state == "waiting"]
        return [(number, reason) for number in waiting if (reason := stops(space, state, number))]
    if space.scheduler.name != "halving" or trials_budget is None:
        return []
    to_come = max(0, trials_budget - len(state.trials))
    given_up: dict[int, str] = {}
    for rung in space.fidelity.rungs(state.full_steps)[:-1]:
        ahead = _surely_ahead(space, state, rung)
        arriving = sum(
            not trial.final and trial.step < rung and trial.number not in given_up for trial in state.trials
        )
        most = len(ahead) + arriving + to_come
        places = max(1, most // space.fidelity.reduction)
        for number, better in ahead.items():
            trial = state.trials[number]
            if trial.state == "waiting" and trial.step == rung and better >= places:
                given_up[number] = f"{better} were better at step {rung}, where at most {places} go on"
    if given_up and not any(trial.state == "complete" for trial in state.trials):
        # Should those ahead all fail, `drain` sends the best that waits: one is kept for that.
        waiting_numbers = [n for n in best_first(space, state) if state.trials[n].state == "waiting"]
        if all(number in given_up for number in waiting_numbers):
            del given_up[waiting_numbers[0]]
    return sorted(given_up.items())


def over_disk_budget(
    space: SearchSpace, state: SearchState, checkpoint_bytes: Mapping[int, int]
) -> list[tuple[int, str]]:
    """(trial, reason) of the worst waiting trials to give up until checkpoints fit `disk_budget_bytes`.

    `checkpoint_bytes` holds the size on disk of each trial that has a checkpoint. The best that waits is
    never given up: a budget below one checkpoint cannot be kept, and the search must be able to end.
    """
    budget = space.disk_budget_bytes
    excess = 0 if budget is None else sum(checkpoint_bytes.values()) - budget
    waiting = [number for number in best_first(space, state) if state.trials[number].state == "waiting"]
    given_up = []
    for number in reversed(waiting[1:]):
        if excess <= 0:
            break
        if checkpoint_bytes.get(number, 0) > 0:
            excess -= checkpoint_bytes[number]
            given_up.append((number, "the worst waiting trial when checkpoints exceeded disk_budget_bytes"))
    return given_up


def stops(space: SearchSpace, state: SearchState, number: int) -> str | None:
    """Why the median rule stops a trial at the rung where it waits; None where it goes on, or no such rule.

    It stops where more than half of the others that reported at this rung rank before it, once there are
    at least 4 others [Golovin et al., Google Vizier, KDD 2017, in ranks, so that constraints and several
    objectives count as everywhere else].
    """
    trial = state.trials[number]
    if space.scheduler.name != "median" or not trial.reports or next_rung(space, state, trial) is None:
        return None
    order = ranked(space, state, trial.step)
    others, ahead = len(order) - 1, order.index(number)
    if others < 4 or 2 * ahead <= others:
        return None
    return f"below the median at step {trial.step}: place {ahead + 1} of {len(order)}"
