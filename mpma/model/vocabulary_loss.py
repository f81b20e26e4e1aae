"""Cross-entropy over the vocabulary for the hidden pieces, its logits never all in memory at once.

Decisions:
- few rows at once go through torch's own cross-entropy; many in chunks, whose logits backward computes
  again;
- on a GPU a chunk's gradient is computed while its logits are there (after the kernels of Liger, Hsu et al.
  2024), so nothing is computed twice, and one kernel turns a row of logits into its loss and gradient in
  registers. Gradients of the embedding add up over chunks in fp32;
- the losses of single rows, which validation asks for, need no gradient and take the first way.

Shape letters: C rows, E width, K vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mpma.data.batches import IGNORED_TARGET
from mpma.model.kernels import kernels_at_hand
from mpma.model.widening import widened

_LARGEST_LOGITS = 2**26
"""Elements of one block of logits (256 MB in fp32)."""
_LARGEST_VOCABULARY_OF_KERNELS = 2**16


def vocabulary_loss(
    states_CE: Tensor, targets_C: Tensor, embedding_KE: Tensor, bias_K: Tensor, reduction: str
) -> Tensor:
    """-log softmax(states embedding' + bias) at the targets, fp32: a scalar ("sum") or [C] ("none").

    Rows with target -100 count nothing.
    """
    rows, vocabulary = states_CE.shape[0], embedding_KE.shape[0]
    if (
        kernels_at_hand(states_CE)
        and reduction == "sum"
        and torch.is_grad_enabled()
        and vocabulary <= _LARGEST_VOCABULARY_OF_KERNELS
    ):
        from mpma.model.vocabulary_kernels import vocabulary_loss_on_gpu

        return vocabulary_loss_on_gpu(states_CE, targets_C, embedding_KE, bias_K)
    chunk = max(1, _LARGEST_LOGITS // vocabulary)
    if rows <= chunk:
        return _cross_entropy(states_CE, targets_C, embedding_KE, bias_K, reduction)
    parts: list[Tensor] = [
        checkpoint(_cross_entropy, states, targets, embedding_KE, bias_K, reduction, use_reentrant=False)
        for states, targets in zip(states_CE.split(chunk), targets_C.split(chunk), strict=True)
    ]
    return torch.stack(parts).sum() if reduction == "sum" else torch.cat(parts)


def _cross_entropy(
    states: Tensor, targets: Tensor, embedding: Tensor, bias: Tensor, reduction: str
) -> Tensor:
    logits = functional.linear(states, embedding, bias)
    return functional.cross_entropy(
        widened(logits), targets, ignore_index=IGNORED_TARGET, reduction=reduction
    )
