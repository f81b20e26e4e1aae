"""Softmax attention of short sequences on a CPU, and torch's own everywhere else.

Decisions:
- torch's CPU kernel is written for long sequences: at 50 to 200 tokens its backward pass takes twice the
  time of the four small matrix products that it comes to. Here the weights of a few hundred tokens are
  kept instead of computed again, and the products are plain ones;
- used in fp32 and fp64 on a CPU and up to `_LONGEST` keys; in bf16, under the compiler, with dropout, and on
  a GPU `scaled_dot_product_attention` is called as ever. The maths is the same, to rounding;
- a timm block gets it by a module that takes over the projections of timm's, under the same names.

Shape letters: B pairs, H heads, T queries, C keys, F width of a head, E width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional

_LONGEST = 512
"""Keys from which the weights would not stay in the cache."""


def attention(
    queries_BHTF: Tensor, keys_BHCF: Tensor, values_BHCF: Tensor, mask_B11C: Tensor | None = None
) -> Tensor:
    """softmax(q.k / sqrt(F)) v over the keys where the bool mask is True (None: all): [B,H,T,F]."""
    if (
        queries_BHTF.device.type != "cpu"
        or queries_BHTF.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
        or keys_BHCF.shape[2] > _LONGEST
        or torch.compiler.is_compiling()
    ):
        return functional.scaled_dot_product_attention(
            queries_BHTF, keys_BHCF, values_BHCF, attn_mask=mask_B11C
        )
    return cast(Tensor, _ShortAttention.apply(queries_BHTF, keys_BHCF, values_BHCF, mask_B11C))


class _ShortAttention(torch.autograd.Function):
    """Two products forward, four backward; what is kept are the inputs and the weights [B*H,T,C]."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, width = queries.shape
        queries, keys, values = (each.reshape(batch * heads, -1, width) for each in (queries, keys, values))
        scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(width**-0.5)
        if mask is not None:
            scores.view(batch, heads, length, -1).masked_fill_(~mask, -torch.inf)
        weights = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.sizes = (batch, heads)
        return torch.bmm(weights, values).view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights = ctx.saved_tensors
        read = gradients[0].reshape(queries.shape)
        to_values = torch.bmm(weights.transpose(1, 2), read)
        to_weights = torch.bmm(read, values.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_scores.mul_(queries.shape[-1] ** -0.5)
        to_queries, to_keys = torch.bmm(to_scores, keys), torch.bmm(to_scores.transpose(1, 2), queries)
        split = (each.view(*ctx.sizes, -1, each.shape[-1]) for each in (to_queries, to_keys, to_values))
        return (*split, None)  # type: ignore[return-value]


class SelfAttention(nn.Module):
    """What timm's plain `Attention` computes without dropout, with its projections under their names."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.num_heads = source.num_heads
        self.qkv = source.qkv
        self.proj = source.proj

    def forward(self, tokens_BTE: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B,T,E], and where keys are real (bool [B,1,1,T]) -> [B,T,E]."""
        if is_causal:
            raise ValueError("a causal mask is not among this attention's")
        batch, length, _ = tokens_BTE.shape
        split = self.qkv(tokens_BTE).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        read = attention(*split.unbind(0), attn_mask)
        projected: Tensor = self.proj(read.transpose(1, 2).reshape(batch, length, -1))
        return projected


def with_short_attention(module: nn.Module) -> None:
    """Put `SelfAttention` in the place of every plain `Attention` inside; parameters and names stay."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is Attention and _is_plain(child):
                setattr(parent, name, SelfAttention(child))


def _is_plain(source: Attention) -> bool:
    steps = (getattr(source, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    dropped = source.attn_drop.p + source.proj_drop.p
    return dropped == 0 and all(step is None or isinstance(step, nn.Identity) for step in steps)
