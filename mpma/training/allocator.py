"""Memory that a training step frees stays with the process, for the next step to take.

Decisions:
- on a CPU, glibc gives large blocks back to the system as soon as they are freed, and every step takes
  them anew: at MRM's sizes 110,000 to 190,000 page faults a step, in which the kernel clears some 500 MB.
  Kept, they cost none, and the step takes 7 % less time (`python -m benchmarks.step`);
- the process then stays at its peak, which is no higher than before, until `give_back_freed_memory` is
  called: between steps, where something else took much memory for a moment (validation, a checkpoint);
- this is a setting of the process, so programs choose it at their start; nothing here runs at import.
  A user's own MALLOC_* variables or glibc tunables go first.

Preconditions: Linux with glibc. Elsewhere (musl, macOS) and with another allocator preloaded nothing
changes. Allocations of threads come from arenas of at most 64 MB a piece, so a step in another thread
than the main one still pays for its few larger blocks (about 12,000 faults).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any, Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""Numbers of glibc's malloc.h."""
_LARGEST_KEPT_BYTES: Final = 2**30
"""Single blocks above it go back at once: no tensor of a step is as large, a checkpoint's bytes may be."""
_NEVER_TRIMMED_BELOW: Final = 2**31 - 1
"""Free bytes at the heap's end below which glibc gives nothing back by itself; the largest it takes."""
_USERS_OWN: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Keep what is freed for this process; whether it could be arranged. Safe to call again."""
    library = _glibc()
    if library is None or any(name in os.environ for name in _USERS_OWN):
        return False
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    kept = library.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
    return bool(kept and library.mallopt(_TRIM_THRESHOLD, _NEVER_TRIMMED_BELOW))


def give_back_freed_memory() -> bool:
    """Give free pages back to the system now, whatever was kept; whether there were any."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


@cache
def _glibc() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
