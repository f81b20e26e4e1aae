"""Image-report retrieval: ranks, recall at k, and what chance and the prior would score.

Decisions:
- Pairs with the same normalised report are one class, and any member of the query's class is a hit:
  nobody can tell two identical reports apart. The rank of a query is that of its best hit.
- Ties are scored by their expectation: candidates of equal similarity stand in an order drawn
  uniformly, and recall and rank score are the exact means over those orders. So a constant
  similarity scores exactly chance, never 1, and nothing depends on the order of the gallery.
- A recall depends on the gallery's size and on its repeated reports, so `chance_recall` and
  `prior_recall` belong beside every figure.
- Similarities are made in chunks of queries: never more than chunk x N of them in memory.

Shapes: N pairs · A embedding width · C queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

RECALL_AT: Final = (1, 5, 10)
"""The k of the six recalls whose mean is `mean_recall`."""

DIRECTIONS: Final = ("image_to_report", "report_to_image")


@dataclass(frozen=True)
class Ranks:
    """Where each query's best hit stands, ties kept open. All arrays int64 [N].

    above: non-hits strictly more similar than the best hit. tied: non-hits exactly as similar.
    tied_hits: hits as similar as the best, itself included, so at least 1. gallery_size: N.
    """

    above: np.ndarray
    tied: np.ndarray
    tied_hits: np.ndarray
    gallery_size: int

    def recall_at(self, k: int) -> np.ndarray:
        """Per query, the probability that a hit is among the first k: float64 [N], 0 or 1 without ties."""
        places = np.clip(k - self.above, 0, self.tied + self.tied_hits)
        return 1.0 - _share_of_draws_without_a_hit(self.tied + self.tied_hits, self.tied_hits, places)

    def rank_score(self) -> np.ndarray:
        """Per query, the mean of 1 - ln(rank) / ln(N): 1 at the top, 0 at the end; float64 [N]."""
        triples, inverse = np.unique(
            np.stack([self.above, self.tied, self.tied_hits]), axis=1, return_inverse=True
        )
        scores = np.array([self._expected_score(*triple) for triple in triples.T.tolist()])
        return scores[inverse.reshape(-1)]

    def _expected_score(self, above: int, tied: int, tied_hits: int) -> float:
        if self.gallery_size < 2:
            return 1.0
        # The first hit lies deeper than j tied candidates with probability q_j; ln(rank) is summed
        # over the differences of q.
        depth = np.arange(tied + 2)
        deeper = _share_of_draws_without_a_hit(
            np.full(tied + 2, tied + tied_hits), np.full(tied + 2, tied_hits), depth
        )
        probability = deeper[:-1] - deeper[1:]
        return float(1.0 - probability @ np.log(above + depth[1:]) / np.log(self.gallery_size))


def _share_of_draws_without_a_hit(items: np.ndarray, hits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """C(items - hits, draws) / C(items, draws): no hit among `draws` taken without replacement; float64."""
    possible = items - hits - draws >= 0
    misses = np.where(possible, items - hits - draws, 0)
    log_share = (
        _log_factorial(items - hits)
        - _log_factorial(misses)
        - _log_factorial(items)
        + _log_factorial(items - draws)
    )
    return np.where(possible, np.exp(np.minimum(log_share, 0.0)), 0.0)


def _log_factorial(count: np.ndarray) -> np.ndarray:
    return np.asarray(torch.lgamma(torch.as_tensor(count, dtype=torch.float64) + 1.0).numpy())


def ranks_of_similarity(
    similarity: torch.Tensor, query_class: torch.Tensor, gallery_class: torch.Tensor
) -> Ranks:
    """Ranks of a similarity matrix [C, N]; classes int64 [C] and [N].

    Raises ValueError where a similarity is not finite (a comparison with NaN is false, which would
    count as a perfect rank) or where a query has no hit in the gallery.
    """
    if not bool(torch.isfinite(similarity).all()):
        raise ValueError("retrieval: the similarities are not finite")
    hit = query_class[:, None] == gallery_class[None, :]
    if not bool(hit.any(dim=1).all()):
        raise ValueError("retrieval: a query has no pair of its own class in the gallery")
    best = similarity.masked_fill(~hit, -torch.inf).amax(dim=1, keepdim=True)
    equal = similarity == best
    counts = [((similarity > best) & ~hit).sum(1), (equal & ~hit).sum(1), (equal & hit).sum(1)]
    above, tied, tied_hits = (count.cpu().numpy().astype(np.int64) for count in counts)
    return Ranks(above, tied, tied_hits, similarity.shape[1])


def retrieval_ranks(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    query_class: torch.Tensor,
    gallery_class: torch.Tensor,
    chunk: int = 1024,
) -> Ranks:
    """Ranks of queries [C, A] in a gallery [N, A] by inner product (cosine where both have unit norm).

    Classes are int64 [C] and [N]. At most `chunk` x N similarities are held at a time, in float32.
    Raises ValueError as `ranks_of_similarity` does.
    """
    queries, gallery = queries.float(), gallery.float()
    query_class, gallery_class = query_class.to(queries.device), gallery_class.to(queries.device)
    parts = [
        ranks_of_similarity(queries[at : at + chunk] @ gallery.T, query_class[at : at + chunk], gallery_class)
        for at in range(0, len(queries), chunk)
    ]
    return Ranks(
        np.concatenate([part.above for part in parts]),
        np.concatenate([part.tied for part in parts]),
        np.concatenate([part.tied_hits for part in parts]),
        len(gallery),
    )


def chance_recall(classes: np.ndarray, k: int) -> float:
    """Expected recall at k of a random order of the gallery: (1/N) sum_q [1 - C(N-m_q, k) / C(N, k)].

    classes [N]; m_q is the number of gallery items in query q's class. k above N counts as N.
    """
    return float(np.mean(chance_recall_of_queries(classes, k)))


def chance_recall_of_queries(classes: np.ndarray, k: int) -> np.ndarray:
    """The addends of `chance_recall`: each query's 1 - C(N-m_q, k) / C(N, k), float64 [N]; classes [N]."""
    count = len(classes)
    _, inverse, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    members = sizes[inverse]
    draws = np.full(count, min(k, count))
    return 1.0 - _share_of_draws_without_a_hit(np.full(count, count), members, draws)


