"""Compiled code is made once for each length of reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from model_samples import small_batch, small_model

from mpma.data.batches import IGNORED_TARGET, Batch
from mpma.training.compiled import CompiledModel
from mpma.training.feature_cache import accumulate_backward, unwrapped


def _with(batch: Batch, length: int, more_rows: int) -> Batch:
    """The batch with its reports cut to `length` tokens and more padding among its hidden rows."""
    whole = batch.token_ids.shape[1]
    kept = (batch.masked_rows % whole < length) & (batch.masked_targets != IGNORED_TARGET)
    rows = batch.masked_rows[kept] // whole * length + batch.masked_rows[kept] % whole
    names = ("token_ids", "attention", "word_index", "masked_token_ids")
    return replace(
        batch,
        **{name: getattr(batch, name)[:, :length].contiguous() for name in names},
        masked_rows=torch.cat([rows, rows.new_zeros(more_rows)]),
        masked_targets=torch.cat([batch.masked_targets[kept], rows.new_full((more_rows,), IGNORED_TARGET)]),
        masked_count=len(rows),
    )


def test_a_graph_is_made_for_each_length_of_reports_and_not_for_each_number_of_hidden_pieces() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model = small_model()
    compiled = CompiledModel(model, backend=backend, fullgraph=True)
    assert unwrapped(compiled) is model
    lengths = (16, 12, 8, 4)
    for seed in range(3):
        for length in lengths:
            for more_rows in (2, 9, 16):
                batch = _with(small_batch(seed=seed), length, more_rows)
                expected = model(batch).total
                found = accumulate_backward(compiled, batch).total
                torch.testing.assert_close(found, expected.detach())
    assert len(graphs) == len(lengths)
