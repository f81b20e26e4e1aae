"""Whether this process may open a place that is not on a disk: one switch, asked where storages are opened.

Decisions: Arrow talks to buckets from C++, where no guard of Python's sockets sees it, so what must not
leave the machine is refused before Arrow is asked. Off until a program that was told to stay offline
turns it on, for this process alone and for good.
"""

from __future__ import annotations

from mpma.errors import UserError

_refused = False


class OfflineError(UserError):
    """Something would leave the cluster of a program that was told to stay offline."""


def refuse_remote() -> None:
    """From here on `check_place` refuses every remote place in this process."""
    global _refused
    _refused = True


def is_remote(location: str) -> bool:
    """Whether a place is an address rather than a path; `file://` is a path.

    Example:
        >>> is_remote("s3://bucket/set"), is_remote("file:///data/set"), is_remote("data/set")
        (True, False, False)
    """
    scheme, separator, _ = location.partition("://")
    return bool(separator) and scheme.lower() != "file"


def check_place(location: str, shown: str) -> None:
    """Raises `OfflineError` naming the place as `shown` where it is remote and that is refused."""
    if _refused and is_remote(location):
        raise remote_refused(shown)


def remote_refused(shown: str) -> OfflineError:
    """The one line about a remote place."""
    return OfflineError(
        f"{shown}: a remote place, and --offline refuses every connection that leaves the cluster",
        "copy it to a disk that this cluster has, or leave --offline out",
    )
