"""Which comparison two folders are given, and what is right where they cannot be compared."""

from __future__ import annotations

import contextlib
import difflib
from typing import Literal

from mpma.data.storage import Storage
from mpma.errors import UserError
from mpma.training.run_directory import CONFIG_FILE
from orchestration.overview.difference import Difference, difference
from orchestration.overview.search_difference import SearchDifference, search_difference
from orchestration.overview.searches import best_complete, read_search
from orchestration.search.journal import JOURNAL_FILE

EXAMPLES = "name two runs or two searches, for example: report --diff runs/a runs/b"


def compare(first: Storage, second: Storage) -> Difference | SearchDifference:
    """How two runs or two searches differ; a search's trial is a run.

    Raises `UserError` where one of them is neither, where they are not of a kind, or one is damaged.
    """
    kinds = kind_of(first), kind_of(second)
    if kinds == ("search", "search"):
        return search_difference(first, second)
    if kinds == ("run", "run"):
        return difference(first, second)
    run, search = (first, second) if kinds[0] == "run" else (second, first)
    raise UserError(
        f"{run.described()} is a run and {search.described()} a search: only two of a kind are compared",
        f"a trial of the search is a run, for example: report --diff {run.described()} {_a_trial(search)}",
    )


def kind_of(folder: Storage) -> Literal["run", "search"]:
    """Raises `UserError`, with what is near, where the folder is neither a run nor a search."""
    try:
        inside = folder.inside()
    except OSError as error:
        raise UserError(
            f"{folder.described()} cannot be read: {error.strerror or 'it is no folder'}", EXAMPLES
        ) from None
    if JOURNAL_FILE in inside:
        return "search"
    if CONFIG_FILE in inside:
        return "run"
    raise UserError(f"{folder.described()}: no run or search there", _what_is_near(folder, inside))


def _what_is_near(folder: Storage, inside: dict[str, bool]) -> str:
    within = [name for name, is_folder in inside.items() if is_folder and not name.startswith(".")]
    if within:
        return f"name one of the folders in it, such as {folder.child(within[0]).described()}"
    if not inside:
        with contextlib.suppress(OSError, UserError):
            beside = [name for name, is_folder in folder.parent().inside().items() if is_folder]
            alike = difflib.get_close_matches(folder.name, beside, n=1)
            if alike:
                return f"is {folder.parent().child(alike[0]).described()} meant?"
    return EXAMPLES


def _a_trial(search: Storage) -> str:
    """The best trial of a search, or its first where none is complete or the journal cannot be read."""
    # It brings Optuna, which no comparison needs.
    from orchestration.search.steering import TRIALS, trial_name

    number = 0
    with contextlib.suppress(OSError, UserError):
        number = next((best.trial for best in best_complete(read_search(search)).values()), 0)
    return search.child(TRIALS).child(trial_name(number)).described()
