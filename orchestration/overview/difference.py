"""How two runs differ: what they were told, what they read, what made them, and what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpma.comparability import METRICS, MOVES, objection
from mpma.config import flatten
from mpma.data.storage import Storage
from mpma.errors import UserError
from mpma.training.metrics_log import read_lines
from mpma.training.run_directory import CONFIG_FILE, PROVENANCE_FILE
from orchestration.overview.entries import stored_config, stored_json
from orchestration.overview.searches import part


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
    """Of two runs. Raises `UserError` where one of them cannot be read."""
    before, after = _config(first), _config(second)
    ours, theirs = stored_json(first, PROVENANCE_FILE), stored_json(second, PROVENANCE_FILE)
    config = differing(before, after)
    data = differing(
        {"fingerprint": ours.get("data_fingerprint")}, {"fingerprint": theirs.get("data_fingerprint")}
    )
    return Difference(
        config=config,
        data=data,
        code=differing(code(ours), code(theirs)),
        environment=differing(environment(ours), environment(theirs)),
        metrics=_metrics(_closing(first), _closing(second), [row.what for row in config], not data),
    )


def _config(folder: Storage) -> dict[str, Any]:
    try:
        return dict(flatten(stored_config(folder).model_dump()))
    except UserError as error:
        raise UserError(f"{folder.described(CONFIG_FILE)}: {error.message}", error.hint) from None
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise UserError(f"{folder.described(CONFIG_FILE)}: cannot be read: {said}") from None


def code(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a provenance that names what was run."""
    return {name: provenance.get(name) for name in ("mpma", "git_revision")}


def environment(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a provenance that names what it was run with and on."""
    packages, hardware = part(provenance, "packages"), part(provenance, "hardware")
    return {"python": provenance.get("python"), **packages, **hardware}


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Row]:
    """A row for each key whose values are not equal."""
    return [
        Row(key, first.get(key), second.get(key))
        for key in {**first, **second}
        if first.get(key) != second.get(key)
    ]


def _metrics(
    ours: Mapping[str, float], theirs: Mapping[str, float], changed: Sequence[str], same_data: bool
) -> list[Row]:
    return [
        Row(name, ours[name], theirs[name], why_not_comparable(name, changed, same_data))
        for name in ours
        if name in theirs
    ]


def why_not_comparable(figure: str, changed: Sequence[str], same_data: bool) -> str:
    """Why two values of a figure cannot be compared, of runs whose keys `changed`; empty where they can."""
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
    # A run without a line, or whose lines cannot be read, has no figure; its configuration is compared still.
    with contextlib.suppress(OSError):
        for line in read_lines(folder):
            for name, value in line.items():
                if isinstance(value, int | float) and (name == "step" or name.startswith(("loss/", "val/"))):
                    found[name] = value
    return found
