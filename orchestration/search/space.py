"""The space file: what is searched, for what, within which budget, and how.

Decisions: the file is a strict tree like a recipe's, and is checked against the experiment tree before
anything starts (space_checks.py); keys of the tree are written dotted and flat, so that a trial's params
are a flat mapping too; parameters are kept in an order in which conditions come before what depends on
them; a `fixed` key without a condition changes the recipe, so the default point has it as well.
Neither torch nor Ray nor Optuna is imported.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from mpma.config import (
    MAY_CHANGE_ON_CONTINUE,
    ExperimentConfig,
    flatten,
    load_config,
    parse_override,
    read_yaml,
    validate_tree,
)
from mpma.errors import UserError
from mpma.strict import StrictConfig
from orchestration.search.parameters import Parameter
from orchestration.search.sections import (
    Budget,
    Confirmation,
    Constraint,
    Fidelity,
    First,
    Metrics,
    Objective,
    Scheduler,
    Searcher,
)


def _listed(value: Any) -> Any:
    return (
        {key: one if isinstance(one, list) else [one] for key, one in value.items()}
        if isinstance(value, dict)
        else value
    )


def _dependencies_first(parameters: dict[str, list[Parameter]]) -> dict[str, list[Parameter]]:
    """In the file's order as far as conditions allow. Raises ValueError at a cycle or an empty list."""
    ordered: dict[str, list[Parameter]] = {}

    def place(key: str, above: tuple[str, ...]) -> None:
        if key in above:
            circle = " -> ".join([*above[above.index(key) :], key])
            raise ValueError(f"conditions go round in a circle: {circle}")
        if key in ordered or key not in parameters:
            return
        if not parameters[key]:
            raise ValueError(f"{key}: an empty list of alternatives")
        for other in (other for parameter in parameters[key] for other in parameter.depends_on):
            place(other, (*above, key))
        ordered[key] = parameters[key]

    for key in parameters:
        place(key, ())
    return ordered


Parameters = Annotated[
    dict[str, list[Parameter]],
    BeforeValidator(_listed, json_schema_input_type=dict[str, Parameter | list[Parameter]]),
    AfterValidator(_dependencies_first),
]


class SearchSpace(StrictConfig):
    """A search: keys of the experiment tree, objectives, budget, and who decides."""

    recipe: str | None = None
    """The recipe that is searched around, relative to this file; --config takes its place."""
    parameters: Parameters
    """Dotted keys of the experiment tree and their values; a list holds alternatives under conditions."""
    objectives: list[Objective] = Field(
        default_factory=lambda: [Objective(metric="val/representation_score")], min_length=1
    )
    """What is sought; with several, the Pareto front."""
    constraints: list[Constraint] = Field(default_factory=list)
    """Bounds that the winner keeps."""
    budget: Budget = Budget(trials=16)
    """What may be spent."""
    fidelity: Fidelity = Fidelity()
    """Lengths of training."""
    searcher: Searcher = Searcher()
    """Who suggests."""
    scheduler: Scheduler = Scheduler()
    """Who is promoted."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Seed of the searcher; each trial trains with the recipe's training.seed."""
    concurrency: Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)] = "auto"
    """Trials at a time. auto: what the cluster holds; 1: in sequence, exactly repeatable."""
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0.0)] = "auto"
    """GPUs of one worker, a fraction or a whole number. auto: one where the cluster has any."""
    retries: int = Field(default=2, ge=0, le=1000)
    """Times that a failed trial is tried again."""
    disk_budget_bytes: int | None = Field(default=None, ge=1)
    """Most bytes of checkpoints that waiting trials may keep. None: without limit."""
    first: First = First()
    """What is tried first."""
    confirmation: Confirmation = Confirmation()
    """How the winner is confirmed."""
    proxies: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Cheaper settings by name, as dotted keys; --rank-correlation tells how well they rank."""

    def active(self, params: Mapping[str, Any], key: str) -> Parameter | None:
        """The alternative of a key that applies beside these params; None where none does.

        Params must hold the keys that come before it in `parameters` (as far as they apply).
        """
        return next((one for one in self.parameters[key] if one.applies(params)), None)

    def searched_keys(self) -> list[str]:
        """Keys that differ between trials."""
        return [key for key, found in self.parameters.items() if any(one.searched for one in found)]

    def completed(
        self, point: Mapping[str, Any], base: ExperimentConfig, *, clamp: bool = True
    ) -> dict[str, Any]:
        """A full set of params from some of them: elsewhere the recipe's values, or the nearest there are.

        Keys of `point` that do not apply are left out. Raises ValueError where at_most leaves no value.
        """
        own = base_values(base)
        params: dict[str, Any] = {}
        for key in self.parameters:
            parameter = self.active(params, key)
            if parameter is None:
                continue
            value = parameter.normalised(point[key]) if key in point else parameter.nearest(own[key])
            params[key] = parameter.clamped(value, params) if clamp else value
        return params

    def default_params(self, base: ExperimentConfig) -> dict[str, Any]:
        """The recipe's own values of the searched keys, conditional ones only where they apply."""
        own = base_values(base)
        params: dict[str, Any] = {}
        for key in self.parameters:
            parameter = self.active(params, key)
            if parameter is not None:
                params[key] = own[key] if parameter.searched else parameter.fixed
        return params

    def objection(self, params: Mapping[str, Any]) -> str | None:
        """Why these params are not a point of this space; None where they are one."""
        for key in params:
            if key not in self.parameters:
                return f"{key} is not searched"
        for key in self.parameters:
            parameter = self.active(params, key)
            if parameter is None:
                if key in params:
                    return f"{key} does not apply there"
            elif key not in params:
                return f"{key} is missing"
            elif not parameter.contains(params[key]):
                return f"{key} {params[key]!r} is outside {shown(parameter)}"
            elif parameter.at_most and params[key] > parameter.limit(params):
                return f"{key} {params[key]!r} is above {parameter.limit(params):g}, as at_most asks"
        return None

    def violations(self, metrics: Metrics) -> list[float]:
        """How far each constraint is broken: at most 0 where it is kept."""
        return [constraint.violation(metrics) for constraint in self.constraints]

    def resolved(self) -> dict[str, Any]:
        """The whole space as plain values, from which `SearchSpace.model_validate` makes it anew."""
        return self.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class LoadedSpace:
    """A checked space and the recipe that it searches around."""

    space: SearchSpace
    base: ExperimentConfig
    """The recipe with its unconditional fixed keys, and training.steps at a full-length trial's."""
    full_steps: int
    path: str
    hash: str
    """Of everything that decides which trials there are; a larger budget leaves it as it is."""


