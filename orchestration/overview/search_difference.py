"""How two searches differ: what was searched, around what, on what, what was spent, and what came of it.

Decisions: the first line of the journal tells the space and the recipe, as plain values, so that searches of
other versions are compared as well; whether two best values compare is asked of the configurations of their
two trials, the recipe with the trial's values in it, since that is what was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpma.config import flatten
from mpma.data.storage import Storage
from orchestration.overview.difference import Row, code, differing, environment, why_not_comparable
from orchestration.overview.searches import (
    Best,
    best_complete,
    fingerprint_of,
    objectives,
    part,
    read_search,
)
from orchestration.search.records import SearchState


@dataclass(frozen=True)
class SearchDifference:
    """Of two searches, by topic; only what differs, but for what was spent and the best values."""

    space: list[Row]
    recipe: list[Row]
    data: list[Row]
    code: list[Row]
    environment: list[Row]
    spent: list[Row]
    best: list[Row]
    best_trials: list[Row]
    """Numbers and settings of the trials that have the best values."""


def search_difference(first: Storage, second: Storage) -> SearchDifference:
    """Raises `UserError` where a journal is damaged or cannot be read by this version."""
    ours, theirs = read_search(first), read_search(second)
    origins = [part(state.begun, "provenance") for state in (ours, theirs)]
    data = differing({"fingerprint": fingerprint_of(ours)}, {"fingerprint": fingerprint_of(theirs)})
    best, trials = _best(ours, theirs, not data)
    before, after = _spent(ours), _spent(theirs)
    return SearchDifference(
        space=differing(_space(ours), _space(theirs)),
        recipe=differing(_recipe(ours), _recipe(theirs)),
        data=data,
        code=differing(*map(code, origins)),
        environment=differing(*map(environment, origins)),
        spent=[Row(what, before[what], after[what]) for what in before],
        best=best,
        best_trials=trials,
    )


def _space(state: SearchState) -> dict[str, Any]:
    """Parameters by their keys, everything else by section and key; the recipe's name says nothing."""
    found: dict[str, Any] = {}
    for name, section in part(state.begun, "space").items():
        if name == "parameters" and isinstance(section, Mapping):
            found.update({f"parameters {key}": _words(_given(told)) for key, told in section.items()})
        elif name != "recipe":
            found.update({key: _words(value) for key, value in flatten({name: section})})
    return found


def _given(told: Any) -> Any:
    """A parameter without the entries that say nothing of it, of one alternative alone where it is one."""
    if isinstance(told, list):
        kept = [_given(one) for one in told]
        return kept[0] if len(kept) == 1 else kept
    if isinstance(told, Mapping):
        return {key: value for key, value in told.items() if value not in (None, False, {}, [])}
    return told


def _words(value: Any) -> Any:
    """What is nested as text, which tables and JSON show alike."""
    return json.dumps(value) if isinstance(value, list | Mapping) else value


def _recipe(state: SearchState) -> dict[str, Any]:
    return dict(flatten(part(state.begun, "config")))


def _spent(state: SearchState) -> dict[str, Any]:
    states = [trial.state for trial in state.trials]
    told = state.comparison
    return {
        "state": "finished" if state.ended else "unfinished",
        "trials": len(states),
        "complete trials": states.count("complete"),
        "pruned trials": states.count("pruned"),
        "failed trials": states.count("failed"),
        "device seconds of trials": state.device_seconds,
        "device seconds of the confirmation": sum(run.seconds for run in state.confirmations.values()),
        "wall-clock seconds": state.wall_seconds,
        "winner confirmed": "not compared" if told is None else "yes" if told.get("named") else "no",
    }


def _best(ours: SearchState, theirs: SearchState, same_data: bool) -> tuple[list[Row], list[Row]]:
    """Best values by objective, then the trials that have them, by what differs."""
    directions = [{one.metric: one.direction for one in objectives(state)} for state in (ours, theirs)]
    found = [best_complete(state) for state in (ours, theirs)]
    values, trials = [], []
    for metric in {**directions[0], **directions[1]}:
        if not all(metric in one for one in directions):
            one, other = (best[metric].value if metric in best else None for best in found)
            values.append(Row(metric, one, other, "sought by one of them alone"))
            continue
        first, second = (best.get(metric) for best in found)
        if first is None or second is None:
            note = "no complete trial that counts in one of them"
        elif directions[0][metric] != directions[1][metric]:
            note = "not comparable: sought in opposite directions"
        else:
            note = why_not_comparable(metric, _changed(ours, first, theirs, second), same_data)
            note = note or _lengths(ours, theirs)
        values.append(Row(metric, first and first.value, second and second.value, note))
        if first is not None and second is not None:
            name = f"{metric.rsplit('/', 1)[-1]}: " if len(directions[0]) > 1 else ""
            trials.append(Row(f"{name}trial", first.trial, second.trial))
            settings = differing(ours.trials[first.trial].params, theirs.trials[second.trial].params)
            trials += [Row(f"{name}{row.what}", row.first, row.second) for row in settings]
    return values, trials


def _changed(ours: SearchState, first: Best, theirs: SearchState, second: Best) -> list[str]:
    before = {**_recipe(ours), **ours.trials[first.trial].params}
    after = {**_recipe(theirs), **theirs.trials[second.trial].params}
    return [row.what for row in differing(before, after)]


def _lengths(ours: SearchState, theirs: SearchState) -> str:
    if ours.full_steps == theirs.full_steps:
        return ""
    return f"not comparable: trained {ours.full_steps} and {theirs.full_steps} steps"
