"""The learned memory of the cross-modal fusion.

Decisions:
- `shared` [code: R2GenCMN for the matrix]: patch tokens and report tokens query ONE matrix through the
  same projections, which is what makes it cross-modal; a query attends to its top-k slots per head;
- the matrix is projected once per step, for both kinds of token;
- an expanded [B,H,T,M,*] view is never gathered: the softmax over the k best scores is scattered into
  a dense row of zeros and multiplied densely, so exactly k slots take part even when scores tie;
- scores, their selection and the softmax in fp32: in bf16 ties would decide which slots take part;
- queries go through in chunks (small enough for the cache on a CPU); where the dense weights of a step
  would be large, the chunks are computed again in backward;
- `key_value` [after M2-Transformer]: learned keys and values beside those of the cross-attention.

Shape letters: B pairs, H heads, T queries of a pair, R = B*T rows, M slots, E width, F width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mpma.model.kernels import kernels_at_hand
from mpma.model.widening import widened

_CHUNK_ELEMENTS = {"cpu": 2**21}
_CHUNK_ELEMENTS_ELSEWHERE = 2**27
_RECOMPUTED_FROM = 2**28
"""Elements H*R*M of the dense weights from which backward computes them again (1 GB in fp32)."""
_LARGEST_SLOTS_OF_KERNELS = 16384
"""Slots that a row of the GPU's kernels (top_k_kernels.py) can hold in registers."""


