"""Attention over the short sequences of this model, from packed projections to what the next product reads.

Decisions:
- queries, keys and values stay as one matrix product wrote them, so that a GPU's kernels of our own can read
  them so and write the packed gradient in one go (see attention_kernels.py): bf16, up to 256 tokens;
- torch's CPU kernel is written for long sequences: at 50 to 200 tokens its backward pass takes twice the
  time of the four small matrix products that it comes to, in bf16 three to five times. On a CPU the weights
  of a few hundred tokens are kept instead of computed again, and the products are plain ones, in fp32 for
  bf16 as well: rounded scores would cost more digits than the time is worth;
- everything else (the compiler on a CPU, dropout, long sequences) is torch's
  `scaled_dot_product_attention`. The maths is the same, to rounding (Vaswani et al. 2017);
- a timm block gets it by a module that takes over the projections of timm's, under the same names.

Shape letters: B pairs, H heads, T queries, C keys, F width of a head, E width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional

from mpma.model.kernels import kernels_at_hand

_LONGEST = 512
"""Keys from which the weights would not stay in a CPU's cache."""
_LARGEST_KEYS_OF_KERNELS = {32: 256, 64: 256, 128: 64}
"""By width of a head, as many keys as backward can hold in registers; as many queries are taken."""
_SHARED_MEMORY = 160 * 1024
"""Bytes that a program may need of what a multiprocessor has: A100, H100 and later; not consumer cards."""


def self_attention(qkv_BT3HF: Tensor, key_mask_BT: Tensor | None) -> Tensor:
    """[B,T,3,H,F] -> [B,T,H*F]; `key_mask_BT`: bool, True where a token may be read (None: all).

    On a GPU's kernels a pair of which no token may be read gives zeros.
    """
    length, width = qkv_BT3HF.shape[1], qkv_BT3HF.shape[-1]
    if _has_kernels(qkv_BT3HF, longest=length, width=width):
        from mpma.model.attention_kernels import self_attention_on_gpu

        return self_attention_on_gpu(qkv_BT3HF, key_mask_BT)
    query, key, value = qkv_BT3HF.permute(2, 0, 3, 1, 4).unbind(0)
    mask = None if key_mask_BT is None else key_mask_BT[:, None, None, :]
    return _joined(attention(query, key, value, mask))


def cross_attention(q_BTHF: Tensor, kv_BC2HF: Tensor) -> Tensor:
    """[B,T,H,F] and [B,C,2,H,F] -> [B,T,H*F]."""
    longest, width = max(q_BTHF.shape[1], kv_BC2HF.shape[1]), q_BTHF.shape[-1]
    if kv_BC2HF.dtype == q_BTHF.dtype and _has_kernels(q_BTHF, longest=longest, width=width):
        from mpma.model.attention_kernels import cross_attention_on_gpu

        return cross_attention_on_gpu(q_BTHF, kv_BC2HF)
    key, value = kv_BC2HF.permute(2, 0, 3, 1, 4).unbind(0)
    return _joined(attention(q_BTHF.transpose(1, 2), key, value))


def attention(
    queries_BHTF: Tensor, keys_BHCF: Tensor, values_BHCF: Tensor, mask_B11C: Tensor | None = None
) -> Tensor:
    """softmax(q.k / sqrt(F)) v over the keys where the bool mask is True (None: all): [B,H,T,F]."""
    if (
        queries_BHTF.device.type != "cpu"
        or queries_BHTF.dtype not in (torch.bfloat16, torch.float32, torch.float64)
        or keys_BHCF.shape[2] > _LONGEST
        or torch.compiler.is_compiling()
    ):
        return functional.scaled_dot_product_attention(
            queries_BHTF, keys_BHCF, values_BHCF, attn_mask=mask_B11C
        )
    return cast(Tensor, _ShortAttention.apply(queries_BHTF, keys_BHCF, values_BHCF, mask_B11C))


def _joined(read_BHTF: Tensor) -> Tensor:
    batch, heads, length, width = read_BHTF.shape
    return read_BHTF.transpose(1, 2).reshape(batch, length, heads * width)


def _has_kernels(states: Tensor, *, longest: int, width: int) -> bool:
    return (
        kernels_at_hand(states)
        and states.dtype == torch.bfloat16
        and longest <= _LARGEST_KEYS_OF_KERNELS.get(width, 0)
        and _is_large_enough(states.device)
    )


@torch.compiler.assume_constant_result
def _is_large_enough(device: torch.device) -> bool:
    properties = torch.cuda.get_device_properties(device)
    return properties.major >= 8 and properties.shared_memory_per_block_optin >= _SHARED_MEMORY


class _ShortAttention(torch.autograd.Function):
    """Two products forward, four backward; kept are the inputs and the weights [B*H,T,C], bf16 as fp32."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, width = queries.shape
        given = [each.dtype for each in (queries, keys, values)]
        wide = torch.float64 if torch.float64 in given else torch.float32
        queries, keys, values = (
            each.to(wide).reshape(batch * heads, -1, width) for each in (queries, keys, values)
        )
        # Autocast would make the products bf16 again. Backward runs outside of it.
        with torch.autocast("cpu", enabled=False):
            scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(width**-0.5)
            if mask is not None:
                scores.view(batch, heads, length, -1).masked_fill_(~mask, -torch.inf)
            weights = torch.softmax(scores, dim=-1)
            read = torch.bmm(weights, values)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.sizes, ctx.given = (batch, heads), given
        return read.view(batch, heads, length, width).to(given[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, weights = ctx.saved_tensors
        read = gradients[0].to(queries.dtype).reshape(queries.shape)
        to_values = torch.bmm(weights.transpose(1, 2), read)
        to_weights = torch.bmm(read, values.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_scores.mul_(queries.shape[-1] ** -0.5)
        to_queries, to_keys = torch.bmm(to_scores, keys), torch.bmm(to_scores.transpose(1, 2), queries)
        split = (
            each.view(*ctx.sizes, -1, each.shape[-1]).to(given)
            for each, given in zip((to_queries, to_keys, to_values), ctx.given, strict=True)
        )
        return (*split, None)  # type: ignore[return-value]


class SelfAttention(nn.Module):
    """What timm's plain `Attention` computes without dropout, with its projections under their names."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.num_heads = source.num_heads
        self.qkv = source.qkv
        self.proj = source.proj

    def forward(self, tokens_BTE: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B,T,E], and which keys are read (bool [B,1,1,T], or [.,1,T,T] by query) -> [B,T,E]."""
        if is_causal:
            raise ValueError("a causal mask is not among this attention's")
        batch, length, _ = tokens_BTE.shape
        packed = self.qkv(tokens_BTE).view(batch, length, 3, self.num_heads, -1)
        if attn_mask is not None and attn_mask.shape[2] > 1:
            query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
            read = _joined(attention(query, key, value, attn_mask))
        else:
            read = self_attention(packed, None if attn_mask is None else attn_mask[:, 0, 0])
        projected: Tensor = self.proj(read)
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
