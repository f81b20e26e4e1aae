"""The journal of a search: one JSON object a line, appended and synced before anything is acted upon.

Decisions: the journal is the truth and everything else in the search directory can be made from it and
from the run directories. An event counts once its line ends with a newline; a last line that a kill cut
short never happened and is cut away on opening. A line that is damaged elsewhere is named, since what
follows it could not be trusted. On an object store, which cannot append, the last lines stand in an
object of their own, which is written anew for each of them and joined to the journal now and then: to write
the whole journal for every line would make a search of n trials write n squared bytes. The tail's name ends
with the length of the journal that it follows, so one that was joined already follows nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mpma.data.storage import Storage
from mpma.errors import UserError
from mpma.training.metrics_log import full_disk_as_a_line
from orchestration.search.records import Event, SearchState

if TYPE_CHECKING:
    from orchestration.search.space import LoadedSpace

JOURNAL_FILE: Final = "journal.jsonl"

TAIL_BYTES: Final = 64 * 1024
"""On an object store: lines that are written anew for each further one, at most."""


class Journal:
    """Appends events and keeps the state they add up to.

    Opening replays what is there. Raises `UserError` where a line other than the last is damaged.
    """

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self.state = SearchState()
        whole, events = read_events(folder)
        for event in events:
            self._fold(event, "it does not follow from the lines before it")
        self._body = self._tail = b""
        """On an object store: what stands in the journal's object, and in that of its last lines."""
        self._stream = None
        if folder.is_local:
            folder.make_directory()
            path = Path(folder.root) / JOURNAL_FILE
            self._stream = path.open("ab")
            if self._stream.tell() != len(whole):
                self._stream.truncate(len(whole))
                self._stream.seek(len(whole))
                os.fsync(self._stream.fileno())
        else:
            self._body, self._tail = _objects(folder)
            if self._body + self._tail != whole:
                self._join(whole)
        self.count = len(events)

    def append(self, kind: str, **values: Any) -> Event:
        """Record an event durably and take it into the state. Raises `JobError` on a full disk."""
        event = {"event": kind, "time": round(time.time(), 3), **values}
        line = (json.dumps(_plain(event), separators=(",", ":")) + "\n").encode()
        # What a restart would read is what is acted upon now.
        event = json.loads(line)
        with full_disk_as_a_line(f"{self._folder.described(JOURNAL_FILE)}"):
            if self._stream is not None:
                self._stream.write(line)
                self._stream.flush()
                os.fsync(self._stream.fileno())
            else:
                self._append_object(line)
        self.count += 1
        self._fold(event, "")
        return event

    def begin(
        self,
        loaded: LoadedSpace,
        *,
        data_fingerprint: str,
        provenance: Mapping[str, Any],
        warm: Mapping[str, Any],
    ) -> Event:
        """Write the first line, which says what is searched, around what and on what."""
        halted = loaded.space.scheduler.name != "none"
        return self.append(
            "begin",
            version=1,
            space=loaded.space.resolved(),
            space_hash=loaded.hash,
            warm=warm,
            config=loaded.base.model_dump(mode="json"),
            full_steps=loaded.full_steps,
            first_target=loaded.space.fidelity.rungs(loaded.full_steps)[0] if halted else loaded.full_steps,
            data_fingerprint=data_fingerprint,
            provenance=provenance,
        )

    def _append_object(self, line: bytes) -> None:
        tail = self._tail + line
        if self._body and len(tail) <= TAIL_BYTES:
            self._folder.write(_tail_name(self._body), tail)
            self._tail = tail
        else:
            self._join(self._body + tail)

    def _join(self, whole: bytes) -> None:
        """Make one object of the journal; until that is written both stay as they were."""
        before = _tail_name(self._body)
        self._folder.write(JOURNAL_FILE, whole)
        self._body, self._tail = whole, b""
        self._folder.remove(before)

    def close(self) -> None:
        """Let go of the file; on an object store, leave one."""
        if self._tail:
            self._join(self._body + self._tail)
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _fold(self, event: Event, damage: str) -> None:
        if not damage:
            self.state.apply(event)
            return
        try:
            self.state.apply(event)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError):
            raise _damaged(self._folder, int(event["line"]), damage) from None


def read_events(folder: Storage) -> tuple[bytes, list[dict[str, Any]]]:
    """The journal's valid bytes and its events, each with its `line` number. Empty where there is none.

    Raises `UserError` naming the first damaged line that is not the last.
    """
    if not folder.exists(JOURNAL_FILE):
        return b"", []
    content = folder.read(JOURNAL_FILE) if folder.is_local else b"".join(_objects(folder))
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    events: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or "event" not in event or "time" not in event:
                raise ValueError
        except ValueError:
            if number == len(lines):
                # The sectors of a last line may reach the disk out of order when the power goes.
                return whole[: len(whole) - len(line) - 1], events
            raise _damaged(folder, number, "it is not a journal event") from None
        events.append({**event, "line": number})
    return whole, events


def _objects(folder: Storage) -> tuple[bytes, bytes]:
    """The journal on an object store, and the lines that follow it in an object of their own."""
    if not folder.exists(JOURNAL_FILE):
        return b"", b""
    body = folder.read(JOURNAL_FILE)
    name = _tail_name(body)
    return body, folder.read(name) if folder.exists(name) else b""


def _tail_name(body: bytes) -> str:
    return f"{JOURNAL_FILE}.from-{len(body)}"


def _damaged(folder: Storage, line: int, what: str) -> UserError:
    return UserError(
        f"{folder.described(JOURNAL_FILE)}, line {line}: {what}",
        "restore the file from a copy, or begin a new search under another --name",
    )


def _plain(value: Any) -> Any:
    """JSON values, with None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return _plain(value.item())
    return value
