"""A light decoder from patch tokens to a mask, and its loss.

Decisions:
- few convolutions and no skip connections, so that what is measured is the tokens: two stages of twice the
  grid and half the channels, one score per place, then bilinear to the size asked for;
- tokens are standardised feature by feature by what the encoder as it came says of training images, so that
  encoders whose tokens differ in scale meet the same decoder;
- the loss is binary cross-entropy plus soft Dice (F. Milletari et al., V-Net, 3DV 2016), both on judged
  pixels alone; Dice is taken per image, one pixel added above and below, so that an empty mask has a value.

Shape letters: B images, P patches of a G x G grid, D encoder width, S side of the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST_DEVIATION = 1e-4
_NARROWEST = 8
_GROUPS = 4


class MaskDecoder(nn.Module):
    """Patch tokens -> logits of the foreground."""

    def __init__(self, mean_D: Tensor, deviation_D: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean_D)
        self.register_buffer("scale", 1.0 / deviation_D.clamp_min(_SMALLEST_DEVIATION))
        middle, narrow = (max(_NARROWEST, width // share) for share in (2, 4))
        self.enter = nn.Conv2d(len(mean_D), width, 1)
        self.stages = nn.ModuleList([_Stage(width, middle), _Stage(middle, narrow)])
        self.head = nn.Conv2d(narrow, 1, 1)

    mean: Tensor
    scale: Tensor

    def forward(self, tokens_BPD: Tensor, side: int) -> Tensor:
        """[B,P,D] of a square grid -> fp32 logits [B,side,side]."""
        batch, patches, width = tokens_BPD.shape
        grid = round(patches**0.5)
        standard = (tokens_BPD.float() - self.mean) * self.scale
        states = self.enter(standard.transpose(1, 2).reshape(batch, width, grid, grid))
        for stage in self.stages:
            states = stage(states)
        return functional.interpolate(
            self.head(states).float(), size=(side, side), mode="bilinear", align_corners=False
        )[:, 0]


class _Stage(nn.Module):
    """Twice the grid, then a convolution."""

    def __init__(self, width: int, narrower: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, narrower, 3, padding=1)
        self.norm = nn.GroupNorm(_GROUPS if narrower % _GROUPS == 0 else 1, narrower)

    def forward(self, states: Tensor) -> Tensor:
        larger = functional.interpolate(states, scale_factor=2, mode="bilinear", align_corners=False)
        return functional.gelu(self.norm(self.convolution(larger)))


def mask_loss(logits_BSS: Tensor, foreground_BSS: Tensor, judged_BSS: Tensor) -> Tensor:
    """Cross-entropy plus 1 - soft Dice of judged pixels; fp32 scalar.

    `foreground_BSS` and `judged_BSS` are bool. What is not judged reaches neither value nor gradient.
    """
    judged = judged_BSS.float()
    true = foreground_BSS.float() * judged
    entropy = functional.binary_cross_entropy_with_logits(logits_BSS, true, weight=judged, reduction="sum")
    entropy = entropy / judged.sum().clamp_min(1.0)
    guessed = torch.sigmoid(logits_BSS) * judged
    both, total = (guessed * true).sum(dim=(1, 2)), (guessed + true).sum(dim=(1, 2))
    return entropy + (1.0 - (2.0 * both + 1.0) / (total + 1.0)).mean()
