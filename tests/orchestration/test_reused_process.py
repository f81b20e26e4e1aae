"""A trial in a process that other trials used before is the same trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import assert_same_run, phantom_dataset, recipe

from mpma.config import validate_tree
from mpma.training.loop import Silent
from orchestration.worker import WorkerPlan, run_worker


def train(data: Path, runs: Path, name: str, *, keep: bool, **image: Any) -> None:
    tree = recipe(steps=6, threads_per_worker=1)
    tree["image"] = {**tree["image"], **image}
    config = validate_tree(tree)
    (runs / name).mkdir(parents=True)
    run_worker(
        WorkerPlan(
            config=config.model_dump(mode="json"),
            data=str(data),
            runs=str(runs),
            name=name,
            device="cpu",
            precision="fp32",
            threads=1,
            validate_untrained=False,
            keep_parts=keep,
        ),
        *(0, 1, 0, Silent(), lambda: False),
    )


@pytest.mark.usefixtures("ray_local")
def test_a_reused_process_trains_and_validates_as_a_fresh_one_does(tmp_path: Path) -> None:
    data = phantom_dataset(tmp_path / "phantom")
    train(data, tmp_path, "fresh", keep=False, mask_ratio=0.5)
    train(data, tmp_path, "other", keep=True, mask_ratio=0.75)
    train(data, tmp_path, "reused", keep=True, mask_ratio=0.5)
    assert_same_run(tmp_path / "fresh", tmp_path / "reused", 6)
    train(data, tmp_path, "larger", keep=False, size=96)
    train(data, tmp_path, "larger-reused", keep=True, size=96)
    assert_same_run(tmp_path / "larger", tmp_path / "larger-reused", 6)
