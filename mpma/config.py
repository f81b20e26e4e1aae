"""The experiment tree: one strict, typed description of a run.

Decisions: each Config class stands beside its owner and this module only assembles them; precedence
is defaults < base file < file < `--set`; every value's origin is kept so that it can be shown; no
environment variable is read; YAML is loaded safely and `1e-4` is a number. Torch-free.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from mpma.data.config import DataConfig
from mpma.errors import UserError
from mpma.model.config import (
    AlignmentConfig,
    FusionConfig,
    ImageConfig,
    LossWeights,
    MemoryConfig,
    ReportConfig,
)
from mpma.strict import StrictConfig, dotted_keys, split_assignment
from mpma.training.config import PicturesConfig, TrainingConfig, ValidationConfig


class ExperimentConfig(StrictConfig):
    """Everything that decides a run."""

    data: DataConfig = DataConfig()
    """Where the pairs are and how they are streamed."""
    image: ImageConfig = ImageConfig()
    """Image branch."""
    report: ReportConfig = ReportConfig()
    """Report branch."""
    memory: MemoryConfig = MemoryConfig()
    """Learned memory of the fusion."""
    fusion: FusionConfig = FusionConfig()
    """Cross-modal fusion."""
    alignment: AlignmentConfig = AlignmentConfig()
    """Global and local alignment."""
    loss_weights: LossWeights = LossWeights()
    """Weights of the four terms."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation, hardware and what is kept."""
    validation: ValidationConfig = ValidationConfig()
    """Validation on held-out patients."""
    pictures: PicturesConfig = PicturesConfig()
    """Pictures of reconstructions."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ExperimentConfig:
        batch, workers, lanes = self.training.batch_size, self.training.workers, self.resolved_lanes
        if batch % lanes:
            raise ValueError(f"data.lanes {lanes} does not divide training.batch_size {batch}")
        if lanes % workers:
            raise ValueError(
                f"training.workers {workers} does not divide the {lanes} lanes of the sample order; "
                f"use a divisor of {lanes}"
            )
        for key, heads in (("memory.heads", self.memory.heads), ("fusion.heads", self.fusion.heads)):
            if self.report.width % heads:
                raise ValueError(f"report.width {self.report.width} is not a multiple of {key} {heads}")
        if self.memory.kind == "key_value" and self.fusion.kind == "mean_add":
            raise ValueError(
                "memory.kind key_value lies in the cross-attention, which fusion.kind mean_add "
                "does not have; use memory.kind shared or none"
            )
        weights = self.loss_weights
        if not any(value for _, value in weights):
            raise ValueError("loss_weights: at least one weight must be above 0")
        if (
            weights.image_reconstruction
            and not self.image.mask_ratio
            and not (weights.report_reconstruction or weights.global_alignment or weights.local_alignment)
        ):
            raise ValueError("image.mask_ratio 0 leaves the only weighted loss without work")
        return self

    @property
    def resolved_lanes(self) -> int:
        """L: data.lanes, or the greatest common divisor of 64 and the global batch."""
        return self.data.lanes or math.gcd(64, self.training.batch_size)


MAY_CHANGE_ON_CONTINUE = frozenset(
    {
        "data.path",  # the fingerprint decides, not the place
        "data.decode",
        "data.decode_threads",
        "data.prefetch_batches",
        "training.workers",
        "training.device",
        "training.threads_per_worker",
        "training.log_every_steps",
        "training.checkpoint_every_steps",
        "training.keep_checkpoints",
        "training.max_failures",
        "training.steps",
        "pictures.enabled",
        "pictures.pairs",
    }
)
"""Keys that a continued run may give anew; `training.steps` may only grow."""


@dataclass(frozen=True)
class ResolvedConfig:
    """A validated tree and where each of its values came from."""

    config: ExperimentConfig
    origins: Mapping[str, str]


class _Loader(yaml.SafeLoader):
    """SafeLoader whose floats include `1e-4`, and which refuses a key given twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_value(text: str) -> Any:
    """The YAML value of one `--set` right side. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` naming the file and line."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "name a recipe, for example recipes/demo.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({type(error).__name__})") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML ({error.problem})") from None
    except yaml.YAMLError:
        raise UserError(f"{path}: not valid YAML") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: a mapping of keys is expected, not a {type(loaded).__name__}")
    return loaded


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaf values, in order."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, dotted + ".")
        else:
            yield dotted, value


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        child = tree.get(parent)
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[leaf] = value


def all_keys() -> list[str]:
    """Every dotted key of the tree, leaves only."""
    return dotted_keys(ExperimentConfig)


def nearest_key(unknown: str) -> str | None:
    """The known dotted key closest to an unknown one, by whole path and by last name."""
    known = all_keys()
    sections = sorted({key.rsplit(".", 1)[0] for key in known})
    by_path = difflib.get_close_matches(unknown, known + sections, n=1, cutoff=0.6)
    if by_path:
        return by_path[0]
    last = unknown.rsplit(".", 1)[-1]
    names = {key.rsplit(".", 1)[-1]: key for key in known}
    by_name = difflib.get_close_matches(last, names, n=1, cutoff=0.6)
    return names[by_name[0]] if by_name else None


def _file_chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and its bases, outermost base first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        resolved = current.resolve()
        if resolved in seen:
            raise UserError(f"{current}: its `base:` chain comes back to itself")
        seen.append(resolved)
        tree = read_yaml(current)
        base = tree.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise UserError(f"{current}: base: a file name is expected")
        chain.append((current, tree))
        current = (current.parent / base) if base is not None else None
    return chain[::-1]


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of one `--set a.b=c`. Raises `UserError`."""
    key, value = split_assignment(text, "training.steps=500")
    try:
        return key, parse_value(value)
    except yaml.YAMLError:
        raise UserError(f"--set {key}: the value is not valid YAML") from None


