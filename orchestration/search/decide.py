"""What a search does next: a pure function of its space, its state and what is running.

Decisions: whatever was begun is finished first; then promotions, since a trial that has shown itself good
is worth more than a new one; then new trials while the budget admits them. Trials that only a thinner
field would promote are taken up when nothing runs any more, so that the outcome of a sequential search
does not depend on the clock. A budget of hours ends suggestions and promotions; what runs comes to its
rung.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Final

from orchestration.search.promote import drain, promotable
from orchestration.search.records import SearchState


@dataclass(frozen=True)
class Train:
    """Continue an open trial to its target."""

    trial: int


@dataclass(frozen=True)
class Promote:
    """Let a waiting trial train on to `target`."""

    trial: int
    target: int


@dataclass(frozen=True)
class Begin:
    """Suggest the next trial."""


@dataclass(frozen=True)
class Wait:
    """Nothing can be done until something running reports."""


@dataclass(frozen=True)
class End:
    """No further trial is begun or promoted."""

    reason: str


BUDGET_SPENT: Final = "the budget"
"""How the reason begins where hours ended the search: more of them let it go on."""

Action = Train | Promote | Begin | Wait | End


def next_action(space: Any, state: SearchState, live: Set[int], exhausted: str = "") -> Action:
    """The next thing to do; `live` are the trials that are training now.

    `exhausted` says why the searcher has no further point, or is empty. Sequential searches, with at most
    one live trial, repeat exactly: nothing here looks at the clock but the budgets of hours.
    """
    if state.search_ended:
        return End(state.search_ended) if not live else Wait()
    if len(state.open) > len(live):  # whatever trains is open
        return Train(min(state.open - live))
    spent = over_budget(space, state)
    if spent:
        return Wait() if live else End(spent)
    for number, target in promotable(space, state):
        return Promote(number, target)
    begun = len(state.trials)
    most = space.budget.trials
    if not exhausted and (most is None or begun < most):
        return Begin()
    if live:
        return Wait()
    for number, target in drain(space, state):
        return Promote(number, target)
    return End(exhausted or f"all {begun} trials of the budget were begun")


def over_budget(space: Any, state: SearchState) -> str:
    """Which budget of hours is spent, or nothing."""
    budget = space.budget
    if budget.gpu_hours is not None and state.device_seconds >= budget.gpu_hours * 3600:
        return f"{BUDGET_SPENT} of {budget.gpu_hours:g} device hours is spent"
    if budget.wall_clock_hours is not None and state.wall_seconds >= budget.wall_clock_hours * 3600:
        return f"{BUDGET_SPENT} of {budget.wall_clock_hours:g} hours on the clock is spent"
    return ""
