"""Two workers with B pairs compute what one worker computes with 2B."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_workers import MODEL_CASES, feature_losses, model_case, run_worker, unit_features
from torch import Tensor
from torch import multiprocessing as processes

Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What both workers computed; started once, since starting costs most of the time."""
    folder = tmp_path_factory.mktemp("workers")
    processes.spawn(run_worker, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"worker_{rank}.pt", weights_only=True) for rank in range(2)]


def test_losses_over_two_workers_equal_the_single_process_contrast(workers: list[Results]) -> None:
    expected = feature_losses(unit_features(8, seed=0))
    first, second = (results["features"] for results in workers)
    for name in ("global", "local", "d temperature"):
        torch.testing.assert_close((first[name] + second[name]) / 2, expected[name])
    # Each worker holds the sum of all workers' gradients on its rows; data parallelism takes the mean.
    for name in ("d image", "d report", "d patches", "d words"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]) / 2, expected[name])


@pytest.mark.parametrize("case", MODEL_CASES)
def test_two_workers_give_the_gradients_of_one_with_all_pairs(case: str, workers: list[Results]) -> None:
    expected = model_case(case, rank=None)
    first, second = (results[case] for results in workers)
    assert first.keys() == second.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("loss "):
            torch.testing.assert_close((first[name] + second[name]) / 2, value, atol=1e-5, rtol=1e-5)
            continue
        assert value.numel() > 0, f"{name} has no gradient"
        for ours in (first[name], second[name]):
            difference = (ours - value).abs().max().item()
            # fp32 keeps seven digits: a gradient that is a sum over all tokens is far above 1.
            assert difference <= 1e-5 * max(1.0, value.abs().max().item()), f"{name}: {difference}"
