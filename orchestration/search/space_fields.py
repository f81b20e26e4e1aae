"""Whether the keys and values of a space are such as the experiment tree holds.

Decisions: the tree's own fields say what a key may hold; their bounds are read, not repeated. Each refusal
is one line that names the file and the key.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mpma.comparability import NOT_SEARCHED
from mpma.config import ExperimentConfig, all_keys, nearest_key
from mpma.errors import UserError
from mpma.strict import StrictConfig
from orchestration.search.parameters import Parameter

if TYPE_CHECKING:
    from orchestration.search.space import SearchSpace


def refuse(file: str, key: str, problem: str, hint: str | None = None) -> UserError:
    """One line naming the file and the key."""
    return UserError(f"{file}: {key}: {problem}" if key else f"{file}: {problem}", hint)


_PLAINLY = {
    "model_type": "a mapping of keys is expected",
    "dict_type": "a mapping of keys is expected",
    "list_type": "a list is expected",
}
"""Pydantic's types of error that a reader of YAML would not understand."""


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
    message = _PLAINLY.get(first["type"], first["msg"].removeprefix("Value error, "))
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


def alternatives(space: SearchSpace) -> Iterator[tuple[str, Parameter]]:
    return ((key, parameter) for key, found in space.parameters.items() for parameter in found)


def field_of(key: str) -> FieldInfo:
    """The field of a dotted key that exists."""
    *parents, leaf = key.split(".")
    model: type[StrictConfig] = ExperimentConfig
    for parent in parents:
        model = typing.cast(type[StrictConfig], model.model_fields[parent].annotation)
    return model.model_fields[leaf]


def check_known(file: str, place: str, key: str) -> None:
    keys = all_keys()
    if key not in keys:
        inside = [other for other in keys if other.startswith(f"{key}.")]
        if inside:
            raise refuse(
                file, f"{place}.{key}", "a section, not a key of its own", f"name {inside[0]} or another"
            )
        near = nearest_key(key)
        raise refuse(
            file, f"{place}.{key}", "unknown key", f"the nearest known key is {near}" if near else None
        )


_OTHER_NUMBER = {"uniform": "int", "log_uniform": "log_int", "int": "uniform", "log_int": "log_uniform"}


def check_key(file: str, key: str, parameter: Parameter) -> None:
    """A key that exists, may be searched, and may hold what is written."""
    place = f"parameters.{key}"
    check_known(file, "parameters", key)
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
    check_taken(file, place, key, parameter.corners(), parameter.kind)


def check_taken(file: str, place: str, key: str, values: list[Any], kind: str = "") -> None:
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
