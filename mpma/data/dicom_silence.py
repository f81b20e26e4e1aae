"""What pydicom says while a file is read, kept from every log and terminal.

Decisions: its warnings and log records quote the values of tags, which name patients, so nothing it says
while this software reads a file goes anywhere; what matters of it is a reason code. Python's own way of
silencing warnings for a while changes the whole process and is not safe with threads, so one filter is put
in front once, and it matches only in a thread that is reading at that moment: whoever uses pydicom
beside this software still hears it. What GDCM prints goes nowhere either (`mpma.data.dicom_gdcm`).
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast


class _Here(threading.local):
    depth = 0


_HERE: Final = _Here()


class _WhileReading:
    """Stands where a warning filter has its pattern of modules: fits all of them, while this thread reads."""

    # Held here, since warnings are still given when the interpreter has begun to take modules apart.
    here = _HERE

    def match(self, module: str) -> bool:
        return self.here.depth > 0


class _NotWhileReading(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _HERE.depth == 0


_WARNINGS: Final = ("ignore", None, Warning, _WhileReading(), 0)
_RECORDS: Final = _NotWhileReading()


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, and in this thread alone, pydicom says nothing."""
    _put_in_front()
    _HERE.depth += 1
    try:
        yield
    finally:
        _HERE.depth -= 1


def silence_libraries() -> None:
    """To be called once pydicom's modules are imported: each of them may have a logger of its own."""
    for name in list(logging.root.manager.loggerDict):
        if name == "pydicom" or name.startswith("pydicom."):
            logging.getLogger(name).addFilter(_RECORDS)


def _put_in_front() -> None:
    # Others add filters of their own, or replace the whole list for a while; putting ours into the list that
    # is there now is one step, and a second copy of it does no harm.
    filters = cast(list[Any], warnings.filters)
    if not filters or filters[0] is not _WARNINGS:
        filters.insert(0, _WARNINGS)
