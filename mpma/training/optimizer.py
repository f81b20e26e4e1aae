"""AdamW with decay where it belongs, and its state by parameter name.

Decisions: no decay on norms, biases, positions, memory and temperature (the model names them); the
state is a flat mapping of tensors by parameter name, so that a checkpoint needs no pickle and does
not depend on the order of parameters or on how the model is sharded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from mpma.errors import JobError
from mpma.training.config import TrainingConfig
from mpma.training.parallel import like_shard, whole

_MOMENTS = ("exp_avg", "exp_avg_sq")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    no_decay: Collection[str],
    config: TrainingConfig,
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in two groups; the learning rate is set at every step."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (plain if name in no_decay else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate_per_256,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """The optimizer's state as `moment/parameter name` -> tensor; parameters never stepped are absent."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_parameters:
        state = optimizer.state.get(parameter)
        if state:
            for moment in (*_MOMENTS, "step"):
                tensors[f"{moment}/{name}"] = whole(state[moment].detach())
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises `JobError` where a moment is missing or does not have its parameter's shape.
    """
    expected = set()
    for name, parameter in named_parameters:
        if f"step/{name}" not in tensors:
            continue
        state: dict[str, Tensor] = {}
        for moment in _MOMENTS:
            key = f"{moment}/{name}"
            if key not in tensors or tensors[key].shape != parameter.shape:
                raise JobError(f"the checkpoint's optimizer state does not fit the model at {name}")
            state[moment] = like_shard(tensors[key], parameter.detach())
            expected.add(key)
        step = tensors[f"step/{name}"].to(torch.float32).clone()
        # Fused AdamW keeps its step count beside the parameter.
        state["step"] = step.to(parameter.device)
        expected.add(f"step/{name}")
        optimizer.state[parameter] = state
    unknown = sorted(set(tensors) - expected)
    if unknown:
        raise JobError(
            f"the checkpoint's optimizer state has {len(unknown)} tensors the model lacks: {unknown[0]}"
        )
