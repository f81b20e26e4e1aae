"""Where every trial stands at every rung, brought up to date by what each event changes.

Decisions: a decision of the scheduler asks for little (the best that waits at a rung, a place, a count), but
ranking all trials for each of them makes a search of n trials cost n squared. So the rungs are kept: an event
moves one trial, whose places are found by halving. What is kept follows from the state alone and stands
beside it (`SearchState.followers`), so those who ask still ask a pure function of the state.

The order at a rung: feasible trials first, the others by their total violation; then one objective by its
value, several by front and crowding; values that are missing or not finite last; ties by number.

Cost for n trials at r rungs: r log n an event with one objective, and the eight bytes a trial that an
insertion into a list moves. With several objectives any report may move everyone's place: a rung that
changed is ranked anew when it is next asked for (fronts.py).
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from orchestration.search.fronts import crowding_distances, dominance, front_numbers
from orchestration.search.records import SearchState, TrialRecord

if TYPE_CHECKING:
    from orchestration.search.space import SearchSpace

Group = tuple[bool, float]
"""Whoever is in a lesser group ranks before, whatever the objectives say."""
Key = tuple[bool, float, tuple[float, ...], int]


@dataclass(frozen=True)
class Standing:
    """What a trial's report at a rung is worth."""

    number: int
    violation: float
    losses: tuple[float, ...]
    """All objectives, minimised; empty where one is missing or not finite."""

    @property
    def group(self) -> Group:
        """Not a number behind everything else, then by violation."""
        return not self.losses, self.violation

    @property
    def key(self) -> Key:
        """Ascending with the place, where there is one objective."""
        return (*self.group, self.losses, self.number)


def standing_of(space: SearchSpace, trial: TrialRecord, step: int) -> Standing:
    """What the trial's report at `step` is worth."""
    metrics = trial.reports[step]
    violation = sum(max(0.0, amount) for amount in space.violations(metrics))
    losses = [objective.minimised(metrics) for objective in space.objectives]
    finite = tuple(loss for loss in losses if loss is not None and math.isfinite(loss))
    return Standing(trial.number, violation, finite if len(finite) == len(losses) else ())


class Rung(ABC):
    """The trials that reported at one step, best first, and which of them wait there or went on."""

    def __init__(self) -> None:
        self._standings: dict[int, Standing] = {}
        self._gone: set[int] = set()
        self._waits: set[int] = set()

    def __len__(self) -> int:
        return len(self._standings)

    @property
    def gone(self) -> int:
        """Trials that were let go on from here and have not failed."""
        return len(self._gone)

    @property
    def waits(self) -> int:
        """Trials that wait here."""
        return len(self._waits)

    def put(self, standing: Standing, waits: bool, gone: bool) -> None:
        """Take in how a trial stands here now."""
        number = standing.number
        before = self._standings.get(number)
        if before != standing:
            if before is not None:
                self._take_out(before, number in self._waits)
                self._waits.discard(number)
            self._standings[number] = standing
            self._put_in(standing)
        if waits != (number in self._waits):
            (self._waits.add if waits else self._waits.discard)(number)
            self._wait(standing, waits)
        (self._gone.add if gone else self._gone.discard)(number)

    @abstractmethod
    def _put_in(self, standing: Standing) -> None: ...

    @abstractmethod
    def _take_out(self, standing: Standing, waits: bool) -> None: ...

    @abstractmethod
    def _wait(self, standing: Standing, waits: bool) -> None: ...

    @abstractmethod
    def order(self) -> list[int]:
        """Numbers of all, best first."""

    @abstractmethod
    def place(self, number: int) -> int:
        """How many rank before it; 0 is the best."""

    @abstractmethod
    def waiting(self, among: int) -> Iterator[int]:
        """Those that wait and are among the best `among`, best first."""

    @abstractmethod
    def waiting_worst_first(self) -> Iterator[int]:
        """All that wait."""

    @abstractmethod
    def waiting_behind(self, places: int) -> Iterator[tuple[int, int]]:
        """(trial, how many rank before it whatever is reported later) of those that wait, where that is
        `places` or more.

        With one objective that is its place. With several a place can improve, when those beside it are
        pushed to a later front; but whoever dominates a trial stays before it.
        """


class OneObjective(Rung):
    """A rung in a sorted list, and those that wait in another."""

    def __init__(self) -> None:
        super().__init__()
        self._order: list[Key] = []
        self._waiting: list[Key] = []

    def _put_in(self, standing: Standing) -> None:
        insort(self._order, standing.key)

    def _take_out(self, standing: Standing, waits: bool) -> None:
        for keys in (self._order, self._waiting) if waits else (self._order,):
            del keys[bisect_left(keys, standing.key)]

    def _wait(self, standing: Standing, waits: bool) -> None:
        if waits:
            insort(self._waiting, standing.key)
        else:
            del self._waiting[bisect_left(self._waiting, standing.key)]

    def order(self) -> list[int]:
        return [key[-1] for key in self._order]

    def place(self, number: int) -> int:
        return bisect_left(self._order, self._standings[number].key)

    def waiting(self, among: int) -> Iterator[int]:
        for key in self._waiting:
            if bisect_left(self._order, key) >= among:
                return
            yield key[-1]

    def waiting_worst_first(self) -> Iterator[int]:
        return (key[-1] for key in reversed(self._waiting))

    def waiting_behind(self, places: int) -> Iterator[tuple[int, int]]:
        for key in reversed(self._waiting):
            ahead = bisect_left(self._order, key)
            if ahead < places:
                return
            yield key[-1], ahead


