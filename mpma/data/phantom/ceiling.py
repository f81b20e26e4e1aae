"""The best retrieval that told facts allow.

Given its facts, a report's wording is drawn independently of the image. So pairs with equal facts
cannot be told apart by anyone, and an ideal ranking puts a query's whole group first in an order that
chance decides: in a group of m the true partner is among the first k with probability min(k, m) / m.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

RECALL_AT = (1, 5, 10)


def retrieval_ceiling(facts: Sequence[Hashable], recall_at: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Highest expected recall over a gallery whose pairs have these facts (`Description.facts`).

    The same in both directions. Keys: `recall_at_<k>` and `mean_recall`, their mean. Raises
    ValueError for an empty gallery.
    """
    if not facts:
        raise ValueError("a gallery of no pairs has no retrieval")
    groups = Counter(facts)
    recalls = {
        f"recall_at_{k}": sum(min(k, size) for size in groups.values()) / len(facts) for k in recall_at
    }
    return {**recalls, "mean_recall": sum(recalls.values()) / len(recalls)}
