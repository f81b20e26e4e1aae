"""Collects the facts of this machine or of every node of a cluster, and has them judged.

Decisions: every node is asked at once by a task that takes none of its CPUs, each answer is waited for a
bounded time, and a node that does not answer is a finding; clocks are compared at the middle of question
and answer, so that neither the network nor the start of a process counts.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mpma.errors import UserError
from mpma.training.config import TrainingConfig
from orchestration import cluster
from orchestration.preflight import checks
from orchestration.preflight.facts import NodeFacts, collect, own_address, token_file
from orchestration.preflight.findings import Finding, failure, ok

ANSWER_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Wanted:
    """What a run would need; None: not asked about."""

    training: TrainingConfig | None = None
    counts: tuple[int, ...] = ()
    places: tuple[str, ...] = ()
    """Of runs and data, which every node must see."""


def of_this_machine(wanted: Wanted, cpus: int | None) -> list[Finding]:
    """Without a cluster: what a private Ray on this machine would meet."""
    facts = collect(own_address(), wanted.places)
    findings = [
        *checks.versions([facts]),
        *checks.gpus([facts], {facts.address: float(facts.gpus)}),
        *checks.disk([facts]),
        *checks.memory([facts]),
        *checks.open_files([facts]),
        *_dashboard_parts(),
        *_own_token(facts),
    ]
    if facts.shared_memory_bytes < checks.LEAST_OBJECT_STORE_BYTES:
        findings += checks.object_store({facts.address: facts.shared_memory_bytes})
    return findings + _layout(wanted, cluster.this_machine(cpus))


def of_cluster(wanted: Wanted, connection: cluster.Connection) -> list[Finding]:
    """Of every node of the Ray that is connected."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    facts, offsets, silent = _ask(nodes, wanted.places)
    findings = [
        failure("nodes", f"{address} does not answer ({reason})", "see ray status; restart Ray on that node")
        for address, reason in silent.items()
    ]
    if not silent:
        findings.append(ok("nodes", f"{len(nodes)} answer"))
    if facts:
        declared = {node["NodeManagerAddress"]: node["Resources"].get("GPU", 0.0) for node in nodes}
        stores = {
            node["NodeManagerAddress"]: node["Resources"].get("object_store_memory", 0.0) for node in nodes
        }
        head = next((node for node in nodes if "node:__internal_head__" in node["Resources"]), nodes[0])
        workers = 1 if wanted.training is None else wanted.training.most_workers
        findings += [
            *checks.versions(facts),
            *checks.gpus(facts, declared),
            *checks.disk(facts),
            *checks.memory(facts),
            *checks.open_files(facts),
            *checks.clocks(offsets),
            *checks.environment(facts),
            *checks.listening(facts),
            *checks.object_store(stores),
            *checks.head_without_work(head["Resources"].get("CPU", 0.0), len(nodes)),
            *checks.trial_drivers(connection.custom.get("trial_driver", 0.0), workers),
        ]
    findings += checks.dashboard(_status(connection.dashboard_url))
    token = token_file()
    mode = token.stat().st_mode & 0o777 if token.is_file() else None
    findings += checks.token(_asks_for_token(connection), mode)
    findings += _places(wanted.places)
    return findings + _layout(wanted, connection.resources)


REFUSED: Final = ("nodes", "version of", "GPUs", "clocks", "object store", "dashboard", "storage", "room")
"""What a program does not begin with; anything else that the doctor calls a failure is told, and is the
user's to judge."""


def before_work(wanted: Wanted, connection: cluster.Connection, note: Callable[[str], None]) -> None:
    """In a program that is about to work on a cluster: the doctor in short. Raises `UserError`.

    Nothing on a private Ray, whose machine is this one. `note` is told what is not refused.
    """
    if connection.resources.local:
        return
    for finding in of_cluster(wanted, connection):
        if finding.level == "failure" and finding.name.startswith(REFUSED):
            raise UserError(f"{finding.name}: {finding.found}", finding.remedy)
        if finding.level == "failure":
            note(f"{finding.name}: {finding.found} (python -m orchestration.doctor says what to do)")


def _ask(
    nodes: Sequence[dict[str, Any]], places: tuple[str, ...]
) -> tuple[list[NodeFacts], dict[str, float], dict[str, str]]:
    """(facts, seconds that each clock is ahead, why a node gave none), by address."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(collect)

    def ask(node: dict[str, Any]) -> Any:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return task.options(scheduling_strategy=here).remote(node["NodeManagerAddress"], places)

    facts: list[NodeFacts] = []
    silent: dict[str, str] = {}
    asked = {ask(node): node["NodeManagerAddress"] for node in nodes}
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    silent |= {asked[answer]: f"for {ANSWER_SECONDS:.0f} s" for answer in late}
    for answer in done:
        try:
            facts.append(ray.get(answer))
        except Exception as error:
            silent[asked[answer]] = type(error).__name__
    # Now that each has a process at hand, the clocks: how long an answer takes bounds what they can be off
    # by chance.
    offsets = {}
    clock = ray.remote(num_cpus=0, max_retries=0)(_now)
    for node in nodes:
        address = node["NodeManagerAddress"]
        if address in silent:
            continue
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        begun = time.time()
        try:
            theirs = float(ray.get(clock.options(scheduling_strategy=here).remote(), timeout=ANSWER_SECONDS))
        except Exception as error:
            silent[address] = type(error).__name__
            continue
        offsets[address] = theirs - (begun + time.time()) / 2
    return facts, offsets, silent


def _now() -> float:
    """On a node: seconds since the epoch."""
    return time.time()


def _places(places: tuple[str, ...]) -> list[Finding]:
    from orchestration.shared_storage import unseen

    findings = []
    for place in places:
        try:
            missing = unseen([place])
        except (OSError, UserError) as error:
            reason = error.message if isinstance(error, UserError) else error.strerror or type(error).__name__
            findings.append(failure("storage", f"{place}: {reason}", "name a place that this user may write"))
            continue
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            findings.append(
                failure(
                    "storage",
                    f"{place}: {missing[0].reason} ({missing[0].node}{more})",
                    "use a folder that every node has under this path, or an address such as s3://bucket/runs",
                )
            )
        else:
            findings.append(ok("storage", f"{place} is written here and read on every node"))
    return findings


def _layout(wanted: Wanted, resources: cluster.Resources) -> list[Finding]:
    if wanted.training is None:
        return []
    try:
        layout = cluster.plan_layout(wanted.training, resources, wanted.counts or None)
    except UserError as error:
        return [failure("room", error.message, error.hint or "")]
    return [ok("room", f"{layout.workers} of {wanted.training.most_workers} workers, {layout.device}")]


def _status(url: str | None) -> int | None:
    if not url:
        return None
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _asks_for_token(connection: cluster.Connection) -> bool:
    """Whether a question without the token is refused."""
    if not connection.dashboard_url:
        import os

        return os.environ.get("RAY_AUTH_MODE") == "token"
    return _status(f"{connection.dashboard_url}/api/jobs/") in (401, 403)


def _dashboard_parts() -> list[Finding]:
    from importlib.util import find_spec

    missing = [name for name in ("aiohttp", "opencensus", "prometheus_client") if find_spec(name) is None]
    return checks.dashboard(None if missing else 200)


def _own_token(facts: NodeFacts) -> list[Finding]:
    # A private Ray turns its token on by itself.
    return checks.token(True, facts.token_mode)
