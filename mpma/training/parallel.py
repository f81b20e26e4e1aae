"""How several workers share one model: DDP, or FSDP2 as a thin option.

Decisions: gradients are averaged over workers by DistributedDataParallel, which need not look for unused
parameters, since the model freezes what no loss reaches and gives the rest a gradient at every step.
FSDP2 shards the transformer blocks and the root; checkpoints hold whole tensors either way, so a run
may change its number of workers. FSDP2 is meant for GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mpma.config import ExperimentConfig
from mpma.errors import UserError


def wrap(model: nn.Module, config: ExperimentConfig, device: torch.device, world: int) -> nn.Module:
    """The module to call in a training step. Raises `UserError` where FSDP2 has no GPU."""
    if config.training.parallel == "fsdp2":
        if device.type != "cuda":
            raise UserError("training.parallel fsdp2: needs GPUs; use ddp on CPU")
        return _fully_sharded(model)
    if world == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )


def _fully_sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    blocks = [module for module in model.modules() if type(module).__name__ in ("Block", "BertLayer")]
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    # Validation and feature caching call these instead of forward; without it they would see shards.
    for name in ("embed_images", "embed_reports", "report_nll", "reconstruct", "align_features"):
        register_fsdp_forward_method(model, name)
    return model


def unwrap(module: nn.Module) -> Any:
    """The model behind DDP; FSDP2 changes the model in place and has no shell."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (a collective call there); any other tensor as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather is not None else tensor


def like_shard(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` placed and, where the parameter is a sharded tensor, cut as the parameter is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value.clone()


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Whole parameters and buffers by name. Every rank must call it."""
    return {name: whole(value.detach()) for name, value in model.state_dict().items()}


def average_over_workers(values: Tensor, world: int) -> Tensor:
    """The mean of a small tensor over the workers, in float32."""
    if world > 1:
        torch.distributed.all_reduce(values)
        values = values / world
    return values


def load_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a model that may be sharded; names and shapes were checked before."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(like_shard(tensors[name], value))