class SeveralObjectives(Rung):
    """A rung that is ranked anew when it is asked for after a report."""

    @cached_property
    def _ranking(self) -> tuple[dict[int, int], dict[int, int]]:
        """Per trial: its place, and how many surely stay ahead; the former in the order of rank."""
        groups: dict[Group, list[Standing]] = {}
        # By number: among equal values crowding depends on the order of rows, which may not depend on who
        # reported first, or a search that is continued would rank otherwise than one that was not broken.
        for standing in sorted(self._standings.values(), key=lambda one: one.number):
            groups.setdefault(standing.group, []).append(standing)
        order: list[int] = []
        ahead: dict[int, int] = {}
        for group in sorted(groups):
            before, members = len(order), groups[group]
            numbers = [member.number for member in members]
            ranks: list[tuple[float, ...]] = [()] * len(members)
            dominators = [0] * len(members)
            if members[0].losses:
                losses = np.array([member.losses for member in members])
                dominates = dominance(losses)
                fronts = front_numbers(dominates)
                dominators = [int(count) for count in dominates.sum(axis=0)]
                for front in set(fronts):
                    rows = [row for row, other in enumerate(fronts) if other == front]
                    for row, distance in zip(rows, crowding_distances(losses[rows]), strict=True):
                        ranks[row] = (front, -distance)
            ahead |= {number: before + count for number, count in zip(numbers, dominators, strict=True)}
            order += [number for _, number in sorted(zip(ranks, numbers, strict=True))]
        return {number: place for place, number in enumerate(order)}, ahead

    def _put_in(self, standing: Standing) -> None:
        self.__dict__.pop("_ranking", None)

    def _take_out(self, standing: Standing, waits: bool) -> None:
        self.__dict__.pop("_ranking", None)

    def _wait(self, standing: Standing, waits: bool) -> None:
        """Who waits is looked up in the ranking."""

    def order(self) -> list[int]:
        return list(self._ranking[0])

    def place(self, number: int) -> int:
        return self._ranking[0][number]

    def waiting(self, among: int) -> Iterator[int]:
        places = self._ranking[0]
        return iter(sorted((n for n in self._waits if places[n] < among), key=places.__getitem__))

    def waiting_worst_first(self) -> Iterator[int]:
        return iter(sorted(self._waits, key=self._ranking[0].__getitem__, reverse=True))

    def waiting_behind(self, places: int) -> Iterator[tuple[int, int]]:
        ahead = self._ranking[1]
        return ((number, ahead[number]) for number in self._waits if ahead[number] >= places)


class Standings:
    """The rungs of a search."""

    def __init__(self, space: SearchSpace, state: SearchState) -> None:
        self.space = space
        self._state = state
        self._seen = 0
        self._rungs: dict[int, Rung] = {}
        self._on_the_way: dict[int, int] = {}
        self._arriving: Counter[int] = Counter()
        """Trials to which something may still happen, by the last step that they reported at."""
        self._complete: set[int] = set()

    def catch_up(self) -> None:
        """Take in what happened since."""
        touches = self._state.touches
        for number in dict.fromkeys(touches[self._seen :]):
            self._take(self._state.trials[number])
        self._seen = len(touches)

    def _take(self, trial: TrialRecord) -> None:
        number = trial.number
        for step in tuple(trial.reports):
            self.at(step).put(
                standing_of(self.space, trial, step),
                waits=trial.state == "waiting" and trial.step == step,
                gone=trial.target > step and trial.state != "failed",
            )
        if number in self._on_the_way:
            self._arriving[self._on_the_way.pop(number)] -= 1
        if not trial.final:
            self._on_the_way[number] = trial.step
            self._arriving[trial.step] += 1
        (self._complete.add if trial.state == "complete" else self._complete.discard)(number)

    def at(self, step: int) -> Rung:
        """Who reported at `step`; an empty rung where nobody has."""
        if step not in self._rungs:
            self._rungs[step] = OneObjective() if len(self.space.objectives) == 1 else SeveralObjectives()
        return self._rungs[step]

    def before(self, step: int) -> int:
        """Trials that may still report at `step`: begun, not final and not yet there."""
        return sum(count for last, count in self._arriving.items() if last < step)

    @property
    def complete(self) -> int:
        """Trials that trained in full."""
        return len(self._complete)

    @property
    def steps(self) -> list[int]:
        """At which anybody reported, ascending."""
        return sorted(step for step, rung in self._rungs.items() if len(rung))

    @property
    def waits(self) -> int:
        """Trials that wait at any rung."""
        return sum(rung.waits for rung in self._rungs.values())

    def waiting_worst_first(self) -> Iterator[int]:
        """All that wait: from the lowest rung up, the last of each first."""
        return (number for step in self.steps for number in self._rungs[step].waiting_worst_first())

    def best_waiting(self) -> int | None:
        """The best of the highest rung at which anyone waits."""
        for step in reversed(self.steps):
            rung = self._rungs[step]
            if rung.waits:
                return next(rung.waiting(len(rung)))
        return None


def standings(space: SearchSpace, state: SearchState) -> Standings:
    """Those of this space and state as they are now; made once, and kept beside the state.

    Each thread has its own, since the screen is drawn while the search decides.
    """
    key = id(space), threading.get_ident()
    kept = state.followers.get(key)
    if kept is None:  # it holds its space, so no other has that id meanwhile
        kept = state.followers[key] = Standings(space, state)
    assert isinstance(kept, Standings)
    kept.catch_up()
    return kept
