from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpma.config import ExperimentConfig, load_config
from mpma.data.storage import open_storage
from mpma.errors import UserError
from mpma.training.metrics_log import METRICS_FILE, MetricsLog, MetricsReader, read_lines
from mpma.training.run_directory import RunDirectory, config_hash


def _config(*overrides: str) -> ExperimentConfig:
    return load_config(None, overrides).config


def test_a_new_run_is_begun_and_then_continued(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, "a")
    assert not run.exists()
    assert run.begin_or_continue(_config(), "f1") is False
    assert run.exists()
    assert run.stored_config() == _config()
    assert run.begin_or_continue(_config(), "f1") is True


def test_a_changed_config_under_a_used_name_is_refused_with_the_differing_keys(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, "a")
    run.begin_or_continue(_config(), "f1")
    with pytest.raises(UserError, match=r"image\.mask_ratio, loss_weights\.local_alignment"):
        run.begin_or_continue(_config("image.mask_ratio=0.5", "loss_weights.local_alignment=0.0"), "f1")
    assert run.stored_config() == _config()


def test_keys_that_may_change_do(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, "a")
    run.begin_or_continue(_config(), "f1")
    changed = _config("training.workers=2", "training.steps=2000", "training.log_every_steps=1")
    assert run.begin_or_continue(changed, "f1") is True
    assert run.stored_config() == changed
    assert config_hash(changed) == config_hash(_config())
    assert config_hash(_config("image.mask_ratio=0.5")) != config_hash(_config())


def test_steps_may_not_shrink(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, "a")
    run.begin_or_continue(_config(), "f1")
    with pytest.raises(UserError, match="may only grow"):
        run.begin_or_continue(_config("training.steps=10"), "f1")


def test_other_data_under_a_used_name_are_refused(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, "a")
    run.begin_or_continue(_config("data.path=x"), "f1")
    assert run.begin_or_continue(_config("data.path=moved"), "f1") is True
    with pytest.raises(UserError, match="begun on data f1"):
        run.begin_or_continue(_config("data.path=x"), "f2")


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_not_one_path_part_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--name"):
        RunDirectory.at(tmp_path, name)


def test_two_programs_never_hold_one_run(tmp_path: Path) -> None:
    run = RunDirectory.at(tmp_path, "a")
    held = run.lock()
    with pytest.raises(UserError, match="another program"):
        run.lock()
    del held
    assert run.lock() is not None


def test_provenance_names_no_host_user_or_path(tmp_path: Path) -> None:
    import getpass
    import socket

    run = RunDirectory.at(tmp_path, "a")
    run.begin_or_continue(_config(), "f1")
    text = (tmp_path / "a" / "provenance.json").read_text()
    assert json.loads(text)["data_fingerprint"] == "f1"
    assert str(tmp_path) not in text
    assert f'"{socket.gethostname()}"' not in text
    assert f'"{getpass.getuser()}"' not in text


def test_lines_past_the_checkpoint_are_dropped_when_a_run_continues(tmp_path: Path) -> None:
    folder = open_storage(tmp_path)
    log = MetricsLog(folder, 0, tensorboard=False)
    for step in (1, 2, 3, 4):
        log.write({"step": step, "loss/total": step / 2})
    log.close()
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 5, "loss/to')
    MetricsLog(folder, 2, tensorboard=False).close()
    assert [line["step"] for line in read_lines(folder)] == [1, 2]


def test_a_reader_gives_each_line_once_and_waits_for_its_end(tmp_path: Path) -> None:
    folder = open_storage(tmp_path)
    reader = MetricsReader(folder)
    assert reader.new_lines() == []
    log = MetricsLog(folder, 0, tensorboard=False)
    log.write({"step": 1})
    log.write({"step": 2})
    assert [line["step"] for line in reader.new_lines()] == [1, 2]
    assert reader.new_lines() == []
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 3, "loss/to')
        stream.flush()
        assert reader.new_lines() == []
        stream.write('tal": 4.5}\n')
    assert reader.new_lines() == [{"step": 3, "loss/total": 4.5}]
    log.close()
    MetricsLog(folder, 1, tensorboard=False).close()
    assert [line["step"] for line in reader.new_lines()] == [1]


def test_a_value_that_is_not_finite_is_written_as_null(tmp_path: Path) -> None:
    log = MetricsLog(open_storage(tmp_path), 0, tensorboard=False)
    log.write({"step": 1, "loss/total": float("nan")})
    log.close()
    assert json.loads((tmp_path / METRICS_FILE).read_text()) == {"step": 1, "loss/total": None}
