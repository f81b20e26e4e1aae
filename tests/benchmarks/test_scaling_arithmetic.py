from __future__ import annotations

import pytest

from benchmarks.scaling_arithmetic import WORKERS, Machine, Model, step

MODEL = Model(
    trained=100_000_000,
    blocks=80_000_000,
    largest_block=7_000_000,
    alignment_width=128,
    group_size=16,
    log_every_steps=10,
)
MACHINE = Machine(
    gpu_pairs_per_second=1_000.0,
    gpu_flops=1e15,
    node_gpus=8,
    node_bytes=400e9,
    network_bytes=25e9,
    node_hop_seconds=0.0,
    network_hop_seconds=0.0,
    backward_share=0.5,
)


def test_a_ring_of_two_sends_each_gradient_once_each_way() -> None:
    found = step(MODEL, MACHINE, 2, 64)
    assert found.gradient_bytes == 4 * MODEL.trained
    assert found.gradients == pytest.approx(4 * MODEL.trained / 400e9)


def test_beyond_a_node_its_cards_set_the_pace() -> None:
    inside, outside = step(MODEL, MACHINE, 8, 64), step(MODEL, MACHINE, 16, 64)
    assert outside.gradients / inside.gradients == pytest.approx(2 * (15 / 16) / (7 / 8))


def test_what_a_gpu_gives_to_the_contrast_does_not_grow_with_their_number() -> None:
    given = {step(MODEL, MACHINE, workers, 64).own_feature_bytes for workers in WORKERS}
    assert given == {64 * (2 * 128 * 4 + 16)}


def test_gradients_hide_behind_the_backward_pass_as_far_as_it_lasts() -> None:
    long, short = step(MODEL, MACHINE, 512, 64), step(MODEL, MACHINE, 512, 1)
    assert long.exposed < 0.1 * long.gradients
    assert short.exposed == pytest.approx(short.gradients - 0.5 * short.compute)
    assert 0 < short.bare_efficiency < short.efficiency < long.efficiency < 1
