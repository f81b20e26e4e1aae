"""GDCM, asked through a process of its own that may die of a damaged file.

Decisions: one such process serves all threads of this one, one frame at a time, and stays for the next
file; it ends with this process, since its input ends then. It is in a session of its own, so that Ctrl-C in
a terminal does not make a sound file look damaged. Where it dies, or does not answer in time, another is
started and asked once more, and only a file that fails twice is to blame: the first death may have been the
machine's.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.dicom_gdcm_child import LENGTHS
from mpma.data.sources.contract import UnreadableImage

ANSWER_SECONDS: Final = 20.0
SECONDS_PER_MEGAPIXEL: Final = 2.0
"""Longest wait for one frame, many times what a sound one takes: there are damaged ones without an end."""

_CHILD: Final = Path(__file__).with_name("dicom_gdcm_child.py")
_ALARM_AFTER_SECONDS: Final = 10
_BLOCK: Final = 1 << 20


class _DiedError(Exception):
    """The process ended, or was ended, without an answer; the message says how."""


class GdcmProcess:
    """The process, started at the first frame."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, transfer_syntax: str, options: Mapping[str, Any], source: bytes) -> NDArray[Any]:
        """Decode one encapsulated frame.

        Args:
            transfer_syntax: its UID.
            options: pydicom's decoding options, plain values.
            source: the value of the pixel data element, its offset table and fragments included.

        Returns:
            The array that pydicom makes of it.

        Raises `UnreadableImage` with `unreadable_image`.
        """
        pixels = int(options.get("rows", 0)) * int(options.get("columns", 0))
        seconds = ANSWER_SECONDS + SECONDS_PER_MEGAPIXEL * pixels / 1e6
        wanted = {
            "transfer_syntax": transfer_syntax,
            "options": dict(options),
            # Its own alarm is for the case that this process is gone by then.
            "seconds": math.ceil(seconds) + _ALARM_AFTER_SECONDS,
        }
        request = json.dumps(wanted).encode()
        with self._lock:
            try:
                answer, array = self._asked(request, source, seconds)
            except _DiedError:
                try:
                    answer, array = self._asked(request, source, seconds)
                except _DiedError as error:
                    raise UnreadableImage("unreadable_image", f"the decoder {error}") from None
        if "error" in answer:
            raise UnreadableImage("unreadable_image", str(answer["error"]))
        return np.frombuffer(array, np.dtype(answer["dtype"])).reshape(answer["shape"])

    def close(self) -> None:
        """End the process; the next frame starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not sent to a dead process cannot be sent any more
                    stream.close()

    def _asked(self, request: bytes, source: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        process = self._running()
        assert process.stdin is not None
        deadline = time.monotonic() + seconds
        try:
            for part in (LENGTHS.pack(len(request), len(source)), request, source):
                process.stdin.write(part)
            process.stdin.flush()
            text_length, data_length = LENGTHS.unpack(self._received(LENGTHS.size, deadline))
            return json.loads(self._received(text_length, deadline)), self._received(data_length, deadline)
        except BrokenPipeError:
            raise self._death() from None
        except BaseException:
            # Whatever broke off the conversation, its rest must not be taken for the next answer.
            self.close()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        # A process that was forked from this one must not share its conversation.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            if self._owner == os.getpid():
                self.close()
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self._process

    def _received(self, length: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        out = self._process.stdout.fileno()
        received = bytearray()
        while len(received) < length:
            ready, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.close()
                raise _DiedError("gave no answer in time")
            block = os.read(out, min(_BLOCK, length - len(received)))
            if not block:
                raise self._death()
            received += block
        return bytes(received)

    def _death(self) -> _DiedError:
        assert self._process is not None
        code = self._process.wait()
        self.close()
        return _DiedError(f"died of signal {-code}" if code < 0 else f"ended with code {code}")


_GDCM: Final = GdcmProcess()
atexit.register(_GDCM.close)


def decode_by_gdcm(transfer_syntax: str, options: Mapping[str, Any], source: bytes) -> NDArray[Any]:
    """`GdcmProcess.decode` by the one process that this one has."""
    return _GDCM.decode(transfer_syntax, options, source)
