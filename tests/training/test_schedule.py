from __future__ import annotations

import itertools

import pytest
import torch

from mpma.config import load_config
from mpma.errors import JobError
from mpma.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from mpma.training.schedule import image_mask_ratio, learning_rate, peak_learning_rate, tail_start
from mpma.training.step import step_seed


def test_the_rate_rises_linearly_and_falls_by_a_cosine() -> None:
    config = load_config(None, ["training.steps=100", "training.batch_size=512"]).config
    peak = peak_learning_rate(config)
    assert peak == pytest.approx(3e-4)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(peak / 10)
    assert rates[9] == pytest.approx(peak)
    assert rates[99] == pytest.approx(peak * 0.01)
    assert all(a > b for a, b in itertools.pairwise(rates[9:]))
    assert rates[54] == pytest.approx(peak * (0.01 + 0.99 * 0.5), rel=1e-6)


def test_the_last_steps_see_the_full_image() -> None:
    config = load_config(None, ["training.steps=100", "alignment.unmasked_tail=0.1"]).config
    assert tail_start(config) == 90
    assert [image_mask_ratio(step, config) for step in (89, 90, 99)] == [0.75, 0.0, 0.0]


def test_without_an_alignment_loss_there_is_no_tail() -> None:
    config = load_config(
        None, ["training.steps=100", "loss_weights={global_alignment: 0.0, local_alignment: 0.0}"]
    ).config
    assert tail_start(config) == 100


def test_no_two_steps_or_ranks_share_a_seed() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)}
    assert len(seeds) == 600


def test_decay_falls_only_where_it_belongs() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model.named_parameters(), {"bias"}, load_config().config.training)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.weight)] == 0.05
    assert decay[id(model.bias)] == 0.0


def test_an_optimizer_restored_by_name_steps_as_the_one_it_was_saved_from() -> None:
    def stepped(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    training = load_config().config.training
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model.named_parameters(), {"bias"}, training)
    stepped(model, optimizer, 1)
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    restored = build_optimizer(twin.named_parameters(), {"bias"}, training)
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer, model.named_parameters()).items()}
    load_optimizer_tensors(restored, twin.named_parameters(), saved)
    for seed in (2, 3):
        stepped(model, optimizer, seed)
        stepped(twin, restored, seed)
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)


def test_optimizer_state_of_another_model_is_refused() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model.named_parameters(), set(), load_config().config.training)
    with pytest.raises(JobError, match="weight"):
        load_optimizer_tensors(
            optimizer,
            model.named_parameters(),
            {"step/weight": torch.tensor(1.0), "exp_avg/weight": torch.zeros(9)},
        )
