"""What a person meets at the terminal: help, checks, and one line for each mistake."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import phantom_dataset, recipe, write_recipe

from mpma.config import load_config
from mpma.data.dataset import Dataset
from mpma.training.run_directory import RunDirectory
from orchestration.cluster import _GPU_DEVICES
from orchestration.command import run

PROGRAMS = ("pretrain", "ingest", "tune", "evaluate", "export", "embed", "doctor", "report", "grafana")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminal")
    phantom_dataset(root / "data")
    write_recipe(root / "small.yaml", recipe())
    return root


class Terminal:
    """Runs the program in this process, as from a terminal."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path
    ) -> None:
        self._monkeypatch, self._capsys, self._place = monkeypatch, capsys, place

    def pretrain(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        from orchestration import pretrain

        self._monkeypatch.setattr(sys, "argv", ["pretrain", *arguments])
        self._monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(SystemExit) as ended:
            run(pretrain.app)
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    def pretrain_small(self, runs: Path, *arguments: str) -> tuple[int, str, str]:
        """The same with the small recipe on the small dataset."""
        recipe, data = self._place / "small.yaml", self._place / "data"
        return self.pretrain(*("--config", str(recipe), "--data", str(data), "--runs", str(runs)), *arguments)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path) -> Terminal:
    return Terminal(monkeypatch, capsys, place)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_answers_at_once(name: str) -> None:
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", f"orchestration.{name}", "--help"], capture_output=True)
        times.append(time.perf_counter() - begun)
        assert done.returncode == 0
        assert b"--help" in done.stdout
    # Half a second on an idle machine; other tests' processes may still be ending here.
    assert statistics.median(times) < 1.0


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_imports_neither_torch_nor_ray_nor_the_tree(name: str) -> None:
    code = (
        f"import sys; import orchestration.{name}; "
        "print([m for m in ('torch', 'ray', 'pydantic', 'pandas', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_check_without_data_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from orchestration.command import run; from orchestration import pretrain; "
        f"sys.argv = ['pretrain', '--check', '--set', 'training.workers=2', '--runs', {str(tmp_path)!r}]\n"
        "try: run(pretrain.app)\n"
        "finally: print([m for m in ('ray', 'transformers', 'timm', 'torchvision', 'pandas', 'sklearn', "
        "'scipy', 'optuna') if m in sys.modules], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, well, imported = done.stdout.strip().splitlines()
    assert well == "check: all is well"
    # Torch alone may be asked for the GPUs of a machine that has a GPU's device.
    assert imported == f"[] {any(Path(device).exists() for device in _GPU_DEVICES)}"


def test_an_unknown_option_is_a_line_and_code_2(terminal: Terminal) -> None:
    code, _, error = terminal.pretrain("--nmae", "x")
    assert code == 2
    assert "--nmae" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.batch_sze=3"], ["training.batch_sze: unknown key", "training.batch_size"]),
        (["--set", "image.mask_ratio=2"], ["image.mask_ratio", "0.95"]),
        (["--set", "training.steps"], ["key=value"]),
        (["--config", "no/such.yaml"], ["no/such.yaml: no such file"]),
        (["--data", "no/such/dataset"], ["no/such/dataset"]),
        (["--name", "../up"], ["--name ../up"]),
        (["--set", "training.workers=8", "--cpus", "2"], ["training.workers 8", "Ray Data"]),
        (["--set", "training.device=cuda", "--set", "training.workers=64"], ["GPUs"]),
    ],
)
def test_a_mistake_is_one_line_with_code_2_and_no_traceback(
    terminal: Terminal,
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
) -> None:
    code, _, error = terminal.pretrain("--runs", str(tmp_path), *arguments)
    assert code == 2
    lines = error.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    for word in words:
        assert word in error
    assert not list(tmp_path.glob("*/config.yaml"))


def test_a_dataset_of_another_schema_version_is_refused_in_one_line(
    terminal: Terminal, tmp_path: Path
) -> None:
    data = phantom_dataset(tmp_path / "data", train=64, val=8)
    marker = data / "dataset.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"schema_version": 99}))
    code, _, error = terminal.pretrain("--data", str(data), "--runs", str(tmp_path / "runs"))
    assert code == 2
    assert "schema version" in error
    assert "99" in error


def test_a_changed_config_under_a_used_name_is_refused_before_anything_starts(
    terminal: Terminal, place: Path, tmp_path: Path
) -> None:
    data = str(place / "data")
    config = load_config(place / "small.yaml", [f"data.path={data}"]).config
    used = RunDirectory.at(tmp_path, "used")
    used.begin_or_continue(config, Dataset.open(data).fingerprint)
    code, _, error = terminal.pretrain_small(
        tmp_path, "--name", "used", "--set", "image.mask_ratio=0.5", "--check"
    )
    assert code == 2
    assert "these keys differ: image.mask_ratio" in error
    assert used.stored_config() == config


def test_a_finished_run_says_so_and_does_nothing(terminal: Terminal, place: Path, tmp_path: Path) -> None:
    data = str(place / "data")
    config = load_config(place / "small.yaml", [f"data.path={data}"]).config
    done = RunDirectory.at(tmp_path, "done")
    done.begin_or_continue(config, Dataset.open(data).fingerprint)
    done.mark_finished(config.training.steps, {})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*")}
    code, said, _ = terminal.pretrain_small(tmp_path, "--name", "done")
    assert code == 0
    assert "finished after 12 steps; nothing to do" in said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*")} == before


def test_check_says_what_would_happen_without_a_cluster(terminal: Terminal, tmp_path: Path) -> None:
    code, said, _ = terminal.pretrain_small(tmp_path, "--check")
    assert code == 0
    assert "image.target_scale: 1 (the images' median short side is 64 px" in said
    assert "small would be started" in said
    assert not list(tmp_path.iterdir())


def test_a_forecast_names_time_memory_and_disk(terminal: Terminal, tmp_path: Path) -> None:
    code, said, _ = terminal.pretrain_small(tmp_path, "--forecast")
    assert code == 0
    for word in ("12 steps", "memory of a worker", "one checkpoint", "pairs/s"):
        assert word in said
    assert not list(tmp_path.iterdir())


def test_the_printed_config_shows_origins(terminal: Terminal, place: Path) -> None:
    code, said, _ = terminal.pretrain(
        "--config", str(place / "small.yaml"), "--set", "training.seed=7", "--print-config"
    )
    assert code == 0
    assert "seed: 7  # --set" in said
    assert f"steps: 12  # {place / 'small.yaml'}" in said
    assert "weight_decay: 0.05  # default" in said
