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
import typing
from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mpma.comparability import (
    DESCRIBES_THE_DATA,
    INSTEAD,
    METRICS,
    NOT_SEARCHED,
    VISUAL_GAIN,
    nearest_metric,
    objections,
)
from mpma.config import ExperimentConfig, all_keys, nearest_key
from mpma.errors import UserError
from mpma.strict import StrictConfig
from orchestration.search.parameters import Parameter, among

if TYPE_CHECKING:
    from orchestration.search.space import SearchSpace

Params = Mapping[str, Any]


def refuse(file: str, key: str, problem: str, hint: str | None = None) -> UserError:
    """One line naming the file and the key."""
    return UserError(f"{file}: {key}: {problem}" if key else f"{file}: {problem}", hint)


# -- the file itself -------------------------------------------------------------------------------------


def spoken(file: str, error: ValidationError, overridden: Container[str] = ()) -> UserError:
    """The first problem of a space file, with the nearest known key for an unknown one; `overridden` are
    the names at its top that came from --set."""
    first = error.errors(include_url=False)[0]
    place = list(first["loc"])
    if place and place[0] in overridden:
        file = "--set"
    if first["type"] == "extra_forbidden":
        known = _known_beside(place)
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        hint = f"the nearest known key is {near[0]}" if near else f"known are {', '.join(known)}"
        return refuse(file, _dotted(place), "unknown key", hint)
    if first["type"] == "missing":
        return refuse(file, _dotted(place), "missing")
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    if first["type"] == "value_error":
        return refuse(file, _dotted(place), message)
    if place[0] in ("concurrency", "gpus_per_trial"):
        place, message = place[:1], "auto or a number is expected"
    elif len(place) > 3 and place[0] == "parameters" and place[3] in ("choice", "fixed", "when"):
        place, message = place[:4], "plain values are expected"
    shown = f" (given: {given!r})" if isinstance(given, (int, float, str, bool)) or given is None else ""
    return refuse(file, _dotted(place), f"{message[:1].lower()}{message[1:]}{shown}")


def _dotted(place: list[Any]) -> str:
    """`parameters.memory.slots` rather than `parameters.memory.slots.0`: most keys have one alternative."""
    return ".".join(str(part) for number, part in enumerate(place) if not (number == 2 and part == 0))


