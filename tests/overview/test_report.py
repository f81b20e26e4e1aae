"""Runs and searches at a glance, told from whatever their folders hold."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from overview_samples import begin_run, report
from small_runs import phantom_dataset, recipe

from mpma.config import validate_tree
from mpma.data.storage import open_storage
from mpma.errors import UserError
from mpma.training.run_directory import RunDirectory
from orchestration.overview.difference import difference
from orchestration.overview.entries import Entry, entries_of
from orchestration.overview.reproduction import reproduction


def _listed(place: Path) -> dict[str, Entry]:
    return {entry.name: entry for entry in entries_of(open_storage(place))}


def test_states_progress_and_best_figures_come_from_the_runs_own_files(tmp_path: Path) -> None:
    stopped = begin_run(tmp_path, "stopped")
    (stopped / "checkpoints" / "step_00000008").mkdir(parents=True)
    finished = begin_run(tmp_path, "finished")
    (finished / "finished.json").write_text('{"steps": 12}')
    working = begin_run(tmp_path, "working")
    begin_run(tmp_path, "begun")
    with (working / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        found = _listed(tmp_path)
    assert {name: entry.state for name, entry in found.items()} == {
        "begun": "begun",
        "finished": "finished",
        "stopped": "stopped",
        "working": "running",
    }
    entry = found["stopped"]
    assert (entry.done, entry.of) == (8, 12)
    assert entry.best["val/retrieval/mean_recall"] == (0.4, 4)
    assert entry.best["val/probe/auroc"] == (0.7, 4)
    assert entry.last["pairs_per_second"] == 108.0
    assert entry.data == "sha256:ab"
    assert len({each.config for each in found.values()}) == 1


def test_damaged_folders_are_entries_with_a_reason_and_never_end_the_listing(tmp_path: Path) -> None:
    begin_run(tmp_path, "whole")
    (begin_run(tmp_path, "garbage") / "config.yaml").write_bytes(b"\x00\xff\x80binary: [")
    newer = begin_run(tmp_path, "newer")
    (newer / "config.yaml").write_text((newer / "config.yaml").read_text() + "later_section:\n  key: 1\n")
    (begin_run(tmp_path, "nameless") / "provenance.json").unlink()
    cut = begin_run(tmp_path, "cut") / "metrics.jsonl"
    cut.write_text(cut.read_text()[:-20])
    (tmp_path / "orphan" / "checkpoints").mkdir(parents=True)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "journal.jsonl").write_text('{"event": "suggest", "time": 1, "trial": 7}\n')
    for number in range(200):
        (tmp_path / f"other{number}.txt").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "an odd näme").mkdir()
    found = _listed(tmp_path)
    assert set(found) == {"whole", "garbage", "newer", "nameless", "cut", "orphan", "search"}
    damaged = {name for name, entry in found.items() if entry.state == "damaged"}
    assert damaged == {"garbage", "newer", "orphan", "search"}
    assert "later_section" in found["newer"].problem
    assert "provenance.json" in found["nameless"].problem
    assert found["cut"].best["val/probe/auroc"] == (0.7, 4), "the lines before the cut count"
    assert all(found[name].problem for name in damaged)


def test_a_hundred_runs_are_listed_in_seconds(tmp_path: Path) -> None:
    first = begin_run(tmp_path, "run0")
    for number in range(1, 100):
        shutil.copytree(first, tmp_path / f"run{number}")
    begun = time.perf_counter()
    assert len(_listed(tmp_path)) == 100
    # A tenth of one on an idle machine; other tests' processes may still be ending here.
    assert time.perf_counter() - begun < 5


def test_a_difference_tells_keys_data_and_figures_and_which_of_them_cannot_be_compared(
    tmp_path: Path,
) -> None:
    first = begin_run(tmp_path, "first")
    second = begin_run(tmp_path, "second", learning_rate_per_256=0.001)
    found = difference(open_storage(first), open_storage(second))
    assert [(row.what, row.second) for row in found.config] == [("training.learning_rate_per_256", 0.001)]
    assert found.data == found.code == found.environment == []
    rows = {row.what: row for row in found.metrics}
    assert (rows["val/probe/auroc"].first, rows["val/probe/auroc"].note) == (0.6, "")
    other = begin_run(tmp_path, "other", fingerprint="sha256:cd")
    notes = {row.what: row.note for row in difference(open_storage(first), open_storage(other)).metrics}
    assert notes["val/probe/auroc"] == "not comparable: other data"
    tree = recipe()
    tree["image"] = {**tree["image"], "mask_ratio": 0.5}
    run = RunDirectory.at(tmp_path, "masked")
    run.begin_or_continue(validate_tree(tree), "sha256:ab")
    shutil.copy(first / "metrics.jsonl", tmp_path / "masked" / "metrics.jsonl")
    masked = difference(open_storage(first), open_storage(tmp_path / "masked"))
    notes = {row.what: row.note for row in masked.metrics}
    assert "image.mask_ratio changes what it means" in notes["loss/total"]
    assert notes["val/probe/auroc"] == ""
    with pytest.raises(UserError, match="cannot be read"):
        difference(open_storage(first), open_storage(tmp_path / "absent"))


def test_a_reproduction_names_what_differs_here(tmp_path: Path) -> None:
    data = phantom_dataset(tmp_path / "data")
    tree = recipe()
    tree["data"] = {"path": str(data)}
    run = RunDirectory.at(tmp_path, "run")
    run.begin_or_continue(validate_tree(tree), "sha256:other")
    made = json.loads((tmp_path / "run" / "provenance.json").read_text())
    made["packages"]["torch"] = "1.0.0"
    made["git_revision"] = "0" * 40
    (tmp_path / "run" / "provenance.json").write_text(json.dumps(made))
    found = reproduction(open_storage(tmp_path / "run"), "again", "elsewhere")
    assert found.commands[0] == f"git checkout {'0' * 40}"
    assert found.commands[-1].endswith("--runs elsewhere --name again")
    told = "\n".join(found.differences)
    for words in ("torch: 1.0.0 then", "code: 000", "data: sha256:other then"):
        assert words in told


def test_the_program_lists_compares_and_refuses_in_one_line(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    begin_run(runs, "first")
    begin_run(runs, "second", steps=20)
    code, said = report(tmp_path)
    assert code == 0
    assert "first" in said
    assert "0.400 @4" in said
    code, said = report(tmp_path, "--json", "runs")
    listed = [json.loads(line) for line in said.splitlines()]
    assert [(entry["place"], entry["name"]) for entry in listed] == [("runs", "first"), ("runs", "second")]
    code, said = report(tmp_path, "--diff", "runs/first", "runs/second")
    assert code == 0
    assert "training.steps" in said
    for arguments, words in (
        (["absent"], "no such folder"),
        (["--diff", "runs/first"], "two runs or two searches are expected"),
        (["--reproduce", "runs"], "no run there"),
    ):
        code, said = report(tmp_path, *arguments)
        assert code == 2
        assert words in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_run_that_is_made_again_has_equal_figures_bit_for_bit(tmp_path: Path) -> None:
    phantom_dataset(tmp_path / "data")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(threads_per_worker=1, device="cpu")))
    train = ["--config", "recipe.yaml", "--data", "data", "--name", "first", "--no-dashboard"]
    root = str(Path(__file__).resolve().parents[2])
    subprocess.run(
        [sys.executable, "-m", "orchestration.pretrain", *train],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        timeout=200,
    )
    code, said = report(tmp_path, "--reproduce", "runs/first", "--start", "--anyway", "--runs", "again")
    assert code == 0, said

    def figures(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        clocked = ("pairs_per_second", "data_wait_fraction")
        return [{name: value for name, value in line.items() if name not in clocked} for line in lines]

    assert figures(tmp_path / "again" / "first-again") == figures(tmp_path / "runs" / "first")
