"""The two kinds of failure a program may end with.

A mistake that the user can mend is a `UserError`: one line that names the key or file, what was
wrong and what would be right; programs print it and exit with code 2. A job that began and could
not finish is a `JobError`: one line with where to look; programs exit with code 1. Anything else
is a defect of this software, of which a program tells the kind and place alone. Neither message ever
holds report text, pixels or identifiers.
"""

from __future__ import annotations


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
