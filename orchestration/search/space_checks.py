"""Whether a space fits the experiment tree: everything that can be refused before anything starts.

Decisions: the tree's own fields say what a key may hold (their bounds are read, not repeated), and its
validators are asked about every corner of the space and every pair of corners, so that no combination
of two keys fails hours later; conditions are judged by going through all that their parents can be, which
finds conditions that are never met and alternatives that apply together. Each refusal is one line that
names the file and the key.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpma.comparability import (
    DESCRIBES_THE_DATA,
    INSTEAD,
    METRICS,
    NOT_SEARCHED,
    VISUAL_GAIN,
    nearest_metric,
    objections,
)
from mpma.config import ExperimentConfig
from mpma.errors import UserError
from orchestration.search.space_conditions import check_conditions, check_limits
from orchestration.search.space_fields import check_known, check_taken, refuse

if TYPE_CHECKING:
    from orchestration.search.space import SearchSpace

Params = Mapping[str, Any]

MOST_PAIRS = 20_000
"""Pairs of corners that are looked at: a few seconds."""


# -- against the tree ------------------------------------------------------------------------------------


def check(file: str, space: SearchSpace, base: ExperimentConfig, full_steps: int) -> None:
    """Refuse whatever could not be searched. Raises `UserError`."""
    if not space.searched_keys():
        raise refuse(file, "parameters", "nothing is searched", "give at least one key a range or a choice")
    check_limits(file, space)
    enabling = check_conditions(file, space)
    _check_length(file, space, full_steps)
    _check_searcher(file, space)
    _check_metrics(file, space)
    _check_default(file, space, base)
    _check_corners(file, space, base, enabling)
    _check_reported(file, space, base)
    _check_points(file, space, base)
    _check_proxies(file, space, base)


# -- budget, searcher, metrics ---------------------------------------------------------------------------


def _check_length(file: str, space: SearchSpace, full_steps: int) -> None:
    if space.scheduler.name == "none":
        return
    first = space.fidelity.first_rung
    if first is not None and first >= full_steps:
        raise refuse(
            file,
            "fidelity.first_rung",
            f"{first} leaves no rung below the {full_steps} steps of a full-length trial",
            "give fewer steps, or scheduler: {name: none}",
        )
    if len(space.fidelity.rungs(full_steps)) < 2:
        raise refuse(
            file, "fidelity.steps", f"{full_steps} steps are too few for one rung", "give first_rung"
        )
    trials = space.budget.trials
    if space.scheduler.name == "halving" and trials is not None and trials < space.fidelity.reduction:
        raise refuse(
            file,
            "budget.trials",
            f"{trials} are too few for one rung: one trial in {space.fidelity.reduction} is promoted",
            f"give at least {space.fidelity.reduction}, or scheduler: {{name: none}}",
        )


def _check_searcher(file: str, space: SearchSpace) -> None:
    name = space.searcher.name
    if name == "cmaes" and len(space.objectives) > 1:
        raise refuse(file, "searcher.name", "cmaes seeks one objective", "tpe, gp or nsga2 seek several")
    gpus = space.gpus_per_trial
    if not isinstance(gpus, str) and gpus > 1 and gpus != int(gpus):
        raise refuse(file, "gpus_per_trial", f"{gpus:g} is neither a fraction of one GPU nor a whole number")


def _check_metrics(file: str, space: SearchSpace) -> None:
    seen: set[str] = set()
    for number, objective in enumerate(space.objectives):
        place = f"objectives.{number}"
        _check_metric(file, place, objective.metric)
        if objective.metric in seen:
            raise refuse(file, place, f"{objective.metric} stands twice")
        seen.add(objective.metric)
        for found in objections(objective.metric, space.searched_keys()):
            raise refuse(file, place, str(found), f"use {found.instead}")
        if objective.metric in DESCRIBES_THE_DATA:
            raise refuse(file, place, f"{objective.metric} describes the validation set", f"use {INSTEAD}")
    for number, constraint in enumerate(space.constraints):
        _check_metric(file, f"constraints.{number}", constraint.metric)


def _check_metric(file: str, place: str, metric: str) -> None:
    if metric not in METRICS:
        hint = f"the nearest known metric is {nearest_metric(metric)}"
        raise refuse(file, place, f"{metric} is no metric of a run", hint)


_TERM_OF = {
    **{f"{place}/{term}": term for place in ("loss", "val/loss") for term in
       ("image_reconstruction", "report_reconstruction", "global_alignment", "local_alignment")},
    VISUAL_GAIN: "report_reconstruction",
}  # fmt: skip


def _check_reported(file: str, space: SearchSpace, base: ExperimentConfig) -> None:
    """An objective that some trials would not report, since they skip its term."""
    from orchestration.search.space import base_values

    own = base_values(base)
    for number, objective in enumerate(space.objectives):
        term = _TERM_OF.get(objective.metric)
        off: list[tuple[str, Any]] = [] if term is None else [(f"loss_weights.{term}", 0.0)]
        if term in ("image_reconstruction", "report_reconstruction"):
            off.append((f"{term.removesuffix('_reconstruction')}.mask_ratio", 0.0))
        if term == "local_alignment":
            off.append(("alignment.local", "none"))
        for key, value in off:
            found = space.parameters.get(key)
            can_be = any(one.contains(value) for one in found) if found else own[key] == value
            if can_be:
                raise refuse(
                    file,
                    f"objectives.{number}",
                    f"{objective.metric} is not reported where {key} is {value if value else 0}",
                    "leave that value out" if found else "choose another objective",
                )


# -- points ----------------------------------------------------------------------------------------------


def _check_default(file: str, space: SearchSpace, base: ExperimentConfig) -> None:
    if not space.first.default:
        return
    wrong = space.objection(space.default_params(base))
    if wrong:
        raise refuse(
            file,
            "parameters",
            f"the recipe's own {wrong}, and the recipe's own values are the first trial",
            "widen the range, change the recipe, or write first: {default: false}",
        )


def _check_corners(
    file: str,
    space: SearchSpace,
    base: ExperimentConfig,
    enabling: Mapping[tuple[str, int], dict[str, Any]],
) -> None:
    """Every corner of every alternative, alone and with every other key's, makes a valid experiment."""
    corners = [
        (key, {**enabling[key, place], key: value})
        for key, found in space.parameters.items()
        for place, one in enumerate(found)
        for value in one.corners()
    ]
    for key, point in corners:
        _check_point(file, space, base, point, (key,))
    pairs = itertools.combinations(corners, 2)
    for (key, point), (other, beside) in itertools.islice(pairs, MOST_PAIRS):
        if key != other and all(beside.get(name, value) == value for name, value in point.items()):
            _check_point(file, space, base, {**point, **beside}, (key, other))


