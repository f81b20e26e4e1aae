"""PadChest on a tree built from its documentation: labels, projections, zips, inverted and torn images."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples_padchest import TABLE, pixels_12_bits, table_rows, write_padchest, write_table
from source_samples import encoded, grey_pixels, in_a_bucket

from mpma.data.images import read_grey
from mpma.data.quality import check_item
from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, Source, UnreadableImage
from mpma.data.sources.padchest import inverted
from mpma.errors import UserError


def listed(source: Source) -> tuple[list[Item], list[Rejection]]:
    found = list(source.items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def first(tmp_path: Path, *options: str, **cells: Any) -> Item | Rejection:
    """The first row with other cells."""
    root = write_padchest(tmp_path / "padchest")
    write_table(root, [{**table_rows()[0], **cells}])
    (entry,) = build_source("padchest", root, options).items()
    return entry


def test_a_row_gives_the_spanish_report_labels_age_and_projection(tmp_path: Path) -> None:
    items, refused = listed(build_source("padchest", write_padchest(tmp_path / "padchest")))
    assert not refused
    frontal, lateral, *_, last = items
    assert (frontal.pair_id, frontal.path) == (table_rows()[0]["ImageID"], f"0/{frontal.pair_id}")
    assert (frontal.patient_id, frontal.study_id) == ("83986048869429163760", "study0")
    assert (frontal.view, lateral.view) == ("PA", "lateral")
    assert frontal.report == "sin hallazg patolog signific . elongacion aort numer 0 ñ ."
    assert (frontal.findings, frontal.impression, frontal.split) == (None, None, None)
    assert check_item(frontal) is None
    assert frontal.labels == ()
    assert frontal.extra == {
        "projection": "PA",
        "method_label": "Physician",
        "localizations": [],
        "age": 84,
        "sex": "F",
    }
    assert last.labels == ("cardiomegaly", "pleural effusion")
    assert last.extra["localizations"] == ["loc right", "loc pleural"]
    assert last.extra["method_label"] == "RNN_model"
    assert "20140915" not in repr(items)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("['normal']", ()),
        ("['unchanged']", None),
        ("['unchanged', 'nodule', 'nodule', '']", ("nodule",)),
        ("[\"Kerley's lines\", 'nodule']", ("Kerley's lines", "nodule")),
        ("[]", None),
        ("", None),
        ("nan", None),
        ("[nan, 'nodule']", ("nodule",)),
    ],
)
def test_special_labels_are_no_findings(tmp_path: Path, labels: str, told: tuple[str, ...] | None) -> None:
    item = first(tmp_path, Labels=labels)
    assert isinstance(item, Item)
    assert item.labels == told


@pytest.mark.parametrize(
    "labels",
    [
        "normal",
        "['normal'",
        "['a' 'b']",
        "['a',,'b']",
        "[['a']]",
        "__import__('os')",
        "['a\\x41']",
        "['a']; x",
    ],
)
def test_a_cell_that_is_no_list_of_texts_is_refused_and_never_run(tmp_path: Path, labels: str) -> None:
    for column in ("Labels", "Localizations"):
        refused = first(tmp_path / column, **{column: labels})
        assert isinstance(refused, Rejection)
        assert (refused.reason, refused.detail) == ("wrong_type", f"column {column} is not a list")


def test_other_projections_and_unfit_studies_are_left_out_and_counted(tmp_path: Path) -> None:
    root = write_padchest(tmp_path / "padchest")
    rows = table_rows()
    rows[0]["Projection"] = "COSTAL"
    rows[1]["Projection"] = "EXCLUDE"
    rows[2]["Projection"] = ""
    rows[3]["Projection"] = "AP_horizontal"
    rows[4]["Labels"] = "['exclude']"
    rows[5]["Labels"] = "['nodule', 'suboptimal study']"
    write_table(root, rows)
    source = build_source("padchest", root)
    items, refused = listed(source)
    assert not refused
    assert [item.view for item in items] == ["AP", "PA", "lateral"]
    lines = source.assumptions()
    assert lines[0] == f"8 rows in {TABLE}"
    assert "3 rows of other projections than PA, L, AP, AP_horizontal are left out (projections)" in lines
    assert "2 rows labelled exclude or suboptimal study are left out (leave_out)" in lines
    items, _ = listed(build_source("padchest", root, ["projections=null", "leave_out=[]"]))
    assert len(items) == 8
    assert [item.view for item in items[:3]] == ["unknown"] * 3
    assert [item.labels for item in items[4:6]] == [None, ("nodule",)]
    assert len(listed(build_source("padchest", root, ["projections=[costal]"]))[0]) == 1


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("images", ["", "images", "image_zips"])
def test_images_lie_in_folders_or_in_zips(tmp_path: Path, zipped: bool, images: str) -> None:
    root = write_padchest(tmp_path / "padchest", zipped=zipped, images=images)
    source = build_source("padchest", root)
    items, refused = listed(source)
    assert not refused
    for number, item in enumerate(items):
        stored = read_grey(encoded(pixels_12_bits(number)))
        wanted = 255 - stored if number == 4 else stored
        assert np.array_equal(read_grey(source.load_image(item)), wanted)


def test_images_of_one_folder_and_of_a_named_one_are_found(tmp_path: Path) -> None:
    root = write_padchest(tmp_path / "padchest", images="mine")
    with pytest.raises(UserError, match="holds no images"):
        build_source("padchest", root)
    for file in (root / "mine").rglob("*.png"):
        shutil.move(file, root / "mine" / file.name)
    source = build_source("padchest", root, ["images=mine"])
    items, refused = listed(source)
    assert not refused
    assert source.load_image(items[0]) == encoded(pixels_12_bits(0))


def test_a_folder_that_was_not_fetched_is_missing_and_a_zip_beside_folders_is_read(tmp_path: Path) -> None:
    root = write_padchest(tmp_path / "padchest")
    zips = write_padchest(tmp_path / "zips", zipped=True)
    shutil.rmtree(root / "1")
    items, refused = listed(build_source("padchest", root))
    assert (len(items), Counter(entry.reason for entry in refused)) == (4, {"missing_image": 4})
    shutil.move(zips / "1.zip", root / "1.zip")
    source = build_source("padchest", root)
    items, refused = listed(source)
    assert (len(items), refused) == (8, [])
    assert source.load_image(items[1]) == encoded(pixels_12_bits(1))


@pytest.mark.parametrize("zipped", [False, True])
def test_an_archive_in_a_bucket_reads_the_same(tmp_path: Path, zipped: bool) -> None:
    here = build_source("padchest", write_padchest(tmp_path / "padchest", zipped=zipped))
    there = in_a_bucket(here)
    assert listed(there) == listed(here)
    for item in listed(here)[0]:
        assert there.load_image(item) == here.load_image(item)


def test_dark_and_bright_are_exchanged_whatever_the_depth(tmp_path: Path) -> None:
    grey = grey_pixels(3)
    assert np.array_equal(read_grey(inverted(encoded(grey))), 255 - grey)
    wide = np.array([[0, 4095, 2048], [1, 4094, 16]] * 40, np.uint16).repeat(30, axis=1)
    stored, turned = read_grey(encoded(wide)), read_grey(inverted(encoded(wide)))
    assert (stored[0, 0], stored[0, 30], turned[0, 0], turned[0, 30]) == (0, 255, 255, 0)
    # Turned before or after it is scaled to 8 bits, a pixel is the same but for rounding.
    before = np.round((4095.0 - wide) * 255 / 4095)
    assert np.abs(before - turned).max() <= 1
    with pytest.raises(UnreadableImage):
        inverted(b"version https://git-lfs.github.com/spec/v1\n")
    item = first(tmp_path, "invert_monochrome1=false", PhotometricInterpretation_DICOM="MONOCHROME1")
    assert isinstance(item, Item)
    assert "inverted" not in item.locator


def test_torn_files_are_refused_by_the_guards_inverted_or_not(tmp_path: Path) -> None:
    root = write_padchest(tmp_path / "padchest")
    source = build_source("padchest", root)
    items, _ = listed(source)
    whole = (root / items[0].path).read_bytes()
    middle = len(whole) // 2
    for torn in (whole[:middle], whole[:middle] + bytes(len(whole) - middle)):
        for item in (items[0], items[4]):
            (root / item.path).write_bytes(torn)
            with pytest.raises(UnreadableImage) as caught:
                read_grey(source.load_image(item))
            assert caught.value.reason in ("truncated_image", "unreadable_image")


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"ImageID": ""}, "missing_id"),
        ({"ImageDir": "../0"}, "outside_root"),
        ({"ImageID": "../0/x.png"}, "outside_root"),
        ({"ImageDir": "/etc"}, "outside_root"),
        ({"ImageID": "absent.png"}, "missing_image"),
        ({"ImageDir": "54"}, "missing_image"),
        ({"PatientID": ""}, "missing_patient"),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason(tmp_path: Path, cells: dict[str, str], reason: str) -> None:
    refused = first(tmp_path, **cells)
    assert isinstance(refused, Rejection)
    assert refused.reason == reason


def test_a_row_without_a_report_or_a_birth_is_told(tmp_path: Path) -> None:
    item = first(tmp_path, Report="", PatientBirth="", StudyID="")
    assert isinstance(item, Item)
    refused = check_item(item)
    assert refused is not None
    assert refused.reason == "empty_report"
    assert item.extra["age"] is None
    assert item.study_id == item.pair_id


def test_folders_that_are_another_archive_are_one_line(tmp_path: Path) -> None:
    root = write_padchest(tmp_path / "padchest")
    write_table(root, table_rows(), packed=True)
    assert len(listed(build_source("padchest", root))[0]) == 8
    older = TABLE.replace("_01.02.19", "")
    shutil.copy(root / TABLE, root / older)
    with pytest.raises(UserError, match="more than one PADCHEST"):
        build_source("padchest", root)
    assert len(listed(build_source("padchest", root, [f"table={older}"]))[0]) == 8
    for file in root.glob("*.csv*"):
        file.unlink()
    with pytest.raises(UserError, match="holds no PADCHEST"):
        build_source("padchest", root)
    (root / TABLE).write_text("ImageID,Report\n")
    with pytest.raises(UserError, match="has no column 'ImageDir'"):
        build_source("padchest", root)
