"""What the model returns, and what a replayed micro-batch is given.

Decisions: raw terms and weighted total travel together, a skipped term is None (never 0, which would
read as learned); pictures come with the mask that made them.

Shape letters: B pairs, P patches, S crop side, D image width, A alignment width, X pixels of a target
patch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

TERMS = ("image_reconstruction", "report_reconstruction", "global_alignment", "local_alignment")
"""The four loss terms, in the order of the method."""


@dataclass
class Losses:
    """Weighted total and raw terms, fp32 scalars; None where a term was skipped."""

    total: Tensor
    image_reconstruction: Tensor | None = None
    report_reconstruction: Tensor | None = None
    global_alignment: Tensor | None = None
    local_alignment: Tensor | None = None
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars worth watching: temperature, memory usage perplexity, dead slots."""

    def terms(self) -> dict[str, Tensor]:
        """The raw terms that were computed, by name."""
        found = {name: getattr(self, name) for name in TERMS}
        return {name: value for name, value in found.items() if value is not None}


@dataclass
class Replay:
    """One micro-batch of a step whose contrast was computed on cached features."""

    gradients: dict[str, Tensor]
    """d(weighted alignment losses)/d(feature) for this micro-batch's rows, by feature name."""
    share: float
    """Pairs of the micro-batch over pairs of the worker's whole batch."""
    temperature_gradient: Tensor | None = None
    """Given with exactly one micro-batch of a step."""


@dataclass
class ImageEmbedding:
    """Full, unmasked images as downstream tasks and validation use them."""

    tokens: Tensor
    """[B,P,D], in the picture's order."""
    class_token: Tensor
    """[B,D]."""
    mean: Tensor
    """[B,D]: mean of the patch tokens."""
    aligned: Tensor
    """[B,A] fp32, unit norm."""

    def rows(self, index: Tensor) -> ImageEmbedding:
        """Some of the images, by int64 index."""
        return ImageEmbedding(
            self.tokens[index], self.class_token[index], self.mean[index], self.aligned[index]
        )


@dataclass
class Reconstruction:
    """A batch's pictures, in the picture's order; grey values 0..1 unless said otherwise."""

    patches: Tensor
    """[B,P,X]: predictions in the space of the loss; 0 where a patch was visible."""
    mask: Tensor
    """[B,P]: 0 keep, 1 remove."""
    original: Tensor
    """[B,1,S,S]."""
    masked: Tensor
    """[B,1,S,S]: hidden patches at the grey mean."""
    reconstructed: Tensor
    """[B,1,S,S]: visible patches as they are, hidden ones as predicted (with the true patch's mean and
    deviation where the target is standardised by them, as is usual for such pictures)."""
