"""Where a private Ray keeps its sessions: a folder that only this user can enter.

Decisions: Ray makes its own folders open to every user of the machine, and its logs, sockets and spilled
objects lie in them; so they lie below a folder of mode 0700, `mpma-UID` in the place for temporary files,
which is taken only where it is a real directory of this user's: another user could have made it first, or
a link. Sessions of programs that ended are removed after a week, spilled objects that a kill left behind
among them. A Unix socket's path has at most 107 bytes, so a place whose name is too long is refused.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Final

from mpma.errors import UserError

KEPT_DAYS: Final = 7
"""Days after which what an ended program's Ray left behind is removed."""

_LONGEST_SOCKET_PATH: Final = 107
_SOCKET_BELOW: Final = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_SESSION: Final = re.compile(r"session_[\d-]+_[\d-]+_\d+_(\d+)")


def session_folder(place: str) -> str:
    """The folder for Ray's sessions below `place`, made first where it is not there.

    Raises `UserError` where somebody else has it, or its name is too long for sockets.
    """
    folder = Path(place).absolute() / f"mpma-{os.getuid()}"
    if len(os.fsencode(folder)) + _SOCKET_BELOW > _LONGEST_SOCKET_PATH:
        raise UserError(
            f"{place}: too long a name for the sockets of a private Ray below it",
            "name a shorter place for temporary files in TMPDIR, or in RAY_TMPDIR for Ray alone",
        )
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        # Opened once, without following a link, so that what is checked is what is closed to others.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(
            f"{folder}: no directory of this user's ({error.strerror})",
            "remove it, or name another place for temporary files in TMPDIR",
        ) from None
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise UserError(
                f"{folder}: belongs to another user",
                "name another place for temporary files in TMPDIR, and tell who looks after this machine",
            )
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    sessions = folder / "ray"
    _forget_ended(sessions)
    return str(sessions)


def _forget_ended(sessions: Path) -> None:
    oldest = time.time() - KEPT_DAYS * 86_400
    for session in sessions.glob("session_*"):
        found = _SESSION.fullmatch(session.name)
        if found is None or session.is_symlink() or _lives(int(found[1])):
            continue
        if session.stat().st_mtime < oldest:
            shutil.rmtree(session, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
