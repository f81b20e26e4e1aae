"""Writes the reference parts of the docs from the trees themselves, so that they cannot go stale.

`python -m mpma.config_reference` rewrites those of docs/configuration.md and docs/evaluation.md, and the
schemas docs/config.schema.json and docs/evaluation.schema.json.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any

from mpma.config import MAY_CHANGE_ON_CONTINUE, ExperimentConfig, json_schema
from mpma.downstream.config import EvaluationConfig
from mpma.strict import StrictConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
REFERENCE = DOCS / "configuration.md"
SCHEMA = DOCS / "config.schema.json"
EVALUATION = DOCS / "evaluation.md"
EVALUATION_SCHEMA = DOCS / "evaluation.schema.json"
BEGIN = "<!-- reference: written by python -m mpma.config_reference -->\n"


def reference(
    model: type[StrictConfig] = ExperimentConfig, prefix: str = "", section: StrictConfig | None = None
) -> str:
    """Markdown: one table per section; keys that a continued run may change carry a star.

    `section` is the default of the section, which may differ from its class's.
    """
    section = model() if section is None else section
    rows: list[str] = []
    sections: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        dotted, default = f"{prefix}{name}", getattr(section, name)
        if isinstance(kind, type) and issubclass(kind, StrictConfig):
            sections.append(
                f"\n### {dotted}\n\n{field.description}\n\n{reference(kind, dotted + '.', default)}"
            )
            continue
        star = "\\*" if dotted in MAY_CHANGE_ON_CONTINUE else ""
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(
            f"| `{dotted}`{star} | {_kind(kind)}{_bounds(field.metadata)} "
            f"| `{_shown(default)}` | {description} |"
        )
    table = (
        "| key | values | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    )
    return table + "".join(sections)


def _kind(kind: Any) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(kind))
    if origin is list:
        return f"list of {_kind(typing.get_args(kind)[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, StrictConfig):
        fields = ", ".join(f"{name}: {_kind(field.annotation)}" for name, field in kind.model_fields.items())
        return f"`{{{fields}}}`"
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
    """Rewrite the reference part of the pages and the schemas."""
    for page, model in ((REFERENCE, ExperimentConfig), (EVALUATION, EvaluationConfig)):
        page.write_text(page.read_text().split(BEGIN)[0] + BEGIN + reference(model))
    SCHEMA.write_text(json.dumps(json_schema(), indent=1) + "\n")
    EVALUATION_SCHEMA.write_text(json.dumps(EvaluationConfig.model_json_schema(), indent=1) + "\n")


if __name__ == "__main__":
    write()
