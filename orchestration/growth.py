"""What a cluster can become: the machines that its autoscaler may add.

Decisions
- A fresh cluster of `ray up` is a head without CPUs and nothing else; machines come when something waits
  for them. A program that planned with what there is would refuse to begin, and nothing would ever wait.
- Ray tells drivers what there is. It has a place for what there can be (`get_cluster_config`), which neither
  `ray up` nor either autoscaler fills. So the file is read that the autoscaler of this very cluster was
  started with: its command line names both. That can be done on the head alone, which is where programs run
  on such a cluster (`ray attach`, `ray job submit`); elsewhere only what there is counts.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml


def most_of_each(config: Mapping[str, Any]) -> dict[str, float]:
    """The most of every resource that workers of a cluster file can have together, each by itself.

    `config` is the file as Ray completed it. Kinds of machines bound one another by `max_workers`: with room
    for three machines, those three count that have the most. The head is not among them.

    Example:
        >>> kinds = {"head": {"resources": {}}, "small": {"resources": {"CPU": 4}, "max_workers": 2}}
        >>> most_of_each({"available_node_types": kinds, "head_node_type": "head", "max_workers": 9})
        {'CPU': 8.0}
    """
    together = int(config.get("max_workers", 0))
    each: dict[str, list[float]] = {}
    for name, kind in config.get("available_node_types", {}).items():
        if name == config.get("head_node_type"):
            continue
        machines = min(together, int(kind.get("max_workers", together)))
        for resource, amount in (kind.get("resources") or {}).items():
            each.setdefault(resource, []).extend([float(amount)] * machines)
    return {resource: sum(heapq.nlargest(together, amounts)) for resource, amounts in each.items()}


def possible(gcs_address: str) -> dict[str, float]:
    """The most of every resource that the cluster's autoscaler may add; empty where none runs here."""
    path = _file_of_autoscaler(gcs_address)
    if path is None:
        return {}
    with contextlib.suppress(OSError, yaml.YAMLError):
        config = yaml.safe_load(path.read_text())
        if isinstance(config, Mapping):
            return most_of_each(config)
    return {}


def _file_of_autoscaler(gcs_address: str) -> Path | None:
    wanted = f"--gcs-address={gcs_address}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if wanted in words and any(word.endswith("monitor.py") for word in words):
                for word in words:
                    if word.startswith("--autoscaling-config="):
                        return Path(word.partition("=")[2]).expanduser()
    return None