def top_k_attention(
    queries_HRF: Tensor, keys_HMF: Tensor, values_HMF: Tensor, top_k: int, dropout: float = 0.0
) -> Tensor:
    """Attention of every query and head to its `top_k` best slots: [H,R,F].

    The maths is softmax over the k largest of q.k / sqrt(F), dropout on those k weights, times the
    values; fp32 inside.
    """
    few_enough = keys_HMF.shape[1] <= _LARGEST_SLOTS_OF_KERNELS
    if kernels_at_hand(queries_HRF) and few_enough and not dropout:
        from mpma.model.top_k_kernels import top_k_attention_on_gpu

        with torch.autocast(queries_HRF.device.type, enabled=False):
            return top_k_attention_on_gpu(queries_HRF, keys_HMF, values_HMF, top_k)
    heads, rows, _ = queries_HRF.shape
    elements = heads * rows * keys_HMF.shape[1]
    largest = _CHUNK_ELEMENTS.get(queries_HRF.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
    chunk = max(1, largest // (heads * keys_HMF.shape[1]))
    recompute = elements >= _RECOMPUTED_FROM and torch.is_grad_enabled()
    with torch.autocast(queries_HRF.device.type, enabled=False):
        queries = widened(queries_HRF) * queries_HRF.shape[-1] ** -0.5
        keys, values = widened(keys_HMF).transpose(1, 2), widened(values_HMF)
        parts = []
        for part in queries.split(chunk, dim=1):
            if recompute:
                again: Tensor = checkpoint(
                    _top_k_part, part, keys, values, top_k, dropout, use_reentrant=False
                )
                parts.append(again)
            else:
                parts.append(_top_k_part(part, keys, values, top_k, dropout))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _top_k_part(
    queries_HRF: Tensor, keys_HFM: Tensor, values_HMF: Tensor, top_k: int, dropout: float
) -> Tensor:
    return torch.bmm(_top_k_weights(queries_HRF, keys_HFM, top_k, dropout), values_HMF)


def _top_k_weights(queries_HRF: Tensor, keys_HFM: Tensor, top_k: int, dropout: float = 0.0) -> Tensor:
    scores = torch.bmm(queries_HRF, keys_HFM)
    best, slots = scores.topk(top_k, dim=-1, sorted=False)
    weights = functional.dropout(best.softmax(dim=-1), dropout) if dropout else best.softmax(dim=-1)
    return torch.zeros_like(scores).scatter(-1, slots, weights)


@dataclass
class ProjectedMemory:
    """Keys and values of the matrix, projected once per step."""

    keys: Tensor
    """[H,M,F]."""
    values: Tensor
    """[H,M,F]."""


class SharedMemory(nn.Module):
    """One matrix that both modalities read.

    Initialised with deviation 1/E as R2GenCMN does; the projections as BERT's (normal, 0.02).
    """

    def __init__(self, *, width: int, slots: int, top_k: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.top_k = top_k
        self.slots = nn.Parameter(torch.empty(slots, width))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = dropout
        nn.init.normal_(self.slots, std=1.0 / width)

    def project(self) -> ProjectedMemory:
        """Keys and values for this step."""
        return ProjectedMemory(
            keys=self._split(self.key(self.slots)), values=self._split(self.value(self.slots))
        )

    def forward(self, tokens_BTE: Tensor, memory: ProjectedMemory) -> Tensor:
        """[B,T,E] -> [B,T,E]: the tokens with what they read added."""
        batch, length, width = tokens_BTE.shape
        queries = self._split(self.query(tokens_BTE).flatten(0, 1))
        dropout = self.dropout if self.training else 0.0
        read_HRF = top_k_attention(queries, memory.keys, memory.values, self.top_k, dropout)
        read = read_HRF.transpose(0, 1).reshape(batch, length, width)
        return tokens_BTE + self.output(read.to(tokens_BTE.dtype))

    @torch.no_grad()
    def usage(self, tokens_BTE: Tensor, real_BT: Tensor, memory: ProjectedMemory) -> Tensor:
        """Mean weight of each slot, [H,M] fp32, over the first pairs' real tokens (at most 128 queries).

        A sample: the figures are for watching, and the whole would cost a second pass.
        """
        pairs = max(1, min(tokens_BTE.shape[0], _USAGE_QUERIES // tokens_BTE.shape[1]))
        with torch.autocast(tokens_BTE.device.type, enabled=False):
            tokens = tokens_BTE[:pairs].flatten(0, 1).to(self.query.weight.dtype)
            queries = widened(self._split(self.query(tokens))) * memory.keys.shape[-1] ** -0.5
            weights = _top_k_weights(queries, widened(memory.keys).transpose(1, 2), self.top_k)
            real = real_BT[:pairs].flatten().to(weights.dtype)
            return real @ weights / real.sum().clamp_min(1.0)

    def _split(self, values: Tensor) -> Tensor:
        rows, width = values.shape
        return values.view(rows, self.heads, width // self.heads).transpose(0, 1)


_USAGE_QUERIES = 128


def usage_diagnostics(usage_HM: Tensor) -> dict[str, Tensor]:
    """Perplexity of the slots' use (mean over heads; M = even use) and the share of slots no head read."""
    entropy_H = -torch.xlogy(usage_HM, usage_HM).sum(dim=-1)
    return {
        "memory/usage_perplexity": entropy_H.exp().mean(),
        "memory/dead_slot_fraction": (usage_HM.sum(dim=0) == 0).float().mean(),
    }


class KeyValueSlots(nn.Module):
    """M learned keys and values of one cross-attention, never masked [after M2-Transformer].

    Keys are scaled by sqrt(F) and start with deviation 1/F, values by sqrt(M) and 1/M.
    """

    def __init__(self, *, width: int, slots: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.keys = nn.Parameter(torch.empty(slots, width))
        self.values = nn.Parameter(torch.empty(slots, width))
        nn.init.normal_(self.keys, std=1.0 / self.head_width)
        nn.init.normal_(self.values, std=1.0 / slots)

    def forward(self, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values, each [batch,H,M,F]."""
        keys = self.keys * self.head_width**0.5
        values = self.values * self.values.shape[0] ** 0.5
        return self._expanded(keys, batch), self._expanded(values, batch)

    def _expanded(self, slots_ME: Tensor, batch: int) -> Tensor:
        split = slots_ME.view(-1, self.heads, self.head_width).transpose(0, 1)
        return split.unsqueeze(0).expand(batch, -1, -1, -1)
