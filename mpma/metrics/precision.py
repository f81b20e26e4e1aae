"""Precision at k of a ranking, ties by their expectation.

Items of equal similarity stand in an order drawn uniformly, and what is returned is the exact mean over those
orders, as in `mpma.metrics.retrieval`: so equal similarities score the share of relevant items, never 0 or 1.

Shapes: C queries · N gallery items · A embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_CHUNK: int = 1024
"""Queries scored at a time."""


def precision_at(
    queries: Tensor, gallery: Tensor, relevant: Callable[[Tensor], Tensor], ks: Sequence[int]
) -> NDArray[np.float64]:
    """Share of relevant items among the first k of each query's ranking: float64 [C, len(ks)].

    queries [C, A], gallery [N, A], ranked by inner product in float32. `relevant` takes numbers of
    queries int64 [c] and gives bool [c, N]. A k above N counts as N. Raises ValueError where a similarity
    is not finite.
    """
    queries, gallery = queries.float(), gallery.float()
    found = []
    for rows in torch.arange(len(queries)).split(_CHUNK):
        similarity = queries[rows] @ gallery.T
        if not bool(torch.isfinite(similarity).all()):
            raise ValueError("precision: the similarities are not finite")
        matches = relevant(rows)
        found.append(torch.stack([_expected(similarity, matches, k) for k in ks], dim=1))
    return np.asarray(torch.cat(found).numpy())


def _expected(similarity: Tensor, relevant: Tensor, k: int) -> Tensor:
    """float64 [c]."""
    k = min(k, similarity.shape[1])
    last = similarity.topk(k, dim=1).values[:, -1:]
    above, tied = similarity > last, similarity == last
    places = k - above.sum(dim=1)
    hits = (above & relevant).sum(dim=1) + places * ((tied & relevant).sum(dim=1) / tied.sum(dim=1).double())
    return hits / k
