"""The GPU's way of `mpma.model.vocabulary_loss`: loss and gradient of a chunk of logits in one kernel.

Decision: the operator returns the gradients of its inputs beside the loss, and backward scales them; it is
opaque to the compiler, which would otherwise trace every chunk.

Shape letters: C rows, E width, K vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from mpma.model.recompute import in_autocast_dtype

_CHUNK_LOGITS = 2**28
"""Elements of one block of logits (512 MB in bf16)."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _row_kernel(logits, targets, losses, vocabulary, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    real = columns < vocabulary
    values = tl.load(logits + row * vocabulary + columns, mask=real, other=float("-inf")).to(tl.float32)
    target = tl.load(targets + row)
    counted = tl.where(target >= 0, 1.0, 0.0)
    highest = tl.max(values, axis=0)
    exponents = tl.exp(values - highest)
    total = tl.sum(exponents, axis=0)
    picked = tl.sum(tl.where(columns == target, values, 0.0), axis=0)
    tl.store(losses + row, (tl.log(total) + highest - picked) * counted)
    gradient = (exponents / total - tl.where(columns == target, 1.0, 0.0)) * counted
    tl.store(logits + row * vocabulary + columns, gradient.to(logits.dtype.element_ty), mask=real)


def losses_and_gradients(logits_CK: Tensor, targets_C: Tensor) -> Tensor:
    """fp32 [C] losses; the logits become their gradients in place. Contiguous; target -100: both are 0."""
    rows, vocabulary = logits_CK.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits_CK.device)
    block = triton.next_power_of_2(vocabulary)
    _row_kernel[(rows,)](
        logits_CK, targets_C, losses, vocabulary, BLOCK=block, num_warps=min(32, max(1, block // 2048))
    )
    return losses


@torch.library.custom_op("mpma::vocabulary_loss", mutates_args=(), device_types="cuda")
def _loss(
    states: Tensor, targets: Tensor, embedding: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss summed over rows, gradients of states, embedding and bias)."""
    rows, vocabulary = states.shape[0], embedding.shape[0]
    chunk = max(1, _CHUNK_LOGITS // vocabulary)
    to_states = torch.empty_like(states)
    to_embedding = torch.zeros(embedding.shape, dtype=torch.float32, device=states.device)
    to_bias = torch.zeros(bias.shape, dtype=torch.float32, device=states.device)
    total = torch.zeros((), dtype=torch.float32, device=states.device)
    for first in range(0, rows, chunk):
        part = slice(first, min(first + chunk, rows))
        logits = functional.linear(states[part], embedding, bias)
        total += losses_and_gradients(logits, targets[part]).sum()
        to_states[part] = torch.mm(logits, embedding)
        to_embedding += torch.mm(logits.T, states[part])
        to_bias += logits.sum(dim=0, dtype=torch.float32)
    return total, to_states, to_embedding.to(embedding.dtype), to_bias.to(bias.dtype)


@_loss.register_fake
def _(
    states: Tensor, targets: Tensor, embedding: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        states.new_empty((), dtype=torch.float32),
        torch.empty_like(states),
        torch.empty_like(embedding),
        torch.empty_like(bias),
    )


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    # Scaled in fp32: the factor itself is not to be rounded.
    scaled = [(value.float() * gradient).to(value.dtype) for value in ctx.saved_tensors]
    return scaled[0], None, scaled[1], scaled[2]


_loss.register_autograd(_backward, setup_context=_keep)


def vocabulary_loss_on_gpu(
    states_CE: Tensor, targets_C: Tensor, embedding_KE: Tensor, bias_K: Tensor
) -> Tensor:
    """The loss summed over rows, fp32 scalar, of CUDA tensors; products in autocast's dtype."""
    states, embedding, bias = (in_autocast_dtype(value) for value in (states_CE, embedding_KE, bias_K))
    loss, *_ = _loss(states.contiguous(), targets_C, embedding, bias)
    return loss
