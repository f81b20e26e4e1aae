"""The profile of a step: every counted operation stands at a place of the model, backward ones too."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import build_step
from benchmarks.step_profile import costs_of, name_places, table

SMALL = (
    "image={size: 64, width: 48, layers: 2, heads: 2}",
    "image={decoder_width: 32, decoder_layers: 1, decoder_heads: 2}",
    "report={max_tokens: 32, layers: 1, width: 48, heads: 2}",
    "memory={slots: 32, top_k: 8, heads: 2}",
    "fusion={layers: 1, heads: 2}",
)


def test_every_operation_of_a_step_is_put_down_to_a_place() -> None:
    step = build_step(2, "fp32", torch.device("cpu"), overrides=SMALL)
    counted = step.operations()
    name_places(step)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    costs = costs_of(profiler.events(), 1)
    assert sum(cost.operations for cost in costs.values()) == counted
    by_place: dict[str, float] = {}
    for (place, _), cost in costs.items():
        by_place[place] = by_place.get(place, 0.0) + cost.operations
    assert by_place["image encoder"] > 0
    assert by_place["memory"] > 0
    assert by_place["local alignment"] > 0
    assert by_place.get("the rest", 0.0) + by_place.get("backward, unplaced", 0.0) < 0.02 * counted
    lines = table(costs, 1e11, 1e10, rows=10)
    assert len(lines) == 2 + 10 + 2
    assert all(line.count("|") == 9 for line in lines)
