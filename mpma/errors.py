"""The two kinds of failure a program may end with.

A mistake that the user can mend is a `UserError`: one line that names the key or file, what was
wrong and what would be right; programs print it and exit with code 2. A job that began and could
not finish is a `JobError`: one line with where to look; programs exit with code 1. Anything else
is a defect of this software and keeps its traceback. Neither message ever holds report text,
pixels or identifiers.
"""

from __future__ import annotations

from pathlib import Path


def innermost_place(error: BaseException) -> str:
    """File and line where an error arose: all that may be told of one whose message may hold report text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


class UserError(Exception):
    """A mistake the user can mend; `hint` says how when the message alone does not."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str | None]]:
        # Exceptions cross process borders by pickle, which would otherwise lose the hint.
        return type(self), (self.message, self.hint)


class JobError(UserError):
    """A job that began and could not finish; the message says where to look."""
