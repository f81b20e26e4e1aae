"""torch.compile as the training loop uses it: one graph for each length of reports, and no more.

Decisions: shapes are static, so each of the four token lengths that batches come in has code of its own,
made when the first such batch comes; the number of hidden pieces, which differs from batch to batch, is the
one dimension that the code leaves open. Left to itself the compiler makes code for the first batch, finds the
second one different, and from then on treats every dimension that ever moved as unknown, tokens among them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mpma.data.batches import Batch

_MOST_GRAPHS = 32
"""Four lengths, with and without hidden patches, whole and by micro-batches, and as much again."""


class CompiledModel(nn.Module):
    """Called with a batch on its device (and what else the model takes), as the model itself is.

    `options` go to torch.compile.
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__()
        # Beyond torch's own limit of eight the rest would run uncompiled without a word.
        torch._dynamo.config.recompile_limit = max(_MOST_GRAPHS, torch._dynamo.config.recompile_limit)
        compiled: Any = torch.compile(module, dynamic=False, **options)
        self.module = compiled

    def forward(self, batch: Batch, *rest: Any) -> Any:
        """What the module returns."""
        for rows in (batch.masked_rows, batch.masked_targets):
            torch._dynamo.maybe_mark_dynamic(rows, 0)
        return self.module(batch, *rest)
