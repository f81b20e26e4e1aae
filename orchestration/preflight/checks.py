"""Judgements of facts: pure functions, so that each can be tried without a cluster.

Decision: machines that are alike are told in one line, whatever their number; a line names the machines
that differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from orchestration.preflight.facts import NodeFacts
from orchestration.preflight.findings import Finding, failure, ok, warning
from orchestration.ray_environment import NODE

LEAST_DISK_BYTES: Final = 5 * 2**30
LEAST_MEMORY_BYTES: Final = 2 * 2**30
LEAST_OBJECT_STORE_BYTES: Final = 200 * 2**20
"""What the streams of a worker or two hold in Ray's object store."""
LEAST_OPEN_FILES: Final = 4096
MOST_CLOCK_SECONDS: Final = 5.0
SHOWN_NODES: Final = 3


def versions(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """The same versions on all nodes."""
    findings = []
    for package in nodes[0].packages:
        counts = Counter(node.packages.get(package, "absent") for node in nodes)
        usual = counts.most_common(1)[0][0]
        others = [node for node in nodes if node.packages.get(package, "absent") != usual]
        if others:
            theirs = ", ".join(sorted({node.packages.get(package, "absent") for node in others}))
            findings.append(
                failure(
                    f"version of {package}",
                    f"{usual}, but {theirs} on {_named(others)}",
                    "install the same lock on every node: make install",
                )
            )
    if not findings:
        versions = "  ".join(f"{name} {version}" for name, version in nodes[0].packages.items())
        findings.append(ok("versions", versions))
    return findings


def gpus(nodes: Sequence[NodeFacts], declared: dict[str, float]) -> list[Finding]:
    """As many GPUs in Ray as torch sees; `declared`: GPUs in Ray by the node's address."""
    wrong = [node for node in nodes if int(declared.get(node.address, 0)) > node.gpus]
    if wrong:
        return [
            failure(
                "GPUs",
                f"Ray counts more GPUs than torch sees on {_named(wrong)}",
                "install NVIDIA's driver there, or start the node with its GPUs: ray start --num-gpus=N",
            )
        ]
    unused = [node for node in nodes if node.gpus and not declared.get(node.address)]
    total = sum(declared.values())
    drivers = sorted({node.driver for node in nodes if node.driver})
    findings = [ok("GPUs", f"{total:g} in Ray" + (f", driver {', '.join(drivers)}" if drivers else ""))]
    if unused and not total:
        findings.append(
            warning(
                "GPUs",
                f"torch sees GPUs that Ray does not on {_named(unused)}",
                "ray start --num-gpus=N there",
            )
        )
    return findings


def disk(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Room on the disks of Ray and of the runs."""
    return _least(
        "free disk",
        nodes,
        lambda node: min(node.free_bytes.values(), default=0),
        LEAST_DISK_BYTES,
        lambda node: min(node.free_bytes, key=lambda place: node.free_bytes[place], default="the disk"),
        "make room there, or name another place (--runs, ray start --temp-dir)",
    )


def memory(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Memory for a worker."""
    return _least(
        "memory",
        nodes,
        lambda node: node.memory_bytes,
        LEAST_MEMORY_BYTES,
        lambda node: "",
        "end other programs there",
    )


def open_files(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Files that a process may open."""
    few = [node for node in nodes if node.open_files < LEAST_OPEN_FILES]
    if few:
        return [
            warning(
                "open files",
                f"at most {few[0].open_files} on {_named(few)}",
                "ulimit -n 65536 before ray start",
            )
        ]
    return [ok("open files", f"{min(node.open_files for node in nodes)}")]


def clocks(offsets: dict[str, float]) -> list[Finding]:
    """Clocks that agree; `offsets`: seconds ahead of this machine, by address."""
    off = {address: seconds for address, seconds in offsets.items() if abs(seconds) > MOST_CLOCK_SECONDS}
    if off:
        worst = max(off, key=lambda address: abs(off[address]))
        return [
            failure(
                "clocks",
                f"{off[worst]:+.0f} s on {worst}" + (f" and {len(off) - 1} more" if len(off) > 1 else ""),
                "let the machines ask a time server: timedatectl set-ntp true",
            )
        ]
    widest = max((abs(seconds) for seconds in offsets.values()), default=0.0)
    return [ok("clocks", f"within {widest:.1f} s")]


def environment(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """What every node should have been started with."""
    wanted = {name: value for name, value in NODE.items() if name.startswith(("RAY_health", "RAY_gcs"))}
    without = [
        node for node in nodes if any(node.environment.get(name) != value for name, value in wanted.items())
    ]
    if without:
        return [
            warning(
                "time-outs",
                f"Ray's own on {_named(without)}: a lost node costs a minute and more",
                "start nodes with the variables of cluster.yaml (orchestration/ray_environment.py)",
            )
        ]
    return [ok("time-outs", "a silent node is given up after 16 s")]


def listening(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Ports that strangers could reach."""
    ports = sorted({entry for node in nodes for entry in node.listening})
    if not ports:
        return [ok("listening", "nothing on all interfaces")]
    shown = ", ".join(f"{port} ({kind})" for port, kind in ports[:6]) + (
        " and more" if len(ports) > 6 else ""
    )
    return [
        warning(
            "listening",
            f"on all interfaces: {shown}",
            "the token closes Ray's own ports, not those of metrics: let a firewall admit only the cluster's "
            "network, such as: nft add rule inet filter input tcp dport 1024-65535 ip saddr != NETWORK drop",
        )
    ]


def object_store(bytes_by_node: dict[str, float]) -> list[Finding]:
    """Room for the streams; by the node's address."""
    small = {address: size for address, size in bytes_by_node.items() if size < LEAST_OBJECT_STORE_BYTES}
    if small:
        worst = min(small, key=lambda address: small[address])
        return [
            failure(
                "object store",
                f"{small[worst] / 2**20:.0f} MiB on {worst}",
                f"ray start --object-store-memory={LEAST_OBJECT_STORE_BYTES} or more",
            )
        ]
    return [ok("object store", f"{min(bytes_by_node.values(), default=0) / 2**30:.1f} GiB and more")]


def token(enabled: bool, mode: int | None) -> list[Finding]:
    """The token is asked for, and nobody else reads it."""
    findings = []
    if not enabled:
        findings.append(
            failure(
                "token",
                "this Ray asks for no token: whoever reaches it runs programs on it",
                "make one (docs/cluster/rack.md) and start every node with RAY_AUTH_MODE=token",
            )
        )
    else:
        findings.append(ok("token", "asked for"))
    if mode is not None and mode & 0o077:
        findings.append(
            failure(
                "token file",
                f"mode {mode:04o}: others read it",
                "chmod 600 ~/.ray/auth_token; it is a password",
            )
        )
    return findings


def dashboard(status: int | None) -> list[Finding]:
    """A dashboard that answers; `status` of HTTP, None: nothing there."""
    if status is None:
        return [
            failure(
                "dashboard",
                "there is none: trials that a search stops would keep their workers for ever",
                "pip install 'ray[default]' on the head, and start it with --include-dashboard=true",
            )
        ]
    return [ok("dashboard", "answers")]


def head_without_work(cpus_of_head: float, nodes: int) -> list[Finding]:
    """Training beside the head's processes can starve them."""
    if nodes > 1 and cpus_of_head:
        return [
            warning(
                "head",
                f"has {cpus_of_head:g} CPUs for work",
                "start it with --num-cpus=0 --num-gpus=0: its loss ends all",
            )
        ]
    return [ok("head", "without work" if nodes > 1 else "is all there is")]


def trial_drivers(count: float, workers: int) -> list[Finding]:
    """A place for drivers of trials of several workers."""
    if count:
        return [ok("trial drivers", f"room for {count:g}")]
    told = failure if workers > 1 else warning
    return [
        told(
            "trial drivers",
            "no node has the resource trial_driver, which searches of several-worker trials need",
            "start the head with --resources='{\"trial_driver\": 64}'",
        )
    ]


def _least(
    name: str,
    nodes: Sequence[NodeFacts],
    amount: Callable[[NodeFacts], int],
    least: int,
    where: Callable[[NodeFacts], str],
    remedy: str,
) -> list[Finding]:
    few = [node for node in nodes if amount(node) < least]
    if few:
        worst = min(few, key=amount)
        place = f" at {where(worst)}" if where(worst) else ""
        return [
            failure(
                name,
                f"{amount(worst) / 2**30:.1f} GiB{place} on {_named(few)}, {least / 2**30:g} are needed",
                remedy,
            )
        ]
    return [ok(name, f"{min(map(amount, nodes)) / 2**30:.0f} GiB and more")]


def _named(nodes: Iterable[Any]) -> str:
    addresses = [node.address for node in nodes]
    more = f" and {len(addresses) - SHOWN_NODES} more" if len(addresses) > SHOWN_NODES else ""
    return ", ".join(addresses[:SHOWN_NODES]) + more
