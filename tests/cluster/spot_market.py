"""A cloud for Ray's autoscaler whose machines are Ray nodes at further addresses of this one, and which has
no spot machines while a file `refuse` lies in its folder.

Loaded by the autoscaler on the head: `provider: {type: external, module: spot_market.Market, folder, head}`.
Every request is written to the file `asked` there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

ADDRESS = "10.78.0.{}"
HEAD = ADDRESS.format(1)


class Market(NodeProvider):
    """The cloud as the autoscaler sees it."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tags = {
            HEAD: {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_USER_NODE_TYPE: "head",
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
        }
        self._made = 1

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        return [
            node
            for node, tags in self._tags.items()
            if all(tags.get(key) == value for key, value in tag_filters.items())
        ]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags[node_id]

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id].update(tags)

    def internal_ip(self, node_id: str) -> str:
        return node_id

    external_ip = internal_ip

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        with (self._folder / "asked").open("a") as file:
            file.write(f"{tags[TAG_RAY_USER_NODE_TYPE]}\n" * count)
        if "InstanceMarketOptions" in node_config and (self._folder / "refuse").exists():
            raise NodeLaunchException("InsufficientInstanceCapacity", "none left", None)
        for _ in range(count):
            with self._lock:
                self._made += 1
                address = ADDRESS.format(self._made)
                self._tags[address] = {**tags, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
            start = [str(Path(sys.executable).with_name("ray")), "start", f"--address={HEAD}:6379", "--block"]
            amounts = [f"--num-cpus={int(resources['CPU'])}", "--object-store-memory=250000000"]
            self._processes[address] = subprocess.Popen(
                [*start, f"--node-ip-address={address}", *amounts],
                stdout=(self._folder / f"{address}.log").open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(os.environ),
            )

    def terminate_node(self, node_id: str) -> None:
        self._tags.pop(node_id)
        os.killpg(self._processes.pop(node_id).pid, signal.SIGTERM)