def shown(parameter: Parameter) -> str:
    """A parameter's values in a few words."""
    if not parameter.is_range:
        return f"{parameter.kind} {parameter.choices}"
    zero = "0 or " if parameter.or_zero else ""
    step = f" by {parameter.step:g}" if parameter.step else ""
    return f"{zero}{parameter.kind} [{parameter.low:g}, {parameter.high:g}]{step}"


def base_values(base: ExperimentConfig) -> dict[str, Any]:
    """Every dotted key's value, memory.slots with its kind's own number filled in."""
    values = dict(flatten(base.model_dump()))
    if values["memory.slots"] is None and base.memory.kind != "none":
        values["memory.slots"] = base.memory.resolved_slots
    return values


def apply_params(
    base: ExperimentConfig, params: Mapping[str, Any], *, steps: int | None = None, seed: int | None = None
) -> ExperimentConfig:
    """The recipe with a trial's values, of full length `steps`. Raises `UserError` where they do not fit."""
    tree = base.model_dump()
    changes = dict(params)
    if steps is not None:
        changes["training.steps"] = steps
    if seed is not None:
        changes["training.seed"] = seed
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        place = tree
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    return validate_tree(tree)


def load_space(
    path: str | Path, config: Path | None = None, overrides: Iterable[str] = (), data: str | None = None
) -> LoadedSpace:
    """The space in a file, checked against the tree. `config` takes the place of its recipe; `overrides`
    (key=value) change keys of the space or of the recipe, told apart by their first name; `data` is the
    dataset's folder. Raises `UserError`: one line that names the file and the key.
    """
    from orchestration.search.space_checks import check
    from orchestration.search.space_conditions import narrowed
    from orchestration.search.space_fields import refuse, spoken

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such space file", "name one, for example search_spaces/masking.yaml")
    tree = read_yaml(path)
    own: list[str] = []
    overridden = set()
    for text in overrides:
        key, value = parse_override(text)
        first = key.partition(".")[0]
        if _override(tree, key, value):
            overridden.add(first)
        elif first in ExperimentConfig.model_fields:
            own.append(text)
        else:
            near = difflib.get_close_matches(
                first, [*SearchSpace.model_fields, *ExperimentConfig.model_fields], 1
            )
            hint = f"the nearest known name is {near[0]}" if near else None
            raise refuse("--set", key, "neither a key of the space nor of the recipe", hint)
    try:
        space = SearchSpace.model_validate(tree)
    except ValidationError as error:
        raise spoken(str(path), error, overridden) from None
    recipe = config or (path.parent / space.recipe if space.recipe is not None else None)
    if recipe is None:
        raise refuse(str(path), "recipe", "missing", "name a recipe there, or give --config")
    if not recipe.is_file():
        raise refuse(
            str(path) if config is None else "--config",
            "recipe" if config is None else str(recipe),
            f"no recipe at {recipe}",
            "it is looked for beside the space file" if config is None else None,
        )
    if data is not None:
        own.append(f"data.path={json.dumps(data)}")
    base = load_config(recipe, own).config
    full_steps = space.fidelity.steps or base.training.steps
    base = apply_params(base, {}, steps=full_steps)
    space, base = narrowed(str(path), space, base)
    check(str(path), space, base, full_steps)
    return LoadedSpace(space, base, full_steps, str(path), space_hash(space, base))


def _override(tree: dict[str, Any], key: str, value: Any) -> bool:
    """Put one `--set` into the space's tree; False where its key is not one of the space."""
    first, _, rest = key.partition(".")
    if first not in SearchSpace.model_fields:
        return False
    if not rest:
        tree[first] = value
        return True
    if not isinstance(tree.get(first), dict):
        tree[first] = {}
    # Below `parameters` and `proxies` the names are dotted keys themselves.
    tree[first][rest] = value
    return True


def space_hash(space: SearchSpace, base: ExperimentConfig) -> str:
    """16 hexadecimal digits over what decides which trials there are and how they train."""
    decides = (
        "parameters", "objectives", "constraints", "fidelity", "searcher", "scheduler", "seed", "first",
    )  # fmt: skip
    may_change = MAY_CHANGE_ON_CONTINUE - {"training.steps"}
    resolved = space.resolved()
    config = {key: value for key, value in flatten(base.model_dump()) if key not in may_change}
    text = json.dumps([{name: resolved[name] for name in decides}, config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
