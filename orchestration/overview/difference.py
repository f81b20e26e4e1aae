"""How two runs differ: what they were told, what they read, what made them, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mpma.comparability import METRICS, MOVES, objection
from mpma.config import flatten
from mpma.data.storage import Storage
from mpma.errors import UserError
from mpma.training.metrics_log import read_lines
from mpma.training.run_directory import CONFIG_FILE, PROVENANCE_FILE
from orchestration.overview.entries import stored_config, stored_json


@dataclass(frozen=True)
class Row:
    """One thing that differs, or a figure of both."""

    what: str
    first: Any
    second: Any
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """Of two runs, by topic; only what differs, but for metrics."""

    config: list[Row]
    data: list[Row]
    code: list[Row]
    environment: list[Row]
    metrics: list[Row]


def difference(first: Storage, second: Storage) -> Difference:
    """Raises `UserError` where one of them is no run."""
    for folder in (first, second):
        if not folder.exists(CONFIG_FILE):
            raise UserError(
                f"{folder.location}: no run there", "name two folders of runs, such as runs/a runs/b"
            )
    before, after = (dict(flatten(stored_config(folder).model_dump())) for folder in (first, second))
    config = [
        Row(key, before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    ours, theirs = (stored_json(folder, PROVENANCE_FILE) for folder in (first, second))
    changed = [row.what for row in config]
    return Difference(
        config=config,
        data=_differing(
            {"fingerprint": ours.get("data_fingerprint")}, {"fingerprint": theirs.get("data_fingerprint")}
        ),
        code=_differing(
            {name: ours.get(name) for name in ("mpma", "git_revision")},
            {name: theirs.get(name) for name in ("mpma", "git_revision")},
        ),
        environment=_differing(_environment(ours), _environment(theirs)),
        metrics=_metrics(first, second, changed),
    )


def _environment(provenance: dict[str, Any]) -> dict[str, Any]:
    hardware = provenance.get("hardware") or {}
    return {"python": provenance.get("python"), **(provenance.get("packages") or {}), **dict(hardware)}


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[Row]:
    return [
        Row(key, first.get(key), second.get(key))
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    ]


def _metrics(first: Storage, second: Storage, changed: list[str]) -> list[Row]:
    ours, theirs = _closing(first), _closing(second)
    same_data = stored_json(first, PROVENANCE_FILE).get("data_fingerprint") == stored_json(
        second, PROVENANCE_FILE
    ).get("data_fingerprint")
    return [
        Row(name, ours[name], theirs[name], _why_not_comparable(name, changed, same_data))
        for name in ours
        if name in theirs
    ]


def _why_not_comparable(figure: str, changed: list[str], same_data: bool) -> str:
    """Why the two values of a figure cannot be compared; empty where they can."""
    if not same_data and figure != "step":
        return "not comparable: other data"
    if figure.startswith("val/"):
        key = next(
            (key for key in changed if key.startswith("validation.") and key != "validation.every_steps"),
            None,
        )
        if key is not None:
            return f"not comparable: {key} differs"
    if figure in METRICS:
        key = next((key for key in changed if key in MOVES and objection(figure, key) is not None), None)
        if key is not None:
            return f"not comparable: {key} changes what it means"
    return ""


def _closing(folder: Storage) -> dict[str, float]:
    """The last value of every loss and validation figure, and the step."""
    found: dict[str, float] = {}
    for line in read_lines(folder):
        for name, value in line.items():
            if isinstance(value, int | float) and (name == "step" or name.startswith(("loss/", "val/"))):
                found[name] = value
    return found