def prior_recall(classes: np.ndarray, k: int) -> float:
    """Recall at k of the best ranking that ignores the query: the k largest classes' share of the gallery.

    That ranking shows one item of each class, largest class first; no other constant one does better.
    Equal to chance where all reports are distinct. classes [N].
    """
    _, sizes = np.unique(classes, return_counts=True)
    return float(np.sort(sizes)[::-1][:k].sum() / len(classes))


def retrieval_metrics(
    image: torch.Tensor,
    report: torch.Tensor,
    classes: np.ndarray | torch.Tensor,
    chunk: int = 1024,
    recall_at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """All retrieval figures of N pairs, by name (without the `val/retrieval/` in front).

    image, report: float [N, A], unit norm; classes: int64 [N], equal where the normalised reports are
    equal. Names: `{direction}/recall_at_{k}`, `mean_recall` (over directions and k), `rank_score`
    (over directions), `chance_mean_recall`, `prior_mean_recall`, `gallery_size`.
    Raises ValueError for fewer than two pairs, other shapes, or embeddings that are not finite.
    """
    class_of = torch.as_tensor(classes)
    if image.shape != report.shape or len(image) != len(class_of) or len(image) < 2:
        raise ValueError(
            f"retrieval needs [N, A] twice and [N] with N >= 2; got {tuple(image.shape)}, "
            f"{tuple(report.shape)}, {tuple(class_of.shape)}"
        )
    metrics: dict[str, float] = {}
    recalls, scores = [], []
    for direction, queries, gallery in zip(DIRECTIONS, (image, report), (report, image), strict=True):
        ranks = retrieval_ranks(queries, gallery, class_of, class_of, chunk)
        for k in recall_at:
            recalls.append(float(ranks.recall_at(k).mean()))
            metrics[f"{direction}/recall_at_{k}"] = recalls[-1]
        scores.append(float(ranks.rank_score().mean()))
    numbers = class_of.cpu().numpy()
    metrics["mean_recall"] = float(np.mean(recalls))
    metrics["rank_score"] = float(np.mean(scores))
    metrics["chance_mean_recall"] = float(np.mean([chance_recall(numbers, k) for k in recall_at]))
    metrics["prior_mean_recall"] = float(np.mean([prior_recall(numbers, k) for k in recall_at]))
    metrics["gallery_size"] = float(len(numbers))
    return metrics


def above_chance(mean_recall: float, chance: float) -> float:
    """(mean_recall - chance) / (1 - chance): 0 at chance, 1 when perfect; 0 where chance is already 1."""
    return (mean_recall - chance) / (1.0 - chance) if chance < 1.0 else 0.0
