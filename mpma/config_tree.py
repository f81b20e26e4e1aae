"""From files and `--set` to one strict tree, whatever it configures.

Decisions: precedence is defaults < base file < file < `--set`; every value's origin is kept so that it can
be shown; no environment variable is read; YAML is loaded safely, its aliases may not multiply it without
bound, and `1e-4` is a number; a mistake is one line with the nearest known key. Torch-free.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import ValidationError

from mpma.errors import UserError
from mpma.strict import StrictConfig, dotted_keys, split_assignment

Tree = TypeVar("Tree", bound=StrictConfig)

MAX_YAML_VALUES: Final = 100_000
"""Values of a YAML text with every alias written out; a few lines of aliases of aliases make billions."""


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
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.MarkedYAMLError(problem="a key is a list or mapping", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_value(text: str) -> Any:
    """The value of a YAML text, such as one `--set` right side. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MAX_YAML_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"aliases make it more than {MAX_YAML_VALUES} values", problem_mark=node.start_mark
            )
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply, or an alias of itself") from None
    except (ValueError, OverflowError):
        # A date that does not exist, a number of thousands of digits.
        raise yaml.YAMLError("a value that cannot be") from None
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for. Raises RecursionError where it holds itself."""
    if id(node) not in known:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `UserError` naming the file and line."""
    try:
        loaded = parse_value(path.read_text(encoding="utf-8"))
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


def nearest_key(model: type[StrictConfig], unknown: str) -> str | None:
    """The known dotted key closest to an unknown one, by whole path and by last name."""
    known = dotted_keys(model)
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


def describe_validation_error(
    model: type[StrictConfig], error: ValidationError, origins: Mapping[str, str]
) -> UserError:
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
        nearest = nearest_key(model, dotted)
        hint = f"the nearest known key is {nearest}" if nearest else "see --print-config for every key"
        return UserError(f"{prefix}{dotted}: unknown key", hint)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        # A validator over several keys names them itself.
        return UserError(message)
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (int, float, str, bool)) or given is None else ""
    return UserError(f"{prefix}{dotted}: {message[:1].lower()}{message[1:]}{shown}")


def load_tree(
    model: type[Tree], path: str | Path | None = None, overrides: Iterable[str] = ()
) -> tuple[Tree, dict[str, str]]:
    """(the tree, origin of each of its values) from defaults, a file with its bases, and `--set` overrides.

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
    config = validate(model, tree, origins)
    return config, {key: origins.get(key, "default") for key, _ in flatten(config.model_dump())}


def validate(model: type[Tree], tree: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Tree:
    """A tree of plain values as a config. Raises `UserError`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise describe_validation_error(model, error, origins or {}) from None


def to_yaml(config: StrictConfig, origins: Mapping[str, str] | None = None) -> str:
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
