"""--offline: every connection that leaves the cluster is refused, in this process and in Ray's workers.

Decisions: an audit hook, which the interpreter asks before every connection, datagram and look-up of a
name that goes through its sockets, whichever library makes it, and which nothing can take off again;
`connect` and its like are wrapped as well, since they would look up a name before the hook is asked. Let
through are this machine's own addresses and those of the nodes that Ray knows, asked anew when another
one is met, since a cluster may grow. Workers install the guard when they start, before any task. What is
refused raises `OfflineError`, which is no OSError on purpose: a library would take that for a bad
connection and try again. Remote places are refused before Arrow, whose sockets are not Python's, sees
them. Ray's own servers are C++ and programs of their own: what they do is not seen here, and
docs/confidentiality.md says how the system can be made to refuse it.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import ipaddress
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mpma.data import remote
from mpma.data.remote import OfflineError

ENVIRONMENT: Final = {
    # Read by the libraries when they are imported: files that are here already are used, no other is fetched.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_INTERNET: Final = (socket.AF_INET, socket.AF_INET6)
_WITHIN_MACHINE: Final = (getattr(socket, "AF_UNIX", None), getattr(socket, "AF_NETLINK", None))

_allowed: set[str] | None = None
"""Names and addresses that belong to the cluster; None: this process is not guarded."""


def begin(address: str | None, places: Iterable[str | None] = ()) -> None:
    """Put this process, and the workers of the Ray that it connects to, offline for good.

    Args:
        address: of the Ray cluster, whose node it may connect to; None: a private one on this machine.
        places: paths and addresses from the command line.

    Raises `OfflineError` where one of the places is remote.
    """
    from mpma.data.storage import shown

    for place in places:
        if place is not None and remote.is_remote(place):
            raise remote.remote_refused(shown(place))
    guard([] if address is None else [_host(address)])


def guard(hosts: Iterable[str]) -> None:
    """Guard this process; `hosts` are let through beside this machine and the nodes that Ray knows."""
    global _allowed
    installed = _allowed is not None
    _allowed = {*(_allowed or ()), *hosts, *_this_machine()}
    os.environ.update(ENVIRONMENT)
    remote.refuse_remote()
    if not installed:
        sys.addaudithook(_watch)
        for name in ("connect", "connect_ex", "sendto"):
            _wrap(name)


def worker_settings() -> dict[str, Any]:
    """What Ray must do in every worker process of this program, as a `runtime_env`; empty without a guard."""
    if _allowed is None:
        return {}
    hosts, root = sorted(_allowed - _this_machine()), str(Path(__file__).resolve().parents[1])

    def offline_guard() -> None:
        import sys

        # A worker starts before it knows where the driver imports from.
        if root not in sys.path:
            sys.path.insert(0, root)
        from orchestration import offline

        offline.guard(hosts)

    return {"worker_process_setup_hook": offline_guard, "env_vars": dict(ENVIRONMENT)}


def _host(address: str) -> str:
    """`10.0.0.1` of `10.0.0.1:6379`, `ray://10.0.0.1:10001` or `[::1]:6379`."""
    return address.rpartition("://")[2].rpartition(":")[0].strip("[]") or address


def _this_machine() -> set[str]:
    import psutil

    found = {"localhost", socket.gethostname()}
    for addresses in psutil.net_if_addrs().values():
        found.update(entry.address.partition("%")[0] for entry in addresses if entry.family in _INTERNET)
    return found


def _nodes() -> set[str]:
    """Addresses and names of the cluster's nodes; empty where no Ray is connected."""
    ray = sys.modules.get("ray")
    if ray is None or not getattr(ray, "is_initialized", lambda: False)():
        return set()
    return {str(node[key]) for node in ray.nodes() for key in ("NodeManagerAddress", "NodeManagerHostname")}


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        _check_address(arguments[0].family, arguments[1])
    elif event == "socket.getaddrinfo":
        _check(arguments[0], arguments[1])
    elif event in ("socket.gethostbyname", "socket.gethostbyaddr"):
        _check(arguments[0], None)
    elif event == "socket.getnameinfo":
        _check(arguments[0][0], arguments[0][1])


def _wrap(name: str) -> None:
    plain = getattr(_socket.socket, name)

    @functools.wraps(plain)
    def guarded(self: socket.socket, *arguments: Any) -> Any:
        if arguments:
            _check_address(self.family, arguments[-1])
        return plain(self, *arguments)

    setattr(socket.socket, name, guarded)


def _check_address(family: int, address: Any) -> None:
    """Raises `OfflineError` where a socket's address is outside the cluster. `sendmsg` may have none."""
    if address is None or family in _WITHIN_MACHINE:
        return
    if family in _INTERNET and isinstance(address, tuple) and len(address) >= 2:
        _check(address[0], address[1])
    elif family not in _INTERNET:
        raise OfflineError(f"--offline: a socket of family {int(family)} was refused")


def _check(host: Any, port: Any) -> None:
    """Raises `OfflineError` naming host and port where the host is neither this machine nor a node."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else host
    if not name or not isinstance(name, str) or _is_near(name):
        return
    with contextlib.suppress(Exception):
        # Whatever keeps Ray from answering, an unknown host is not let through.
        _let_through(_nodes())
    if not _is_near(name):
        where = name if port is None else f"{name}, port {port}"
        raise OfflineError(
            f"--offline: a connection to {where} would leave the cluster and was refused",
            "leave --offline out, or put what is wanted there on a disk that this cluster has",
        )


def _let_through(hosts: set[str]) -> None:
    assert _allowed is not None
    _allowed.update(hosts)


def _is_near(name: str) -> bool:
    allowed = _allowed or set()
    if name in allowed:
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_loopback or mapped.is_unspecified or str(mapped) in allowed
