"""k nearest neighbours on frozen features: what is near, without anything being learned.

Decisions: features are standardised on the fitted pairs, as for the linear probe, and compared by cosine; a
neighbour votes with exp(cosine / 0.07), so that near ones outweigh the rest and a label's score is the
weighted share of neighbours that carry it (Z. Wu et al., Unsupervised feature learning via non-parametric
instance discrimination, CVPR 2018, section 3.4). With fewer pairs than neighbours, all of them vote.

Shapes: n pairs fitted · m pairs scored · D feature width · F labels · K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mpma.metrics.probe import standardisation

Floats = NDArray[np.float64]

TEMPERATURE: Final = 0.07

_CHUNK_ELEMENTS: Final = 2**24


@dataclass(frozen=True)
class Neighbours:
    """The fitted pairs, kept to be looked up."""

    mean: Floats
    """[D]."""
    scale: Floats
    """[D]."""
    vectors: Tensor
    """float32 [n, D], unit norm."""
    labels: Tensor
    """float64 [n, F]."""
    neighbours: int

    def shares(self, features: NDArray[np.float32], *, themselves: bool = False) -> Floats:
        """Weighted share of each label among the neighbours of [m, D]: [m, F].

        `themselves`: these are the fitted pairs in their order, and none is its own neighbour.
        """
        count = min(self.neighbours, len(self.vectors) - themselves)
        if count < 1:
            return np.zeros((len(features), self.labels.shape[1]))
        chunk = max(1, _CHUNK_ELEMENTS // max(len(self.vectors), count * self.labels.shape[1]))
        found = []
        for start in range(0, len(features), chunk):
            cosine = self._standard(features[start : start + chunk]) @ self.vectors.T
            if themselves:
                own = torch.arange(len(cosine))
                cosine[own, own + start] = -torch.inf
            near, which = cosine.topk(count, dim=1)
            weights = torch.softmax(near.double() / TEMPERATURE, dim=1)
            found.append((weights[:, :, None] * self.labels[which]).sum(dim=1))
        return torch.cat(found).numpy()

    def _standard(self, features: NDArray[np.float32]) -> Tensor:
        return functional.normalize(torch.as_tensor((features - self.mean) / self.scale).float(), dim=1)


def remember(features: NDArray[np.float32], labels: Floats, neighbours: int) -> Neighbours:
    """The neighbours to look up: features [n, D], labels [n, F] of 1 and 0."""
    mean, scale = standardisation(features)
    empty = torch.zeros(0, features.shape[1])
    kept = Neighbours(mean, scale, empty, torch.as_tensor(labels), neighbours)
    return Neighbours(mean, scale, kept._standard(features), kept.labels, neighbours)
