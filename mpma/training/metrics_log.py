"""The run's own record of its figures: metrics.jsonl, and TensorBoard beside it.

Decisions: metrics.jsonl is the truth, one object a line, flushed at every line and synced before a
checkpoint's marker is written, so a checkpoint at step s implies every line up to s. On continue the
lines past the checkpoint are dropped atomically. Only numbers go in: no text, identifier or pixel.
Non-finite values are written as null, since NaN is not JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpma.data.storage import Storage
from mpma.errors import JobError

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends lines to metrics.jsonl and scalars to TensorBoard. Used by rank 0 alone.

    On an object store, which cannot append, lines are gathered here and the file is written whole at
    `sync`, not before: whoever was stopped between taking the run and this object's making would otherwise
    write over the lines of the one that took it next.
    """

    def __init__(self, run: Storage, continue_from_step: int, tensorboard: bool = True) -> None:
        self._run = run
        lines = [line for line in read_lines(run) if line.get("step", 0) <= continue_from_step]
        if continue_from_step == 0:
            lines = []
        self._lines = [_encode(line) for line in lines]
        self._stream = None
        if run.is_local:
            run.write(METRICS_FILE, "".join(self._lines).encode())
            path = Path(run.root) / METRICS_FILE
            self._stream = path.open("a", encoding="utf-8")
            self._lines = []
        self._board = None
        if tensorboard and run.is_local:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(
                str(Path(run.root) / "tensorboard"),
                purge_step=continue_from_step + 1 if continue_from_step else None,
            )

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line; `values` holds `step`."""
        line = _encode(values)
        with full_disk_as_a_line(f"{self._run.root}/{METRICS_FILE}"):
            if self._stream is not None:
                self._stream.write(line)
                self._stream.flush()
            else:
                self._lines.append(line)
        if self._board is not None:
            step = int(values["step"])
            for name, value in values.items():
                if isinstance(value, (int, float)) and name != "step" and math.isfinite(value):
                    self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Make every line so far durable."""
        with full_disk_as_a_line(f"{self._run.root}/{METRICS_FILE}"):
            if self._stream is not None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
            else:
                self._run.write(METRICS_FILE, "".join(self._lines).encode())
        if self._board is not None:
            self._board.flush()

    def abandon(self) -> None:
        """Let go of the files without another byte: they are another process's now."""
        self._lines = []
        if self._stream is not None:
            # Every line was flushed when it was written; nothing is held back.
            self._stream.close()

    def close(self) -> None:
        """Sync and let go of the files."""
        self.sync()
        if self._stream is not None:
            self._stream.close()
        if self._board is not None:
            self._board.close()


@contextmanager
def full_disk_as_a_line(place: str) -> Iterator[None]:
    """Turn an OSError of writing into one line that names the place."""
    try:
        yield
    except OSError as error:
        raise JobError(
            f"cannot write {place}: {error.strerror or type(error).__name__}",
            "make room, then run the same command again",
        ) from None


def _encode(values: Mapping[str, Any]) -> str:
    clean = {
        key: (None if isinstance(value, float) and not math.isfinite(value) else value)
        for key, value in values.items()
    }
    return json.dumps(clean) + "\n"


def read_lines(run: Storage) -> Iterator[dict[str, Any]]:
    """The objects of metrics.jsonl; a last line cut short by a kill is left out."""
    try:
        text = run.read(METRICS_FILE).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return
    yield from _decoded(text)


class MetricsReader:
    """Follows metrics.jsonl while another process writes it; each call reads only what is new."""

    def __init__(self, run: Storage) -> None:
        self._run = run
        self._end = 0

    def new_lines(self) -> list[dict[str, Any]]:
        """The objects of the lines that were ended since the last call, none where the file is absent.

        Where the file was cut meanwhile (a run that goes on from a checkpoint) all of it comes again.
        """
        try:
            data = self._run.read_from(METRICS_FILE, self._end)
            if data is None:
                self._end = 0
                data = self._run.read(METRICS_FILE)
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._end += len(whole)
        return list(_decoded(whole.decode("utf-8", errors="replace")))


def _decoded(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        if not line:
            continue
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
