"""DDP and FSDP2 are two ways of computing one thing, and neither sends what it need not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_samples import LENGTH, SMALL
from parallel_workers import CASES, PAIRS, WORKERS, run_worker
from torch import multiprocessing as processes

Results = dict[str, Any]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """What both workers computed; started once, since starting costs most of the time."""
    folder = tmp_path_factory.mktemp("workers")
    processes.spawn(run_worker, args=(str(folder),), nprocs=WORKERS)
    return [torch.load(Path(folder) / f"all_{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def assert_same_training(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Losses, norms, weights and moments, within fp32 rounding."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_sharded_and_whole_models_train_the_same(case: str, workers: list[Results]) -> None:
    for results in workers:
        ways = results["trained"][case]
        assert len(ways["ddp"]) > 100
        assert_same_training(ways["fsdp2"], ways["ddp"])


@pytest.mark.parametrize("change", ["ddp to fsdp2", "fsdp2 to ddp"])
def test_a_run_goes_on_the_other_way_from_a_checkpoint(change: str, workers: list[Results]) -> None:
    for results in workers:
        unbroken = results["trained"]["plain"]["ddp"]
        assert_same_training(results["continued"][change], {**unbroken, "steps": unbroken["steps"][2:]})


def test_a_worker_sends_its_own_pairs_features_and_no_buffers(workers: list[Results]) -> None:
    own, width = PAIRS // WORKERS, SMALL["alignment"]["width"]
    image_and_report, hashes = own * 2 * width * 4, own * 2 * 8
    for results in workers:
        sent = results["bytes"][own]
        # One gather of features, one of hashes; groups of the local alignment are whole, so it sends nothing.
        assert sum(size for name, size in sent.items() if "allgather" in name) == image_and_report + hashes
        assert "broadcast_" not in sent


def test_groups_over_workers_cost_the_words_and_patches_of_own_pairs(workers: list[Results]) -> None:
    own, width = PAIRS // WORKERS, SMALL["alignment"]["width"]
    visible = CASES["plain"].visible[0]
    for results in workers:
        within, across = (
            sum(size for name, size in results["bytes"][group].items() if "allgather" in name)
            for group in (own, PAIRS)
        )
        features = own * (visible + LENGTH) * width * 4
        mask, hashes = own * LENGTH, own * 2 * 8
        assert across - within == features + mask + hashes
