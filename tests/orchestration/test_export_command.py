"""python -m orchestration.export on a run that was really trained, and the mistakes that it answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_runs import finished_run, pairs
from small_runs import phantom_dataset, recipe, tensors

import mpma
from mpma.config import validate_tree
from mpma.data.dataset import Dataset
from mpma.data.rows import encoded_images
from mpma.training.loop import Silent
from mpma.training.run_directory import RunDirectory
from orchestration import export as program
from orchestration.command import run as run_program
from orchestration.own_data import find_own_data
from orchestration.worker import WorkerPlan, run_worker


class Terminal:
    """Runs the program in this process, as from a terminal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def export(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        self._monkeypatch.setattr(sys, "argv", ["export", *arguments])
        with pytest.raises(SystemExit) as ended:
            run_program(program.app)
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Terminal:
    monkeypatch.chdir(tmp_path)
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("trained")
    data = phantom_dataset(root / "data")
    config = validate_tree(recipe(steps=8) | {"data": {"path": str(data)}})
    run = RunDirectory.at(root / "runs", "trained")
    run.begin_or_continue(config, Dataset.open(data).fingerprint)
    plan = WorkerPlan(config.model_dump(), str(data), str(root / "runs"), "trained", "cpu", "fp32", threads=1)
    assert run_worker(plan, 0, 1, 0, Silent(), lambda: False).finished
    return run


def test_a_trained_run_is_exported_loads_equal_and_tells_its_validation(
    trained: RunDirectory, terminal: Terminal, tmp_path: Path
) -> None:
    code, said, error = terminal.export("--run", trained.folder.root, "--out", "exports/trained")
    assert (code, error) == (0, "")
    assert "run trained, step 8" in said
    loaded = mpma.load(tmp_path / "exports" / "trained")
    stored = tensors(Path(trained.folder.root), 8)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, stored[name]), name
    dataset = Dataset.open(Path(trained.folder.root).parents[1] / "data")
    table = dataset.read_rows("val", np.arange(6), ["image", "report"])
    found = loaded.embed_pairs([bytes(one) for one in encoded_images(table)], table["report"].to_pylist())
    from_run = mpma.load(trained.folder.root)
    expected = from_run.embed_pairs(
        [bytes(one) for one in encoded_images(table)], table["report"].to_pylist()
    )
    assert np.array_equal(found, expected)
    card = (tmp_path / "exports" / "trained" / "README.md").read_text()
    closing = [
        line
        for line in map(json.loads, (Path(trained.folder.root) / "metrics.jsonl").read_text().splitlines())
        if "val/retrieval/mean_recall" in line
    ]
    first, last = closing[0]["val/retrieval/mean_recall"], closing[-1]["val/retrieval/mean_recall"]
    assert (closing[0]["step"], closing[-1]["step"]) == (0, 8)
    assert f"| `val/retrieval/mean_recall` | {first:.4f} | {last:.4f} |" in card
    assert "| train | 120 | 120 | 120 |" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x"], "--run is missing"),
        (["--run", "RUN"], "--out is missing"),
        (["--run", "nowhere", "--out", "x"], "nowhere: no run there"),
        (["--run", "RUN", "--out", "x", "--step", "3"], "there is no checkpoint of step 3"),
        (["--run", "RUN", "--out", "full"], "full is not empty: mine.txt is there"),
        (["--run", "RUN", "--out", "x", "--data", "nowhere"], "no dataset there"),
    ],
)
def test_a_mistake_is_one_line_with_code_2_and_writes_nothing(
    trained: RunDirectory, terminal: Terminal, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for check in ([], ["--check"]):
        named = [trained.folder.root if argument == "RUN" else argument for argument in arguments]
        code, _, error = terminal.export(*named, *check)
        assert code == 2
        assert words in error
        assert len(error.strip().splitlines()) <= 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "mine.txt"]


def test_a_run_without_a_checkpoint_says_so(terminal: Terminal, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "runs", pairs(tmp_path / "data"))
    run.folder.remove("checkpoints")
    code, _, error = terminal.export("--run", run.folder.root, "--out", "x")
    assert code == 2
    assert "small: there is no whole checkpoint" in error
    assert not (tmp_path / "x").exists()


def test_a_dataset_that_is_not_the_runs_is_refused_and_its_own_is_found_by_fingerprint(
    terminal: Terminal, tmp_path: Path
) -> None:
    own = pairs(tmp_path / "datasets" / "phantom-kept")
    run = finished_run(tmp_path / "runs", own)
    assert find_own_data(run, own.fingerprint) is not None
    assert find_own_data(run, "0" * 32) is None
    other = pairs(tmp_path / "other", seed=3)
    code, _, error = terminal.export("--run", run.folder.root, "--out", "x", "--data", other.path)
    assert code == 2
    assert f"is {other.fingerprint}; small was trained on {own.fingerprint}" in error
    code, said, _ = terminal.export("--run", run.folder.root, "--out", "x", "--check")
    assert code == 0
    assert f"data: {own.fingerprint}" in said
    assert not (tmp_path / "x").exists()


def test_the_phantom_of_a_run_is_found_among_those_kept_here(terminal: Terminal, tmp_path: Path) -> None:
    kept = pairs(tmp_path / "datasets" / "phantom-0123456789ab")
    pairs(tmp_path / "datasets" / "phantom-other", seed=3)
    run = finished_run(tmp_path / "runs", kept, data={"path": None})
    found = find_own_data(run, kept.fingerprint)
    assert found is not None
    assert found.path.endswith("phantom-0123456789ab")
