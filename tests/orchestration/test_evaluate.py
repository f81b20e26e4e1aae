"""`python -m orchestration.evaluate`: whole, resumed, repeated, compared, and what it says to wrong input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from downstream.task_samples import phantom_rows, tiny_config, written
from typer.testing import CliRunner

from mpma.config import to_yaml
from mpma.data.storage import open_storage
from mpma.downstream.config import TASKS
from mpma.downstream.contract import Example, Related
from mpma.model.pretraining import build_model
from mpma.training.checkpoint import CheckpointState, checkpoint_name, write_checkpoint
from mpma.training.run_directory import RunDirectory
from orchestration.evaluate import app
from orchestration.evaluation.store import ResultStore, packed_examples, unpacked_examples

PICTURE = "base64,iVBORw0KGgo"
"""How the PNG files of a page begin."""

TINY_FIT = {"steps": 2, "batch_size": 8, "augment": False}
SETTINGS = {
    "seeds": 2,
    "resamples": 100,
    "classification": {
        "label_fractions": [0.25, 1.0],
        "fine_tune_fractions": [1.0],
        "fine_tune": TINY_FIT,
    },
    "segmentation": {"fit": TINY_FIT, "decoder_width": 8},
    "report_generation": {"test_patients": 6, "max_tokens": 8, "beams": 2, "fit": TINY_FIT},
    "vqa": {"fit": TINY_FIT},
}


def small_run(runs: Path, name: str, data: Path, seed: int = 0) -> Path:
    """A run with one checkpoint of a tiny model, as pre-training on `data` would leave it."""
    from mpma.data.dataset import Dataset

    dataset = Dataset.open(data)
    tokenizer = dataset.tokenizer()
    config = tiny_config(
        training={"seed": 0, "batch_size": 16}, data={"path": str(data), "decode_threads": 1}
    )
    run = RunDirectory.at(runs, name)
    run.begin_or_continue(config, dataset.fingerprint)
    run.keep_tokenizer(tokenizer.to_bytes())
    facts = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "pad_id": tokenizer.pad_id,
        "grey_mean": dataset.grey_mean,
        "grey_std": dataset.grey_std,
        "target_scale": 1,
    }
    model = build_model(config, **facts, seed=seed + 100)
    state = CheckpointState(7, 7 * 16, 1, "hash", dataset.fingerprint, model=facts)
    write_checkpoint(run.checkpoints, state, model.state_dict(), {}, 1)
    return runs / name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pre-training data, labelled data of other patients, two runs and quick settings."""
    folder = tmp_path_factory.mktemp("evaluate")
    written(folder / "pretraining", phantom_rows(40, 12, 12, seed=5))
    written(folder / "labelled", phantom_rows(64, 16, 40, seed=6))
    small_run(folder / "runs", "first", folder / "pretraining", seed=0)
    small_run(folder / "runs", "second", folder / "pretraining", seed=1)
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def evaluate(place: Path, run: str, *more: str) -> Any:
    arguments = ["--run", str(place / "runs" / run), "--data", str(place / "labelled"), "--no-dashboard"]
    arguments += ["--config", str(place / "settings.yaml"), "--features", str(place / "features"), *more]
    return CliRunner().invoke(app, arguments)


def figures(place: Path, run: str, name: str = "labelled") -> dict[str, Any]:
    return json.loads((place / "runs" / run / f"evaluation-{name}.json").read_text())


@pytest.fixture(scope="module")
def evaluated(place: Path, ray_local: None) -> dict[str, Any]:
    """The first run, evaluated once."""
    result = evaluate(place, "first")
    assert result.exit_code == 0, result.output
    return {"summary": figures(place, "first"), "output": result.output}


def test_all_six_tasks_have_figures_of_both_models_with_intervals(evaluated: dict[str, Any]) -> None:
    summary = evaluated["summary"]
    assert summary["complete"]
    assert [model["name"] for model in summary["models"]] == ["pretrained", "untrained"]
    for task in TASKS:
        section = summary[task]
        assert section["state"] == "done", (task, section["failures"])
        for figure in section["headline"]:
            for model in ("pretrained", "untrained"):
                entry = section[model][figure]
                assert entry["value"] is None or entry["low"] <= entry["high"], (task, figure)
            assert figure in section["differences"]["untrained"]
            assert figure in section["chance"]
    assert summary["classification"]["seeds"]["linear_probe/25%"] == [0, 1]
    assert summary["classification"]["seeds"]["linear_probe/100%"] == [0]


