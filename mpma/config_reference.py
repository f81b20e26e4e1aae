"""Writes the reference part of docs/configuration.md from the tree itself, so that it cannot go stale.

`python -m mpma.config_reference` rewrites docs/configuration.md and docs/config.schema.json.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

from mpma.config import MAY_CHANGE_ON_CONTINUE, ExperimentConfig, json_schema
from mpma.strict import StrictConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
REFERENCE = DOCS / "configuration.md"
SCHEMA = DOCS / "config.schema.json"
BEGIN = "<!-- reference: written by python -m mpma.config_reference -->\n"


def reference(model: type[StrictConfig] = ExperimentConfig, prefix: str = "") -> str:
    """Markdown: one table per section; keys that a continued run may change carry a star."""
    rows: list[str] = []
    sections: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        dotted = f"{prefix}{name}"
        if isinstance(kind, type) and issubclass(kind, StrictConfig):
            sections.append(f"\n### {dotted}\n\n{field.description}\n\n{reference(kind, dotted + '.')}")
            continue
        star = "\\*" if dotted in MAY_CHANGE_ON_CONTINUE else ""
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(
            f"| `{dotted}`{star} | {_kind(kind)}{_bounds(field.metadata)} "
            f"| `{_shown(field.default)}` | {description} |"
        )
    table = (
        "| key | values | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    )
    return table + "".join(sections)


def _kind(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(kind))
    return {type(None): "`null`", bool: "`true`, `false`", str: "text", int: "integer", float: "number"}.get(
        kind, str(kind)
    )


def _bounds(metadata: list[Any]) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {value:g}"
        for name, sign in signs.items()
        for part in metadata
        if (value := getattr(part, name, None)) is not None
    ]
    return f", {', '.join(found)}" if found else ""


def _shown(value: Any) -> str:
    return json.dumps(value)


def write() -> None:
    """Rewrite the reference part of the page and the schema."""
    head = REFERENCE.read_text().split(BEGIN)[0]
    REFERENCE.write_text(head + BEGIN + reference())
    SCHEMA.write_text(json.dumps(json_schema(), indent=1) + "\n")


if __name__ == "__main__":
    write()
