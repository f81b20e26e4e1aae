"""The linear probe on any share of the labels: one logistic regression per label on frozen features.

Decisions: the solver, the standardisation and the choice of C are those of `mpma.metrics.probe`. What differs
is that labels are judged whatever the share: a label is fitted as soon as it has one positive and one
negative. Where either lies in fewer than two of the folds (which are drawn by patient) cross-validation
cannot judge, and the middle of the grid is taken. Classes are one regression each against the rest.

Shapes: n pairs fitted · m pairs scored · D feature width · F fitted labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mpma.metrics.probe import C_GRID, choose_c, fit_logistic, patient_folds, standardisation

Floats = NDArray[np.float64]

DEFAULT_C: Final = 1e-2
"""C of a label that cross-validation cannot judge: the middle of `C_GRID`."""


@dataclass(frozen=True)
class LinearHead:
    """Standardisation and regressions of a fitted probe."""

    mean: Floats
    """[D]."""
    scale: Floats
    """[D]."""
    weights: Floats
    """[D, F], on standardised features."""
    intercept: Floats
    """[F]."""
    chosen_c: tuple[float, ...]
    """[F]."""

    def logits(self, features: NDArray[np.float32]) -> Floats:
        """[m, D] -> [m, F]."""
        return np.asarray((features - self.mean) / self.scale @ self.weights + self.intercept)


def fit_linear(
    features: NDArray[np.float32],
    labels: Floats,
    patients: NDArray[np.str_],
    c_grid: tuple[float, ...] = C_GRID,
) -> LinearHead:
    """Regressions on features [n, D] for labels [n, F] of 1 and 0, each with both; patients [n]."""
    mean, scale = standardisation(features)
    standard = torch.as_tensor((features - mean) / scale)
    folds = patient_folds(patients)
    judged = np.flatnonzero(_judgeable(labels, folds))
    chosen = np.full(labels.shape[1], DEFAULT_C)
    if len(judged):
        chosen[judged] = choose_c(standard, labels[:, judged], folds, c_grid)
    weights, intercept = fit_logistic(
        standard, torch.as_tensor(labels), torch.ones(labels.shape, dtype=torch.float64), torch.tensor(chosen)
    )
    return LinearHead(mean, scale, weights.numpy(), intercept.numpy(), tuple(chosen.tolist()))


def _judgeable(labels: Floats, folds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[F]: positives and negatives each in at least two folds."""
    inside = np.stack([folds == fold for fold in range(int(folds.max()) + 1)]).astype(np.float64)
    return ((inside @ labels > 0).sum(axis=0) >= 2) & ((inside @ (1 - labels) > 0).sum(axis=0) >= 2)
