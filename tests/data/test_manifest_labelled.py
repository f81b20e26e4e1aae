"""Tables of labelled images without reports: masks and questions in columns, questions in second tables."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_samples import encoded, mask_pixels, parquet_rows, png, write_questions

from mpma.data.ingest_plan import IngestOptions
from mpma.data.pair_rows import make_row
from mpma.data.pairs import OPTIONAL_FIELDS
from mpma.data.quality import QualityConfig
from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, Source
from mpma.errors import UserError

ASKED = ("questions_table=*-qa.parquet", "reports=optional")


def parted(source: Source) -> tuple[list[Item], list[Rejection]]:
    found = list(source.items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def made(source: Source, item: Item) -> dict[str, object] | Rejection:
    options = IngestOptions(quality=QualityConfig(min_report_words=0))
    row = make_row(item, source, options, source.extra_schema())
    return row if isinstance(row, Rejection) else dict(row[0])


def paths_table(root: Path, masks: list[object], questions: list[object] | None = None) -> Path:
    """A CSV (or Parquet, where a cell is not text) of image paths with masks and questions."""
    (root / "images").mkdir(parents=True)
    columns: dict[str, list[object]] = {"id": [], "patient_id": [], "path": [], "labels": []}
    for number in range(len(masks)):
        (root / "images" / f"{number}.png").write_bytes(png(number))
        (root / "images" / f"{number}.mask.png").write_bytes(encoded(mask_pixels(number)))
        columns["id"].append(f"pair-{number}")
        columns["patient_id"].append(f"patient-{number}")
        columns["path"].append(f"images/{number}.png")
        columns["labels"].append("Edema")
    columns["outline"] = masks
    if questions is not None:
        columns["asked"] = questions
    pq.write_table(pa.table(columns), root / "table.parquet")
    return root


def test_a_table_without_reports_is_refused_with_the_way_out_and_taken_where_that_is_said(
    tmp_path: Path,
) -> None:
    root = write_questions(tmp_path / "set")
    with pytest.raises(UserError, match="has no column of reports") as caught:
        build_source("manifest", root, ["questions_table=*-qa.parquet"])
    assert "--min-words 0" in str(caught.value.hint)
    source = build_source("manifest", root, ASKED)
    assert source.reports_expected is False
    assert any("serves evaluation, not pre-training" in line for line in source.assumptions())


def test_questions_of_second_tables_are_joined_by_the_pairs_id(tmp_path: Path) -> None:
    source = build_source("manifest", write_questions(tmp_path / "set"), ASKED)
    items, refusals = parted(source)
    assert not refusals
    assert Counter(item.split for item in items) == {"train": 8, "val": 8}
    assert source.extra_schema() == pa.schema([OPTIONAL_FIELDS["questions"]])
    assert {json.dumps(item.extra["questions"]) for item in items} == {
        json.dumps(
            [
                {"question": "is this a chest?", "answers": ["yes"], "type": "organ"},
                {"question": "which side?", "answers": ["left", "left side"], "type": "side"},
            ]
        )
    }


def test_a_question_without_its_image_is_quarantined_and_a_filtered_image_is_there(tmp_path: Path) -> None:
    root = write_questions(tmp_path / "set")
    extra = {
        "image_id": ["absent", "absent", "pair-1", "", "pair-0"],
        "question": ["what?", "why?", " ", "what?", "new?"],
        "answers": pa.array([["a"], ["b"], ["c"], ["d"], []], type=pa.list_(pa.string())),
        "category": [""] * 5,
    }
    pq.write_table(pa.table(extra), root / "more-qa.parquet")
    items, refusals = parted(build_source("manifest", root, (*ASKED, "filter=id != pair-3")))
    assert "pair-3" not in {item.pair_id for item in items}
    assert len(items) == 15
    assert Counter(r.reason for r in refusals) == {
        "incomplete_question": 2,
        "missing_id": 1,
        "missing_image": 1,
    }
    assert [(r.pair_id, r.detail) for r in refusals if r.reason == "missing_image"] == [
        ("absent", "2 questions ask about it")
    ]


def test_an_image_without_a_question_is_kept_with_none(tmp_path: Path) -> None:
    root = write_questions(tmp_path / "set")
    (root / "val-qa.parquet").unlink()
    items, refusals = parted(build_source("manifest", root, ASKED))
    assert not refusals
    assert Counter(item.extra["questions"] is None for item in items) == {False: 8, True: 8}


def test_questions_in_a_text_table_and_columns_of_other_names(tmp_path: Path) -> None:
    root = write_questions(tmp_path / "set")
    for file in root.glob("*-qa.parquet"):
        file.unlink()
    (root / "asked-qa.csv").write_text("scan,words,reply\npair-0,what?,this\n", encoding="utf-8")
    given = ("questions_table=*-qa.csv", "reports=optional")
    with pytest.raises(UserError, match="no column that holds the pair id") as caught:
        build_source("manifest", root, given)
    assert "question_columns.pair_id" in str(caught.value.hint)
    with pytest.raises(UserError, match="no column 'reples'") as caught:
        build_source(
            "manifest",
            root,
            (
                *given,
                "question_columns.pair_id=scan",
                "question_columns.question=words",
                "question_columns.answers=reples",
            ),
        )
    columns = ("pair_id=scan", "question=words", "answers=reply")
    source = build_source("manifest", root, (*given, *(f"question_columns.{pair}" for pair in columns)))
    asked = {item.pair_id: item.extra["questions"] for item in parted(source)[0]}
    assert asked["pair-0"] == [{"question": "what?", "answers": ["this"], "type": ""}]
    assert any("not broken down by type" in line for line in source.assumptions())


def test_a_pattern_of_questions_that_takes_all_tables_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves no table of images"):
        build_source("manifest", write_questions(tmp_path / "set"), ("questions_table=*.parquet",))


def test_questions_in_a_column_may_be_json_or_lists_of_other_fields(tmp_path: Path) -> None:
    cell = [{"question": "what?", "answer": "this", "category": "organ"}]
    wanted = [{"question": "what?", "answers": ["this"], "type": "organ"}]
    options = ("columns.questions=asked", "columns.mask=outline", "reports=optional")
    text = [json.dumps(cell), "", "{", json.dumps([{"question": "", "answer": "x"}, *cell]), '["a"]']
    root = paths_table(tmp_path / "json", [None] * 5, list(text))
    items, refusals = parted(build_source("manifest", root, options))
    assert [item.extra["questions"] for item in items] == [wanted, None, wanted]
    assert [(r.pair_id, r.reason) for r in refusals] == [
        ("pair-2", "wrong_type"),
        ("pair-3", "incomplete_question"),
        ("pair-4", "wrong_type"),
    ]
    listed = paths_table(tmp_path / "list", [None] * 2, [cell, None])
    items, refusals = parted(build_source("manifest", listed, options))
    assert ([item.extra["questions"] for item in items], refusals) == ([wanted, None], [])


def test_masks_by_path_follow_the_image_and_bad_ones_have_their_own_codes(tmp_path: Path) -> None:
    paths: list[object] = ["images/0.mask.png", None, "images/absent.png", "../out.png", "images/4.mask.png"]
    root = paths_table(tmp_path / "set", paths)
    (root / "images" / "4.mask.png").write_bytes(encoded(mask_pixels(height=10)))
    source = build_source("manifest", root, ("columns.mask=outline", "reports=optional"))
    assert source.extra_schema() == pa.schema([OPTIONAL_FIELDS["mask"]])
    items, refusals = parted(source)
    assert [(r.pair_id, r.reason) for r in refusals] == [("pair-3", "outside_root")]
    rows = [made(source, item) for item in items]
    assert isinstance(rows[0], dict)
    assert rows[0]["mask"] == encoded(mask_pixels(0))
    assert isinstance(rows[1], dict)
    assert rows[1]["mask"] is None
    assert [row.reason for row in rows[2:] if isinstance(row, Rejection)] == ["missing_mask", "mask_size"]


def test_embedded_masks_of_another_name_are_taken_when_named(tmp_path: Path) -> None:
    table = parquet_rows(4).rename_columns(
        ["id", "patient_id", "image", "width", "report", "labels", "modality", "lungs"]
    )
    pq.write_table(table, tmp_path / "plain.parquet")
    source = build_source("manifest", tmp_path / "plain.parquet", ["columns.mask=lungs"])
    assert source.extra_schema().names == ["modality", "mask"]
    assert source.load_extra(parted(source)[0][2]) == {"mask": png(102)}
    with pytest.raises(UserError, match="holds list"):
        build_source("manifest", tmp_path / "plain.parquet", ["columns.mask=labels"])


@pytest.mark.parametrize(
    ("name", "options", "splits", "labelled"),
    [
        ("nih14_cls", (), {"train": 744, "val": 92, "test": 164}, 1000),
        ("covid_lungseg", (), {"train": 178, "val": 18, "test": 30}, 226),
        (
            "vqamed2019",
            ("questions_table=*-qa.parquet", "patient_per_row=true"),
            {"train": 1600, "val": 500},
            0,
        ),
    ],
)
def test_the_downstream_sets_are_listed_whole(
    data_root: Path, name: str, options: tuple[str, ...], splits: dict[str, int], labelled: int
) -> None:
    source = build_source("manifest", data_root / "downstream" / name, (*options, "reports=optional"))
    items, refusals = parted(source)
    assert not refusals
    assert Counter(item.split for item in items) == splits
    assert sum(item.labels is not None for item in items) == labelled
    if name == "vqamed2019":
        assert sum(len(item.extra["questions"]) for item in items) == 8393
    if name == "covid_lungseg":
        row = made(source, items[0])
        assert isinstance(row, dict)
        assert row["mask"] == source.load_extra(items[0])["mask"]
