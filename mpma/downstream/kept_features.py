"""Features of a frozen encoder within one fit: each read when first asked for, then kept.

Decisions: kept in fp16, so that twice as many fit; where they do not fit into the budget they are read again
each time, rounded the same, so that the budget decides how long a fit takes and not what comes out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LARGEST_FP16 = 65504.0


class KeptFeatures:
    """A table of features by place, 0..count-1."""

    def __init__(self, count: int, read: Callable[[NDArray[np.int64]], Tensor], budget_bytes: int) -> None:
        """`read(places)` gives [len(places), ...] for distinct places in ascending order."""
        self._count, self._read, self._budget = count, read, budget_bytes
        self._table: Tensor | None = None
        self._known = np.zeros(count, np.bool_)
        self._fits = True

    def get(self, places: NDArray[np.int64]) -> Tensor:
        """fp32 [len(places), ...] on the CPU; places may repeat."""
        missing = np.unique(places[~self._known[places]])
        if len(missing):
            found = self._read(missing).float().clamp(-_LARGEST_FP16, _LARGEST_FP16).half().cpu()
            if self._table is None:
                self._fits = 2 * self._count * found[0].numel() <= self._budget
                if self._fits:
                    self._table = torch.empty(self._count, *found.shape[1:], dtype=torch.float16)
            if self._table is None:
                return found[torch.from_numpy(np.searchsorted(missing, places))].float()
            self._table[torch.from_numpy(missing)] = found
            self._known[missing] = True
        assert self._table is not None
        return self._table[torch.from_numpy(places)].float()
