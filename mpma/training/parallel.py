"""How several workers share one model: DDP, or FSDP2 where the model does not fit a GPU.

Decisions:
- gradients are averaged by DistributedDataParallel while the backward pass still runs. It need not look for
  unused parameters, since the model freezes what no loss reaches and gives the rest a gradient at every step.
  Its graph is not declared static: the steps with the full image at the end of a run have another one;
- buffers (positions, grey mean and deviation) are the same on every worker and never change, so they are not
  sent around before each forward pass, as DDP would;
- gradients travel as fp32. bf16 would halve the bytes and round every worker's gradient to three digits;
- FSDP2 shards each block of the two encoders, and all the rest with the root. The image decoder's blocks
  stay with the root because steps without a hidden patch give their parameters a gradient without calling
  them. In bf16 the encoders' blocks are gathered as bf16, what autocast would make of them anyway; the rest
  (norms of projections, memory, temperature) stays fp32, and gradients are reduced in fp32;
- checkpoints hold whole tensors either way, so a run may change its number of workers and how they share.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mpma.config import ExperimentConfig
from mpma.model.pretraining import PretrainingModel

# Newer releases warn of the older name.
_BUFFERS_KEYWORD = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def wrap(
    model: PretrainingModel, config: ExperimentConfig, device: torch.device, world: int, precision: str
) -> nn.Module:
    """The module to call in a training step; `model` itself where there is one worker."""
    if world == 1:
        return model
    if config.training.parallel == "fsdp2":
        return _fully_sharded(model, device, precision)
    without_buffers: dict[str, Any] = {_BUFFERS_KEYWORD: False}
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **without_buffers,
    )


def _fully_sharded(model: PretrainingModel, device: torch.device, precision: str) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # Named by its device: without it a machine with GPUs would shard over them whatever the run uses.
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if precision == "bf16" and device.type == "cuda":
        # On CPU layer norms refuse bf16 weights beside fp32 values. Inputs keep their type: it is autocast
        # that says which parts of a block are bf16 and which fp32.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in (*model.image_encoder.vit.blocks, *model.report_encoder.bert.encoder.layer):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh)
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
