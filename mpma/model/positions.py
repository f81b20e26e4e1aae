"""Positions of patches on their grid.

Decisions: fixed two-dimensional sines and cosines, half of the width for the column and half for the
row, in the layout that the public MAE weights were trained with (column first). Positions that
come with pretrained weights replace them and are resampled to the grid; either way they stay fixed.

Source: Vaswani et al. 2017 for the one-dimensional form, He et al. 2022 (MAE) for the layout.
"""

from __future__ import annotations

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

_LONGEST_WAVE = 10_000.0


def sine_cosine_positions(grid: int, width: int) -> Tensor:
    """Side of the grid and width -> float32 [grid*grid, width], patches row by row.

    `width` must be a multiple of 4 (ValueError): a sine and a cosine per axis and frequency.
    """
    if width % 4:
        raise ValueError(f"two-dimensional sine-cosine positions need a multiple of 4, not {width}")
    frequency = _LONGEST_WAVE ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phase = torch.arange(grid, dtype=torch.float64).outer(frequency)
    axis = torch.cat([phase.sin(), phase.cos()], dim=1)
    column = axis.repeat(grid, 1)
    row = axis.repeat_interleave(grid, dim=0)
    return torch.cat([column, row], dim=1).float()


def with_class_position(positions_PD: Tensor) -> Tensor:
    """[P,D] -> [1+P,D]: a zero position for the class token in front."""
    return torch.cat([positions_PD.new_zeros(1, positions_PD.shape[1]), positions_PD])


def resampled_positions(positions_ND: Tensor, grid: int) -> Tensor:
    """Class position and patch positions of any square grid, [1+N,D] -> [1+grid*grid,D], bicubic."""
    if positions_ND.shape[0] == 1 + grid * grid:
        return positions_ND
    resampled: Tensor = resample_abs_pos_embed(
        positions_ND.unsqueeze(0).float(), new_size=[grid, grid], num_prefix_tokens=1
    )
    return resampled.squeeze(0)
