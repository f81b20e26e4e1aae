"""How the workers of a group find one another's network addresses.

Decision: gloo and NCCL each choose an interface by themselves, gloo by the address that the host's name
resolves to, which on many machines is loopback, and on machines with several networks another than Ray's.
Each worker names the interface that has the address under which Ray knows its node, before the process
group is made. What a user has set stays.
"""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface that has an address; None where none has."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    return None


def use_rays_interface() -> None:
    """Called in a worker: let collectives go where Ray's own connections go."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        for variable in _VARIABLES:
            os.environ.setdefault(variable, name)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_rays_interface)
        super().on_start(worker_group, backend_config)


class ProcessGroupConfig(TorchConfig):
    """`TorchConfig` whose workers use the interface of Ray's address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend
