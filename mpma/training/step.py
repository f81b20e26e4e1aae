"""One optimiser step of one worker.

Decisions: torch's generators are seeded anew at every step from (seed, step, rank), so whatever the
model draws (dropout in the memory) needs no state to resume; clipping comes after weighting, as the
sum that is optimised is the weighted one; nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mpma.config import ExperimentConfig
from mpma.data.batches import Batch
from mpma.data.counter_hash import counter_hash
from mpma.model.gather import rank_and_world
from mpma.model.gradient_norms import trunk_gradient_norms
from mpma.model.pretraining import PretrainingModel
from mpma.training.feature_cache import accumulate_backward
from mpma.training.parallel import whole

LOSS_NAMES = ("image_reconstruction", "report_reconstruction", "global_alignment", "local_alignment")


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind, all on the device."""

    total: Tensor
    """float32 [] (here and below float64 in fp64): weighted sum of the raw terms."""
    losses: Mapping[str, Tensor | None]
    """float32 [] raw terms by `LOSS_NAMES`; None where a branch was skipped."""
    gradient_norm: Tensor
    """float32 []: global norm before clipping."""
    diagnostics: Mapping[str, Tensor]


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed that differs between steps and ranks."""
    return int(counter_hash(seed, "model draws", step, rank)) & (2**63 - 1)


def training_step(
    module: nn.Module,
    bare: PretrainingModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: ExperimentConfig,
    *,
    step: int,
    rank: int,
    device: torch.device,
    precision: str,
    measure_terms: bool = False,
) -> StepResult:
    """Forward, backward, clip and update with this worker's share of the global batch.

    `module` is what is called (DDP, FSDP2 or compiled), `bare` the model inside; `batch` is still on the
    host. With `measure_terms` each term's gradient norm on the shared trunk is measured too, which costs
    a forward pass and one backward pass per term.
    """
    torch.manual_seed(step_seed(config.training.seed, step, rank))
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")
    diagnostics: dict[str, Tensor] = {}
    if measure_terms:
        with autocast():
            terms = bare(batch.to(device, non_blocking=True))
        for name, norm in trunk_gradient_norms(bare, terms).items():
            diagnostics[f"trunk_gradient_norm/{name}"] = norm
        torch.manual_seed(step_seed(config.training.seed, step, rank))
    optimizer.zero_grad(set_to_none=True)
    losses = accumulate_backward(
        module,
        batch,
        micro_batch_size=config.training.micro_batch_for(rank_and_world()[1]),
        device=device,
        autocast=autocast,
    )
    norm = whole(nn.utils.clip_grad_norm_(bare.parameters(), config.training.gradient_clip))
    optimizer.step()
    return StepResult(
        total=losses.total,
        losses={name: getattr(losses, name) for name in LOSS_NAMES},
        gradient_norm=norm,
        diagnostics=diagnostics | losses.diagnostics,
    )
