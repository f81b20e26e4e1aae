"""ChestX-ray14 in the publisher's layout: labels, lists, boxes, and what is listed but absent."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from source_samples import in_a_bucket, write_nih14

from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection
from mpma.errors import UserError


def listed(root: Path, *options: str) -> tuple[list[Item], list[Rejection]]:
    found = list(build_source("nih14", root, options).items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_a_row_gives_labels_patient_view_and_the_tables_own_columns(tmp_path: Path) -> None:
    items, refusals = listed(write_nih14(tmp_path / "nih"))
    assert not refusals
    first, second = items[:2]
    assert (first.labels, first.patient_id, first.study_id, first.view) == ((), "1", "1/0", "PA")
    assert second.labels == ("Edema", "Pleural_Thickening")
    assert (second.path, second.view, second.report) == ("images_002/images/00000001_001.png", "AP", "")
    box = {"label": "Infiltration", "x": 1.5, "y": 2.0, "w": 30.25, "h": 40.0}
    assert second.extra == {"follow_up": 1, "age": 51, "sex": "M", "boxes_1024": [box]}
    assert first.extra["boxes_1024"] is None


def test_the_test_list_is_kept_and_val_is_drawn_from_the_others_by_patient(tmp_path: Path) -> None:
    root = write_nih14(tmp_path / "nih", images=400)
    items, _ = listed(root)
    assert {item.pair_id for item in items if item.split == "test"} == {
        "00000200_000.png",
        "00000200_001.png",
    }
    split_of = {item.patient_id: item.split for item in items}
    assert all(split_of[item.patient_id] == item.split for item in items)
    # 199 patients at 1/8: 24.9 expected, deviation 4.7.
    assert 11 <= Counter(split_of.values())["val"] <= 39
    assert [item.split for item in listed(root)[0]] == [item.split for item in items]
    assert Counter(item.split for item in listed(root, "val_fraction=0")[0]) == {"train": 398, "test": 2}
    assert {item.split for item in listed(root, "splits=ignore")[0]} == {None}


def test_one_list_alone_leaves_the_rest_to_the_other(tmp_path: Path) -> None:
    root = write_nih14(tmp_path / "nih")
    both = [item.split for item in listed(root)[0]]
    for name in ("train_val_list.txt", "test_list.txt"):
        kept = (root / name).read_bytes()
        (root / name).unlink()
        assert [item.split for item in listed(root)[0]] == both
        (root / name).write_bytes(kept)


def test_an_image_in_neither_list_is_an_unknown_split(tmp_path: Path) -> None:
    root = write_nih14(tmp_path / "nih")
    replaced(root / "train_val_list.txt", "00000001_000.png\n", "")
    items, refusals = listed(root)
    assert len(items) == 7
    assert [(r.pair_id, r.reason) for r in refusals] == [("00000001_000.png", "unknown_split")]


def test_rows_and_boxes_without_an_image_and_damaged_rows_are_counted(tmp_path: Path) -> None:
    root = write_nih14(tmp_path / "nih")
    (root / "images_001" / "images" / "00000001_000.png").unlink()
    table = root / "Data_Entry_2017.csv"
    replaced(table, "00000002_000.png,No Finding,0,2,", "00000002_000.png,No Finding,0,,")
    replaced(table, "00000003_000.png,", "../00000003_000.png,")
    replaced(
        table, "00000004_001.png,Edema|Pleural_Thickening,1,4,57,M,AP,96,80,0.1,0.1,", "00000004_001.png,x"
    )
    with (root / "BBox_List_2017.csv").open("a", encoding="utf-8") as stream:
        stream.write("00009999_000.png,Mass,1,2,3,4,,,\n")
    items, refusals = listed(root)
    assert len(items) == 4
    assert Counter(r.reason for r in refusals) == {
        "missing_image": 2,
        "missing_patient": 1,
        "outside_root": 1,
        "unreadable_row": 1,
    }
    assert refusals[-1].path == "BBox_List_2017.csv"


def test_ages_of_the_first_edition_are_read(tmp_path: Path) -> None:
    root = write_nih14(tmp_path / "nih")
    replaced(root / "Data_Entry_2017.csv", ",50,M,", ",058Y,M,")
    replaced(root / "Data_Entry_2017.csv", ",51,M,", ",011M,M,")
    replaced(root / "Data_Entry_2017.csv", ",52,M,", ",?,M,")
    assert [item.extra["age"] for item in listed(root)[0][:4]] == [58, 0, None, 53]


def test_an_archive_in_a_bucket_reads_the_same(tmp_path: Path) -> None:
    here = build_source("nih14", write_nih14(tmp_path / "nih"))
    there = in_a_bucket(here)
    assert list(there.items()) == list(here.items())
    for item in here.items():
        assert isinstance(item, Item)
        assert there.load_image(item) == here.load_image(item)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "Data_Entry_2017.csv").unlink(), "holds no table of labels"),
        (lambda root: [shutil.rmtree(f) for f in root.glob("images_*")], "holds no PNG images"),
        (
            lambda root: replaced(root / "Data_Entry_2017.csv", "Patient ID", "Person"),
            "has no column 'Patient ID'",
        ),
        (
            lambda root: replaced(root / "BBox_List_2017.csv", "30.25", "wide"),
            "line 2: not an image, a label and four numbers",
        ),
        (lambda root: (root / "test_list.txt").write_bytes(b"\xff\xfe\xff"), "not a readable list"),
    ],
)
def test_an_archive_that_is_not_whole_is_one_line(tmp_path: Path, change: object, message: str) -> None:
    root = write_nih14(tmp_path / "nih")
    change(root)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        listed(root)
    assert "\n" not in caught.value.message


def test_the_published_excerpt_is_listed_exactly(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "raw" / "nih14"
    items, refusals = listed(root)
    assert (len(items), len(refusals)) == (14, 0)
    assert sum(item.labels == () for item in items) == 5
    assert sum(item.extra["boxes_1024"] is not None for item in items) == 5
    assert len({item.patient_id for item in items}) == 13
    assert Counter(label for item in items for label in item.labels or ()) == {
        **{"Pneumonia": 9, "Infiltration": 4, "Effusion": 3, "Edema": 3},
        **{"Pleural_Thickening": 1, "Atelectasis": 1, "Cardiomegaly": 1, "Consolidation": 1},
    }
    # Two of the fourteen images alone: the table lists twelve that are not there.
    part = tmp_path / "part"
    (part / "images").mkdir(parents=True)
    for name in ("Data_Entry_2017_v2020.csv", "images/00000061_012.png", "images/00001281_000.png"):
        shutil.copy(root / name, part / name)
    items, refusals = listed(part)
    assert [item.pair_id for item in items] == ["00000061_012.png", "00001281_000.png"]
    assert Counter(r.reason for r in refusals) == {"missing_image": 12}
    assert {item.extra["boxes_1024"] for item in items} == {None}
