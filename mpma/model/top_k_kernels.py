"""The memory's attention to its k best slots on a GPU: two small Triton kernels between matrix products.

Decisions:
- the k-th best score of a row is found by bisection in registers, where `torch.topk` passes over all
  scores many times in device memory (19 of 94 ms of a step of 256 pairs on an H100, more than any other
  operation);
- slots that tie with the k-th take part too. Elsewhere exactly k do; scores of different slots are equal
  to the last bit about once in ten thousand rows, and then both choices are right;
- queries, keys and weights keep their dtype in the products, which add up in fp32; scores, selection and
  softmax are fp32. In bf16 the products of the rounded inputs are exact, so ties do not become likelier;
- one operator for the whole, opaque to the compiler, so that scores live for one chunk of rows only and
  backward gets the weights alone.

Shape letters: H heads, R rows (queries of all pairs), M slots, F width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK_ELEMENTS = 2**29
"""Scores that are held at a time: 2 GB."""
_SIGN = tl.constexpr(0x7FFFFFFF)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _weights_kernel(  # type: ignore[no-untyped-def]
    scores,
    weights,
    weights_head_stride,
    rows,
    scale,
    slots,
    TOP_K: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < slots
    place = (head * rows + row) * slots + columns
    values = tl.load(scores + place, mask=real, other=float("-inf")) * scale
    bits = values.to(tl.int32, bitcast=True)
    # Integers in the order of the floats: negative floats have their bits turned over.
    keys = tl.where(bits < 0, bits ^ _SIGN, bits)
    # At least `low` are as many as GROUPS >= TOP_K slots, at least `high` none.
    low = tl.min(tl.max(tl.reshape(keys, (GROUPS, BLOCK // GROUPS)), axis=1), axis=0)
    high = tl.max(keys, axis=0) + 1
    count = tl.sum((keys >= low).to(tl.int32), axis=0)
    # The middle without overflow; the bracket halves, so at most 32 rounds, about ten on real scores.
    middle = (low >> 1) + (high >> 1) + (low & high & 1)
    while (count > TOP_K) & (middle > low):
        found = tl.sum((keys >= middle).to(tl.int32), axis=0)
        enough = found >= TOP_K
        low = tl.where(enough, middle, low)
        count = tl.where(enough, found, count)
        high = tl.where(enough, high, middle)
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
    # The values again from their keys, so that the search holds one register a slot and not two.
    values = tl.where(keys < 0, keys ^ _SIGN, keys).to(tl.float32, bitcast=True)
    exponents = tl.exp(values - tl.max(values, axis=0))
    chosen = tl.where((keys >= low) & real, exponents, 0.0)
    shares = chosen / tl.sum(chosen, axis=0)
    target = weights + head * weights_head_stride + row * slots + columns
    tl.store(target, shares.to(weights.dtype.element_ty), mask=real)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _scores_gradient_kernel(weights, gradients, scale, slots, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < slots
    share = tl.load(weights + row * slots + columns, mask=real, other=0.0).to(tl.float32)
    gradient = tl.load(gradients + row * slots + columns, mask=real, other=0.0).to(tl.float32)
    mean = tl.sum(share * gradient, axis=0)
    result = share * (gradient - mean) * scale
    tl.store(gradients + row * slots + columns, result.to(gradients.dtype.element_ty), mask=real)


def top_k_weights(scores_HRM: Tensor, weights_HRM: Tensor, scale: float, top_k: int) -> None:
    """Softmax of scale * scores (fp32, contiguous) over each row's `top_k` best, written to the weights.

    The weights may be a part of the rows of a larger contiguous tensor.
    """
    heads, rows, slots = scores_HRM.shape
    block = triton.next_power_of_2(slots)
    _weights_kernel[(rows, heads)](
        scores_HRM,
        weights_HRM,
        weights_HRM.stride(0),
        rows,
        scale,
        slots,
        TOP_K=top_k,
        GROUPS=triton.next_power_of_2(top_k),
        BLOCK=block,
        num_warps=_warps(block),
    )


def scores_gradient(weights: Tensor, gradients: Tensor, scale: float) -> None:
    """Gradients of the weights [...,M] -> gradients of the unscaled scores, in place."""
    slots = weights.shape[-1]
    grid = (weights.numel() // slots,)
    block = triton.next_power_of_2(slots)
    _scores_gradient_kernel[grid](weights, gradients, scale, slots, BLOCK=block, num_warps=_warps(block))


def _warps(block: int) -> int:
    """32 slots a thread: at 2,048 slots 5.6 ms for 915,000 rows on an H200 (one warp 6.0, four 5.9)."""
    return min(16, max(1, block // 1024))


def _row_chunks(heads: int, rows: int, slots: int) -> list[slice]:
    chunk = max(1, _CHUNK_ELEMENTS // (heads * slots))
    return [slice(first, min(first + chunk, rows)) for first in range(0, rows, chunk)]


def _scores(queries_HRF: Tensor, keys_HMF: Tensor) -> Tensor:
    if queries_HRF.dtype == torch.float32:
        return torch.bmm(queries_HRF, keys_HMF.transpose(1, 2))
    return torch.bmm(queries_HRF, keys_HMF.transpose(1, 2), out_dtype=torch.float32)


@torch.library.custom_op("mpma::top_k_attention", mutates_args=(), device_types="cuda")
def _attend(queries: Tensor, keys: Tensor, values: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """(read [H,R,F], weights [H,R,M])."""
    heads, rows, width = queries.shape
    slots = keys.shape[1]
    read = torch.empty_like(queries, memory_format=torch.contiguous_format)
    weights = queries.new_empty(heads, rows, slots)
    for part in _row_chunks(heads, rows, slots):
        scores = _scores(queries[:, part], keys)
        top_k_weights(scores, weights[:, part], width**-0.5, top_k)
        read[:, part] = torch.bmm(weights[:, part], values)
    return read, weights


@_attend.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    read = torch.empty_like(queries, memory_format=torch.contiguous_format)
    return read, queries.new_empty(queries.shape[0], queries.shape[1], keys.shape[1])


@torch.library.custom_op("mpma::top_k_attention_backward", mutates_args=(), device_types="cuda")
def _attend_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    gradient = gradient.contiguous()
    to_scores = torch.bmm(gradient, values.transpose(1, 2))
    scores_gradient(weights, to_scores, queries.shape[-1] ** -0.5)
    return (
        torch.bmm(to_scores, keys),
        torch.bmm(to_scores.transpose(1, 2), queries),
        torch.bmm(weights.transpose(1, 2), gradient),
    )


@_attend_backward.register_fake
def _(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        queries.new_empty(queries.shape),
        keys.new_empty(keys.shape),
        values.new_empty(values.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, keys, values, _ = inputs
    ctx.save_for_backward(queries, keys, values, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_attend_backward(gradient, *ctx.saved_tensors), None)


_attend.register_autograd(_backward, setup_context=_keep)


def top_k_attention_on_gpu(queries_HRF: Tensor, keys_HMF: Tensor, values_HMF: Tensor, top_k: int) -> Tensor:
    """As `mpma.model.memory.top_k_attention` without dropout, of CUDA tensors of one dtype: [H,R,F]."""
    read, _ = _attend(queries_HRF, keys_HMF, values_HMF, top_k)
    return read
