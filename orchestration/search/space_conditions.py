"""Which conditions of a space can be met, and by what.

Decisions: conditions are judged by going through all that their parents can be, which finds conditions
that are never met and alternatives that apply together; a condition on a key that is not searched is
judged by the recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mpma.config import ExperimentConfig
from mpma.errors import UserError
from orchestration.search.parameters import Parameter, among
from orchestration.search.space_fields import alternatives, check_key, check_known, check_taken, refuse

if TYPE_CHECKING:
    from orchestration.search.space import SearchSpace


def narrowed(file: str, space: SearchSpace, base: ExperimentConfig) -> tuple[SearchSpace, ExperimentConfig]:
    """Conditions on keys that are not searched are judged by the recipe and dropped, and unconditional
    fixed keys are put into it. Raises `UserError` for a condition that the recipe contradicts, and for
    keys and values that the tree does not have.
    """
    from orchestration.search.space import apply_params, base_values

    for key, parameter in alternatives(space):
        check_key(file, key, parameter)
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
    for key, parameter in alternatives(space):
        kept = {}
        for other, values in (parameter.when or {}).items():
            check_known(file, f"parameters.{key}.when", other)
            check_taken(file, f"parameters.{key}.when", other, values)
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


def check_limits(file: str, space: SearchSpace) -> None:
    for key, parameter in alternatives(space):
        for other in parameter.at_most or {}:
            place = f"parameters.{key}.at_most"
            check_known(file, place, other)
            if other not in space.parameters:
                raise refuse(file, place, f"{other} is not searched", "narrow the values themselves instead")
            for limiting in space.parameters[other]:
                if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in limiting.corners()):
                    raise refuse(file, place, f"{other} does not hold numbers alone")


def check_conditions(file: str, space: SearchSpace) -> dict[tuple[str, int], dict[str, Any]]:
    """For each alternative (key, place) the params of its parents that make it apply.

    Goes through every combination of the values that conditions name, and one other, of every key that
    a condition looks at.
    """
    named: dict[str, list[Any]] = {}
    for key, parameter in alternatives(space):
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
