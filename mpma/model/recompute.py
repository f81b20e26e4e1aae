"""Blocks one after another, their activations kept or computed again in backward.

Decision: one loop for timm's and transformers' blocks alike; the libraries' own switches differ, move
between releases and look at training mode.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: Iterable[nn.Module], states: Tensor, *context: Tensor, recompute: bool) -> Tensor:
    """states = block(states, *context) for each block; [B,L,D] -> [B,L,D]."""
    for block in blocks:
        if recompute and torch.is_grad_enabled():
            states = checkpoint(block, states, *context, use_reentrant=False)
        else:
            states = block(states, *context)
    return states
