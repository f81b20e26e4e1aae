"""What a folder of runs and searches holds, each told from its own files.

Decisions: nothing is trusted to be whole, since a folder may have been killed, copied half or written by a
newer version: what cannot be read is the entry's problem, in words, and never ends the listing. Validation
lines alone are decoded of metrics.jsonl, and its last line, so that a long run costs little more than
reading its file. A run counts as running where a program holds its lock, which only a local disk has.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from mpma.comparability import lower_is_better
from mpma.config import ExperimentConfig, validate_tree
from mpma.data.storage import Storage
from mpma.errors import UserError
from mpma.training.checkpoint import list_checkpoints
from mpma.training.metrics_log import METRICS_FILE
from mpma.training.run_directory import (
    CHECKPOINTS,
    CONFIG_FILE,
    FINISHED_FILE,
    LOCK_FILE,
    PROVENANCE_FILE,
    config_hash,
)
from orchestration.search.journal import JOURNAL_FILE, read_events
from orchestration.search.records import SearchState

SHOWN_METRICS: Final = {
    "val/retrieval/mean_recall": "recall",
    "val/probe/auroc": "AUROC",
    "val/representation_score": "score",
}
"""What a listing shows the best of, and how it calls it."""


@dataclass(frozen=True)
class Entry:
    """A run or a search."""

    name: str
    kind: str
    """`run` or `search`."""
    state: str
    """`running`, `stopped`, `finished`, `begun`, or `damaged`."""
    done: int = 0
    """Steps of a run, trials of a search."""
    of: int | None = None
    """How many there are to be; None: no number says so."""
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    """The best value of a figure, and its step or trial."""
    last: dict[str, float] = field(default_factory=dict)
    """Figures of the last training line."""
    data: str = ""
    """Fingerprint of the dataset."""
    config: str = ""
    """Hash of the keys that may not change."""
    revision: str = ""
    problem: str = ""
    """What is wrong with it, in words."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def entries_of(place: Storage) -> Iterator[Entry]:
    """The run or search that `place` is, or all that lie directly in it, by name."""
    own = entry_of(place)
    if own is not None:
        yield own
        return
    for name in place.names():
        if not name.startswith("."):
            found = entry_of(place.child(name))
            if found is not None:
                yield found


def entry_of(folder: Storage) -> Entry | None:
    """A folder as an entry; None where it is neither a run nor a search."""
    try:
        if folder.exists(JOURNAL_FILE):
            return _search(folder)
        if folder.exists(CONFIG_FILE):
            return _run(folder)
        if folder.exists(CHECKPOINTS):
            return Entry(folder.name, "run", "damaged", problem=f"checkpoints without {CONFIG_FILE}")
    except UserError as error:
        return Entry(folder.name, "run", "damaged", problem=error.message)
    except OSError as error:
        return Entry(folder.name, "run", "damaged", problem=error.strerror or type(error).__name__)
    return None


def stored_config(folder: Storage) -> ExperimentConfig:
    """The configuration of a run. Raises `UserError` where it cannot be read or is a newer version's."""
    try:
        return validate_tree(yaml.safe_load(folder.read(CONFIG_FILE)))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{CONFIG_FILE} is not YAML") from None


def stored_json(folder: Storage, name: str) -> dict[str, Any]:
    """An object of a JSON file; empty where there is none or it is damaged."""
    try:
        found = json.loads(folder.read(name))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _run(folder: Storage) -> Entry:
    provenance = stored_json(folder, PROVENANCE_FILE)
    try:
        config = stored_config(folder)
    except UserError as error:
        return Entry(folder.name, "run", "damaged", problem=error.message)
    best, last = _figures(folder)
    done = int(last.get("step", 0))
    problem = "" if provenance else f"{PROVENANCE_FILE} is missing or damaged"
    if folder.exists(FINISHED_FILE):
        state = "finished"
    elif is_held(folder):
        state = "running"
    elif list_checkpoints(folder.child(CHECKPOINTS)):
        state = "stopped"
    else:
        state = "begun"
    return Entry(
        folder.name,
        "run",
        state,
        done,
        config.training.steps,
        best,
        last,
        str(provenance.get("data_fingerprint", "")),
        config_hash(config),
        str(provenance.get("git_revision") or ""),
        problem,
    )


def _figures(folder: Storage) -> tuple[dict[str, tuple[float, int]], dict[str, float]]:
    best: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}
    try:
        lines = folder.read(METRICS_FILE).split(b"\n")
    except FileNotFoundError:
        return best, last
    for text in lines:
        if b'"val/' in text:
            values = _numbers(text)
            for name in SHOWN_METRICS:
                if name in values and (name not in best or _better(name, values[name], best[name][0])):
                    best[name] = (values[name], int(values.get("step", 0)))
    for text in reversed(lines):
        if b'"loss/total"' in text and (last := _numbers(text)):
            break
    return best, last


def _numbers(text: bytes) -> dict[str, float]:
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(line, dict):
        return {}
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _better(name: str, value: float, than: float) -> bool:
    return value < than if lower_is_better(name) else value > than


def is_held(folder: Storage) -> bool:
    """Whether a program works on a local run or search."""
    if not folder.is_local:
        return False
    try:
        with (Path(folder.root) / LOCK_FILE).open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _search(folder: Storage) -> Entry:
    state = SearchState()
    try:
        for event in read_events(folder)[1]:
            state.apply(event)
    except (UserError, KeyError, ValueError, IndexError) as error:
        problem = error.message if isinstance(error, UserError) else f"{JOURNAL_FILE} does not add up"
        return Entry(folder.name, "search", "damaged", len(state.trials), problem=problem)
    space = dict(state.begun["space"]) if state.begun is not None else {}
    best: dict[str, tuple[float, int]] = {}
    for objective in space.get("objectives", []):
        name = str(objective["metric"])
        for trial in state.trials:
            value = (
                trial.reports[trial.step].get(name) if trial.reports and trial.state == "complete" else None
            )
            downwards = objective.get("direction", "maximise") == "minimise"
            if value is not None and (
                name not in best or (value < best[name][0] if downwards else value > best[name][0])
            ):
                best[name] = (float(value), trial.number)
    kind = "finished" if state.ended else "running" if is_held(folder) else "stopped"
    return Entry(
        folder.name,
        "search",
        kind,
        len(state.trials),
        (space.get("budget") or {}).get("trials"),
        best,
        data=str((state.begun or {}).get("data_fingerprint", "")),
    )
