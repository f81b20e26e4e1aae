"""A dataset directory while it is being written: who holds it, what in it counts, what is cleared.

Decisions: a directory that is being written holds `unfinished.json`, which names the plan (a hash over
listing, options and key); while it stands without a marker a reader sees no dataset. The same plan run
again finds the parts that are whole, each with a record of its own beside it; any other plan clears
them, so two ingests never mix. Locally a lock keeps two processes out of one directory, and the system
drops it when a process dies, however it dies. A directory that holds anything else is never touched.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mpma.data.dataset_info import MARKER, QUARANTINE_FILE, TOKENIZER_FILE
from mpma.data.pairs import SPLITS
from mpma.data.quality_info import NEAR_DUPLICATES_FILE
from mpma.data.storage import TEMPORARY_SUFFIX, Storage
from mpma.errors import UserError

UNFINISHED: Final = "unfinished.json"
LOCK: Final = ".lock"
RECORD_SUFFIX: Final = ".json"

QUALITY_PAGE: Final = "quality.html"
"""A page about the dataset; it may be missing and is no part of the content."""

_OWN_FILES: Final = (
    MARKER,
    UNFINISHED,
    LOCK,
    TOKENIZER_FILE,
    QUARANTINE_FILE,
    NEAR_DUPLICATES_FILE,
    QUALITY_PAGE,
)


class DirectoryBusyError(UserError):
    """Another process is writing into the directory."""


class DatasetExistsError(UserError):
    """A finished dataset is in the way."""


@contextmanager
def unfinished_dataset(
    storage: Storage, plan: str, *, overwrite: bool = False, keep_parts: bool = True
) -> Iterator[None]:
    """Hold a directory while a dataset of this plan is written into it.

    Args:
        plan: equal plans must give equal bytes; parts of a killed run are kept only under the same plan.
        overwrite: replace a finished dataset; it is gone as soon as the block begins.
        keep_parts: False clears parts of the same plan too.

    Raises `UserError` where a finished dataset (unless `overwrite`), foreign files or another running
    ingest is in the way.
    """
    check_free(storage, overwrite=overwrite)
    storage.make_directory()
    with _lock(storage):
        # Once more: another process may have finished between the first look and the lock.
        check_free(storage, overwrite=overwrite)
        if not keep_parts or _begun_plan(storage) != plan:
            # Said first, so that a kill while clearing leaves a directory that is known as ours.
            storage.write(UNFINISHED, json.dumps({"plan": None}).encode())
            _clear(storage)
            storage.write(UNFINISHED, json.dumps({"plan": plan}).encode())
        storage.remove(MARKER)
        for split in SPLITS:
            storage.make_directory(split)
        yield


def check_free(storage: Storage, *, overwrite: bool = False) -> None:
    """Raises `UserError` where a dataset may not be written: before hours of work, not after."""
    names = set(storage.sizes())
    foreign = [name for name in names if not is_own(name)]
    if foreign or (names and not names & {MARKER, UNFINISHED, LOCK}):
        # Counted and not named: it may be an archive, whose file names tell of patients.
        raise UserError(
            f"{storage.described()} holds files that are no part of a dataset ({len(foreign) or len(names)})",
            "choose a directory that is empty or does not exist",
        )
    if MARKER in names and not overwrite:
        raise DatasetExistsError(
            f"{storage.described()} holds a finished dataset already",
            "choose another --out, or replace it with --overwrite",
        )


def end_unfinished(storage: Storage) -> None:
    """Drop what only mattered until the marker stood: the parts' records, the plan, the lock."""
    for name in storage.sizes():
        record = "/" in name and name.endswith(RECORD_SUFFIX)
        if is_own(name) and (record or name in (UNFINISHED, LOCK) or name.endswith(TEMPORARY_SUFFIX)):
            storage.remove(name)


def _begun_plan(storage: Storage) -> str | None:
    try:
        return json.loads(storage.read(UNFINISHED))["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _clear(storage: Storage) -> None:
    # The marker first: from here on nothing is readable, rather than something that is half gone.
    for name in sorted(storage.sizes(), key=lambda name: name != MARKER):
        if is_own(name) and name not in (UNFINISHED, LOCK):
            storage.remove(name)


def is_own(name: str) -> bool:
    """Whether a file of this name may stand in a dataset directory, finished or not."""
    folder, _, file = name.rpartition("/")
    if file.endswith(TEMPORARY_SUFFIX):
        return folder in ("", *SPLITS)
    if not folder:
        return name in _OWN_FILES
    return folder in SPLITS and file.endswith((".parquet", RECORD_SUFFIX))


@contextmanager
def _lock(storage: Storage) -> Iterator[None]:
    """Keeps other processes of this machine out; an object store has no locks, so there it does nothing."""
    if not storage.is_local:
        yield
        return
    descriptor = os.open(storage.path(LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DirectoryBusyError(
                f"{storage.described()} is being written by another process",
                "wait for it, or choose another --out",
            ) from error
        except OSError:
            pass  # Some network filesystems know no locks; the commit protocol holds without one.
        yield
    finally:
        os.close(descriptor)
