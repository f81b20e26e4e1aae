"""VQA-Med 2019 in the organisers' layout, and what counts as the same answer and as a closed question."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from source_samples import write_vqamed2019

from mpma.data.questions import is_closed, normalised_answer, question_row
from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection
from mpma.errors import UserError


def listed(root: Path) -> tuple[list[Item], list[Rejection]]:
    found = list(build_source("vqamed2019", root).items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def test_an_image_carries_all_of_its_questions_with_type_and_accepted_answers(tmp_path: Path) -> None:
    items, refusals = listed(write_vqamed2019(tmp_path / "vqa"))
    assert not refusals
    assert Counter(item.split for item in items) == {"train": 3, "val": 3, "test": 3}
    organ = {"question": "what organ is shown?", "answers": ["lung, mediastinum", "heart1"], "type": "organ"}
    for item in (items[1], items[4], items[7]):
        assert item.extra["questions"] == [
            {"question": "is this a ct scan?", "answers": ["yes"], "type": "modality"},
            organ,
        ]
        assert (item.patient_id, item.labels, item.report) == (item.pair_id, None, "")


def test_a_part_that_is_absent_is_left_out_and_said(tmp_path: Path) -> None:
    root = write_vqamed2019(tmp_path / "vqa")
    (root / "VQAMed2019Test" / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").unlink()
    source = build_source("vqamed2019", root)
    assert {item.split for item in source.items() if isinstance(item, Item)} == {"train", "val"}
    assert any("absent, left out" in line and line.startswith("test") for line in source.assumptions())


def test_parts_are_found_at_any_depth_and_without_the_files_by_category(tmp_path: Path) -> None:
    root = write_vqamed2019(tmp_path / "a" / "b" / "vqa")
    for file in root.rglob("C3_*"):
        file.unlink()
    items, _ = listed(tmp_path)
    assert [question["type"] for question in items[0].extra["questions"]] == ["modality", ""]
    for file in root.rglob("C1_*"):
        file.unlink()
    source = build_source("vqamed2019", tmp_path)
    assert sum("types are empty" in line for line in source.assumptions()) == 2


def test_questions_without_image_and_damaged_lines_are_counted(tmp_path: Path) -> None:
    root = write_vqamed2019(tmp_path / "vqa")
    (root / "ImageClef-2019-VQA-Med-Validation" / "Val_images" / "synpic10.jpg").unlink()
    with (root / "ImageClef-2019-VQA-Med-Training" / "All_QA_Pairs_train.txt").open("a") as stream:
        stream.write(
            "synpic1|what?|\nsynpic1|what\n|what?|this\n\n../x|what?|this\nsynpic1|is\tthis  new?|yes\n"
        )
    items, refusals = listed(root)
    assert len(items) == 8
    assert Counter(r.reason for r in refusals) == {
        "missing_image": 1,
        "incomplete_question": 1,
        "unreadable_row": 1,
        "missing_id": 1,
        "outside_root": 1,
    }
    missing = next(r for r in refusals if r.reason == "missing_image")
    assert (missing.pair_id, missing.detail) == ("synpic10", "2 questions ask about it")
    assert items[1].extra["questions"][-1] == {"question": "is this new?", "answers": ["yes"], "type": ""}


def test_two_copies_of_a_part_and_no_part_are_one_line(tmp_path: Path) -> None:
    write_vqamed2019(tmp_path / "one")
    write_vqamed2019(tmp_path / "two")
    with pytest.raises(UserError, match="2 times"):
        build_source("vqamed2019", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no questions"):
        build_source("vqamed2019", tmp_path / "empty")


def test_the_published_excerpt_is_listed_exactly(data_root: Path) -> None:
    items, refusals = listed(data_root / "raw" / "vqamed2019")
    assert Counter(item.split for item in items) == {"train": 40, "val": 15, "test": 6}
    # The test part's file is whole (500 images), its images are not.
    assert Counter(r.reason for r in refusals) == {"missing_image": 494}
    questions = {
        split: [q for item in items if item.split == split for q in item.extra["questions"]]
        for split in ("train", "val", "test")
    }
    assert {split: len(found) for split, found in questions.items()} == {"train": 159, "val": 60, "test": 6}
    assert Counter(q["type"] for q in questions["train"]) == {
        **{"modality": 40, "plane": 40, "organ": 40, "abnormality": 39}
    }
    assert {q["type"] for q in questions["val"]} == {"modality", "plane", "organ", "abnormality"}
    assert "" not in {q["type"] for q in questions["test"]}


# Answers.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes.", "yes"),
        ("lemierre’s  syndrome", "Lemierre's syndrome"),
        ("ct w/contrast (iv)", "CT w contrast iv"),
        ("cavernous \xa0hemangioma", "cavernous hemangioma"),
    ],
)
def test_the_same_answer_is_known_in_another_form(one: str, other: str) -> None:
    assert normalised_answer(one) == normalised_answer(other)


def test_different_answers_stay_different() -> None:
    assert normalised_answer("left") != normalised_answer("left side")
    assert normalised_answer("+") == "+"
    assert normalised_answer("+") != normalised_answer("-")
    assert normalised_answer("  ") == ""


def test_a_question_is_closed_where_every_answer_is_yes_or_no() -> None:
    assert is_closed(["Yes"])
    assert is_closed(["no.", "yes"])
    assert not is_closed(["no", "not seen"])
    assert not is_closed([])


def test_a_question_row_is_tidied_and_an_incomplete_one_is_none() -> None:
    assert question_row(" which\n side? ", ["left", "left ", ""], "Side ") == {
        "question": "which side?",
        "answers": ["left"],
        "type": "Side",
    }
    assert question_row(" ", ["left"], "") is None
    assert question_row("which side?", [" "], "") is None


def test_closed_questions_are_those_that_the_downstream_set_marks(data_root: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(data_root / "downstream" / "vqamed2019" / "val-qa.parquet")
    closed = [is_closed(answers) for answers in table["answers"].to_pylist()]
    assert closed == table["closed"].to_pylist()
    assert any(closed)
