"""The untrained model is validated after the first step, and recorded before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_runs import lines, phantom_dataset, recipe

from mpma.config import validate_tree
from mpma.data.dataset import Dataset
from mpma.training.loop import Silent
from mpma.training.run_directory import RunDirectory
from orchestration.assembly import Parts
from orchestration.worker import WorkerPlan, run_worker


class _Remembering(Silent):
    def __init__(self) -> None:
        self.order: list[str] = []

    def progress(self, step: int) -> None:
        self.order.append(f"step {step}")

    def line(self, values: dict[str, Any]) -> None:
        kind = "validation" if any(name.startswith("val/") for name in values) else "losses"
        self.order.append(f"{kind} of {values['step']}")


def test_a_step_comes_first_and_the_untrained_figures_are_still_those_of_the_untrained_model(
    ray_local: None, tmp_path: Path
) -> None:
    data = phantom_dataset(tmp_path / "data")
    config = validate_tree(recipe(steps=2) | {"data": {"path": str(data)}})
    dataset = Dataset.open(data)
    RunDirectory.at(tmp_path, "run").begin_or_continue(config, dataset.fingerprint)
    plan = WorkerPlan(config.model_dump(), str(data), str(tmp_path), "run", "cpu", "fp32", threads=1)
    events = _Remembering()
    run_worker(plan, 0, 1, 0, events, lambda: False)

    assert events.order[:3] == ["step 1", "validation of 0", "losses of 1"]
    written = lines(tmp_path / "run")
    assert [line["step"] for line in written] == [0, 1, 2, 2]
    parts = Parts(config, dataset)
    untrained, _ = parts.build_model()
    expected = parts.build_validator(torch.device("cpu"), 0, 1, "fp32").run(untrained, 0)
    assert written[0] == {"step": 0, **expected}
    assert written[3]["val/loss/image_reconstruction"] != expected["val/loss/image_reconstruction"]
