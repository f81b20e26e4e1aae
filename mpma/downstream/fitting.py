"""One training loop for every head and decoder: AdamW, warm-up, cosine, clipping; a function of its seed.

Decisions: new parts get the full rate and pre-trained parts a share of it; batches, crops and initial
weights come from counters and a forked generator, so the same job twice gives equal bits on one machine;
a loss that is not finite ends the job with a line instead of a model of NaNs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mpma.downstream.config import FitConfig
from mpma.errors import JobError
from mpma.loading import LoadedModel

WARMUP_FRACTION = 0.1
GRADIENT_CLIP = 1.0


def fit(
    loaded: LoadedModel,
    new: nn.Module,
    pretrained: nn.Module | None,
    config: FitConfig,
    batches: Iterable[Any],
    loss_of: Callable[[Any], Tensor],
) -> None:
    """Train `new`, and `pretrained` at its lower rate, on one batch a step; both end in eval mode.

    `loss_of(batch)` gives a scalar. `pretrained` None, or a factor of 0, leaves the encoder alone.
    Raises `JobError` where the loss is not finite.
    """
    device = loaded.device
    factor = config.encoder_learning_rate_factor
    modules = [(new.to(device), 1.0)]
    if pretrained is not None and factor > 0:
        modules.append((pretrained, factor))
    groups = []
    seen: set[int] = set()
    for module, share in modules:
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                decay = config.weight_decay if parameter.ndim > 1 else 0.0
                groups.append({"params": [parameter], "weight_decay": decay, "share": share})
    optimizer = torch.optim.AdamW(_merged(groups), lr=config.learning_rate, betas=(0.9, 0.999))
    for module, _ in modules:
        module.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step, batch in enumerate(batches):
        rate = config.learning_rate * schedule(step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        with torch.autocast(device.type, torch.bfloat16, enabled=loaded.precision == "bf16"):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        if not bool(torch.isfinite(norm)):
            raise JobError(
                f"the loss of the fit is not finite at step {step}", "a lower learning rate usually helps"
            )
        optimizer.step()
    for module, _ in modules:
        module.eval()


def schedule(step: int, steps: int) -> float:
    """Share of the peak rate at a 0-based step: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(WARMUP_FRACTION * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    """A module whose initial weights are a function of the seed; the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    merged: dict[tuple[float, float], dict[str, Any]] = {}
    for group in groups:
        key = (group["weight_decay"], group["share"])
        merged.setdefault(key, {**group, "params": []})["params"] += group["params"]
    return list(merged.values())
