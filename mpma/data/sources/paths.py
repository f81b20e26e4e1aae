"""Paths that an archive's tables name, kept inside the archive.

Decisions: a path is judged twice, by its letters when it is listed (cheap, no file is touched) and by
where it really leads, links followed, when it is read; only a regular file is opened, so that a pipe
or a device behind a name never makes a reader wait.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path, PurePosixPath
from typing import Final

from mpma.data.sources.contract import UnreadableImage

_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_ADDRESS: Final = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+:/")


def lexically_inside(path: str) -> bool:
    """Whether a relative path stays below its root by its letters alone.

    Absolute paths, addresses, drive letters, `..` beyond the root and control characters do not.
    """
    if not path or _CONTROL.search(path):
        return False
    if _ADDRESS.match(path) or re.match(r"^[A-Za-z]:[\\/]", path):
        return False
    plain = PurePosixPath(forward(path))
    if plain.is_absolute():
        return False
    depth = 0
    for part in plain.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return depth > 0


def forward(path: str) -> str:
    """A path written on Windows, with forward slashes."""
    return path.replace("\\", "/")


def read_inside(root: Path, path: str, max_bytes: int) -> bytes:
    """The bytes of a regular file below `root`.

    Raises:
        FileNotFoundError: where there is none.
        UnreadableImage: `outside_root` where it leads out of the root, `unreadable_image` where it is
            no regular file, `too_large` above `max_bytes`.
    """
    target = resolved_inside(root, path)
    status = target.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage("unreadable_image", "not a regular file")
    if status.st_size > max_bytes:
        raise UnreadableImage("too_large", f"{status.st_size} bytes, the limit is {max_bytes}")
    return target.read_bytes()


def resolved_inside(root: Path, path: str) -> Path:
    """Where a relative path really leads, links followed; nothing is opened.

    Raises `UnreadableImage` with `outside_root` where that is not below `root`, `unreadable_image` where
    links lead in circles.
    """
    if not lexically_inside(path):
        raise UnreadableImage("outside_root", "the path leads out of the root")
    base = root.resolve()
    try:
        target = (base / forward(path)).resolve()
    except RuntimeError:  # how a loop of links is told before Python 3.13
        raise UnreadableImage("unreadable_image", "a loop of links") from None
    if not target.is_relative_to(base):
        raise UnreadableImage("outside_root", "a link leads out of the root")
    return target
