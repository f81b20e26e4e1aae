"""How well a mask covers another: Dice and intersection over union, image by image.

Decisions: scores are taken per image and averaged by patient later, so that a large lung does not outweigh
a small one. Pixels that are not judged count neither as hit nor as miss. Where both masks are empty the
prediction is right: both scores are 1.

Shapes: m images · H, W pixels, which may differ between images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Masks = Mask | Sequence[Mask]


def mask_scores(predicted: Masks, true: Masks, judged: Masks | None = None) -> dict[str, NDArray[np.float64]]:
    """`dice` [m] = 2 |A and B| / (|A| + |B|) and `iou` [m] = |A and B| / |A or B| of each image.

    predicted, true, judged: bool [m, H, W], or m arrays bool [H, W]. judged (optional): False where a pixel
    is left out. Raises ValueError where numbers of images or shapes differ.
    """
    if len(predicted) != len(true) or (judged is not None and len(judged) != len(true)):
        raise ValueError(f"{len(predicted)} predicted masks for {len(true)} true ones")
    counts = np.zeros((len(true), 3))
    for index, (guess, truth) in enumerate(zip(predicted, true, strict=True)):
        kept = np.ones_like(truth, dtype=np.bool_) if judged is None else np.asarray(judged[index])
        if not guess.shape == truth.shape == kept.shape:
            raise ValueError(f"mask {index}: shapes {guess.shape}, {truth.shape} and {kept.shape} differ")
        if not guess.dtype == truth.dtype == kept.dtype == np.bool_:
            raise ValueError(
                f"mask {index}: masks are boolean, not {guess.dtype}, {truth.dtype}, {kept.dtype}"
            )
        guess, truth = guess & kept, truth & kept
        counts[index] = (guess & truth).sum(), guess.sum(), truth.sum()
    both, guessed, meant = counts.T
    empty = guessed + meant == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "dice": np.where(empty, 1.0, 2.0 * both / (guessed + meant)),
            "iou": np.where(empty, 1.0, both / (guessed + meant - both)),
        }
