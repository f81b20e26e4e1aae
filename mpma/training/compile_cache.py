"""Where compiled code is kept between programs, so that a second start does not compile anew.

Decisions: torch's own place is a folder of a known name below the place for temporary files, which another
user could make first, and what lies in it is executed; this one lies in the user's home, is of mode 0700, and
is taken only where it is a real directory of this user's. TORCHINDUCTOR_CACHE_DIR, where it is set, wins.
"""

from __future__ import annotations

import os
from pathlib import Path

from mpma.errors import UserError

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code() -> str:
    """Name the folder to torch, made first where it is not there, and return it. Call before torch.compile.

    Raises `UserError` where it cannot be made, or somebody else has it.
    """
    if os.environ.get(VARIABLE):
        return os.environ[VARIABLE]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "mpma" / "compile"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        # Opened once, without following a link, so that what is checked is what is closed to others.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise UserError(
            f"{folder}: no directory of this user's ({error.strerror})",
            f"name another place for compiled code in {VARIABLE}, or use training.compile=false",
        ) from None
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise UserError(f"{folder}: belongs to another user", f"name another place in {VARIABLE}")
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    os.environ[VARIABLE] = str(folder)
    return str(folder)
