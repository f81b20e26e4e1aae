"""Where half precision ends: losses, norms and the softmax of a contrast are computed in fp32 at least.

Decision: what is wider than that stays so. A run in fp64 (`training.precision`), which shows that two ways of
computing the same step differ by rounding alone, would otherwise be rounded to fp32 on its way.
"""

from __future__ import annotations

from torch import Tensor


def widened(values: Tensor) -> Tensor:
    """The same values in fp32, or in fp64 where they are that already; any shape."""
    return values if values.is_floating_point() and values.element_size() >= 4 else values.float()
