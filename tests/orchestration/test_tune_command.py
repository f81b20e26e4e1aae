"""What a person meets at the terminal of a search: checks, forecasts, and one line for each mistake."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import phantom_dataset
from small_searches import SPACE, write_space

from mpma.data.storage import open_storage
from mpma.training.run_directory import lock_folder
from orchestration.command import run
from orchestration.search.journal import JOURNAL_FILE, Journal
from orchestration.search.space import load_space

Ran = tuple[int, str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("search-terminal")
    phantom_dataset(root / "data")
    write_space(root)
    return root


@pytest.fixture
def tune(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path
) -> Callable[..., Ran]:
    """Runs the program in this process, as from a terminal; (exit code, output, errors)."""

    def call(*arguments: str, space: Path | None = None) -> Ran:
        from orchestration import tune as program

        given = ["--space", str(space or place / "space.yaml"), "--data", str(place / "data")]
        monkeypatch.setattr(
            sys, "argv", ["tune", *given, "--searches", str(tmp_path / "searches"), *arguments]
        )
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(SystemExit) as ended:
            run(program.app)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def refused(ran: Ran, *words: str) -> None:
    """It ended with one line and a hint at most, which has all the words."""
    code, _, errors = ran
    assert code in (1, 2), errors
    assert "Traceback" not in errors
    lines = errors.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    for word in words:
        assert word in errors


def space_with(folder: Path, place: Path, **parts: Any) -> Path:
    """A space file with parts replaced; None takes a part away."""
    shutil.copy(place / "recipe.yaml", folder / "recipe.yaml")
    tree = {key: value for key, value in {**SPACE, **parts}.items() if value is not None}
    (folder / "bad.yaml").write_text(yaml.safe_dump(tree))
    return folder / "bad.yaml"


def test_check_says_what_would_be_searched_without_a_cluster(tune: Callable[..., Ran]) -> None:
    code, out, _ = tune("--check")
    assert code == 0
    assert "image.mask_ratio, report.mask_ratio" in out
    assert "steps at rungs 4, 12" in out
    assert "check: all is well" in out


def test_forecast_counts_trials_steps_hours_and_disk(tune: Callable[..., Ran]) -> None:
    code, out, _ = tune("--forecast")
    assert code == 0
    assert "4: 6, 12: 2" in out
    assert "40 (56 % of full-length trials)" in out
    for word in ("device hours of the search", "time of the search", "disk for checkpoints"):
        assert word in out


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"parameters": {"image.mask_ration": {"uniform": [0.4, 0.9]}}},
            ("image.mask_ration", "image.mask_ratio"),
        ),
        ({"parameters": {"image.mask_ratio": {"uniform": [0.4, 0.99]}}}, ("image.mask_ratio", "0.95")),
        (
            {"parameters": {"memory.slots": {"choice": [32, 64], "when": {"memory.kind": "key_value"}}}},
            ("memory.slots", "memory.kind"),
        ),
        ({"parameters": {"memory.slots": {"choice": [32], "when": {}}}}, ("memory.slots", "when")),
        ({"parameters": {}}, ("parameters",)),
        (
            {
                "parameters": {"loss_weights.global_alignment": {"log_uniform": [0.1, 10]}},
                "objectives": [{"metric": "loss/total", "direction": "minimise"}],
            },
            ("loss/total", "val/representation_score"),
        ),
        (
            {"objectives": [{"metric": "val/loss/report_reconstruction", "direction": "minimise"}]},
            ("val/loss/report_reconstruction", "mask_ratio"),
        ),
        ({"objectives": [{"metric": "val/retreival/mean_recall"}]}, ("val/retrieval/mean_recall",)),
        ({"fidelity": {"steps": 12, "first_rung": 20, "reduction": 3}}, ("first_rung",)),
        ({"budget": {"trials": 1}}, ("budget", "rung")),
        ({"searcher": {"name": "bayes"}}, ("searcher.name",)),
        ({"scheduler": {"name": "pbt"}}, ("scheduler.name",)),
        ({"recipe": "absent.yaml"}, ("absent.yaml",)),
        ({"concurency": 2}, ("concurency", "concurrency")),
    ],
)
def test_a_mistake_in_the_space_is_one_line_that_names_it(
    tune: Callable[..., Ran], place: Path, tmp_path: Path, parts: dict[str, Any], words: tuple[str, ...]
) -> None:
    refused(tune("--check", space=space_with(tmp_path, place, **parts)), *words)


def test_a_space_that_is_not_yaml_names_the_file_and_line(tune: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("parameters: {image.mask_ratio: [0.1\n")
    refused(tune("--check", space=tmp_path / "torn.yaml"), "torn.yaml, line")


def test_a_space_that_is_absent_is_named(tune: Callable[..., Ran], tmp_path: Path) -> None:
    refused(tune("--check", space=tmp_path / "none.yaml"), "none.yaml")


@pytest.mark.parametrize("set_", ["training.stepz=3", "budjet.trials=3", "budget.trials=0", "training.steps"])
def test_a_mistake_in_set_is_one_line_that_names_it(tune: Callable[..., Ran], set_: str) -> None:
    refused(tune("--check", "--set", set_), set_.partition("=")[0].partition(".")[0])


def begun(place: Path, folder: Path) -> Journal:
    """A journal of a search that began on the small space."""
    loaded = load_space(place / "space.yaml", data=str(place / "data"))
    journal = Journal(open_storage(folder))
    journal.begin(loaded, data_fingerprint="0", provenance={}, warm={})
    return journal


def test_a_search_of_another_space_under_the_same_name_is_refused_with_what_differs(
    tune: Callable[..., Ran], place: Path, tmp_path: Path
) -> None:
    begun(place, tmp_path / "searches" / "used").close()
    other = space_with(tmp_path, place, searcher={"name": "random"})
    refused(tune("--name", "used", space=other), "used", "searcher")
    recipe = ("--name", "used", "--set", "training.learning_rate_per_256=0.01")
    refused(tune(*recipe), "training.learning_rate_per_256")
    code, _, errors = tune("--check", "--name", "used", "--set", "budget.trials=9")
    assert code == 0, errors


def test_a_search_begun_on_other_data_is_refused(
    tune: Callable[..., Ran], place: Path, tmp_path: Path
) -> None:
    begun(place, tmp_path / "searches" / "moved").close()
    refused(tune("--name", "moved", "--no-dashboard"), "moved", "data 0")


def test_a_search_that_another_program_works_on_is_refused(tune: Callable[..., Ran], tmp_path: Path) -> None:
    lock = lock_folder(open_storage(tmp_path / "searches").child("busy"), "held")
    try:
        refused(tune("--name", "busy"), "another program is working on this search")
    finally:
        lock.close()


def test_a_journal_damaged_in_its_middle_is_named(
    tune: Callable[..., Ran], place: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "searches" / "damaged"
    journal = begun(place, folder)
    journal.append("session")
    journal.append("session")
    journal.close()
    lines = (folder / JOURNAL_FILE).read_bytes().split(b"\n")
    (folder / JOURNAL_FILE).write_bytes(b"\n".join([lines[0], b'{"event": "sess', *lines[2:]]))
    refused(tune("--name", "damaged"), "journal.jsonl, line 2")


def test_a_last_line_torn_by_a_kill_is_cut_away(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "searches" / "torn"
    begun(place, folder).close()
    whole = (folder / JOURNAL_FILE).read_bytes()
    (folder / JOURNAL_FILE).write_bytes(whole + b'{"event":"suggest","trial":0,')
    journal = Journal(open_storage(folder))
    journal.append("session")
    journal.close()
    lines = (folder / JOURNAL_FILE).read_bytes().splitlines()
    assert lines[0] + b"\n" == whole
    assert len(lines) == 2


def test_a_machine_too_small_for_one_trial_is_refused(tune: Callable[..., Ran]) -> None:
    refused(tune("--cpus", "1"), "too small for one trial", "--cpus")


def test_more_gpus_than_there_are_is_refused(tune: Callable[..., Ran]) -> None:
    refused(tune("--check", "--set", "training.device=cuda"), "GPU")


def test_trials_without_a_journal_are_left_alone(tune: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "searches" / "old" / "trials").mkdir(parents=True)
    refused(tune("--name", "old"), "journal.jsonl", "--name")
