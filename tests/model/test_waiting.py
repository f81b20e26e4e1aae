"""Nothing in a step reads a value of the device, so the host can run ahead of it.

The step runs on tensors without values: reading one, or making a shape of one, raises there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_samples import SMALL, small_batch, small_model
from parallel_workers import CASES, Case, small_run
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)

from mpma.config import validate_tree
from mpma.data.batches import Batch
from mpma.training import feature_cache
from mpma.training.loop import Silent, Task, TrainingLoop
from mpma.training.optimizer import build_optimizer
from mpma.training.run_directory import RunDirectory
from mpma.training.step import training_step

CPU = torch.device("cpu")
NO_VALUES = (DataDependentOutputException, DynamicOutputShapeException)

READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda values: values.sum().item(),
    "tolist": lambda values: values.tolist(),
    "truth": lambda values: bool((values > 0).any()),
    "float": lambda values: float(values[0]),
    "nonzero": lambda values: values.nonzero(),
    "boolean selection": lambda values: values[values > 0],
    "unique": lambda values: values.unique(),
}


@pytest.mark.parametrize("read", READS)
def test_a_read_is_noticed(read: str) -> None:
    with FakeTensorMode(), pytest.raises(NO_VALUES):
        READS[read](torch.ones(4))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_no_value(case: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = feature_cache._slice

    def cut_on_host(batch: Batch, start: int, size: int, device: Any) -> Batch:
        # Micro-batches are cut on the host, where reading costs nothing.
        with unset_fake_temporarily():
            return cut(batch, start, size, None)

    monkeypatch.setattr(feature_cache, "_slice", cut_on_host)
    settings: Case = CASES[case]
    config = small_run(settings, "ddp")
    model = small_model(**settings.changes)
    with FakeTensorMode(allow_non_fake_inputs=True):
        optimizer = build_optimizer(model.named_parameters(), model.no_weight_decay_names(), config.training)
        for step, visible in enumerate(settings.visible):
            with unset_fake_temporarily():
                batch = small_batch(8, visible=visible, seed=step)
            result = training_step(
                model,
                model,
                optimizer,
                batch,
                config,
                step=step,
                rank=0,
                device=CPU,
                precision=precision,
            )
            assert result.total.shape == result.gradient_norm.shape == ()


class _Recorded(Silent):
    """Where the loop is when a tensor's value is read: in its batches, in a step, or behind one."""

    wait_seconds = 0.0

    def __init__(self) -> None:
        self.step = 0
        self.place = "before"
        self.reads: set[tuple[str, int]] = set()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.place = "batch"
        batch = small_batch(8, seed=self.step)
        self.place, self.step = "step", self.step + 1
        return batch

    def close(self) -> None:
        self.place = "end"

    def progress(self, step: int) -> None:
        self.place = "log"

    def run(self, model: Any, step: int) -> dict[str, float]:
        self.place = "end"
        return {}


def test_the_loop_reads_values_only_where_it_writes_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = _Recorded()
    for name in ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        method = getattr(Tensor, name)

        def noted(self: Tensor, *arguments: Any, method: Any = method, **named: Any) -> Any:
            recorded.reads.add((recorded.place, recorded.step))
            return method(self, *arguments, **named)

        monkeypatch.setattr(Tensor, name, noted)
    training = {"steps": 6, "batch_size": 8, "log_every_steps": 3}
    config = validate_tree({**SMALL, "training": training})
    run = RunDirectory.at(tmp_path, "run")
    run.folder.make_directory()
    task = Task(
        config=config,
        run=run,
        data_fingerprint="data",
        train_pairs=64,
        device=CPU,
        rank=0,
        world=1,
        precision="fp32",
        build_model=lambda: (small_model(), {}),
        build_validator=lambda: recorded,
        open_stream=lambda step: recorded,
        validate_untrained=False,
    )
    TrainingLoop(task, recorded).run()
    inside = {(place, step) for place, step in recorded.reads if place in ("step", "log")}
    assert inside == {("log", 3), ("log", 6)}
