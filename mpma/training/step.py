"""One optimiser step of one worker.

Decisions: torch's generators are seeded anew at every step from (seed, step, rank), so whatever the
model draws (dropout in the memory) needs no state to resume; clipping comes after weighting, as the
sum that is optimised is the weighted one; nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpma.config import ExperimentConfig
from mpma.data.batches import Batch
from mpma.training.parallel import whole

LOSS_NAMES = ("image_reconstruction", "report_reconstruction", "global_alignment", "local_alignment")


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind, all on the device."""

    total: Tensor
    """float32 []: weighted sum of the raw terms."""
    losses: Mapping[str, Tensor | None]
    """float32 [] raw terms by `LOSS_NAMES`; None where a branch was skipped."""
    gradient_norm: Tensor
    """float32 []: global norm before clipping."""
    diagnostics: Mapping[str, Tensor]


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed that differs between steps and ranks."""
    from mpma.data.counter_hash import hash_counters

    return int(hash_counters(seed, step, rank)) & (2**63 - 1)


def training_step(
    module: nn.Module,
    bare: Any,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: ExperimentConfig,
    step: int,
    rank: int,
    precision: str,
) -> StepResult:
    """Forward, backward, clip and update with this worker's share of the global batch.

    `module` is what is called (DDP, FSDP2 or compiled), `bare` the model inside.
    """
    torch.manual_seed(step_seed(config.training.seed, step, rank))
    optimizer.zero_grad(set_to_none=True)
    micro = config.training.micro_batch_size
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        if micro is None or micro >= len(batch):
            losses = module(batch)
            total = losses.total
        else:
            from mpma.training.feature_cache import accumulate_backward

            losses = accumulate_backward(module, batch, micro)
            total = losses.total
    if micro is None or micro >= len(batch):
        total.backward()
    norm = whole(nn.utils.clip_grad_norm_(bare.parameters(), config.training.gradient_clip))
    optimizer.step()
    return StepResult(
        total=total.detach(),
        losses={name: getattr(losses, name) for name in LOSS_NAMES},
        gradient_norm=norm,
        diagnostics=losses.diagnostics,
    )
