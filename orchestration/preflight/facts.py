"""What a machine is like, as plain values: collected on every node by a task of its own, judged elsewhere.

Decisions: collecting never fails as a whole (what cannot be told is None); nothing of the data is read;
figures are those that a run depends on. The clock is compared by the caller, who knows when it asked and
when the answer came.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from orchestration.ray_environment import NODE

PACKAGES = ("ray", "torch", "timm", "transformers", "pyarrow", "numpy")


@dataclass(frozen=True)
class NodeFacts:
    """One machine."""

    address: str
    packages: dict[str, str]
    """Versions of Python and of the packages that a run's numbers depend on."""
    gpus: int
    """GPUs that torch sees."""
    driver: str | None
    """Version of NVIDIA's driver."""
    free_bytes: dict[str, int]
    """Free disk by place: Ray's temporary folder, and the places that were asked about."""
    memory_bytes: int
    """Memory that is available."""
    shared_memory_bytes: int
    """Free part of /dev/shm, where the object store lies."""
    open_files: int
    """Most files that a process may open."""
    clock: float
    """Seconds since the epoch, when it was asked."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of `ray_environment.NODE`, what the node's processes have."""
    listening: tuple[tuple[int, str], ...] = ()
    """(port, kind of process) of this user's Ray processes that listen on all interfaces."""
    token_mode: int | None = None
    """Permission bits of the token's file; None: there is none."""


def collect(address: str, places: tuple[str, ...] = ()) -> NodeFacts:
    """The facts of the machine that this runs on; `places` are paths whose disk matters."""
    import psutil

    temporary = os.environ.get("RAY_TMPDIR", "/tmp")  # noqa: S108
    token = token_file()
    return NodeFacts(
        address=address,
        packages={
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: _version(name) for name in PACKAGES},
        },
        gpus=_gpus(),
        driver=_driver(),
        free_bytes={place: free for place in (temporary, *places) if (free := _free(place)) is not None},
        memory_bytes=psutil.virtual_memory().available,
        shared_memory_bytes=_free("/dev/shm") or 0,  # noqa: S108
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        environment={name: os.environ[name] for name in NODE if name in os.environ},
        listening=tuple(_listening()),
        token_mode=stat.S_IMODE(token.stat().st_mode) if token.is_file() else None,
        clock=time.time(),
    )


def token_file() -> Path:
    """Where Ray looks for this user's token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _gpus() -> int:
    from orchestration.cluster import this_machine

    return int(this_machine().gpus)


def _driver() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return next(word for word in words if word.replace(".", "").isdigit() and "." in word)
    except (OSError, StopIteration):
        return None


def _free(place: str) -> int | None:
    """Free bytes on the disk of a path, or of its nearest folder that exists."""
    if "://" in place:
        return None
    path = Path(place).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _listening() -> set[tuple[int, str]]:
    import psutil

    found = set()
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        command = " ".join(process.info["cmdline"] or [])
        kind = next((kind for kind in _KINDS if kind in command), None)
        if kind is None or process.info["uids"].real != os.getuid():
            continue
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        for one in connections:
            if one.status == psutil.CONN_LISTEN and one.laddr.ip in ("0.0.0.0", "::"):  # noqa: S104
                found.add((one.laddr.port, kind))
    return found


_KINDS = ("gcs_server", "raylet", "dashboard", "DashboardAgent", "RuntimeEnvAgent", "client.server", "ray::")


def own_address() -> str:
    """This machine's name, for a line about it."""
    return socket.gethostname()
