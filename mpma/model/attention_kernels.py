"""Attention over short sequences on a GPU: one Triton kernel forward and one backward, packed in, packed out.

Decisions:
- queries, keys and values are read where the product that made them left them ([B,T,3,H,F], or [B,T,H,F] and
  [B,C,2,H,F]), the output is written as the next product reads it, and backward writes one packed gradient:
  no tensor is transposed, stacked or copied on the way. Around a general kernel such copies took a third as
  long as attention itself (10 of 221 ms of a step of 1,024 pairs on an H200);
- sequences are short, so backward holds all keys and values of a head in one program with their gradients in
  registers, and walks over blocks of queries: five products instead of the seven of two passes, the gradient
  of a query is complete in one go, and nothing is added up in an order that changes from run to run;
- the scores stand in backward with keys as rows: the probabilities are then an operand of their product as
  they lie in registers;
- products of bf16 operands add up in fp32, softmax is fp32, probabilities are rounded to bf16 for their
  product alone, as in FlashAttention (Dao 2023);
- a pair whose keys are all masked reads zeros and hands on zero gradients.

Shape letters: B pairs, T queries, C keys, H heads, F width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)
_BLOCK = 64
"""Rows of the smallest tile: what a group of four warps multiplies at once."""
_ROWS_OF_A_WARP = 16
_FORWARD = {64: (64, 4, 2), 128: (64, 4, 1), 256: (128, 8, 2)}
"""By queries, up to so many: queries of a program, warps, stages. Of five settings the fastest on an H200
at 50, 128 and 197 tokens: 0.09, 0.36 and 0.48 ms for 12,288, 12,288 and 6,144 heads of pairs."""
_BACKWARD_QUERIES = {64: 64, 128: 32, 256: 32}
"""By keys of a program, queries backward takes at a time: with 64 registers spill from 128 keys on."""
_BACKWARD_OPTIONS: dict[int, dict[str, int]] = {
    64: {"num_stages": 1},
    128: {"num_stages": 2, "maxnreg": 128},
    256: {"num_stages": 2, "maxnreg": 128},
}
"""By keys of a program. 128 registers of a thread let two programs of 128 keys share a multiprocessor."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _real_keys(mask, pair, mask_batch, columns, keys, MASKED: tl.constexpr):  # type: ignore[no-untyped-def]
    real = columns < keys
    if MASKED:
        real = real & (tl.load(mask + pair * mask_batch + columns, mask=real, other=0) != 0)
    return real


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _forward_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    mask,
    out,
    log_sums,
    q_batch,
    q_row,
    kv_batch,
    kv_row,
    mask_batch,
    queries,
    keys,
    heads,
    scale,
    F: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    KEY_BLOCKS: tl.constexpr,
    MASKED: tl.constexpr,
):
    program = tl.program_id(0)
    pair = (program // heads).to(tl.int64)
    head = program % heads
    features = tl.arange(0, F)
    rows = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    asked = rows < queries
    q_place = pair * q_batch + head * F + rows[:, None] * q_row + features[None, :]
    query = tl.load(q + q_place, mask=asked[:, None], other=0.0)
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    read = tl.zeros([BLOCK_Q, F], tl.float32)
    for block in range(KEY_BLOCKS):
        columns = block * BLOCK_K + tl.arange(0, BLOCK_K)
        held = columns < keys
        kv_place = pair * kv_batch + head * F + columns[:, None] * kv_row + features[None, :]
        key = tl.load(k + kv_place, mask=held[:, None], other=0.0)
        value = tl.load(v + kv_place, mask=held[:, None], other=0.0)
        real = _real_keys(mask, pair, mask_batch, columns, keys, MASKED)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * _LOG2_E)
        scores = tl.where(real[None, :], scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        # Where no key was real so far: infinity minus infinity is no number.
        anchor = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp2(scores - anchor[:, None])
        shrunk = tl.exp2(highest - anchor)
        total = total * shrunk + tl.sum(shares, axis=1)
        read = tl.dot(shares.to(value.dtype), value, read * shrunk[:, None], input_precision="ieee")
        highest = higher
    total = tl.where(total == 0.0, 1.0, total)
    anchor = tl.where(highest == float("-inf"), 0.0, highest)
    width = heads * F
    place = (pair * queries + rows[:, None]) * width + head * F + features[None, :]
    tl.store(out + place, (read / total[:, None]).to(out.dtype.element_ty), mask=asked[:, None])
    log_sum = (anchor + tl.log2(total)) / _LOG2_E
    tl.store(log_sums + program.to(tl.int64) * queries + rows, log_sum, mask=asked)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _backward_kernel(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    mask,
    out,
    log_sums,
    gradient,
    to_q,
    to_k,
    to_v,
    q_batch,
    q_row,
    kv_batch,
    kv_row,
    mask_batch,
    queries,
    keys,
    heads,
    scale,
    F: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    QUERY_BLOCKS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
):
    program = tl.program_id(0)
    pair = (program // heads).to(tl.int64)
    head = program % heads
    width = heads * F
    features = tl.arange(0, F)
    columns = tl.arange(0, BLOCK_K)
    held = columns < keys
    kv_place = head * F + columns[:, None] * kv_row + features[None, :]
    key = tl.load(k + pair * kv_batch + kv_place, mask=held[:, None], other=0.0)
    value = tl.load(v + pair * kv_batch + kv_place, mask=held[:, None], other=0.0)
    real = _real_keys(mask, pair, mask_batch, columns, keys, MASKED)
    key_gradient = tl.zeros([BLOCK_K, F], tl.float32)
    value_gradient = tl.zeros([BLOCK_K, F], tl.float32)
    for block in range(QUERY_BLOCKS):
        rows = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
        asked = rows < queries
        q_place = head * F + rows[:, None] * q_row + features[None, :]
        query = tl.load(q + pair * q_batch + q_place, mask=asked[:, None], other=0.0)
        place = (pair * queries + rows[:, None]) * width + head * F + features[None, :]
        error = tl.load(gradient + place, mask=asked[:, None], other=0.0)
        answer = tl.load(out + place, mask=asked[:, None], other=0.0)
        log_sum = tl.load(log_sums + program.to(tl.int64) * queries + rows, mask=asked, other=0.0)
        mean = tl.sum(error.to(tl.float32) * answer.to(tl.float32), axis=1)
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * (scale * _LOG2_E)
        # Rows past the last query need no mask: their error and their query are zero.
        scores = tl.where(real[:, None], scores - (log_sum * _LOG2_E)[None, :], float("-inf"))
        shares = tl.exp2(scores)
        value_gradient = tl.dot(shares.to(error.dtype), error, value_gradient, input_precision="ieee")
        to_shares = tl.dot(value, tl.trans(error), input_precision="ieee")
        to_scores = (shares * (to_shares - mean[None, :])).to(query.dtype)
        key_gradient = tl.dot(to_scores, query, key_gradient, input_precision="ieee")
        query_gradient = tl.dot(tl.trans(key), to_scores, input_precision="ieee") * scale
        tl.store(
            to_q + pair * queries * q_row + q_place,
            tl.trans(query_gradient.to(to_q.dtype.element_ty)),
            mask=asked[:, None],
        )
    target = pair * keys * kv_row + kv_place
    tl.store(to_k + target, (key_gradient * scale).to(to_k.dtype.element_ty), mask=held[:, None])
    tl.store(to_v + target, value_gradient.to(to_v.dtype.element_ty), mask=held[:, None])


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries [B,T,H,F], keys and values [B,C,H,F] -> (read [B,T,H*F], log-sum-exp fp32 [B,H,T]).

    The heads of a token lie side by side, and keys as values do. `key_mask`: bool [B,C], True where a key
    may be read.
    """
    pairs, queries, heads, width = q.shape
    keys = k.shape[1]
    out = q.new_empty(pairs, queries, heads * width)
    log_sums = q.new_empty(pairs, heads, queries, dtype=torch.float32)
    block, warps, stages = _FORWARD[max(_BLOCK, triton.next_power_of_2(queries))]
    mask, mask_batch = _mask_or_any(key_mask, q)
    _forward_kernel[(pairs * heads, triton.cdiv(queries, block))](
        q,
        k,
        v,
        mask,
        out,
        log_sums,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        mask_batch,
        queries,
        keys,
        heads,
        width**-0.5,
        F=width,
        BLOCK_Q=block,
        BLOCK_K=_BLOCK,
        KEY_BLOCKS=triton.cdiv(keys, _BLOCK),
        MASKED=key_mask is not None,
        num_warps=warps,
        num_stages=stages,
    )
    return out, log_sums


def attend_backward(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    key_mask: Tensor | None,
    outputs: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradients of queries, keys and values; `inputs` and `outputs` are those of `attend`.

    `gradient` [B,T,H*F] is contiguous. A gradient has its input's shape and its strides, the pairs' apart:
    these lie in a row.
    """
    q, k, v = inputs
    pairs, queries, heads, width = q.shape
    keys = k.shape[1]
    block = max(_BLOCK, triton.next_power_of_2(keys))
    mask, mask_batch = _mask_or_any(key_mask, q)
    _backward_kernel[(pairs * heads,)](
        q,
        k,
        v,
        mask,
        *outputs,
        gradient,
        *gradients,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        mask_batch,
        queries,
        keys,
        heads,
        width**-0.5,
        F=width,
        BLOCK_Q=_BACKWARD_QUERIES[block],
        QUERY_BLOCKS=triton.cdiv(queries, _BACKWARD_QUERIES[block]),
        BLOCK_K=block,
        MASKED=key_mask is not None,
        num_warps=block // _ROWS_OF_A_WARP,
        **_BACKWARD_OPTIONS[block],
    )


def _mask_or_any(key_mask: Tensor | None, other: Tensor) -> tuple[Tensor, int]:
    """The mask as bytes and its stride; without one, a tensor that is not read."""
    if key_mask is None:
        return other, 0
    mask = key_mask.contiguous().view(torch.uint8)
    return mask, mask.stride(0)


def _packed(tensor: Tensor) -> Tensor:
    """The tensor with everything but its pairs in a row; copied where it is not."""
    if tensor[0].is_contiguous():
        return tensor
    return tensor.contiguous()


@torch.library.custom_op("mpma::self_attention", mutates_args=(), device_types="cuda")
def _self_attention(qkv: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    q, k, v = _packed(qkv).unbind(2)
    return attend(q, k, v, key_mask)


@torch.library.custom_op("mpma::self_attention_backward", mutates_args=(), device_types="cuda")
def _self_attention_backward(
    gradient: Tensor, qkv: Tensor, key_mask: Tensor | None, out: Tensor, log_sums: Tensor
) -> Tensor:
    to_qkv = qkv.new_empty(qkv.shape)
    q, k, v = _packed(qkv).unbind(2)
    to_q, to_k, to_v = to_qkv.unbind(2)
    attend_backward(gradient.contiguous(), (q, k, v), key_mask, (out, log_sums), (to_q, to_k, to_v))
    return to_qkv


@torch.library.custom_op("mpma::cross_attention", mutates_args=(), device_types="cuda")
def _cross_attention(q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    k, v = _packed(kv).unbind(2)
    return attend(_packed(q), k, v, None)


@torch.library.custom_op("mpma::cross_attention_backward", mutates_args=(), device_types="cuda")
def _cross_attention_backward(
    gradient: Tensor, q: Tensor, kv: Tensor, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor]:
    to_q, to_kv = q.new_empty(q.shape), kv.new_empty(kv.shape)
    k, v = _packed(kv).unbind(2)
    to_k, to_v = to_kv.unbind(2)
    attend_backward(gradient.contiguous(), (_packed(q), k, v), None, (out, log_sums), (to_q, to_k, to_v))
    return to_q, to_kv


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    pairs, queries, heads, width = q.shape
    log_sums = q.new_empty(pairs, heads, queries, dtype=torch.float32)
    return q.new_empty(pairs, queries, heads * width), log_sums


@_self_attention.register_fake
def _(qkv: Tensor, key_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return _empty_outputs(qkv[:, :, 0])


@_self_attention_backward.register_fake
def _(gradient: Tensor, qkv: Tensor, key_mask: Tensor | None, out: Tensor, log_sums: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape)


@_cross_attention.register_fake
def _(q: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)


@_cross_attention_backward.register_fake
def _(gradient: Tensor, q: Tensor, kv: Tensor, out: Tensor, log_sums: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), kv.new_empty(kv.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _self_backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
    return _self_attention_backward(gradient, *ctx.saved_tensors), None


def _cross_backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    to_q, to_kv = _cross_attention_backward(gradient, *ctx.saved_tensors)
    return to_q, to_kv


_self_attention.register_autograd(_self_backward, setup_context=_keep)
_cross_attention.register_autograd(_cross_backward, setup_context=_keep)


def self_attention_on_gpu(qkv_BT3HF: Tensor, key_mask_BT: Tensor | None) -> Tensor:
    """As `mpma.model.attention.self_attention`, of CUDA tensors: [B,T,H*F]."""
    read, _ = _self_attention(qkv_BT3HF, key_mask_BT)
    return read


def cross_attention_on_gpu(q_BTHF: Tensor, kv_BC2HF: Tensor) -> Tensor:
    """As `mpma.model.attention.cross_attention`, of CUDA tensors: [B,T,H*F]."""
    read, _ = _cross_attention(q_BTHF, kv_BC2HF)
    return read
