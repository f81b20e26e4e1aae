"""Datasets without reports: made whole, counted, tokenised from questions, refused by pre-training."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))
from source_samples import encoded, mask_pixels, write_masks, write_nih14, write_parquet, write_vqamed2019

from mpma.data.dataset import Dataset
from mpma.data.ingest_plan import IngestOptions
from mpma.data.quality import QualityConfig
from mpma.data.sources import build_source
from mpma.data.tokenizer import SPECIAL_TOKENS
from mpma.errors import UserError
from orchestration.ingest_command import Request, execute
from orchestration.ingesting import IngestResult, carry_out, prepare

KEY = bytes(32)


def ingested(tmp_path: Path, name: str, root: Path, *options: str) -> IngestResult:
    return carry_out(prepare(build_source(name, root, options), str(tmp_path / "out"), key=KEY))


def test_a_labelled_set_without_reports_is_whole_and_its_figures_are_finite(tmp_path: Path) -> None:
    result = ingested(tmp_path, "nih14", write_nih14(tmp_path / "nih"))
    dataset = result.dataset
    dataset.verify()
    assert result.candidates == 8
    assert {name: split.pairs for name, split in dataset.info.splits.items()} == {
        name: dataset.rows(name) for name in ("train", "val", "test")
    }
    assert dataset.rows("test") == 2
    assert dataset.info.splits["train"].reports == 0
    found = dataset.info.reports
    assert (found.tokens_median, found.tokens_p95, found.tokens_max, found.truncated) == (0, 0, 0, 0)
    assert dataset.label_names == ["Edema", "Pleural_Thickening"]
    tokenizer = dataset.tokenizer()
    # The special tokens and the letters of the de-identification mark.
    assert tokenizer.vocabulary_size == len(SPECIAL_TOKENS) + 3
    assert tokenizer.encode(["", "heart"], 8).ids[1].tolist() == [
        tokenizer.class_id,
        tokenizer.unknown_id,
        tokenizer.end_id,
    ]


def test_without_reports_the_tokeniser_knows_the_questions_words(tmp_path: Path) -> None:
    dataset = ingested(tmp_path, "vqamed2019", write_vqamed2019(tmp_path / "vqa")).dataset
    assert {name: split.questions for name, split in dataset.info.splits.items()} == {
        "train": 6,
        "val": 6,
        "test": 6,
    }
    tokenizer = dataset.tokenizer()
    asked = "is this a ct scan? lung, mediastinum"
    ids = tokenizer.encode([asked], 64).ids[0]
    assert tokenizer.unknown_id not in ids
    assert tokenizer.decode(ids) == "is this a ct scan ? lung , mediastinum"
    row = dataset.read_rows("test", [0], ["questions", "labels", "report"]).to_pylist()[0]
    assert [question["type"] for question in row["questions"]] == ["modality", "organ"]
    assert (row["labels"], row["report"]) == (None, "")


def test_masks_are_counted_with_the_empty_ones_and_bad_ones_are_in_the_quarantine(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "set", images=40)
    (root / "masks" / "0.v1.png").write_bytes(encoded(0 * mask_pixels()))
    (root / "masks" / "2.v1.png").write_bytes(encoded(mask_pixels(height=12)))
    (root / "masks" / "4.v1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    result = ingested(tmp_path, "masks", root)
    splits = result.dataset.info.splits.values()
    assert sum(split.masks or 0 for split in splits) == 38
    assert sum(split.empty_masks or 0 for split in splits) == 1
    assert result.dataset.info.quarantine.reasons == {"mask_size": 1, "unreadable_mask": 1}
    table = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert [(row["path"], row["reason"]) for row in table] == [
        ("images/2.v1.jpg", "mask_size"),
        ("images/4.v1.jpg", "unreadable_mask"),
    ]


def test_pretraining_and_search_on_a_set_without_reports_are_one_clear_line(tmp_path: Path) -> None:
    dataset = ingested(tmp_path, "nih14", write_nih14(tmp_path / "nih")).dataset
    from orchestration.pretrain import app as pretrain
    from orchestration.tune import app as tune

    for program in (pretrain, tune):
        for extra in ([], ["--check"]):
            found = CliRunner().invoke(
                program,
                ["--set", f"data.path={dataset.path}", "--name", "none", *extra],
                standalone_mode=False,
            )
            assert isinstance(found.exception, UserError), (program, extra, found.output)
            assert "no pair of its train split has a report" in found.exception.message
            assert "serves evaluation" in str(found.exception.hint)


def test_a_set_with_reports_is_not_refused(tmp_path: Path) -> None:
    dataset = ingested(tmp_path, "manifest", write_parquet(tmp_path / "set")).dataset
    dataset.require_reports()
    assert dataset.info.splits["train"].reports == dataset.rows("train") == 10
    assert dataset.info.splits["train"].masks == 10


def test_a_marker_that_was_written_before_reports_were_counted_is_read(tmp_path: Path) -> None:
    dataset = ingested(tmp_path, "manifest", write_parquet(tmp_path / "set")).dataset
    marker = tmp_path / "out" / "dataset.json"
    content = json.loads(marker.read_text(encoding="utf-8"))
    for split in content["splits"].values():
        for count in ("reports", "masks", "empty_masks", "questions"):
            del split[count]
    marker.write_text(json.dumps(content), encoding="utf-8")
    older = Dataset.open(tmp_path / "out")
    assert older.fingerprint == dataset.fingerprint
    assert older.info.splits["train"].reports is None
    older.require_reports()


def without_some_reports(root: Path) -> Path:
    """Thirty pairs, of which the first three of train have no report."""
    file = write_parquet(root) / "set-train.parquet"
    table = pq.read_table(file)
    reports = table["report"].to_pylist()
    reports[:3] = ["", "nan", None]
    pq.write_table(table.set_column(table.schema.get_field_index("report"), "report", [reports]), file)
    return root


def test_least_words_of_zero_keep_the_pairs_that_have_no_report(tmp_path: Path) -> None:
    root = without_some_reports(tmp_path / "set")
    options = IngestOptions(quality=QualityConfig(min_report_words=0))
    prepared = prepare(build_source("manifest", root), str(tmp_path / "out"), key=KEY, options=options)
    dataset = carry_out(prepared).dataset
    assert (dataset.rows("train"), dataset.info.splits["train"].reports) == (10, 7)
    reports = dataset.read_rows("train", range(4), ["report"])["report"].to_pylist()
    assert reports == ["", "", "", "Report number 3 on clear lungs."]
    # Seven pieces and two special tokens.
    assert dataset.info.reports.tokens_median == 9


@pytest.mark.parametrize(
    ("source", "least", "kept", "refused"),
    [
        ("manifest", None, 27, {"empty_report": 3}),
        ("manifest", 1, 27, {"empty_report": 3}),
        ("manifest", 0, 30, {}),
        ("nih14", None, 8, {}),
        ("nih14", 1, 0, {"empty_report": 8}),
    ],
)
def test_the_source_says_whether_reports_are_asked_for_unless_the_user_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    least: int | None,
    kept: int,
    refused: dict[str, int],
) -> None:
    write = {"manifest": without_some_reports, "nih14": write_nih14}[source]
    checked = Request(
        source=source,
        root=str(write(tmp_path / "set")),
        out="",
        overrides=[],
        row_filter=None,
        split="0.8/0.1/0.1",
        split_seed=0,
        key_file=str(tmp_path / "key"),
        short_side=512,
        image_format="jpeg",
        jpeg_quality=95,
        min_words=least,
        min_side=64,
        vocabulary_size=30_000,
        max_tokens=128,
        overwrite=False,
        check=True,
        as_json=True,
        address=None,
        cpus=None,
    )
    execute(checked)
    found = json.loads(capsys.readouterr().out)
    assert (found["kept"], found["quarantined"]) == (kept, refused)
