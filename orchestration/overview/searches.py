"""What a search's journal says to someone who only looks.

Decisions: the journal may be damaged, or another version's, so its first line is read as plain values and
never as a space that must validate; the best of a search is the best complete trial that keeps every
constraint, since trials of other lengths do not compare and a bound that is broken wins nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpma.data.storage import Storage
from mpma.errors import UserError
from orchestration.search.journal import JOURNAL_FILE, read_events
from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.sections import Constraint, Objective


@dataclass(frozen=True)
class Best:
    """The best value of an objective, and the trial that has it."""

    value: float
    trial: int


def read_search(folder: Storage) -> SearchState:
    """What a search's journal adds up to. Raises `UserError` naming the line that is damaged."""
    state = SearchState()
    for event in read_events(folder)[1]:
        try:
            state.apply(event)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError):
            raise UserError(
                f"{folder.described(JOURNAL_FILE)}, line {event['line']}: it does not follow from the others",
                "restore the file from a copy",
            ) from None
    if state.begun is None:
        raise UserError(f"{folder.described(JOURNAL_FILE)}: holds no `begin`, so the search never began")
    return state


def part(tree: Any, name: str) -> dict[str, Any]:
    """A section of plain values; empty where it is none."""
    found = tree.get(name) if isinstance(tree, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def fingerprint_of(state: SearchState) -> str:
    """Of the data that are searched on."""
    return str((state.begun or {}).get("data_fingerprint", ""))


def revision_of(state: SearchState) -> str:
    """Of the code that began the search."""
    return str(part(state.begun, "provenance").get("git_revision") or "")


def objectives(state: SearchState) -> list[Objective]:
    """What is sought. Raises `UserError` where this version cannot read it."""
    return _told(state, Objective, "objectives")


def best_complete(state: SearchState) -> dict[str, Best]:
    """By objective. Raises `UserError` where the journal's space cannot be read by this version."""
    sought, bounds = objectives(state), _told(state, Constraint, "constraints")
    best: dict[str, Best] = {}
    for trial in state.trials:
        metrics = _closing(trial)
        if not metrics or any(bound.violation(metrics) > 0 for bound in bounds):
            continue
        for objective in sought:
            value = objective.value(metrics)
            if value is None:
                continue
            before = best.get(objective.metric)
            better = before is None or (
                value < before.value if objective.direction == "minimise" else value > before.value
            )
            if better:
                best[objective.metric] = Best(value, trial.number)
    return best


def _closing(trial: TrialRecord) -> dict[str, float | None]:
    return trial.reports[trial.step] if trial.state == "complete" and trial.reports else {}


def _told(state: SearchState, kind: type[Any], name: str) -> list[Any]:
    told = part(state.begun, "space").get(name) or []
    try:
        return [kind.model_validate(one) for one in told]
    except (TypeError, ValueError):
        raise UserError(
            f"{JOURNAL_FILE}: {name} of another version, so no trial is called the best"
        ) from None
