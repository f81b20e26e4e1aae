"""CheXpert Plus on a tree built from its documentation: places of images, sections, labels, splits."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from samples_chexpert_plus import label_records, table_rows, write_chexpert_plus, write_table
from source_samples import in_a_bucket, png

from mpma.data.quality import image_problem
from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, Source
from mpma.errors import UserError


def listed(source: Source) -> tuple[list[Item], list[Rejection]]:
    found = list(source.items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def one(tmp_path: Path, *options: str, **cells: str) -> Item | Rejection:
    """The first row with other cells."""
    rows = [{**table_rows()[0], **cells}, *table_rows()[1:]]
    root = write_chexpert_plus(tmp_path / "plus", rows=rows)
    return next(iter(build_source("chexpert_plus", root, options).items()))


def test_a_row_gives_sections_view_patient_split_and_no_demographics_but_age_and_sex(tmp_path: Path) -> None:
    items, refused = listed(build_source("chexpert_plus", write_chexpert_plus(tmp_path / "plus")))
    assert not refused
    frontal, lateral = items[:2]
    assert frontal.pair_id == "train/patient00001/study1/view1_frontal.jpg"
    assert (frontal.patient_id, frontal.study_id) == ("patient00001", "train/patient00001/study1")
    assert lateral.study_id == frontal.study_id
    assert (frontal.findings, frontal.impression) == ("Heart 0.", "1.CLEAR 0.")
    assert frontal.report.startswith("NARRATIVE:")
    assert [item.view for item in items] == ["AP", "lateral", "PA", "PA", "AP", "lateral"]
    assert Counter(item.split for item in items) == {"train": 4, "val": 2}
    unsure = {"labels_uncertain": ["Pneumonia"], "labels_negative": ["Fracture"]}
    assert frontal.extra == {"age": 60, "sex": "Female", "labels_uncertain": [], "labels_negative": []}
    assert lateral.extra == {"age": 61, "sex": "Female", **unsure}
    assert (frontal.labels, lateral.labels) == ((), ("Edema",))
    assert "Secret" not in repr(items)


def test_patients_are_drawn_where_the_splits_are_ignored(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus")
    items, _ = listed(build_source("chexpert_plus", root, ["splits=ignore"]))
    assert {item.split for item in items} == {None}


def test_a_report_without_either_section_is_parsed(tmp_path: Path) -> None:
    item = one(tmp_path, section_findings="", section_impression="nan")
    assert isinstance(item, Item)
    assert (item.findings, item.impression) == (None, None)


def test_the_publishers_one_section_leaves_the_other_empty(tmp_path: Path) -> None:
    item = one(tmp_path, section_findings="")
    assert isinstance(item, Item)
    assert (item.findings, item.impression) == ("", "1.CLEAR 0.")


@pytest.mark.parametrize(
    ("labels", "missing", "labelled"),
    [
        ("impression", "section_impression", False),
        ("impression", "section_findings", True),
        ("findings", "section_findings", False),
        ("findings", "section_impression", True),
        ("report", "section_impression", True),
        ("none", "section_findings", False),
    ],
)
def test_labels_of_an_empty_section_say_nothing(
    tmp_path: Path, labels: str, missing: str, labelled: bool
) -> None:
    item = one(tmp_path, f"labels={labels}", **{missing: ""})
    assert isinstance(item, Item)
    assert item.labels == (() if labelled else None)
    assert item.extra["labels_uncertain"] == ([] if labelled else None)
    assert item.extra["labels_negative"] == ([] if labelled else None)


def test_uncertain_findings_alone_are_no_label(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus")
    records = label_records(table_rows())
    records[0] |= {"No Finding": None, "Edema": -1}
    records[1] |= {"Edema": float("nan"), "Support Devices": 1, "No Finding": 1}
    records[2] |= {"No Finding": 0}
    del records[3:]
    file = root / "chexbert_labels" / "impression_fixed.json"
    file.write_text("\n".join(map(json.dumps, records)))
    items, _ = listed(build_source("chexpert_plus", root))
    assert [item.labels for item in items] == [None, ("Support Devices",), None, None, None, None]
    assert [item.extra["labels_uncertain"] for item in items[:4]] == [["Edema"], ["Pneumonia"], [], None]


@pytest.mark.parametrize(
    "images", ["PNG", "PNG/PNG", "", "png_chexpert_plus_chunk_3/PNG", "PNG/png_chexpert_plus_chunk_0"]
)
def test_unpacked_images_are_found_where_they_usually_lie(tmp_path: Path, images: str) -> None:
    source = build_source("chexpert_plus", write_chexpert_plus(tmp_path / "plus", images=images))
    items, refused = listed(source)
    assert not refused
    assert [source.load_image(item) for item in items] == [png(number) for number in range(6)]


def test_images_of_another_ending_and_another_folder_are_read(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus", images="mine")
    with pytest.raises(UserError, match="holds no images"):
        build_source("chexpert_plus", root)
    for file in (root / "mine").rglob("*.png"):
        file.rename(file.with_suffix(".jpg"))
    source = build_source("chexpert_plus", root, ["images=mine"])
    assert [source.load_image(item) for item in listed(source)[0]] == [png(number) for number in range(6)]


def test_a_patient_whose_images_came_in_two_chunks_is_whole(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus", images="png_chexpert_plus_chunk_0")
    study = "train/patient00002/study2"
    (root / "png_chexpert_plus_chunk_1" / "train" / "patient00002").mkdir(parents=True)
    shutil.move(root / "png_chexpert_plus_chunk_0" / study, root / "png_chexpert_plus_chunk_1" / study)
    source = build_source("chexpert_plus", root)
    assert [source.load_image(item) for item in listed(source)[0]] == [png(number) for number in range(6)]


def test_zips_are_read_in_place_and_give_the_same_pairs(tmp_path: Path) -> None:
    unpacked = listed(build_source("chexpert_plus", write_chexpert_plus(tmp_path / "plus")))[0]
    source = build_source("chexpert_plus", write_chexpert_plus(tmp_path / "zipped", zipped=True))
    items, refused = listed(source)
    assert not refused
    assert [source.load_image(item) for item in items] == [png(number) for number in range(6)]
    assert [(item.pair_id, item.labels, item.extra) for item in items] == [
        (item.pair_id, item.labels, item.extra) for item in unpacked
    ]
    assert any("2 zip archives" in line for line in source.assumptions())


def test_a_missing_patient_or_zip_is_seen_while_listing_a_missing_file_when_loaded(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus")
    shutil.rmtree(root / "PNG" / "train" / "patient00002")
    (root / "PNG" / "train" / "patient00001" / "study1" / "view2_lateral.png").unlink()
    source = build_source("chexpert_plus", root)
    items, refused = listed(source)
    assert [(entry.reason, entry.pair_id[6:18]) for entry in refused] == [
        ("missing_image", "patient00002")
    ] * 2
    with pytest.raises(FileNotFoundError) as caught:
        source.load_image(items[1])
    assert image_problem(caught.value) == ("missing_image", "")
    zipped = write_chexpert_plus(tmp_path / "zipped", zipped=True)
    (zipped / "PNG" / "png_chexpert_plus_chunk_1.zip").unlink()
    items, refused = listed(build_source("chexpert_plus", zipped))
    assert (len(items), Counter(entry.reason for entry in refused)) == (3, {"missing_image": 3})


@pytest.mark.parametrize("zipped", [False, True])
def test_an_archive_in_a_bucket_reads_the_same(tmp_path: Path, zipped: bool) -> None:
    here = build_source("chexpert_plus", write_chexpert_plus(tmp_path / "plus", zipped=zipped))
    there = in_a_bucket(here)
    assert listed(there) == listed(here)
    for item in listed(here)[0]:
        assert there.load_image(item) == here.load_image(item)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"path_to_image": ""}, "missing_id"),
        ({"path_to_image": "../train/x.jpg"}, "outside_root"),
        ({"path_to_image": "train/../../x.jpg"}, "outside_root"),
        ({"path_to_image": "train"}, "missing_image"),
        ({"deid_patient_id": ""}, "missing_patient"),
        ({"split": "holdout"}, "unknown_split"),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason(tmp_path: Path, cells: dict[str, str], reason: str) -> None:
    root = write_chexpert_plus(tmp_path / "plus")
    first, *others = table_rows()
    write_table(root, [{**first, **cells}, *others])
    (refused,) = listed(build_source("chexpert_plus", root))[1]
    assert refused.reason == reason


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path_to_image": "a.jpg"}', "line 2: not an image"),
        ('{"No Finding": 1}', "line 2: not an image"),
        ('{"path_to_image": "a.jpg", "No Finding": 2}', "line 2: not an image"),
        ('{"path_to_image": "a.jpg", "No Finding": true}', "line 2: not an image"),
        ('{"path_to_image": "a.jpg", "No Finding": null, "Edema": "1"}', "line 2: not an image"),
        ("[1]", "line 2: not an image"),
        ("[" * 20_000, "line 2: not an image"),
        ("canary", "line 2: not an image"),
        ('{"path_to_image": "' + "a" * 70_000, "line 2: not an image"),
    ],
)
def test_labels_that_are_not_understood_are_one_line(tmp_path: Path, line: str, message: str) -> None:
    root = write_chexpert_plus(tmp_path / "plus")
    good = json.dumps(label_records(table_rows())[0])
    (root / "chexbert_labels" / "impression_fixed.json").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        listed(build_source("chexpert_plus", root))
    assert "\n" not in caught.value.message
    assert "canary" not in caught.value.message


def test_a_zip_of_labels_that_holds_others_is_named(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus", zipped=True)
    with zipfile.ZipFile(root / "chexbert_labels.zip", "w") as archive:
        archive.writestr("chexbert_labels/report_fixed.json", "")
    with pytest.raises(UserError, match=r"chexbert_labels\.zip holds no impression_fixed\.json"):
        listed(build_source("chexpert_plus", root))
    assert {item.labels for item in listed(build_source("chexpert_plus", root, ["labels=report"]))[0]} == {
        None
    }


def test_without_labels_nothing_is_labelled_and_that_is_said(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus")
    shutil.rmtree(root / "chexbert_labels")
    source = build_source("chexpert_plus", root)
    assert {item.labels for item in listed(source)[0]} == {None}
    assert "nothing is labelled: chexbert_labels/ is absent or left out" in source.assumptions()


def test_folders_that_are_another_archive_are_one_line(tmp_path: Path) -> None:
    root = write_chexpert_plus(tmp_path / "plus")
    table = root / "df_chexpert_plus_240401.csv"
    shutil.copy(table, root / "df_chexpert_plus_250101.csv")
    with pytest.raises(UserError, match="more than one df_chexpert_plus"):
        build_source("chexpert_plus", root)
    assert len(listed(build_source("chexpert_plus", root, ["table=df_chexpert_plus_250101.csv"]))[0]) == 6
    (root / "df_chexpert_plus_250101.csv").unlink()
    with pytest.raises(UserError, match="neither train/ nor valid/"):
        build_source("chexpert_plus", root, ["images=PNG/train"])
    with pytest.raises(UserError, match=r"table: .* is no file"):
        build_source("chexpert_plus", root, ["table=../x.csv"])
    table.write_text("path_to_image,report\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column 'deid_patient_id'"):
        build_source("chexpert_plus", root)
    table.unlink()
    with pytest.raises(UserError, match="holds no df_chexpert_plus"):
        build_source("chexpert_plus", root)