def _check_point(
    file: str, space: SearchSpace, base: ExperimentConfig, point: Params, keys: tuple[str, ...]
) -> None:
    from orchestration.search.space import apply_params

    given = " and ".join(f"{key} {point[key]!r}" for key in keys)
    place = f"parameters.{keys[0]}"
    try:
        params = space.completed(point, base)
    except ValueError as error:
        raise refuse(file, place, f"{given}: {error}", "give a smaller value too") from None
    if any(key not in params for key in keys):
        return
    try:
        apply_params(base, params)
    except UserError as error:
        raise refuse(
            file, place, f"{given}: {error.message}", "leave the value out, or give it a condition (when)"
        ) from None


def _check_points(file: str, space: SearchSpace, base: ExperimentConfig) -> None:
    from orchestration.search.space import apply_params

    for number, point in enumerate(space.first.points):
        place = f"first.points.{number}"
        for key in point:
            if key not in space.parameters:
                near = difflib.get_close_matches(key, list(space.parameters), n=1, cutoff=0.4)
                hint = f"the nearest searched key is {near[0]}" if near else None
                raise refuse(file, f"{place}.{key}", "not a searched key", hint)
        try:
            wrong = space.objection({**space.completed(point, base), **point})
            if wrong is None:
                apply_params(base, space.completed(point, base))
        except ValueError as error:
            wrong = str(error)
        except UserError as error:
            wrong = error.message
        if wrong:
            raise refuse(file, place, wrong)


def _check_proxies(file: str, space: SearchSpace, base: ExperimentConfig) -> None:
    from orchestration.search.space import apply_params

    for name, changes in space.proxies.items():
        place = f"proxies.{name}"
        if not changes:
            raise refuse(file, place, "empty; name the keys that make it cheaper")
        for key in changes:
            check_known(file, place, key)
            if key in space.parameters:
                raise refuse(file, f"{place}.{key}", "is searched, so a proxy cannot set it")
            if key.startswith("data.") or key == "validation.seed":
                raise refuse(file, f"{place}.{key}", f"a proxy may not change it: {NOT_SEARCHED[key]}")
            check_taken(file, f"{place}.{key}", key, [changes[key]])
        try:
            apply_params(base, {**space.completed({}, base), **changes})
        except UserError as error:
            raise refuse(file, place, error.message) from None
