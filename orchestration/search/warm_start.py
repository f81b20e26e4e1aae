"""What a search takes from earlier ones: their best points, and their results where these compare.

Decisions: results of an earlier search are believed only if it trained on the same data, for as many
steps, for the same objectives; otherwise its best points are merely tried again. All of it is written
into the new search's journal when it begins, so that the earlier one may go on, move or be deleted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from orchestration.search.promote import best_first
from orchestration.search.records import SearchState
from orchestration.search.suggest import identity

if TYPE_CHECKING:
    from mpma.config import ExperimentConfig
    from orchestration.search.space import SearchSpace

BEST_POINTS: Final = 3
"""Points that are taken from each earlier search."""


def warm_start(
    space: SearchSpace,
    base: ExperimentConfig,
    full_steps: int,
    data_fingerprint: str,
    earlier: Sequence[SearchState],
) -> dict[str, Any]:
    """For the journal's first event, as `warm`: `points` to try, and `trials` to tell the sampler.

    Points hold what the new space also searches, and the recipe's values for the rest; points that the
    new space does not contain are left out. Of comparable searches the trials at full length are told.
    """
    points: dict[str, dict[str, Any]] = {}
    trials = []
    for state in earlier:
        comparable = _is_comparable(space, full_steps, data_fingerprint, state)
        taken = 0
        for number in best_first(space, state):
            trial = state.trials[number]
            values = [objective.value(trial.reports[trial.step]) for objective in space.objectives]
            params = _moved(space, base, trial.params)
            if params is None or trial.state == "failed" or None in values:
                continue
            if comparable and trial.state == "complete" and set(params) <= set(trial.params):
                trials.append({"params": params, "values": values, "metrics": trial.reports[trial.step]})
            if taken < BEST_POINTS and identity(params) not in points:
                points[identity(params)] = params
                taken += 1
    return {"points": list(points.values()), "trials": trials}


def _moved(space: SearchSpace, base: ExperimentConfig, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """An earlier trial's params as a point of this space; None where it is none."""
    known = {key: value for key, value in params.items() if key in space.parameters}
    for key, value in known.items():
        if not any(one.contains(value) for one in space.parameters[key]):
            return None
    try:
        moved = space.completed(known, base)
    except ValueError:
        return None
    kept = all(moved.get(key, value) == value for key, value in known.items())
    return moved if kept and space.objection(moved) is None else None


def _is_comparable(space: SearchSpace, full_steps: int, data_fingerprint: str, state: SearchState) -> bool:
    begun = state.begun or {}
    objectives = [objective.model_dump(mode="json") for objective in space.objectives]
    return (
        bool(data_fingerprint)
        and begun.get("data_fingerprint") == data_fingerprint
        and state.full_steps == full_steps
        and (begun.get("space") or {}).get("objectives") == objectives
    )
