"""Which patches the encoder sees.

Decisions: the order of patches is drawn in collate and arrives as a permutation per pair, so nothing
random happens here. The first V entries stay visible, the rest is reconstructed; a mask says
"0 is keep, 1 is remove", as readers of MAE know it. The decoder works in the shuffled order too
(attention does not mind), so no tensor that carries a gradient is ever gathered or unshuffled.

Shape letters: B pairs, P patches, V visible patches, K chosen patches, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def take_patches(values_BPD: Tensor, index_BK: Tensor) -> Tensor:
    """[B,P,D] and int64 [B,K] -> [B,K,D]: the named patches of each pair."""
    return torch.gather(values_BPD, 1, index_BK.unsqueeze(-1).expand(-1, -1, values_BPD.shape[-1]))


def restore_order(values_BPD: Tensor, order_BP: Tensor) -> Tensor:
    """Undo the permutation: row i of the result is patch i of the picture. [B,P,D] -> [B,P,D]."""
    restored = torch.empty_like(values_BPD)
    return restored.scatter_(1, order_BP.unsqueeze(-1).expand_as(values_BPD), values_BPD)


def removal_mask(order_BP: Tensor, visible: int) -> Tensor:
    """int64 [B,P] -> float32 [B,P] in the picture's order: 0 keep, 1 remove."""
    mask = torch.ones(order_BP.shape, dtype=torch.float32, device=order_BP.device)
    return mask.scatter_(1, order_BP[:, :visible], 0.0)
