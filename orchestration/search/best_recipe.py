"""best.yaml: the recipe that a search ends with, and in its head what may be believed of it.

Decisions: the whole resolved tree stands there, so the file runs as it is, wherever the recipe it came
from has gone to; only a confirmed winner replaces the recipe's own values. Where nothing better was
confirmed the tree is the recipe's own, and the best candidate's keys stand in a comment as a suggestion.
Where the space asked for no confirmation the best trial is written, and said to be unconfirmed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mpma.config import ExperimentConfig, to_yaml
from orchestration.search.confirm import DEFAULT, candidate_name
from orchestration.search.promote import best_first
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace, apply_params, base_values

_WIDTH = 98


def best_recipe(
    space: SearchSpace, base: ExperimentConfig, params: Mapping[str, Any], comment: Iterable[str]
) -> str:
    """YAML text of the recipe with these params, its own training.seed and the length of a confirmation.

    `comment` is the head's paragraphs; what differs from the recipe follows them. Raises `UserError`
    where the params do not fit the recipe.
    """
    steps = space.confirmation.steps or space.fidelity.steps or base.training.steps
    config = apply_params(base, params, steps=steps, seed=base.training.seed)
    lines = [line for paragraph in comment for line in textwrap.wrap(paragraph, _WIDTH)]
    differing = changes(base, params)
    if differing:
        lines += ["Differs from the recipe that was searched around in:", *(f"  {one}" for one in differing)]
    else:
        lines.append("The searched keys have the values of the recipe that was searched around.")
    return "".join(f"# {line}\n" for line in lines) + to_yaml(config)


def changes(base: ExperimentConfig, params: Mapping[str, Any]) -> list[str]:
    """`key: value (was value)` of the params that are not the recipe's own, in their order."""
    own = base_values(base)
    return [
        f"{key}: {_text(value)} (was {_text(own[key])})" for key, value in params.items() if own[key] != value
    ]


def recipe_of_search(space: SearchSpace, base: ExperimentConfig, state: SearchState, name: str) -> str:
    """best.yaml of a search called `name`, from where it stands.

    The confirmed winner; without one the recipe's own values.
    """
    came = f"From the search {name}: {len(state.trials)} trials of {state.full_steps} steps at most."
    result = state.comparison
    if result is not None and result["named"]:
        params = next(one["params"] for one in state.candidates if one["name"] == result["candidate"])
        return best_recipe(space, base, params, [came, str(result["reason"])])
    suggestion = _suggested(space, state)
    if space.confirmation.candidates == 0 and suggestion is not None:
        best, params = suggestion
        said = f"{best} was the best on validation patients, with one seed; nothing was confirmed."
        return best_recipe(space, base, params, [came, said])
    said = str(result["reason"]) if result is not None else "Nothing was confirmed."
    comment = [came, said]
    if suggestion is not None and (keys := changes(base, suggestion[1])):
        comment.append(f"A suggestion that is not confirmed, {suggestion[0]}: {'; '.join(keys)}.")
    return best_recipe(space, base, space.default_params(base), comment)


def _suggested(space: SearchSpace, state: SearchState) -> tuple[str, dict[str, Any]] | None:
    """Name and params of the candidate compared, else of the best trial that is not the default."""
    result = state.comparison
    if result is not None and result["candidate"] not in (None, DEFAULT):
        params = next(one["params"] for one in state.candidates if one["name"] == result["candidate"])
        return str(result["candidate"]), dict(params)
    for number in best_first(space, state):
        trial = state.trials[number]
        known = all(one.value(trial.reports[trial.step]) is not None for one in space.objectives)
        if trial.source != DEFAULT and trial.state != "failed" and known:
            return candidate_name(number), trial.params
    return None


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip().removesuffix("...").strip()
