"""What may be told of an unexpected exception, and where it is told.

Decisions: the message of a KeyError, of Arrow or of an image reader quotes what was read, and so do the
messages of whatever it was raised from; so a defect is told as its kind and the places in our own code
that it passed through, and as nothing else. Task functions are wrapped, since Ray writes what a task
raises into its logs and sends it to the driver; the programs and their threads tell it in one line. A
mistake of the user passes a task as it is, but without the exception that it was made of. What libraries
warn of or log is held back for the same reason, save those that never see a record.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar

from mpma.errors import UserError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_ROOT: Final = Path(__file__).resolve().parents[1]
_OWN: Final = ("mpma", "orchestration")

_SEE_NO_RECORD: Final = frozenset({"ray", "torch", "timm", "transformers", "huggingface_hub", "optuna"})
"""Packages whose warnings are about machines and models, never about a row that was read."""


class Defect(Exception):  # noqa: N818 - neither an error of the user's nor of the job's, but ours
    """A defect of this software; the message names kind and places, never a value."""


def told(error: BaseException) -> str:
    """Kind and places of an exception, innermost first, in one line without any value.

    What Ray made of an exception in a task is looked through for a `Defect`.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop()
        # Not a subclass: Ray makes one of them whose text is a whole traceback.
        if type(found) is Defect:
            return str(found)
        if id(found) not in seen:
            seen.add(id(found))
            inner = [getattr(found, "cause", None), found.__cause__]
            # What Ray Train makes of the failures of its workers.
            inner += dict(getattr(found, "worker_failures", None) or {}).values()
            waiting += [one for one in inner if isinstance(one, BaseException)]
    # What Ray itself raises tells of processes; where it was met says nothing.
    places = [] if type(error).__module__.startswith("ray.") else _places(error.__traceback__)
    return f"{_kind(error)} at {', '.join(places)}" if places else _kind(error)


def _kind(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return f"{name} (out of memory)"
    # The system's own words for an error number; what stands in the exception may be a library's message.
    number = getattr(error, "errno", None)
    return f"{name} ({os.strerror(number)})" if isinstance(number, int) else name


def _places(trace: TracebackType | None, most: int = 6) -> list[str]:
    """`file:line` of the frames in our own code, innermost first, and of the innermost frame of all."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]
    own = [_place(*frame) for frame in reversed(frames) if _relative(frame[0]) is not None]
    if frames and _relative(frames[-1][0]) is None:
        own.insert(0, _place(*frames[-1]))
    return own[:most]


def _place(file: str, line: int) -> str:
    return f"{_relative(file) or Path(file).name}:{line}"


def _relative(file: str) -> str | None:
    """Path of one of our own modules below the source tree; None for any other file."""
    path = Path(file)
    if not path.is_relative_to(_ROOT) or path.relative_to(_ROOT).parts[0] not in _OWN:
        return None
    return path.relative_to(_ROOT).as_posix()


def without_values(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A task function whose exceptions hold no value of a row: a `UserError`, else a `Defect`."""

    @functools.wraps(function)
    def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        hold_back_library_messages()
        failure: Exception
        try:
            return function(*arguments, **named)
        except UserError as error:
            failure = type(error)(error.message, error.hint)
        except Exception as error:
            failure = Defect(told(error))
        # Outside the handler, so that what was caught is not kept as its context.
        raise failure

    return call


def report(error: BaseException) -> None:
    """Print the one line of a defect."""
    print(f"error: a defect of this software: {told(error)}", file=sys.stderr)


def hook_program() -> None:
    """From here on what nobody catches in this process is told without values, in any thread."""

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error.with_traceback(None), None)
        else:
            report(error)

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            report(arguments.exc_value)

    def unraisable(arguments: Any) -> None:
        if arguments.exc_value is not None:
            report(arguments.exc_value)

    sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, in_thread, unraisable
    hold_back_library_messages()


def hold_back_library_messages() -> None:
    """Warnings and logs of libraries that read records name their kind and place, and quote nothing."""
    if warnings.showwarning is not _show_warning:
        warnings.showwarning = _show_warning
    if not isinstance(logging.lastResort, _PlaceHandler):
        logging.lastResort = _PlaceHandler(logging.WARNING)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    where = f"{Path(filename).name}:{lineno}"
    shown = f": {message}" if _SEE_NO_RECORD.intersection(Path(filename).parts) else ""
    print(f"warning: {category.__name__} at {where}{shown}", file=file or sys.stderr)


class _PlaceHandler(logging.Handler):
    """For loggers that nobody configured, which would otherwise print their messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Level, logger and place; the message only of packages that see no record."""
        where = f"{Path(record.pathname).name}:{record.lineno}"
        known = record.name.partition(".")[0] in _SEE_NO_RECORD
        shown = f": {record.getMessage()}" if known else ""
        print(f"{record.levelname.lower()}: {record.name} at {where}{shown}", file=sys.stderr)
