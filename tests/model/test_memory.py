"""The memory: exactly what a slow loop over queries gives, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mpma.model import memory
from mpma.model.memory import KeyValueSlots, SharedMemory, top_k_attention, usage_diagnostics

H, R, M, F, TOP_K = 2, 7, 12, 5, 3


def _naive(queries: Tensor, keys: Tensor, values: Tensor, top_k: int) -> Tensor:
    rows = []
    for head in range(queries.shape[0]):
        for row in range(queries.shape[1]):
            scores = (keys[head] @ queries[head, row]) / queries.shape[-1] ** 0.5
            slots = scores.argsort(descending=True)[:top_k]
            rows.append(torch.softmax(scores[slots], dim=0) @ values[head][slots])
    return torch.stack(rows).view(*queries.shape)


def _inputs() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((H, R, F), (H, M, F), (H, M, F))
    return [torch.randn(shape, generator=draw, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("how", ["whole", "chunks", "chunks computed again"])
def test_top_k_attention_equals_a_gather_per_query(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how != "whole":
        monkeypatch.setitem(memory._CHUNK_ELEMENTS, "cpu", 2 * H * M)
    if how == "chunks computed again":
        monkeypatch.setattr(memory, "_RECOMPUTED_FROM", 1)
    ours, theirs = _inputs(), _inputs()
    weight = torch.randn(H, R, F, generator=torch.Generator().manual_seed(1))
    read, expected = top_k_attention(*ours, TOP_K), _naive(*theirs, TOP_K)
    torch.testing.assert_close(read, expected)
    (read * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_slots_outside_the_top_k_get_no_gradient_and_ties_do_not_add_slots() -> None:
    queries = torch.ones(1, 1, F)
    keys = torch.zeros(1, M, F)
    values = torch.randn(1, M, F, requires_grad=True)
    top_k_attention(queries, keys, values, TOP_K).sum().backward()
    used = values.grad.abs().sum(-1) > 0
    assert used.sum() == TOP_K


def test_the_shared_memory_adds_what_was_read_and_both_modalities_may_share_a_call() -> None:
    torch.manual_seed(0)
    module = SharedMemory(width=8, slots=M, top_k=TOP_K, heads=H, dropout=0.0)
    module.slots.data.normal_()
    patches, tokens = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    projected = module.project()
    both = module(torch.cat([patches, tokens], dim=1), projected)
    torch.testing.assert_close(both[:, :3], module(patches, projected))
    torch.testing.assert_close(both[:, 3:], module(tokens, projected))
    queries = module.query(tokens).view(2, 5, H, 4).permute(2, 0, 1, 3).reshape(H, 10, 4)
    keys = module.key(module.slots).view(M, H, 4).transpose(0, 1)
    values = module.value(module.slots).view(M, H, 4).transpose(0, 1)
    read = _naive(queries, keys, values, TOP_K).view(H, 2, 5, 4).permute(1, 2, 0, 3).reshape(2, 5, 8)
    torch.testing.assert_close(both[:, 3:], tokens + module.output(read))


def test_the_slots_start_as_their_sources_say() -> None:
    torch.manual_seed(0)
    assert SharedMemory(width=64, slots=2048, top_k=4, heads=2, dropout=0.0).slots.std().item() == (
        pytest.approx(1 / 64, rel=0.05)
    )
    slots = KeyValueSlots(width=64, slots=500, heads=4)
    keys, values = slots(3)
    assert keys.shape == values.shape == (3, 4, 500, 16)
    assert keys.std().item() == pytest.approx(16**0.5 / 16, rel=0.05)
    assert values.std().item() == pytest.approx(500**0.5 / 500, rel=0.05)


def test_usage_tells_even_use_from_a_memory_that_died() -> None:
    even = usage_diagnostics(torch.full((2, 8), 1 / 8))
    assert even["memory/usage_perplexity"].item() == pytest.approx(8.0)
    assert even["memory/dead_slot_fraction"].item() == 0.0
    one = torch.zeros(2, 8)
    one[0, 0] = one[1, 3] = 1.0
    dead = usage_diagnostics(one)
    assert dead["memory/usage_perplexity"].item() == pytest.approx(1.0)
    assert dead["memory/dead_slot_fraction"].item() == pytest.approx(6 / 8)
