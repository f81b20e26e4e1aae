"""MIMIC-CXR-JPG with its reports, on a small tree built from the publisher's documentation."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from samples_mimic import (
    FINDINGS,
    METADATA,
    SHIFTED_DATE,
    Image,
    built,
    dicom_id,
    labels_row,
    listed,
    sample_images,
    write_gzip,
    write_images,
    write_mimic,
)
from source_samples import checked_items

from mpma.data.hashing import PUBLIC_KEY
from mpma.data.quality import image_problem, resolve_sections
from mpma.data.sources import build_source
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.mimic_labels import FINDINGS as KNOWN_FINDINGS
from mpma.errors import UserError
from orchestration.ingesting import carry_out, prepare


def one(tmp_path: Path, image: Image, *options: str) -> Item:
    """The only item of an archive of one image."""
    ((item,), refusals) = built(write_mimic(tmp_path / "mimic", images=[image]), *options)
    assert not refusals
    return item


def write_labels(root: Path, labeller: str, *rows: tuple[int, str]) -> None:
    lines = [f"10000032,{study},{values}" for study, values in rows]
    write_gzip(root / f"mimic-cxr-2.0.0-{labeller}.csv.gz", [f"subject_id,study_id,{FINDINGS}", *lines])


# What a pair is.


def test_each_image_is_a_pair_with_the_report_of_its_study(tmp_path: Path) -> None:
    items, refusals = built(write_mimic(tmp_path / "mimic"))
    assert not refusals
    assert [item.pair_id for item in items] == [image.dicom for image in sample_images()]
    frontal, lateral = items[:2]
    assert (frontal.patient_id, frontal.study_id) == ("10000032", "50414267")
    assert (frontal.view, lateral.view, lateral.study_id) == ("PA", "lateral", frontal.study_id)
    assert frontal.report == lateral.report
    assert frontal.report.startswith("                                 FINAL REPORT\n")
    assert resolve_sections(frontal) == (
        "The heart is of normal size, as in study number 50414267. The lungs are\n clear.",
        "No acute process, 50414267.",
    )
    assert {item.license for item in items} == {"PhysioNet Credentialed Health Data License 1.5.0"}
    assert len({item.report for item in items}) == 8


def test_the_official_split_is_kept_or_ignored(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    assert Counter(item.split for item in built(root)[0]) == {"train": 8, "val": 4, "test": 4}
    assert {item.split for item in built(root, "splits=ignore")[0]} == {None}
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    assert {item.split for item in built(root)[0]} == {None}


def test_dates_times_and_sizes_of_the_metadata_are_not_copied(tmp_path: Path) -> None:
    source = build_source("mimic_cxr", write_mimic(tmp_path / "mimic"))
    items, _ = listed(source)
    for item in items:
        assert SHIFTED_DATE not in repr(item)
        assert "213014" not in repr(item)
    assert source.extra_schema().names == [
        *("labels_uncertain", "labels_negative", "labels_chexpert", "labels_negbio", "labels_radiologist"),
        *("view_position", "procedure", "orientation"),
    ]
    assert items[1].extra["view_position"] == "LATERAL"
    assert items[1].extra["procedure"] == "CHEST (PA AND LAT)"
    assert items[1].extra["orientation"] == "Erect"


@pytest.mark.parametrize(
    ("position", "coded", "view"),
    [
        ("PA", "", "PA"),
        ("AP", "antero-posterior", "AP"),
        ("LATERAL", "lateral", "lateral"),
        ("LL", "left lateral", "lateral"),
        ("", "postero-anterior", "PA"),
        ("", "antero-posterior", "AP"),
        ("", "lateral", "lateral"),
        ("", "left lateral", "lateral"),
        ("", "", "unknown"),
        ("AP AXIAL", "antero-posterior", "AP"),
        ("AP LLD", "", "AP"),
        ("AP RLD", "", "AP"),
        ("PA LLD", "", "PA"),
        ("PA RLD", "", "PA"),
        ("XTABLE LATERAL", "", "lateral"),
        ("SWIMMERS", "", "lateral"),
        ("LAO", "left anterior oblique", "unknown"),
        ("RAO", "", "unknown"),
        ("LPO", "", "unknown"),
    ],
)
def test_every_view_of_the_archive_is_known(tmp_path: Path, position: str, coded: str, view: str) -> None:
    item = one(tmp_path, Image(10000032, 50414267, dicom_id(1), position, coded))
    assert item.view == view
    assert item.extra["view_position"] == (position or None)


def test_unwanted_views_are_counted_and_not_quarantined(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    source = build_source("mimic_cxr", root, ("views=[PA, AP]",))
    items, refusals = listed(source)
    assert not refusals
    assert {item.view for item in items} == {"PA"}
    assert "views=PA,AP keeps 8 of 16 images" in source.assumptions()
    assert len(built(root, "views=[lateral]")[0]) == 8
    assert built(root, "views=[unknown]") == ([], [])
    with pytest.raises(UserError, match="views"):
        build_source("mimic_cxr", root, ("views=[frontal]",))


# Labels.


def test_labels_hold_what_is_positive_and_the_rest_stands_beside_it(tmp_path: Path) -> None:
    items, _ = built(write_mimic(tmp_path / "mimic"))
    first, _, second, *_ = items
    assert (first.labels, second.labels) == ((), ("Edema",))
    assert second.extra["labels_uncertain"] == ["Pneumonia"]
    assert second.extra["labels_negative"] == ["Pneumothorax"]
    assert second.extra["labels_chexpert"] == second.extra["labels_negbio"] == ["Edema"]
    assert first.extra["labels_chexpert"] == first.extra["labels_uncertain"] == []
    assert second.extra["labels_radiologist"] is None


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (("No Finding=1.0",), ()),
        (("No Finding=1.0", "Support Devices=1.0"), ("Support Devices",)),
        (("No Finding=1.0", "Pneumothorax=0.0"), ()),
        (("Pneumonia=1.0", "Edema=-1.0"), ("Pneumonia",)),
        # Neither a finding nor its absence is said: the study is not called normal.
        (("Pneumonia=-1.0",), None),
        (("Pneumothorax=0.0", "Pleural Effusion=0.0"), None),
        (("No Finding=-1.0",), None),
        ((), None),
    ],
)
def test_only_a_study_said_to_be_normal_has_an_empty_list(
    tmp_path: Path, values: tuple[str, ...], labels: tuple[str, ...] | None
) -> None:
    root = write_mimic(tmp_path / "mimic", images=[Image(10000032, 50414267, dicom_id(1))])
    write_labels(root, "chexpert", (50414267, labels_row(*values)))
    ((item,), _) = built(root)
    assert item.labels == labels
    assert item.extra["labels_chexpert"] == (None if labels is None else list(labels))


def test_a_study_without_a_row_of_labels_is_not_labelled(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    write_labels(root, "chexpert", (50414267, labels_row("Fracture=1")))
    items, refusals = built(root)
    assert not refusals
    assert [item.labels for item in items[:4]] == [("Fracture",), ("Fracture",), None, None]
    assert items[2].extra["labels_uncertain"] is None
    assert items[2].extra["labels_negative"] is None
    assert items[2].extra["labels_negbio"] == ["Edema"]


def test_each_labeller_can_be_chosen_and_all_are_kept(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic", images=[Image(10000032, 50414267, dicom_id(1), split="test")])
    write_labels(root, "chexpert", (50414267, labels_row("Edema=1.0")))
    write_labels(root, "negbio", (50414267, labels_row("Lung Lesion=1.0", "Fracture=-1.0")))
    # The radiologist's table has no patients, and two words of its own.
    (root / "mimic-cxr-2.1.0-test-set-labeled.csv").write_text(
        "study_id,Airspace Opacity,Edema,No Findings\n50414267,1.0,0.0,\n"
    )
    chosen = {
        name: built(root, f"labels={name}")[0][0] for name in ("chexpert", "negbio", "radiologist", "none")
    }
    assert {name: item.labels for name, item in chosen.items()} == {
        "chexpert": ("Edema",),
        "negbio": ("Lung Lesion",),
        "radiologist": ("Lung Opacity",),
        "none": None,
    }
    assert chosen["negbio"].extra["labels_uncertain"] == ["Fracture"]
    assert chosen["radiologist"].extra["labels_negative"] == ["Edema"]
    assert chosen["none"].extra["labels_uncertain"] is None
    for item in chosen.values():
        assert item.extra["labels_chexpert"] == ["Edema"]
        assert item.extra["labels_negbio"] == ["Lung Lesion"]
        assert item.extra["labels_radiologist"] == ["Lung Opacity"]


def test_all_fourteen_columns_are_read(tmp_path: Path) -> None:
    names = FINDINGS.split(",")
    assert sorted(KNOWN_FINDINGS) == sorted(set(names) - {"No Finding"})
    root = write_mimic(tmp_path / "mimic", images=[Image(10000032, 50414267, dicom_id(1))])
    for name in KNOWN_FINDINGS:
        write_labels(root, "chexpert", (50414267, labels_row(f"{name}=1.0")))
        assert built(root)[0][0].labels == (name,)


def test_a_table_of_labels_that_is_not_there_is_said_and_one_asked_for_is_required(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    for labeller in ("chexpert", "negbio"):
        (root / f"mimic-cxr-2.0.0-{labeller}.csv.gz").unlink()
    source = build_source("mimic_cxr", root)
    assert any(line.startswith("not labelled") for line in source.assumptions())
    assert {item.labels for item in listed(source)[0]} == {None}
    with pytest.raises(UserError, match=r"no table mimic-cxr-\*-negbio\.csv"):
        build_source("mimic_cxr", root, ("labels=negbio",))


def test_rows_of_the_tables_that_cannot_be_read_are_quarantined_and_the_others_kept(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    write_labels(
        root,
        "chexpert",
        (50414267, labels_row("Edema=maybe")),
        (50415270, labels_row("Edema=1.0")[:-3]),
        (50416273, labels_row("Edema=1.0")),
    )
    images = sample_images()
    lines = [METADATA, *(image.row for image in images)]
    lines[1] = lines[1].replace(images[0].dicom, "")
    lines[2] = lines[2].replace(",10000032,", ",,")
    lines[3] = lines[3].replace(",10000032,", ",one,")
    lines[4] = lines[4].replace(",50415270,", f",{'5' * 5000},")
    lines[5] = lines[5].replace(images[4].dicom, "../../../secret")
    lines[6] = lines[6].replace(images[5].dicom, "")[:40]
    write_gzip(root / "mimic-cxr-2.0.0-metadata.csv.gz", lines)
    items, refusals = built(root)
    assert [(r.reason, r.pair_id) for r in refusals] == [
        ("wrong_type", ""),
        ("unreadable_row", ""),
        ("missing_id", ""),
        ("missing_patient", images[1].dicom),
        ("wrong_type", images[2].dicom),
        ("wrong_type", images[3].dicom),
        ("outside_root", "../../../secret"),
        ("unreadable_row", ""),
    ]
    assert refusals[0].detail == "column Edema is none of 1, 0, -1 and empty"
    assert refusals[2].path == "mimic-cxr-2.0.0-metadata.csv.gz, line 2"
    assert [item.pair_id for item in items] == [image.dicom for image in images[6:]]


# Splits.


def test_an_image_without_a_split_is_refused_and_one_of_its_own_is_seen(tmp_path: Path) -> None:
    images = sample_images()
    root = write_mimic(tmp_path / "mimic")
    rows = [f"{image.dicom},{image.study},{image.subject},{image.split}" for image in images[2:]]
    rows[1] = rows[1].replace("train", "test")
    write_gzip(root / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id,study_id,subject_id,split", *rows, ",,,"])
    items, refusals = built(root)
    assert [item.split for item in items[:2]] == ["train", "test"]
    assert [(r.reason, r.pair_id) for r in refusals] == [
        ("wrong_type", ""),
        ("unknown_split", images[0].dicom),
        ("unknown_split", images[1].dicom),
    ]
    refused = [
        entry for entry in checked_items(build_source("mimic_cxr", root)) if isinstance(entry, Rejection)
    ]
    torn = {image.dicom for image in images[2:4]}
    assert torn == {r.pair_id for r in refused if r.reason == "patient_in_two_splits"}


# Images that are not there.


def test_of_a_partial_download_every_image_that_is_absent_is_one_missing_image(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    shutil.rmtree(root / "files" / "p11")
    shutil.rmtree(root / "files" / "p10" / "p10000764")
    images = sample_images()
    items, refusals = built(root)
    assert [item.pair_id for item in items] == [image.dicom for image in images[:4]]
    assert [(r.pair_id, r.path, r.reason) for r in refusals] == [
        (image.dicom, image.path, "missing_image") for image in images[4:]
    ]


def test_a_file_missing_in_a_folder_that_is_there_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    first, second, *_ = sample_images()
    (root / first.path).unlink()
    (root / second.path).write_bytes(b"")
    source = build_source("mimic_cxr", root)
    items, refusals = listed(source)
    assert not refusals
    with pytest.raises(FileNotFoundError) as caught:
        source.load_image(items[0])
    assert image_problem(caught.value) == ("missing_image", "")
    assert source.load_image(items[1]) == b""
    shutil.rmtree(root / "files" / "p10" / "p10000032")
    with pytest.raises(FileNotFoundError):
        source.load_image(items[2])


def test_files_that_no_table_names_are_left_out(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    before = built(root)
    extra = Image(10000032, 50414267, "unlisted"), Image(19999999, 59999999, "stranger")
    write_images(root, list(extra))
    (root / sample_images()[0].folder / "index.html").write_text("<html></html>")
    assert built(root) == before


def test_no_file_is_asked_for_while_images_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build_source("mimic_cxr", write_mimic(tmp_path / "mimic"))
    asked: list[str] = []
    folders = ArchiveFolder.folders

    def counted(self: ArchiveFolder, folder: str = "") -> list[str]:
        asked.append(folder)
        return folders(self, folder)

    def refused(*_: Any) -> bytes:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(ArchiveFolder, "folders", counted)
    monkeypatch.setattr(ArchiveFolder, "read", refused)
    assert len(listed(source)[0]) == 16
    assert asked == ["files/p10", "files/p11"]


def test_what_is_missing_is_counted_once_whether_listing_or_loading_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_mimic(tmp_path / "mimic")
    images = sample_images()
    shutil.rmtree(root / "files" / "p10" / "p10000764")
    (root / images[1].path).unlink()
    # Alone, so that the parts are made here and not on a Ray that another test may have left.
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    made = carry_out(prepare(build_source("mimic_cxr", root), str(tmp_path / "made"), key=PUBLIC_KEY))
    assert made.candidates == 16
    assert {split: made.dataset.rows(split) for split in ("train", "val", "test")} == {
        "train": 3,
        "val": 4,
        "test": 4,
    }
    assert made.dataset.info.quarantine.reasons == {"missing_image": 5}
    refused = pq.read_table(tmp_path / "made" / "quarantine.parquet").to_pylist()
    assert {row["pair_id"] for row in refused} == {image.dicom for image in (images[1], *images[4:8])}
    first = made.dataset.read_rows("train", [0]).to_pylist()[0]
    assert (first["labels"], first["view_position"], first["labels_negbio"]) == ([], "PA", [])
    assert first["patient_id"] != "10000032"
