"""Blocks one after another, their activations kept or computed again in backward.

Decision: one loop for timm's and transformers' blocks alike; the libraries' own switches differ, move
between releases and look at training mode. Under autocast what is carried from block to block (the
residual stream) has its dtype: in bf16 half of what is read and written between two matrix products is
this stream, and each block normalises it in fp32 anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(
    blocks: Iterable[nn.Module],
    states: Tensor,
    *context: Tensor,
    recompute: bool,
    how: Callable[..., Tensor] | None = None,
) -> Tensor:
    """states = block(states, *context) for each block; [B,L,D] -> [B,L,D].

    `how` computes a block otherwise than by calling it: how(block, states, *context).
    """
    states = in_autocast_dtype(states)
    for module in blocks:
        block: Any = module if how is None else partial(how, module)
        if recompute and torch.is_grad_enabled():
            states = checkpoint(block, states, *context, use_reentrant=False)
        else:
            states = block(states, *context)
    return states


def in_autocast_dtype(states: Tensor) -> Tensor:
    """The states in the dtype that autocast gives matrix products; as they are outside of it."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        return states.to(torch.get_autocast_dtype(device))
    return states
