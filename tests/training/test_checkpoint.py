from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mpma.data.storage import open_storage
from mpma.errors import JobError, UserError
from mpma.training.checkpoint import (
    CheckpointState,
    list_checkpoints,
    load_model_tensors,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)


def _write(root: Path, step: int, keep: int = 3) -> str:
    state = CheckpointState(
        step=step, position=step * 8, world_size=1, config_hash="c", data_fingerprint="d", model={"size": 3}
    )
    weights = {"layer.weight": torch.full((2, 3), float(step)), "layer.bias": torch.arange(2.0)}
    moments = {
        "exp_avg/layer.weight": torch.full((2, 3), 0.5),
        "step/layer.weight": torch.tensor(float(step)),
    }
    return write_checkpoint(open_storage(root), state, weights, moments, keep)


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path: Path) -> None:
    name = _write(tmp_path, 12)
    found = read_checkpoint(open_storage(tmp_path).child(name))
    assert name == "step_00000012"
    assert (found.state.step, found.state.position, found.state.model) == (12, 96, {"size": 3})
    assert torch.equal(found.model["layer.weight"], torch.full((2, 3), 12.0))
    assert torch.equal(found.optimizer["step/layer.weight"], torch.tensor(12.0))


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _write(tmp_path, step, keep=2)
    assert list_checkpoints(open_storage(tmp_path)) == ["step_00000003", "step_00000004"]


def test_a_leftover_without_marker_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    _write(tmp_path, 1, keep=2)
    (tmp_path / "step_00000002").mkdir()
    _write(tmp_path, 3, keep=2)
    assert list_checkpoints(open_storage(tmp_path)) == ["step_00000001", "step_00000003"]


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "removed"])
def test_a_torn_checkpoint_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, part: str, damage: str
) -> None:
    _write(tmp_path, 1)
    _write(tmp_path, 2)
    target = tmp_path / "step_00000002" / part
    data = target.read_bytes()
    if damage == "cut":
        target.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        target.write_bytes(data[:-20] + bytes([data[-20] ^ 255]) + data[-19:])
    else:
        target.unlink()
    said: list[str] = []
    found = read_newest(open_storage(tmp_path), said.append)
    assert found is not None
    assert found.state.step == 1
    assert any("step_00000002" in line for line in said)


def test_when_all_are_torn_training_does_not_silently_begin_anew(tmp_path: Path) -> None:
    name = _write(tmp_path, 1)
    (tmp_path / name / "model.safetensors").write_bytes(b"")
    with pytest.raises(JobError, match="none of the 1 checkpoints is whole"):
        read_newest(open_storage(tmp_path), lambda line: None)


def test_an_unfinished_first_checkpoint_is_as_none(tmp_path: Path) -> None:
    (tmp_path / "step_00000005").mkdir()
    said: list[str] = []
    assert read_newest(open_storage(tmp_path), said.append) is None
    assert "never finished" in said[0]


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    name = _write(tmp_path, 1)
    for file in (tmp_path / name).iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_weights_that_do_not_fit_name_the_parameter() -> None:
    model = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match="weight is"):
        load_model_tensors(model, {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "here")
    with pytest.raises(UserError, match="lacks bias"):
        load_model_tensors(model, {"weight": torch.zeros(2, 3)}, "here")
    with pytest.raises(UserError, match="has extra"):
        load_model_tensors(
            model, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "extra": torch.zeros(1)}, "here"
        )
