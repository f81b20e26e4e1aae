"""Which trials train on, which wait and which are given up: pure functions of the search's state.

Decisions: a trial that stops at a rung waits there with its checkpoint, so a rung's judgement can be
revised whenever another trial reports; nothing is stopped for having come early. Asynchronous successive
halving [Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2]
promotes from the highest rung first, but of a rung no more than one in `reduction` [delayed promotion: Li
et al., Hyper-Tune, VLDB 2022], its best trial excepted: a searcher that gets better makes nearly every
new trial one of the best so far, and promoting them all leaves few trials in the budget.

How trials are ordered at a rung stands in standings.py. A failed trial keeps its place among the results of
a rung that it reported at, so that ranks only ever worsen and what is given up as hopeless stays so.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.standings import standings

if TYPE_CHECKING:
    from orchestration.search.space import SearchSpace


def ranked(space: SearchSpace, state: SearchState, step: int) -> list[int]:
    """Numbers of the trials that reported at `step`, best first, as standings.py orders them."""
    return standings(space, state).at(step).order()


def best_first(space: SearchSpace, state: SearchState) -> list[int]:
    """All trials that reported: by the highest step reached, then as `ranked` there; failed ones last."""
    found = standings(space, state)
    numbers = [
        number
        for step in reversed(found.steps)
        for number in found.at(step).order()
        if state.trials[number].step == step
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
    waiting = [state.trials[number] for number in standings(space, state).waiting_worst_first()]
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
    found = standings(space, state)
    if not exhausted and (found.complete or state.open):
        return []
    best = found.best_waiting()
    target = None if best is None else next_rung(space, state, state.trials[best])
    return [] if best is None or target is None else [(best, target)]


def next_rung(space: SearchSpace, state: SearchState, trial: TrialRecord) -> int | None:
    """The step that the trial would train to next; None at full length."""
    return next((rung for rung in space.fidelity.rungs(state.full_steps) if rung > trial.step), None)


def _promotions(space: SearchSpace, state: SearchState, last_call: bool) -> list[tuple[int, int]]:
    found = standings(space, state)
    promotions: list[tuple[int, int]] = []
    for step, target in reversed(list(pairwise(space.fidelity.rungs(state.full_steps)))):
        rung = found.at(step)
        places = len(rung) // space.fidelity.reduction
        among = max(int(last_call), places)
        leads = any(True for _ in rung.waiting(min(1, among)))
        free = len(rung) if last_call else max(places - rung.gone, int(leads))
        promotions += [(number, target) for number in islice(rung.waiting(among), free)]
    return promotions


def hopeless(space: SearchSpace, state: SearchState) -> list[tuple[int, str]]:
    """(trial, reason) of waiting trials that can never go on, however the trials still to come turn out.

    Halving: a place at a rung only ever worsens, and the trials that may yet report there are counted:
    those on their way, those that wait below with a chance, those not yet begun. Without a budget of
    trials nobody is hopeless. Median: whoever `stops` names. None: nobody.
    """
    trials_budget = space.budget.trials
    if space.scheduler.name == "median":
        waiting = sorted(standings(space, state).waiting_worst_first())
        return [(number, reason) for number in waiting if (reason := stops(space, state, number))]
    if space.scheduler.name != "halving" or trials_budget is None:
        return []
    found = standings(space, state)
    to_come = max(0, trials_budget - len(state.trials))
    given_up: dict[int, str] = {}
    for step in space.fidelity.rungs(state.full_steps)[:-1]:
        rung = found.at(step)
        # Whoever is given up here waits at a lower rung, so it was counted among those on their way.
        most = len(rung) + found.before(step) - len(given_up) + to_come
        places = max(1, most // space.fidelity.reduction)
        for number, better in list(rung.waiting_behind(places)):
            given_up[number] = f"{better} were better at step {step}, where at most {places} go on"
    if given_up and not found.complete and len(given_up) == found.waits:
        # Should those ahead all fail, `drain` sends the best that waits: one is kept for that.
        best = found.best_waiting()
        assert best is not None
        del given_up[best]
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
    if excess <= 0:
        return []
    found = standings(space, state)
    given_up = []
    for number in islice(found.waiting_worst_first(), max(0, found.waits - 1)):
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
    rung = standings(space, state).at(trial.step)
    others, ahead = len(rung) - 1, rung.place(number)
    if others < 4 or 2 * ahead <= others:
        return None
    return f"below the median at step {trial.step}: place {ahead + 1} of {len(rung)}"
