"""What a folder of runs and searches holds, each told from its own files.

Decisions: nothing is trusted to be whole, since a folder may have been killed, copied half or written by a
newer version: what cannot be read is the entry's problem, in words, and never ends the listing. Validation
lines alone are decoded of metrics.jsonl, and its last line, so that a long run costs little more than
reading its file. A run counts as running where a program holds its lock, which only a local disk has. A
folder is asked once what is in it and then only for files that are there, and those of an object store are
read several at a time: what a listing costs there is requests.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from mpma.comparability import lower_is_better
from mpma.config import ExperimentConfig
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
    parsed_config,
)
from orchestration.overview.searches import best_complete, fingerprint_of, part, read_search, revision_of
from orchestration.reporting.search_report import REPORT_FILE
from orchestration.search.journal import JOURNAL_FILE

SHOWN_METRICS: Final = {
    "val/retrieval/mean_recall": "recall",
    "val/probe/auroc": "AUROC",
    "val/representation_score": "score",
}
"""What a listing shows the best of, and how it calls it."""

FOLDERS_AT_A_TIME: Final = 16
"""That are read of an object store."""


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
    """Hash of the keys that may not change, of a run; of what decides which trials there are, of a search."""
    revision: str = ""
    report: str = ""
    """Its page, relative to the place that is listed; empty where it has none."""
    problem: str = ""
    """What is wrong with it, in words."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def entries_of(place: Storage) -> Iterator[Entry]:
    """The run or search that `place` is, or all that lie directly in it, by name."""
    inside = place.inside()
    own = _entry(place, inside)
    if own is not None:
        yield own
        return
    folders = [place.child(name) for name, is_folder in inside.items() if is_folder and name[0] != "."]
    if place.is_local:
        yield from _placed(map(entry_of, folders))
        return
    with ThreadPoolExecutor(FOLDERS_AT_A_TIME) as readers:
        yield from _placed(readers.map(entry_of, folders))


def _placed(found: Iterable[Entry | None]) -> Iterator[Entry]:
    for entry in found:
        if entry is not None:
            yield replace(entry, report=f"{entry.name}/{entry.report}") if entry.report else entry


def entry_of(folder: Storage) -> Entry | None:
    """A folder as an entry; None where it is neither a run nor a search."""
    try:
        return _entry(folder, folder.inside())
    except UserError as error:
        return Entry(folder.name, "run", "damaged", problem=error.message)
    except OSError as error:
        return Entry(folder.name, "run", "damaged", problem=error.strerror or type(error).__name__)


def _entry(folder: Storage, inside: Mapping[str, bool]) -> Entry | None:
    kind = "search" if JOURNAL_FILE in inside else "run"
    try:
        if kind == "search":
            return _search(folder, inside)
        if CONFIG_FILE in inside:
            return _run(folder, inside)
        if CHECKPOINTS in inside:
            return Entry(folder.name, "run", "damaged", problem=f"checkpoints without {CONFIG_FILE}")
    except UserError as error:
        return Entry(folder.name, kind, "damaged", problem=error.message)
    except OSError as error:
        return Entry(folder.name, kind, "damaged", problem=error.strerror or type(error).__name__)
    return None


def stored_config(folder: Storage) -> ExperimentConfig:
    """The configuration of a run. Raises `UserError` where it cannot be read or is a newer version's."""
    return parsed_config(folder.read(CONFIG_FILE))


def stored_json(folder: Storage, name: str) -> dict[str, Any]:
    """An object of a JSON file; empty where there is none or it is damaged."""
    try:
        found = json.loads(folder.read(name))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _run(folder: Storage, inside: Mapping[str, bool]) -> Entry:
    config = stored_config(folder)
    provenance = stored_json(folder, PROVENANCE_FILE) if PROVENANCE_FILE in inside else {}
    best, last = _figures(folder) if METRICS_FILE in inside else ({}, {})
    if FINISHED_FILE in inside:
        state = "finished"
    elif is_held(folder):
        state = "running"
    elif CHECKPOINTS in inside and list_checkpoints(folder.child(CHECKPOINTS)):
        state = "stopped"
    else:
        state = "begun"
    return Entry(
        folder.name,
        "run",
        state,
        int(last.get("step", 0)),
        config.training.steps,
        best,
        last,
        str(provenance.get("data_fingerprint", "")),
        config_hash(config),
        str(provenance.get("git_revision") or ""),
        problem="" if provenance else f"{PROVENANCE_FILE} is missing or damaged",
    )


def _figures(folder: Storage) -> tuple[dict[str, tuple[float, int]], dict[str, float]]:
    best: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}
    lines = folder.read(METRICS_FILE).split(b"\n")
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


def _search(folder: Storage, inside: Mapping[str, bool]) -> Entry:
    state = read_search(folder)
    problem, best = "", {}
    try:
        best = {metric: (found.value, found.trial) for metric, found in best_complete(state).items()}
    except UserError as error:
        problem = error.message
    most = part(part(state.begun, "space"), "budget").get("trials")
    return Entry(
        folder.name,
        "search",
        "finished" if state.ended else "running" if is_held(folder) else "stopped",
        len(state.trials),
        most if isinstance(most, int) else None,
        best,
        data=fingerprint_of(state),
        config=str((state.begun or {}).get("space_hash", "")),
        revision=revision_of(state),
        report=REPORT_FILE if REPORT_FILE in inside else "",
        problem=problem,
    )
