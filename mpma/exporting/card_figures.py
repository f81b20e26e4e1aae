"""The figures of a model card: a run's validation and the evaluations in its folder.

Decisions: an evaluation counts only if it was made of exactly these weights, told by their hash; files are
read leniently, since a card that cannot be written because of one odd file helps nobody, but what cannot be
read is named. A figure that does not exist is a dash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mpma.downstream.config import TASKS
from mpma.training.metrics_log import read_lines
from mpma.training.run_directory import RunDirectory

_JUDGED: Final = "pretrained"
_FILE: Final = re.compile(r"^evaluation(?:-(.+))?\.json$")
_NOT_MODELS: Final = (
    *("state", "reason", "headline", "seeds", "jobs", "differences", "breakdown", "problems", "failures"),
    *("patients", "examples", "files", "chance"),
)


@dataclass(frozen=True)
class Validation:
    """What a run recorded of its validation patients."""

    step: int
    rows: list[tuple[str, str, str]]
    """Figure, untrained (step 0), at `step`; as text."""


@dataclass(frozen=True)
class EvaluationRow:
    """One figure of one task."""

    task: str
    figure: str
    values: dict[str, str]
    """By model, and `chance`; as text."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run."""

    name: str
    data: str
    """Fingerprint of the data it was judged on; empty where unknown."""
    note: str
    """What must be told beside it; empty where nothing must."""
    rows: list[EvaluationRow]


def validation_of(run: RunDirectory, step: int) -> Validation | None:
    """The last validation at or before a step."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for line in read_lines(run.folder):
        figures = {name: value for name, value in line.items() if name.startswith("val/")}
        if figures and isinstance(line.get("step"), int) and line["step"] <= step:
            last = {"step": line["step"], **figures}
            first = first or last
    if not last:
        return None
    untrained = first if first["step"] == 0 else {}
    rows = [
        (name, _number(untrained.get(name)), _number(value)) for name, value in last.items() if name != "step"
    ]
    return Validation(last["step"], rows)


def evaluations_of(run: RunDirectory, weights_hash: str) -> tuple[list[Evaluation], list[str]]:
    """Evaluations of these weights in a run's folder, and names of files that are of others or unreadable."""
    found, left_out = [], []
    for name in run.folder.names():
        match = _FILE.match(name)
        if match is None:
            continue
        try:
            content = json.loads(run.folder.read(name))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or not _judged(content, weights_hash):
            left_out.append(name)
            continue
        found.append(_evaluation(match.group(1) or "evaluation", content))
    return found, left_out


def _judged(content: Mapping[str, Any], weights_hash: str) -> bool:
    models = content.get("models")
    return isinstance(models, list) and any(
        isinstance(one, dict) and one.get("name") == _JUDGED and one.get("weights") == weights_hash
        for one in models
    )


def _evaluation(name: str, content: Mapping[str, Any]) -> Evaluation:
    rows = []
    for task in TASKS:
        section = content.get(task)
        if isinstance(section, dict):
            rows += _rows(task, section)
    data, overlap = content.get("data"), content.get("overlap")
    notes = []
    if content.get("synthetic") is True:
        notes.append("judged on synthetic patients")
    if content.get("complete") is False:
        notes.append("some jobs failed")
    if isinstance(overlap, dict) and overlap.get("line"):
        notes.append(str(overlap["line"]))
    fingerprint = str(data.get("fingerprint", "")) if isinstance(data, dict) else ""
    note = "; ".join(notes)
    return Evaluation(name, fingerprint, note[:1].upper() + note[1:], rows)


def _rows(task: str, section: Mapping[str, Any]) -> list[EvaluationRow]:
    models = {
        model: figures
        for model, figures in section.items()
        if model not in _NOT_MODELS and isinstance(figures, dict)
    }
    wanted = section.get("headline") or list(models.get(_JUDGED, {}))
    chance = section.get("chance")
    rows = []
    for figure in wanted:
        values = {model: _interval(figures.get(figure)) for model, figures in models.items()}
        if isinstance(chance, dict) and figure in chance:
            values["chance"] = _number(chance[figure])
        rows.append(EvaluationRow(task, str(figure), values))
    return rows


def _interval(figure: Any) -> str:
    if not isinstance(figure, dict):
        return "-"
    value, low, high = figure.get("value"), figure.get("low"), figure.get("high")
    if low is None or high is None:
        return _number(value)
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-"
    counted = isinstance(value, int) or (value.is_integer() and value > 1)
    return str(int(value)) if counted else f"{value:.4f}"
