"""The model card: what is known of the weights, and nothing of this place or of a patient."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import finished_run, pairs
from PIL import Image

import mpma
from mpma.config import to_yaml
from mpma.data.dataset import Dataset
from mpma.data.storage import open_storage
from mpma.exporting.card import HONESTY
from mpma.exporting.export import export_run
from mpma.loading import LoadedModel
from mpma.training.run_directory import RunDirectory


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_the_honesty_statement_is_the_readmes() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    assert HONESTY in " ".join(readme.split())


def test_the_card_tells_data_training_and_figures(
    exported: Path, model: LoadedModel, dataset: Dataset
) -> None:
    card = _card(exported)
    flat = " ".join(card.split())
    for words in (
        HONESTY,
        "**Not for diagnosis**",
        "inherit the conditions of those data",
        "the vocabulary in `tokenizer.json` was derived from the training reports",
        f"Fingerprint `{dataset.fingerprint}`",
        f"| train | {dataset.rows('train')} | {dataset.info.splits['train'].patients} |",
        "| phantom | 70 |",
        "| made for tests | 70 |",
        "| steps | 20 (the run's end) |",
        f"| packages | Python {'.'.join(map(str, os.sys.version_info[:3]))}, torch ",
        "| `val/probe/auroc` | 0.5100 | 0.6200 |",
        "Not from a search, as far as is known.",
        "Not evaluated on downstream tasks",
        f"| weights | `{model.weights_hash}` |",
    ):
        assert words in flat, words


def test_the_cards_code_runs_as_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)).save(
        tmp_path / "radiograph.png"
    )
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", _card(exported), flags=re.DOTALL)
    assert len(blocks) == 3
    found: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace('"DIR', f'"{exported}'), found)
    assert found["images"].shape == found["texts"].shape == (1, 16)
    assert found["pairs"].shape == (1, 24 + 32)
    assert found["tokens"].shape == (1, 17, 32)
    assert found["states"].shape[-1] == 24


def test_nothing_in_the_folder_names_a_place_a_person_or_a_patient(
    exported: Path, dataset: Dataset, run: RunDirectory
) -> None:
    table = dataset.read_rows("train", np.arange(dataset.rows("train")), ["pair_id", "patient_id", "report"])
    secrets = [os.fspath(exported.parent), run.folder.root, dataset.path, str(Path.home()), "/tmp/"]
    secrets += [socket.gethostname()] if len(socket.gethostname()) > 3 else []
    secrets += [f"/{getpass.getuser()}/"]
    secrets += [text for column in table.columns for text in column.to_pylist() if len(text) > 3]
    for file in exported.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in content], file.name


def test_a_dataset_that_is_not_the_runs_is_not_told_of(run: RunDirectory, tmp_path: Path) -> None:
    other = pairs(tmp_path / "other", seed=7)
    for dataset in (other, None):
        export_run(run, open_storage(tmp_path / "export"), dataset=dataset, overwrite=True)
        card = " ".join(_card(tmp_path / "export").split())
        assert "The dataset was not at hand when this card was written" in card
        assert other.fingerprint not in card


def _evaluation(weights: str, value: float = 0.75) -> dict[str, Any]:
    figure = {"value": value, "low": value - 0.1, "high": value + 0.1, "resamples": 10}
    return {
        "models": [{"name": "pretrained", "weights": weights}, {"name": "untrained", "weights": "0" * 16}],
        "data": {"fingerprint": "f" * 32},
        "synthetic": True,
        "complete": False,
        "overlap": {"line": "no test patient was pre-trained on (by id)"},
        "classification": {
            "headline": ["linear_probe/10%/auroc"],
            "pretrained": {"linear_probe/10%/auroc": figure, "linear_probe/10%/f1": figure},
            "untrained": {"linear_probe/10%/auroc": {"value": 0.5, "low": None, "high": None}},
            "chance": {"linear_probe/10%/auroc": 0.5},
            "differences": {"untrained": {"linear_probe/10%/auroc": figure}},
        },
        "vqa": {"pretrained": {}, "untrained": {}, "headline": []},
    }


def test_evaluations_of_these_weights_stand_in_the_card_and_others_are_named(
    dataset: Dataset, tmp_path: Path
) -> None:
    run = finished_run(tmp_path, dataset)
    weights = mpma.load(run.folder.root).weights_hash
    for name, content in (
        ("evaluation.json", json.dumps(_evaluation(weights))),
        ("evaluation-nih.json", json.dumps(_evaluation(weights, 0.625))),
        ("evaluation-old.json", json.dumps(_evaluation("1" * 16, 0.875))),
        ("evaluation-torn.json", '{"models": ['),
    ):
        run.folder.write(name, content.encode())
    told = export_run(run, open_storage(tmp_path / "export"))
    assert told.left_out == ("evaluation-old.json", "evaluation-torn.json")
    card = _card(tmp_path / "export")
    row = "| classification | `linear_probe/10%/auroc` | {} | 0.5000 | 0.5000 |"
    assert row.format("0.7500 [0.6500, 0.8500]") in card
    assert row.format("0.6250 [0.5250, 0.7250]") in card
    assert "0.8750" not in card
    assert "| task | figure | pretrained | untrained | chance |" in card
    assert "Judged on synthetic patients; some jobs failed; no test patient was pre-trained on" in card
    assert "evaluation-old.json, evaluation-torn.json" in card


def test_the_search_that_a_run_came_from_stands_in_the_card(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "searches" / "masking"
    (folder / "trials").mkdir(parents=True)
    (folder / "journal.jsonl").write_text('{"event": "begin"}\n{"event": "suggest"}\n{"event": "suggest"}\n')
    trial = finished_run(folder / "trials", dataset, "0001")
    export_run(trial, open_storage(tmp_path / "trial"))
    assert "This run is trial 0001 of the search (masking, 2 trials)." in _card(tmp_path / "trial")
    assert "The search has not ended: nothing is confirmed." in _card(tmp_path / "trial")

    winner = finished_run(tmp_path / "runs", dataset, "winner", image={"mask_ratio": 0.5})
    head = "# From the search masking: 2 trials.\n# Better by 0.02.\n"
    (folder / "best.yaml").write_text(head + to_yaml(winner.stored_config()))
    searches = open_storage(tmp_path / "searches")
    export_run(winner, open_storage(tmp_path / "winner"), searches=searches)
    card = _card(tmp_path / "winner")
    assert "This run has the configuration of the search's best.yaml (masking, 2 trials)." in card
    assert "> From the search masking: 2 trials.\n> Better by 0.02." in card

    other = finished_run(tmp_path / "runs", dataset, "other")
    export_run(other, open_storage(tmp_path / "other"), searches=searches)
    assert "Not from a search, as far as is known." in _card(tmp_path / "other")
    again = finished_run(tmp_path / "runs", dataset, "again", image={"mask_ratio": 0.5}, training={"seed": 3})
    export_run(again, open_storage(tmp_path / "again"), searches=searches)
    assert "best.yaml, with another seed (masking" in _card(tmp_path / "again")


def test_a_part_that_no_loss_trained_is_said_to_be_of_no_use(dataset: Dataset, tmp_path: Path) -> None:
    run = finished_run(tmp_path, dataset, loss_weights={"global_alignment": 0.0})
    export_run(run, open_storage(tmp_path / "export"))
    assert "- the text vectors: loss_weights.global_alignment is 0" in _card(tmp_path / "export")