def test_every_figure_is_a_number_or_null_and_null_is_told(evaluated: dict[str, Any]) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)
        else:
            assert value is None or not isinstance(value, float) or np.isfinite(value)

    walk(evaluated["summary"])
    for task in TASKS:
        section = evaluated["summary"][task]
        missing = [name for name, entry in section["pretrained"].items() if entry["value"] is None]
        bare = {name.split("%/")[-1] for name in missing}
        for name in bare:
            assert any(name in problem for problem in section["problems"]), (task, name)


def test_results_hold_no_identifier_and_no_text(place: Path, evaluated: dict[str, Any]) -> None:
    from mpma.data.dataset import Dataset

    table = Dataset.open(place / "labelled").read_rows("test", range(40), ["pair_id", "patient_id", "report"])
    secrets = [value for column in table.columns for value in column.to_pylist()]
    run = place / "runs" / "first"
    files = [run / "evaluation-labelled.json", run / "evaluation-labelled.html"]
    texts = [file.read_text() for file in files] + [evaluated["output"]]
    for file in (run / "evaluations" / "labelled").iterdir():
        texts.append(file.read_bytes().decode("latin-1"))
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as content:
                texts += [content[name].tobytes().decode("latin-1") for name in content.files]
        assert file.stat().st_mode & 0o077 == 0
    for secret in secrets:
        assert not any(secret in text for text in texts)


def test_the_same_command_again_runs_nothing_and_says_the_same(
    place: Path, evaluated: dict[str, Any]
) -> None:
    again = evaluate(place, "first")
    assert again.exit_code == 0
    total = len(list((place / "runs/first/evaluations/labelled").glob("*.npz")))
    assert f"{total} of {total} jobs are done already" in again.output
    summary = figures(place, "first")
    for task in TASKS:
        assert summary[task] == evaluated["summary"][task]


