from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same_run, lines, phantom_dataset, recipe, tensors

from mpma.config import validate_tree
from mpma.data.dataset import Dataset
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.joining import join
from mpma.data.sources import build_source
from mpma.errors import JobError
from mpma.training import loop
from mpma.training.loop import Silent
from mpma.training.run_directory import RunDirectory
from orchestration.growing import prepare_joined
from orchestration.ingesting import carry_out
from orchestration.worker import WorkerPlan, run_worker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom_dataset(tmp_path_factory.mktemp("data") / "phantom")


def _train(runs: Path, name: str, data: Path, stop_after: int | None = None, **training: Any) -> Any:
    tree = recipe(**training) | {"data": {"path": str(data)}}
    config = validate_tree(tree)
    run = RunDirectory.at(runs, name)
    run.begin_or_continue(config, Dataset.open(data).fingerprint)
    events = _Counting()
    plan = WorkerPlan(config.model_dump(), str(data), str(runs), name, "cpu", "fp32", threads=1)
    stop = (lambda: events.steps >= stop_after) if stop_after is not None else (lambda: False)
    return run_worker(plan, 0, 1, 0, events, stop), events


class _Counting(Silent):
    def __init__(self) -> None:
        self.steps = 0
        self.notes: list[str] = []

    def progress(self, step: int) -> None:
        self.steps += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_a_run_that_was_stopped_and_continued_equals_the_unbroken_one(
    ray_local: None, data: Path, tmp_path: Path, stop_after: int
) -> None:
    outcome, _ = _train(tmp_path, "unbroken", data)
    assert outcome.finished
    stopped, _ = _train(tmp_path, "broken", data, stop_after=stop_after)
    assert (stopped.finished, stopped.step) == (False, stop_after)
    _train(tmp_path, "broken", data)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken", 12)


def test_one_worker_in_another_process_stops_where_its_run_directory_says_so(
    ray_local: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory.at(tmp_path, "asked")
    say = _Counting.progress

    def ask_at_five(self: _Counting, step: int) -> None:
        say(self, step)
        if step == 5:
            run.request_stop()

    monkeypatch.setattr(_Counting, "progress", ask_at_five)
    outcome, _ = _train(tmp_path, "asked", data)
    assert (outcome.finished, outcome.step) == (False, 5)


def test_a_torn_checkpoint_is_refused_by_name_and_the_run_still_ends_the_same(
    ray_local: None, data: Path, tmp_path: Path
) -> None:
    _train(tmp_path, "unbroken", data)
    _train(tmp_path, "broken", data, stop_after=9)
    torn = tmp_path / "broken" / "checkpoints" / "step_00000009" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    _, events = _train(tmp_path, "broken", data)
    assert any("step_00000009 is refused" in note for note in events.notes)
    assert any("step_00000008" in note for note in events.notes)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken", 12)


def test_validating_more_often_does_not_change_training(ray_local: None, data: Path, tmp_path: Path) -> None:
    _train(tmp_path, "plain", data)
    tree = recipe()
    tree["validation"] = {**tree["validation"], "every_steps": 2}
    config = validate_tree(tree | {"data": {"path": str(data)}})
    RunDirectory.at(tmp_path, "often").begin_or_continue(config, Dataset.open(data).fingerprint)
    plan = WorkerPlan(config.model_dump(), str(data), str(tmp_path), "often", "cpu", "fp32", threads=1)
    run_worker(plan, 0, 1, 0, Silent(), lambda: False)
    often, plain = tensors(tmp_path / "often", 12), tensors(tmp_path / "plain", 12)
    assert all(torch.equal(often[name], plain[name]) for name in plain)


def test_micro_batches_give_the_same_training_to_rounding(
    ray_local: None, data: Path, tmp_path: Path
) -> None:
    _train(tmp_path, "whole", data)
    _train(tmp_path, "cut", data, micro_batch_size=4)
    # Dropout in the memory is drawn per forward pass, so only the first losses before it acts compare.
    whole, cut = lines(tmp_path / "whole"), lines(tmp_path / "cut")
    first = [next(line for line in found if "loss/total" in line) for found in (whole, cut)]
    for name in ("loss/image_reconstruction", "loss/global_alignment", "loss/local_alignment"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-5)


@pytest.mark.parametrize("log_every_steps", [1, 5])
def test_a_loss_that_is_not_finite_stops_naming_step_and_last_good_checkpoint(
    ray_local: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_every_steps: int
) -> None:
    real_step = loop.training_step

    def step_on_a_damaged_weight(module: Any, bare: Any, *arguments: Any, step: int, **options: Any) -> Any:
        if step == 6:
            with torch.no_grad():
                next(bare.parameters()).fill_(torch.nan)
        return real_step(module, bare, *arguments, step=step, **options)

    monkeypatch.setattr(loop, "training_step", step_on_a_damaged_weight)
    with pytest.raises(JobError, match=r"step 7: a loss or gradient is not finite.*step_00000006"):
        _train(tmp_path, "wild", data, checkpoint_every_steps=3, log_every_steps=log_every_steps)
    saved = sorted(path.name for path in (tmp_path / "wild" / "checkpoints").iterdir())
    assert saved == ["step_00000003", "step_00000006"]
    values = tensors(tmp_path / "wild", 6).values()
    assert all(bool(torch.isfinite(value).all()) for value in values)


def test_a_new_run_starts_from_given_weights(ray_local: None, data: Path, tmp_path: Path) -> None:
    _train(tmp_path, "first", data)
    given = tmp_path / "first" / "checkpoints" / "step_00000012"
    _, events = _train(tmp_path, "second", data, stop_after=1, initial_checkpoint=str(given))
    assert any("step 12" in note for note in events.notes)
    before = next(line for line in lines(tmp_path / "second") if line["step"] == 0)
    after = lines(tmp_path / "first")[-1]
    assert before["val/loss/image_reconstruction"] == after["val/loss/image_reconstruction"]


def test_a_run_goes_on_from_its_weights_on_a_dataset_that_has_grown(
    ray_local: None, data: Path, tmp_path: Path
) -> None:
    _train(tmp_path, "first", data, steps=2, checkpoint_every_steps=2)
    pairs = ["train_pairs=64", "val_pairs=64", "test_pairs=0", "size=64", "seed=1"]
    more, old = build_source("phantom", None, pairs), Dataset.open(data)
    joined = join([old], more, key=PUBLIC_KEY, synthetic=True, keep_tokenizer=True)
    grown = carry_out(prepare_joined(joined, str(tmp_path / "grown"), key=PUBLIC_KEY)).dataset
    assert grown.rows("train") == old.rows("train") + 64
    assert grown.info.tokenizer == old.info.tokenizer
    given = tmp_path / "first" / "checkpoints" / "step_00000002"
    outcome, events = _train(
        tmp_path, "second", Path(grown.path), steps=2, checkpoint_every_steps=2, initial_checkpoint=str(given)
    )
    assert outcome.finished
    assert any("step 2" in note for note in events.notes)
    assert lines(tmp_path / "second")[-1]["step"] == 2