def _known_beside(place: list[Any]) -> list[str]:
    from orchestration.search.space import SearchSpace

    model: Any = SearchSpace
    if len(place) > 1:
        model = Parameter if place[0] == "parameters" else SearchSpace.model_fields[place[0]].annotation
        model = next(iter(typing.get_args(model)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def narrowed(file: str, space: SearchSpace, base: ExperimentConfig) -> tuple[SearchSpace, ExperimentConfig]:
    """Conditions on keys that are not searched are judged by the recipe and dropped, and unconditional
    fixed keys are put into it. Raises `UserError` for a condition that the recipe contradicts, and for
    keys and values that the tree does not have.
    """
    from orchestration.search.space import apply_params, base_values

    for key, parameter in _alternatives(space):
        _check_key(file, key, parameter)
    fixed = {
        key: found[0].fixed
        for key, found in space.parameters.items()
        if len(found) == 1 and not found[0].searched and not found[0].when
    }
    try:
        base = apply_params(base, fixed)
    except UserError as error:
        raise refuse(file, "parameters", f"{', '.join(fixed)} as fixed: {error.message}") from None
    own = base_values(base)
    parameters: dict[str, list[Parameter]] = {}
    for key, parameter in _alternatives(space):
        kept = {}
        for other, values in (parameter.when or {}).items():
            _check_known(file, f"parameters.{key}.when", other)
            _check_taken(file, f"parameters.{key}.when", other, values)
            if other in space.parameters:
                kept[other] = values
            elif not among(own[other], values):
                raise refuse(
                    file,
                    f"parameters.{key}.when",
                    f"{other} is not searched and is {own[other]!r} in the recipe, so this never applies",
                    f"search {other} too, or leave this alternative out",
                )
        parameters.setdefault(key, []).append(parameter.model_copy(update={"when": kept or None}))
    return space.model_copy(update={"parameters": parameters}), base


# -- against the tree ------------------------------------------------------------------------------------


def check(file: str, space: SearchSpace, base: ExperimentConfig, full_steps: int) -> None:
    """Refuse whatever could not be searched. Raises `UserError`."""
    if not space.searched_keys():
        raise refuse(file, "parameters", "nothing is searched", "give at least one key a range or a choice")
    _check_limits(file, space)
    enabling = _check_conditions(file, space)
    _check_length(file, space, full_steps)
    _check_searcher(file, space)
    _check_metrics(file, space)
    _check_default(file, space, base)
    _check_corners(file, space, base, enabling)
    _check_reported(file, space, base)
    _check_points(file, space, base)
    _check_proxies(file, space, base)


def _alternatives(space: SearchSpace) -> Iterator[tuple[str, Parameter]]:
    return ((key, parameter) for key, found in space.parameters.items() for parameter in found)


def field_of(key: str) -> FieldInfo:
    """The field of a dotted key that exists."""
    *parents, leaf = key.split(".")
    model: type[StrictConfig] = ExperimentConfig
    for parent in parents:
        model = typing.cast(type[StrictConfig], model.model_fields[parent].annotation)
    return model.model_fields[leaf]


def _check_known(file: str, place: str, key: str) -> None:
    if key not in all_keys():
        near = nearest_key(key)
        raise refuse(
            file, f"{place}.{key}", "unknown key", f"the nearest known key is {near}" if near else None
        )


_OTHER_NUMBER = {"uniform": "int", "log_uniform": "log_int", "int": "uniform", "log_int": "log_uniform"}


def _check_key(file: str, key: str, parameter: Parameter) -> None:
    """A key that exists, may be searched, and may hold what is written."""
    place = f"parameters.{key}"
    _check_known(file, "parameters", key)
    if key in NOT_SEARCHED:
        hint = None if parameter.searched else f"set it in the recipe, or with --set {key}=..."
        raise refuse(file, place, f"may not be searched: {NOT_SEARCHED[key]}", hint)
    field = field_of(key)
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    if parameter.is_range:
        wanted = int if parameter.is_int else float
        if wanted not in kinds:
            if int in kinds or float in kinds:
                whole = "a whole number" if int in kinds else "a number with a fraction"
                hint = f"write {_OTHER_NUMBER[parameter.kind]}"
                raise refuse(file, place, f"{parameter.kind} does not fit {whole}", hint)
            raise refuse(
                file, place, f"{parameter.kind} needs a number, and this is none", "write choice: [...]"
            )
    _check_taken(file, place, key, parameter.corners(), parameter.kind)


def _check_taken(file: str, place: str, key: str, values: list[Any], kind: str = "") -> None:
    """Each value is one that the tree's field holds, bounds included."""
    field = field_of(key)
    kind_of: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(kind_of)
    for value in values:
        try:
            adapter.validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors(include_url=False)[-1]["msg"]
            of = f"{kind}: " if kind else f"{key}: "
            raise refuse(file, place, f"{of}{message[:1].lower()}{message[1:]} (given: {value!r})") from None


def _check_limits(file: str, space: SearchSpace) -> None:
    for key, parameter in _alternatives(space):
        for other in parameter.at_most or {}:
            place = f"parameters.{key}.at_most"
            _check_known(file, place, other)
            if other not in space.parameters:
                raise refuse(file, place, f"{other} is not searched", "narrow the values themselves instead")
            for limiting in space.parameters[other]:
                if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in limiting.corners()):
                    raise refuse(file, place, f"{other} does not hold numbers alone")


# -- conditions ------------------------------------------------------------------------------------------


def _check_conditions(file: str, space: SearchSpace) -> dict[tuple[str, int], dict[str, Any]]:
    """For each alternative (key, place) the params of its parents that make it apply.

    Goes through every combination of the values that conditions name, and one other, of every key that
    a condition looks at.
    """
    named: dict[str, list[Any]] = {}
    for key, parameter in _alternatives(space):
        for other, values in (parameter.when or {}).items():
            place = f"parameters.{key}.when"
            for value in values:
                if not any(one.contains(value) for one in space.parameters[other]):
                    raise refuse(
                        file, place, f"{other} is never {value!r}", f"it is {_all_shown(space, other)}"
                    )
                if not any(
                    one.contains(value) and (one.values() is not None or value == 0)
                    for one in space.parameters[other]
                ):
                    raise refuse(
                        file,
                        place,
                        f"{other} is a continuous range, in which no single value can be awaited",
                        "give it a step or a choice",
                    )
                if not among(value, named.setdefault(other, [])):
                    named[other].append(value)
    enabling: dict[tuple[str, int], dict[str, Any]] = {}
    for params in _parents(space, [key for key in space.parameters if key in named], named, {}):
        for key, found in space.parameters.items():
            applying = [number for number, one in enumerate(found) if one.applies(params)]
            if len(applying) > 1:
                alike = ", ".join(f"{other} {value!r}" for other, value in params.items() if other in named)
                beside = f" where {alike}" if found[applying[1]].when or found[applying[0]].when else ""
                raise refuse(
                    file,
                    f"parameters.{key}",
                    f"alternatives {applying[0] + 1} and {applying[1] + 1} both apply{beside}",
                    "give each a condition that excludes the other",
                )
            for number in applying:
                above = _ancestors(space, found[number])
                own = {other: value for other, value in params.items() if other in above}
                enabling.setdefault((key, number), own)
    for key, found in space.parameters.items():
        for number, one in enumerate(found):
            if (key, number) not in enabling:
                asked = ", ".join(f"{other} {values}" for other, values in (one.when or {}).items())
                raise refuse(file, f"parameters.{key}.when", f"{asked}: the conditions contradict each other")
    return enabling


def _parents(
    space: SearchSpace, keys: list[str], named: Mapping[str, list[Any]], params: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every combination of values of the keys that conditions look at, in order."""
    if not keys:
        yield params
        return
    key, rest = keys[0], keys[1:]
    applying = [one for one in space.parameters[key] if one.applies(params)]
    if not applying:
        yield from _parents(space, rest, named, params)
    for one in applying:
        values = [value for value in named[key] if one.contains(value)]
        values += [value for value in one.corners() if not among(value, named[key])][:1]
        for value in values:
            yield from _parents(space, rest, named, {**params, key: value})


def _ancestors(space: SearchSpace, parameter: Parameter) -> set[str]:
    """Keys that a condition looks at, and those that theirs look at."""
    found: set[str] = set()
    for other in parameter.when or {}:
        found |= {other}.union(*(_ancestors(space, one) for one in space.parameters[other]))
    return found


def _all_shown(space: SearchSpace, key: str) -> str:
    from orchestration.search.space import shown

    return " or ".join(shown(one) for one in space.parameters[key])


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
    if name == "grid":
        for key, parameter in _alternatives(space):
            if parameter.values() is None:
                raise refuse(
                    file, f"parameters.{key}", "a continuous range has no grid", "give it a step or a choice"
                )
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
    for (key, point), (other, beside) in itertools.combinations(corners, 2):
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
            _check_known(file, place, key)
            if key in space.parameters:
                raise refuse(file, f"{place}.{key}", "is searched, so a proxy cannot set it")
            if key.startswith("data.") or key == "validation.seed":
                raise refuse(file, f"{place}.{key}", f"a proxy may not change it: {NOT_SEARCHED[key]}")
            _check_taken(file, f"{place}.{key}", key, [changes[key]])
        try:
            apply_params(base, {**space.completed({}, base), **changes})
        except UserError as error:
            raise refuse(file, place, error.message) from None
