"""Whether every node of a cluster sees the places that a run reads and writes.

Decision: what nobody sees until the first worker starts costs minutes and ends in a message about a missing
file, so a program that works on a cluster lays a small file into each place and has it read on every node,
all at once and without taking any of their CPUs, before it begins.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mpma.data.storage import open_storage

ANSWER_SECONDS: Final = 60.0
"""How long a node may take to start the process that looks."""


@dataclass(frozen=True)
class Unseen:
    """A place that a node does not see."""

    place: str
    node: str
    """The node's address."""
    reason: str


def unseen(places: Sequence[str], addresses: Sequence[str] | None = None) -> list[Unseen]:
    """Places (paths or URIs that this process can write) that some node of the connected Ray cannot read.

    `addresses`: of the nodes to ask; None: all that are alive. Leaves nothing behind.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    marks = {place: f".seen-{secrets.token_hex(8)}" for place in places}
    for place, mark in marks.items():
        open_storage(place).write(mark, mark.encode())
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if addresses is not None:
            nodes = [node for node in nodes if node["NodeManagerAddress"] in addresses]
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        asked: dict[Any, dict[str, Any]] = {}
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=here).remote(marks)] = node
        found = []
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        for answer in [*done, *late]:
            address = asked[answer]["NodeManagerAddress"]
            if answer in late:
                found += [Unseen(place, address, "the node did not answer") for place in places]
                continue
            try:
                missing = ray.get(answer)
            except Exception as error:
                missing = dict.fromkeys(places, f"the node cannot look ({type(error).__name__})")
            found += [Unseen(place, address, reason) for place, reason in missing.items()]
        return found
    finally:
        for place, mark in marks.items():
            open_storage(place).remove(mark)


def _look(marks: dict[str, str]) -> dict[str, str]:
    """On a node: the places whose file is not there, with the reason."""
    missing = {}
    for place, mark in marks.items():
        try:
            if open_storage(place).read(mark) != mark.encode():
                missing[place] = "another folder has this name"
        except FileNotFoundError:
            missing[place] = "not the same folder there"
        except Exception as error:
            missing[place] = f"cannot be read there ({type(error).__name__})"
    return missing