def describe_validation_error(error: ValidationError, origins: Mapping[str, str]) -> UserError:
    """One line for the first problem of a tree, with its origin and the nearest known key."""
    first = error.errors(include_url=False)[0]
    dotted = ".".join(str(part) for part in first["loc"])
    origin = origins.get(dotted) or next(
        (place for key, place in origins.items() if key.startswith(dotted + ".") and place != "default"), ""
    )
    prefix = f"{origin}: " if origin and origin != "default" else ""
    if first["type"] == "extra_forbidden":
        # A misspelt section is shown with the key that was given in it.
        dotted = next((key for key in origins if key.startswith(dotted + ".")), dotted)
        nearest = nearest_key(dotted)
        hint = f"the nearest known key is {nearest}" if nearest else "see --print-config for every key"
        return UserError(f"{prefix}{dotted}: unknown key", hint)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        # A validator over several keys names them itself.
        return UserError(message)
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (int, float, str, bool)) or given is None else ""
    return UserError(f"{prefix}{dotted}: {message[:1].lower()}{message[1:]}{shown}")


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> ResolvedConfig:
    """The tree from defaults, a file with its bases, and `--set` overrides.

    Raises `UserError` naming the file and key, what was wrong, and the nearest known key.
    """
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for file, content in _file_chain(Path(path)) if path is not None else []:
        for dotted, value in flatten(content):
            _put(tree, dotted, value)
            origins[dotted] = str(file)
    for text in overrides:
        dotted, value = parse_override(text)
        for leaf, leaf_value in flatten({dotted: value}) if isinstance(value, dict) else [(dotted, value)]:
            _put(tree, leaf, leaf_value)
            origins[leaf] = "--set"
    config = validate_tree(tree, origins)
    full = {key: origins.get(key, "default") for key, _ in flatten(config.model_dump())}
    return ResolvedConfig(config, full)


def validate_tree(tree: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> ExperimentConfig:
    """A tree of plain values as a config. Raises `UserError`."""
    try:
        return ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        raise describe_validation_error(error, origins or {}) from None


def to_yaml(config: ExperimentConfig, origins: Mapping[str, str] | None = None) -> str:
    """The whole tree as YAML; with origins, each value's origin stands in a comment."""
    lines: list[str] = []

    def write(tree: Mapping[str, Any], prefix: str, indent: int) -> None:
        for key, value in tree.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, Mapping):
                lines.append(f"{'  ' * indent}{key}:")
                write(value, dotted + ".", indent + 1)
                continue
            text = (
                yaml.safe_dump(value, default_flow_style=True, width=10_000)
                .strip()
                .removesuffix("...")
                .strip()
            )
            line = f"{'  ' * indent}{key}: {text}"
            lines.append(f"{line}  # {origins.get(dotted, 'default')}" if origins else line)

    write(config.model_dump(), "", 0)
    return "\n".join(lines) + "\n"


def changed_keys(before: ExperimentConfig, after: ExperimentConfig) -> list[str]:
    """Dotted keys whose values differ."""
    old, new = dict(flatten(before.model_dump())), dict(flatten(after.model_dump()))
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the tree, for editors."""
    return ExperimentConfig.model_json_schema()
