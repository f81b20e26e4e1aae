"""What is known of the search that a run came from, for the model card.

Decisions: a run inside a search's folder is one of its trials or retrainings; any other run came from a
search if its configuration is that of the search's best.yaml, but for the keys that may change when a run
continues, and for the seed. The head of best.yaml is the search's own account and is quoted as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import yaml

from mpma.config import ExperimentConfig, validate_tree
from mpma.data.storage import Storage
from mpma.errors import UserError
from mpma.training.run_directory import RunDirectory, config_hash

JOURNAL_FILE: Final = "journal.jsonl"
BEST_FILE: Final = "best.yaml"
_PLACES: Final = {"trials": "trial", "confirmation": "retraining"}


@dataclass(frozen=True)
class SearchRecord:
    """A run's origin in a search."""

    search: str
    """Name of the search."""
    relation: str
    """How the run stands to it, as the end of "This run ..."."""
    account: tuple[str, ...]
    """Lines of the head of best.yaml; none where the search has not ended."""
    trials: int
    """Trials that the search began; 0 where its journal cannot be read."""


def search_record(run: RunDirectory, searches: Storage | None) -> SearchRecord | None:
    """The search that a run came from; None where none is known.

    `searches`: the folder of searches that are looked through.
    """
    inside = _parent(run.folder)
    if inside.name in _PLACES and _parent(inside).exists(JOURNAL_FILE):
        folder = _parent(inside)
        return _record(folder, f"is {_PLACES[inside.name]} {run.name} of the search")
    config = run.stored_config()
    for name in searches.names() if searches is not None else ():
        folder = searches.child(name) if searches is not None else run.folder
        best = _best(folder)
        if best is None:
            continue
        if config_hash(best) == config_hash(config):
            return _record(folder, "has the configuration of the search's best.yaml")
        if config_hash(_with_seed(best, 0)) == config_hash(_with_seed(config, 0)):
            return _record(folder, "has the configuration of the search's best.yaml, with another seed")
    return None


def _record(folder: Storage, relation: str) -> SearchRecord:
    return SearchRecord(folder.name, relation, tuple(_head(folder)), _trials(folder))


def _best(folder: Storage) -> ExperimentConfig | None:
    try:
        return validate_tree(yaml.safe_load(folder.read(BEST_FILE)))
    except (OSError, yaml.YAMLError, UserError, TypeError):
        return None


def _head(folder: Storage) -> Iterable[str]:
    try:
        text = folder.read(BEST_FILE).decode(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        yield line.removeprefix("#").strip()


def _trials(folder: Storage) -> int:
    try:
        text = folder.read(JOURNAL_FILE).decode(errors="replace")
    except OSError:
        return 0
    count = 0
    for line in text.splitlines():
        try:
            count += json.loads(line).get("event") == "suggest"
        except (ValueError, AttributeError):
            continue
    return count


def _with_seed(config: ExperimentConfig, seed: int) -> ExperimentConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})


def _parent(folder: Storage) -> Storage:
    return Storage(folder.filesystem, folder.root.rpartition("/")[0], folder.location.rpartition("/")[0])