def test_scores_are_equal_bit_for_bit_when_everything_is_run_again(
    place: Path, evaluated: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "runs" / "first"
    shutil.copytree(place / "runs" / "first", copy)
    shutil.rmtree(copy / "evaluations")
    arguments = ["--run", str(copy), "--data", str(place / "labelled"), "--no-dashboard"]
    arguments += ["--config", str(place / "settings.yaml"), "--features", str(tmp_path / "features")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    summary = json.loads((copy / "evaluation-labelled.json").read_text())
    for task in TASKS:
        assert summary[task] == evaluated["summary"][task], task


def test_a_changed_setting_runs_its_task_anew_and_no_other(place: Path, evaluated: dict[str, Any]) -> None:
    result = evaluate(place, "first", "--set", "vqa.fit.steps=3", "--name", "labelled")
    assert result.exit_code == 0, result.output
    ran = {line.split()[0] for line in result.output.splitlines() if re.search(r"\(\d+\.\d s\)$", line)}
    assert ran == {"vqa"}
    assert figures(place, "first")["retrieval"] == evaluated["summary"]["retrieval"]
    assert evaluate(place, "first").exit_code == 0  # Back to the settings of the other tests.


def test_two_runs_are_compared_on_the_same_patients(place: Path, evaluated: dict[str, Any]) -> None:
    assert evaluate(place, "second", "--task", "retrieval", "--task", "classification").exit_code == 0
    first, second = (str(place / "runs" / name) for name in ("first", "second"))
    out = place / "difference.json"
    result = CliRunner().invoke(app, ["--compare", first, second, "--name", "labelled", "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["tasks"]
    assert set(found) == {"retrieval", "classification"}
    entry = found["retrieval"]["mean_recall"]
    assert entry["difference"]["value"] == pytest.approx(entry["a"] - entry["b"])
    assert entry["difference"]["low"] <= entry["difference"]["value"] <= entry["difference"]["high"]
    assert entry["a"] == evaluated["summary"]["retrieval"]["pretrained"]["mean_recall"]["value"]


def test_examples_appear_only_where_they_are_asked_for(place: Path, evaluated: dict[str, Any]) -> None:
    plain = (place / "runs/first/evaluation-labelled.html").read_text()
    result = evaluate(place, "second", "--task", "retrieval", "--with-examples", "--name", "shown")
    assert result.exit_code == 0, result.output
    shown = (place / "runs/second/evaluation-shown.html").read_text()
    # The charts' own code may hold a picture or two; those of patients come on top.
    assert shown.count(PICTURE) > plain.count(PICTURE)
    assert not list((place / "runs/first/evaluations/labelled").glob("*.examples.npz"))


def test_patients_of_the_pretraining_data_are_refused_unless_allowed_and_then_marked(
    place: Path, ray_local: None, tmp_path: Path
) -> None:
    # The pre-training patients themselves, but as test patients of another dataset.
    rows = phantom_rows(40, 12, 12, seed=5)
    written(tmp_path / "seen", {"train": rows["test"], "val": rows["val"], "test": rows["train"]})
    arguments = ["--run", str(place / "runs" / "second"), "--data", str(tmp_path / "seen"), "--no-dashboard"]
    arguments += ["--config", str(place / "settings.yaml"), "--task", "retrieval"]
    arguments += ["--features", str(tmp_path / "features")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exception is not None
    assert "40" in str(refused.exception.args[0])
    assert not (place / "runs/second/evaluation-seen.json").exists()
    allowed = CliRunner().invoke(app, [*arguments, "--allow-overlap"])
    assert allowed.exit_code == 0, allowed.output
    assert "MARKED" in allowed.output
    assert figures(place, "second", "seen")["overlap"]["marked"]


def test_a_result_is_marked_where_the_pretraining_data_are_gone(
    place: Path, ray_local: None, tmp_path: Path
) -> None:
    written(tmp_path / "moved", phantom_rows(40, 12, 12, seed=5))
    small_run(tmp_path / "runs", "orphan", tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved")
    arguments = ["--run", str(tmp_path / "runs" / "orphan"), "--data", str(place / "labelled")]
    arguments += ["--config", str(place / "settings.yaml"), "--task", "retrieval", "--no-dashboard"]
    result = CliRunner().invoke(app, [*arguments, "--features", str(tmp_path / "features")])
    assert result.exit_code == 0, result.output
    overlap = json.loads((tmp_path / "runs/orphan/evaluation-labelled.json").read_text())["overlap"]
    assert not overlap["checked"]
    assert overlap["marked"]
    assert "MARKED" in result.output


def test_a_task_whose_data_are_missing_is_skipped_and_the_others_go_on(
    place: Path, ray_local: None, tmp_path: Path
) -> None:
    rows = phantom_rows(32, 12, 24, seed=7)
    for part in rows.values():
        for row in part:
            row["questions"] = row["mask"] = None
    written(tmp_path / "bare", rows)
    arguments = ["--run", str(place / "runs" / "second"), "--data", str(tmp_path / "bare"), "--no-dashboard"]
    arguments += ["--config", str(place / "settings.yaml"), "--features", str(tmp_path / "features")]
    arguments += ["--task", "vqa", "--task", "segmentation", "--task", "retrieval"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    summary = figures(place, "second", "bare")
    assert [summary[task]["state"] for task in ("vqa", "segmentation", "retrieval")] == [
        "skipped",
        "skipped",
        "done",
    ]
    assert "question" in summary["vqa"]["reason"]


def test_a_job_that_breaks_is_told_the_rest_goes_on_and_the_next_command_tries_it_again(
    place: Path, ray_local: None, evaluated: dict[str, Any]
) -> None:
    results = place / "runs/second/evaluations/broken"
    results.mkdir(parents=True)
    # A folder in the way of a result's file: a write that fails, as on a disk that is full.
    assert evaluate(place, "second", "--task", "retrieval").exit_code == 0
    name = next((place / "runs/second/evaluations/labelled").glob("retrieval*--pretrained--*.npz")).name
    (results / name).mkdir()
    (results / name / "x").write_text("")
    arguments = ("--task", "retrieval", "--task", "zero_shot", "--name", "broken")
    result = evaluate(place, "second", *arguments)
    summary = figures(place, "second", "broken")
    assert result.exit_code != 0
    assert summary["zero_shot"]["state"] == "done"
    assert summary["retrieval"]["state"] == "partly"
    assert not summary["complete"]
    shutil.rmtree(results / name)
    again = evaluate(place, "second", *arguments)
    assert again.exit_code == 0, again.output
    assert figures(place, "second", "broken")["complete"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--run is missing"),
        (("--run", "{place}/runs/nobody"), "no run there"),
        (("--run", "{place}/runs/first", "--data", "{place}/nothing"), "no dataset"),
        (("--run", "{place}/runs/first", "--task", "poetry"), "--task poetry"),
        (("--run", "{place}/runs/first", "--set", "classification.neighbors=3"), "neighbours"),
        (("--run", "{place}/runs/first", "--set", "classification.label_fractions=[0]"), "not above 0"),
        (("--run", "{place}/runs/first", "--device", "tpu"), "--device tpu"),
        (("--run", "{place}/runs/first", "--name", "../x"), "--name ../x"),
        (("--run", "{place}/runs/first", "--baseline", "x"), "--baseline"),
        (("--run", "{place}/runs/first", "--baseline", "a=timm", "--baseline", "a=timm"), "given twice"),
        (("--run", "{place}/runs/first", "--set", "breakdown=[scanner]"), "scanner"),
        (("--compare", "{place}/runs/nobody", "{place}/runs/first"), "evaluation.json"),
    ],
)
def test_a_mistake_is_one_line_with_what_would_be_right(
    place: Path, ray_local: None, arguments: tuple[str, ...], told: str
) -> None:
    filled = [one.format(place=place) for one in arguments]
    if "--compare" not in filled:
        filled += ["--no-dashboard", "--features", str(place / "features")]
    if "breakdown=[scanner]" in filled:
        filled += ["--data", str(place / "labelled"), "--config", str(place / "settings.yaml")]
    result = CliRunner().invoke(app, filled)
    from mpma.errors import UserError

    assert isinstance(result.exception, UserError), result.output
    message = f"{result.exception.message} {result.exception.hint or ''}"
    assert told in message
    assert "\n" not in message


def test_weights_of_another_architecture_are_refused_before_any_job(place: Path, ray_local: None) -> None:
    file = next((place / "runs/first/checkpoints").glob("*/model.safetensors"))
    config = (place / "runs/first/config.yaml").read_text()
    other = place / "runs" / "other"
    shutil.copytree(place / "runs" / "first", other, ignore=shutil.ignore_patterns("evaluation*"))
    (other / "config.yaml").write_text(config.replace("layers: 1", "layers: 2", 1))
    result = evaluate(place, "other", "--task", "retrieval")
    assert file.exists()
    assert "do not fit" in str(result.exception.args[0] if result.exception else result.output)


def test_check_says_what_would_be_judged_and_forecast_how_long(place: Path) -> None:
    checked = evaluate(place, "second", "--check")
    assert checked.exit_code == 0, checked.output
    assert "vqa: " in checked.output
    assert "all is well" in checked.output
    forecast = evaluate(place, "second", "--forecast")
    assert forecast.exit_code == 0, forecast.output
    assert "forecast: about" in forecast.output


def test_the_settings_are_printed_with_their_origins(place: Path) -> None:
    result = CliRunner().invoke(app, ["--print-config", "--set", "seeds=5"])
    assert "seeds: 5  # --set" in result.output


def test_examples_come_back_as_they_were_stored() -> None:
    shown = [
        Example(
            "image to report",
            np.arange(16, dtype=np.uint8).reshape(4, 4),
            {"report": "The lungs are clear."},
            {"mask": np.ones((2, 2), np.float32)},
            [Related(0.5, True, "clear", None)],
        ),
        Example("nothing", None),
    ]
    back = unpacked_examples(packed_examples(shown))
    assert np.array_equal(back[0].image, shown[0].image)
    assert back[0].related == shown[0].related
    assert np.array_equal(back[0].overlays["mask"], shown[0].overlays["mask"])
    assert back[1].image is None
    assert back[1].texts == {}


def test_a_damaged_result_counts_as_none(tmp_path: Path) -> None:
    store = ResultStore(open_storage(tmp_path))
    (tmp_path / "x.npz").write_bytes(b"PK half of a file")
    (tmp_path / "x.impossible.json").write_text("{")
    assert store.outcomes("x") is None
    assert store.impossible("x") is None


def test_the_run_of_these_tests_is_one_that_pretraining_would_leave(place: Path) -> None:
    run = RunDirectory.at(place / "runs", "first")
    assert run.checkpoints.child(checkpoint_name(7)).exists("state.json")
    assert "steps" in to_yaml(run.stored_config())
