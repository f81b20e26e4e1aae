"""What it means that two batches are the same."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from mpma.data.batches import Batch


def assert_same_batch(one: Batch, other: Batch) -> None:
    """Every field equal to the bit; fails naming the first that is not."""
    for field in fields(Batch):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, Tensor):
            torch.testing.assert_close(first, second, rtol=0, atol=0, msg=field.name)
        else:
            assert first == second, field.name
