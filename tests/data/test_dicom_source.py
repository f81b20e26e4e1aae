"""A hospital's folder of DICOM files and its reports: what joins them, who is the patient, what is out."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset
from samples_dicom import (
    UID_ROOT,
    DicomStudy,
    built,
    dicom_dataset,
    dicom_file,
    encoded_dicom,
    listed,
    sample_studies,
    table_of,
    write_dicom,
    write_table,
)
from source_samples import checked_items, grey_pixels

from mpma.data.images import read_grey
from mpma.data.ingest_plan import IngestOptions
from mpma.data.pair_rows import make_row
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.dicom_join import plain_path
from mpma.errors import UserError

# What joins images and reports.


def test_images_meet_the_report_of_their_accession_number(tmp_path: Path) -> None:
    source = built(write_dicom(tmp_path / "root"))
    items, refused = listed(source)
    assert refused == []
    assert [item.path for item in items[:3]] == [
        "PAT0/STU0/IM0.dcm",
        "PAT0/STU0/IM1.dcm",
        "PAT0/STU1/IM0.dcm",
    ]
    first = items[0]
    assert (first.pair_id, first.study_id) == (f"{UID_ROOT}.4.1.0", f"{UID_ROOT}.2.1")
    assert (first.patient_id, items[2].patient_id, items[6].patient_id) == ("P000", "P001", "P002")
    assert first.report == "FINDINGS: Heart size number 1, normal.\nIMPRESSION: Clear lungs, number 1."
    assert [item.report for item in items[:2]] == [first.report] * 2
    assert [item.view for item in items[:2]] == ["PA", "lateral"]
    assert [item.extra["view_position"] for item in items[:2]] == ["PA", "LL"]
    assert first.extra["modality"] == "DX"
    np.testing.assert_array_equal(read_grey(source.load_image(items[3])), grey_pixels(8))
    assert (
        "column accession_number = AccessionNumber (8 of the 8 headers looked at have a report)"
        in " ".join(source.assumptions())
    )


KEYS = {
    "sop_instance_uid": lambda study, place: study.sop_uid(place),
    "path": lambda study, place: f"PAT{(study.number - 1) // 2}\\STU{study.number - 1}\\IM{place}.dcm",
    "series_instance_uid": lambda study, place: f"{UID_ROOT}.3.{study.number}",
    "study_instance_uid": lambda study, place: study.study_uid,
    "accession_number": lambda study, place: study.accession,
    "folder_name": lambda study, place: f"STU{study.number - 1}",
}


@pytest.mark.parametrize("name", ["id", "study_id", "Accession"])
@pytest.mark.parametrize("kind", KEYS)
def test_what_joins_is_told_by_what_meets_and_not_by_names(kind: str, name: str, tmp_path: Path) -> None:
    rows = [[KEYS[kind](study, place), study.report] for study in sample_studies() for place in range(2)]
    source = built(table_of(tmp_path / "root", [name, "report"], rows))
    assert source.join.join == kind  # type: ignore[attr-defined]
    items, refused = listed(source)
    assert refused == []
    assert [item.report for item in items] == [row[1] for row in rows]


def test_file_names_join_whatever_their_endings(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in ("b17.dcm", "c18", "1.2.840.9"):
        (root / name).write_bytes(dicom_file(grey_pixels(), SOPInstanceUID=f"1.{len(name)}", PatientID=name))
    rows = [["x/b17.PNG", "One."], ["y/c18.jpg", "Two."], ["1.2.840.9.dcm", "Three."]]
    write_table(root / "table.csv", ["image", "report"], rows)
    items, refused = listed(built(root))
    assert refused == []
    assert {item.path: item.report for item in items} == {
        "b17.dcm": "One.",
        "c18": "Two.",
        "1.2.840.9": "Three.",
    }
    assert plain_path("./a\\b.DCM") == "a/b"


def test_of_two_keys_that_meet_alike_the_finer_one_is_taken(tmp_path: Path) -> None:
    rows = [
        [study.accession, study.study_uid, study.sop_uid(place), f"Report {study.number} {place}."]
        for study in sample_studies()
        for place in range(2)
    ]
    header = ["accession", "study", "dicom_id", "report"]
    source = built(table_of(tmp_path / "root", header, rows))
    assert source.join.join == "sop_instance_uid"  # type: ignore[attr-defined]
    items, refused = listed(source)
    assert refused == []
    assert [item.report for item in items] == [row[3] for row in rows]
    # A whole examination's number stands for different reports then, and so for none.
    items, refused = listed(built(tmp_path / "root", "join=accession_number"))
    assert items == []
    assert Counter(item.reason for item in refused) == {"several_reports": 8}


def test_a_report_that_stands_in_the_table_twice_is_one(tmp_path: Path) -> None:
    rows = [[study.accession, study.report] for study in sample_studies() for _ in range(2)]
    items, refused = listed(built(table_of(tmp_path / "root", ["accession", "report"], rows)))
    assert (len(items), refused) == (8, [])


def test_keys_are_not_folded(tmp_path: Path) -> None:
    studies = [DicomStudy("P1", 1, "One.", tags={"AccessionNumber": "007"})]
    root = write_dicom(tmp_path / "root", studies)
    write_table(root / "reports.csv", ["accession", "report"], [["7", "Another."]])
    with pytest.raises(UserError, match="meets none of the 2 headers"):
        built(root)
    pq.write_table(pa.table({"accession": ["007"], "report": ["One."]}), root / "reports.parquet")
    (root / "reports.csv").unlink()
    assert [item.report for item in listed(built(root))[0]] == ["One.", "One."]


@pytest.mark.parametrize("packed", [False, True])
def test_text_files_named_by_folders_are_joined_as_mimic_cxr_lays_them_out(
    packed: bool, tmp_path: Path
) -> None:
    root = tmp_path / "mimic-cxr"
    studies = {"s50414267": "p10000032", "s53189527": "p10000032", "s54577367": "p10000764"}
    for place, (study, patient) in enumerate(studies.items()):
        folder = root / "files" / patient[:3] / patient / study
        folder.mkdir(parents=True)
        for image in range(2):
            data = dicom_dataset(
                grey_pixels(2 * place + image), SOPInstanceUID=f"1.2.{place}.{image}", PatientID=patient[1:]
            )
            (folder / f"02aa804e-bde0afdd-{place}{image}.dcm").write_bytes(encoded_dicom(data))
    texts = {f"files/{p[:3]}/{p}/{s}.txt": f"FINAL REPORT\nFINDINGS: {s}." for s, p in studies.items()}
    if packed:
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as written:
            for name, text in texts.items():
                written.writestr(name, text)
    else:
        for name, text in texts.items():
            file = root / "mimic-cxr-reports" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    (root / "cxr-study-list.csv.gz").write_bytes(gzip.compress(b"subject_id,study_id,path\n"))
    source = built(root)
    assert source.join.join == "folder_name"  # type: ignore[attr-defined]
    items, refused = listed(source)
    assert len(items) == 6
    assert {(item.patient_id, item.report.splitlines()[-1]) for item in items} == {
        (patient[1:], f"FINDINGS: {study}.") for study, patient in studies.items()
    }
    assert refused == [Rejection("*.gz", "", "not_an_image", "1 files of this ending, not opened")]


def test_text_files_without_an_image_or_twice_are_named(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    (root / "reports.csv").unlink()
    for name in ("a/ACC00001.txt", "b/ACC00001.txt", "ACC00002.txt", "ACC99999.txt", "ACC00003.txt"):
        file = root / "reports" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"Heart \xe9 normal." if name == "ACC00003.txt" else b"Clear lungs.")
    items, refused = listed(built(root))
    assert [item.path for item in items] == ["PAT0/STU1/IM0.dcm", "PAT0/STU1/IM1.dcm"]
    assert Counter(item.reason for item in refused) == {
        "several_reports": 2,
        "unreadable_report": 2,
        "missing_report": 2,
        "missing_image": 1,
    }
    assert [item.path for item in refused if item.reason == "missing_image"] == ["reports/ACC99999.txt"]
    items, _ = listed(built(root, "encoding=latin-1"))
    assert items[-1].report == "Heart é normal."


# What the table says.


def test_sections_labels_splits_and_kept_columns_are_read(tmp_path: Path) -> None:
    rows = [
        ["ACC00001", "Clear lungs.", "", "No Finding", "train", "CC0", "61", "MUST NOT STAY"],
        ["ACC00002", "", "Normal.", "Edema|Effusion", "train", "", "", "MUST NOT STAY"],
        ["ACC00003", "Effusion.", "Worse.", "", "validation", "", "45", "MUST NOT STAY"],
        ["ACC00004", "Effusion.", "Better.", "", "later", "", "45", "MUST NOT STAY"],
    ]
    header = ["accession", "findings", "impression", "labels", "split", "licence", "age", "birth"]
    source = built(table_of(tmp_path / "root", header, rows), "keep=[age]", "license=local")
    items, refused = listed(source)
    by_study = {item.path.split("/")[1]: item for item in items}
    assert sorted(by_study) == ["STU0", "STU1", "STU2"]
    one, two, three = (by_study[f"STU{number}"] for number in range(3))
    assert (one.report, one.findings, one.impression) == ("FINDINGS: Clear lungs.", "Clear lungs.", None)
    assert three.report == "FINDINGS: Effusion.\nIMPRESSION: Worse."
    assert (one.labels, two.labels, three.labels) == ((), ("Edema", "Effusion"), None)
    assert (one.split, three.split) == ("train", "val")
    assert (one.license, two.license) == ("CC0", "local")
    assert (one.extra["age"], two.extra["age"]) == ("61", "")
    assert source.extra_schema().names[-1] == "age"
    assert Counter(item.reason for item in refused) == {"unknown_split": 2}
    assert "MUST NOT STAY" not in repr(items)
    items, refused = listed(built(tmp_path / "root", "splits=ignore"))
    assert len(items) == 8
    assert {item.split for item in items} == {None}


def test_a_table_of_another_encoding_and_delimiter_is_read(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    rows = [[study.accession, f"Herz größer; Nummer {study.number}"] for study in sample_studies()]
    write_table(root / "reports.csv", ["Accession No", "befund"], rows, delimiter=";", encoding="latin-1")
    options = ("delimiter=;", "encoding=latin-1", "columns.report=befund")
    assert listed(built(root, *options))[0][0].report == "Herz größer; Nummer 1"
    with pytest.raises(UserError, match="not UTF-8"):
        built(root, "delimiter=;", "columns.report=befund")
    with pytest.raises(UserError, match="'utf-9' is not known"):
        built(root, "encoding=utf-9")


def test_rows_that_are_torn_or_have_no_key_are_named_and_the_others_kept(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    lines = [f"{study.accession},Report {study.number}." for study in sample_studies()]
    text = "\n".join(["accession,report", lines[0], "ACC,1,2,3", ",no key", *lines[1:]])
    (root / "reports.csv").write_text(text)
    items, refused = listed(built(root))
    assert len(items) == 8
    assert [(item.path, item.reason) for item in refused] == [
        ("reports.csv, line 3", "unreadable_row"),
        ("reports.csv, line 4", "missing_id"),
    ]


# Who the patient is.


def test_a_table_that_writes_patients_as_the_headers_do_is_a_check_on_them(tmp_path: Path) -> None:
    rows = [[study.accession, study.patient, study.report] for study in sample_studies()]
    rows[1][1] = "P999"
    rows[2][1] = ""
    source = built(table_of(tmp_path / "root", ["accession", "patient_id", "report"], rows))
    items, refused = listed(source)
    assert [(item.path, item.reason) for item in refused] == [
        ("PAT0/STU1/IM0.dcm", "conflicting_patient"),
        ("PAT0/STU1/IM1.dcm", "conflicting_patient"),
    ]
    assert {item.patient_id for item in items} == {"P000", "P001", "P002"}


def test_a_table_with_numbers_of_its_own_replaces_the_headers_and_says_so(tmp_path: Path) -> None:
    rows = [[study.accession, f"study-{study.patient}", study.report] for study in sample_studies()]
    root = table_of(tmp_path / "root", ["accession", "subject", "report"], rows)
    source = built(root)
    assert {item.patient_id for item in listed(source)[0]} == {"study-P000", "study-P001", "study-P002"}
    assert any("THE TABLE'S PATIENTS ARE NOT THE HEADERS'" in line for line in source.assumptions())
    assert {item.patient_id for item in listed(built(root, "patients=header"))[0]} == {"P000", "P001", "P002"}


def test_one_id_of_two_issuers_is_two_patients(tmp_path: Path) -> None:
    studies = [
        DicomStudy("P1", 1, "One.", tags={"IssuerOfPatientID": "NORTH"}),
        DicomStudy("P1", 2, "Two.", tags={"IssuerOfPatientID": "SOUTH"}),
    ]
    root = write_dicom(tmp_path / "root", studies)
    assert len({item.patient_id for item in listed(built(root))[0]}) == 2
    assert {item.patient_id for item in listed(built(root, "issuer=ignore"))[0]} == {"P1"}
    # Where some headers name none, the issuer says too little to part by.
    shutil.rmtree(root)
    root = write_dicom(root, [*studies, DicomStudy("P1", 3, "Three.")])
    assert {item.patient_id for item in listed(built(root))[0]} == {"P1"}


def test_an_archive_that_names_no_patients_is_refused_unless_folders_do(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_dicom(root, [DicomStudy("", number, f"Report {number}.") for number in range(1, 5)])
    write_table(
        root / "reports.csv", ["accession", "report"], [[f"ACC0000{n}", f"R {n}."] for n in range(1, 5)]
    )
    with pytest.raises(UserError, match="names a patient") as caught:
        built(root)
    assert "patient_folder" in str(caught.value.hint)
    assert {item.patient_id for item in listed(built(root, "patient_folder=1"))[0]} == {"PAT0", "PAT1"}
    items, refused = listed(built(root, "patient_folder=3"))
    assert items == []
    assert {item.reason for item in refused} == {"missing_patient"}


# What is refused.


def damaged_archive(root: Path) -> Path:
    """The sample folder with one file of every kind that is no pair."""
    write_dicom(root, [*sample_studies(), DicomStudy("P009", 9, "Unread.", views=())])
    folder = root / "PAT0" / "STU0"
    usual = {"PatientID": "P000", "AccessionNumber": "ACC00001", "StudyInstanceUID": "1.2.3"}

    def put(name: str, number: int, **tags: Any) -> None:
        data = dicom_dataset(grey_pixels(50 + number), SOPInstanceUID=f"{UID_ROOT}.9.{number}")
        for keyword, value in {**usual, **tags}.items():
            setattr(data, keyword, value)
        (folder / name).write_bytes(encoded_dicom(data))

    put("ct", 1, Modality="CT")
    put("film", 2, NumberOfFrames=5)
    put("burned", 3, BurnedInAnnotation="YES")
    put("unknown_study", 4, AccessionNumber="ACC77777")
    put("no_accession", 5, AccessionNumber="")
    put("twice", 6, SOPInstanceUID=f"{UID_ROOT}.4.1.0")
    put("named", 7, PatientID="")
    put("strange", 8, Modality="CANARY SMITH")
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "1.9", "SR"
    (folder / "structured").write_bytes(encoded_dicom(report))
    (folder / "notes").write_bytes(b"no picture at all")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "pointer.dcm").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / "page.dcm").write_bytes(b"<!DOCTYPE html><html>Log in</html>")
    (folder / "scan.pdf").write_bytes(b"%PDF")
    (folder / "scan.PDF").write_bytes(b"%PDF")
    (folder / "link.dcm").symlink_to(root.parent / "outside.dcm")
    (root.parent / "outside.dcm").write_bytes(dicom_file(grey_pixels()))
    return root


def test_every_file_that_is_no_pair_has_its_reason_and_the_others_are_kept(tmp_path: Path) -> None:
    source = built(damaged_archive(tmp_path / "root"))
    checked = checked_items(source)
    kept = [item for item in checked if isinstance(item, Item)]
    found = {item.path.rpartition("/")[2]: item for item in checked if isinstance(item, Rejection)}
    assert {name: item.reason for name, item in found.items()} == {
        "ct": "other_modality",
        "film": "multiple_frames",
        "burned": "burned_in_annotation",
        "unknown_study": "missing_report",
        "no_accession": "missing_report",
        "twice": "duplicate_id",
        "strange": "other_modality",
        "structured": "no_pixels",
        "notes": "not_an_image",
        "empty.dcm": "empty_file",
        "pointer.dcm": "git_lfs_pointer",
        "page.dcm": "html_page",
        "link.dcm": "outside_root",
        "reports.csv, line 10": "missing_image",
        "*.pdf": "not_an_image",
    }
    assert found["ct"].detail == "modality CT"
    assert found["film"].detail == "5 frames"
    assert found["*.pdf"].detail == "2 files of this ending, not opened"
    assert "CANARY" not in found["strange"].detail
    # The table names the patient of the file that does not.
    assert Counter(item.patient_id for item in kept) == {"P000": 3, "P001": 4, "P002": 2}
    options = ("modalities=[DX, CT]", "burned_in=keep")
    items, refused = listed(built(tmp_path / "root", *options))
    assert {"ct", "burned"} <= {item.path.rpartition("/")[2] for item in items}
    assert "burned_in_annotation" not in {item.reason for item in refused}


def test_burned_in_files_load_where_they_are_kept(tmp_path: Path) -> None:
    root = damaged_archive(tmp_path / "root")
    source = built(root, "burned_in=keep")
    burned = next(item for item in listed(source)[0] if item.path.endswith("burned"))
    assert burned.extra["burned_in_annotation"] == "YES"
    np.testing.assert_array_equal(read_grey(source.load_image(burned)), grey_pixels(53))
    with pytest.raises(UnreadableImage, match="burned_in_annotation"):
        read_grey((root / burned.path).read_bytes())


def test_files_without_preamble_are_found_and_read(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    for file in root.rglob("*.dcm"):
        file.write_bytes(file.read_bytes()[132:])
    source = built(root)
    items, refused = listed(source)
    assert (len(items), refused) == (8, [])
    np.testing.assert_array_equal(read_grey(source.load_image(items[2])), grey_pixels(7))


def test_too_large_and_exchanged_files_are_reasons_when_they_are_read(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    source = built(root, "max_image_bytes=1024")
    with pytest.raises(UnreadableImage, match="too_large"):
        source.load_image(listed(source)[0][0])
    source = built(root)
    items, _ = listed(source)
    (root / items[0].path).write_bytes(b"exchanged")
    (root / items[1].path).unlink()
    rows = [make_row(item, source, IngestOptions(), source.extra_schema()) for item in items[:3]]
    assert [row.reason for row in rows[:2] if isinstance(row, Rejection)] == [
        "truncated_image",
        "missing_image",
    ]
    assert not isinstance(rows[2], Rejection)


# What is never copied.


def test_what_identifies_people_is_in_no_row_and_no_assumption(tmp_path: Path) -> None:
    names = [f"CANARY^NAME{number}" for number in range(5)]
    studies = [
        DicomStudy(
            f"CANARY-PATIENT-{number}",
            number,
            f"Heart number {number} normal.",
            tags={"AccessionNumber": f"CANARYACC{number}", "SeriesDescription": "CANARY PA"},
        )
        for number in range(1, 5)
    ]
    root = write_dicom(
        tmp_path / "root",
        studies,
        names=names,
        private=["CANARY PRIVATE"],
        columns=[("patient_name", ["CANARY^NAME"]), ("birth_date", ["CANARY-DAY"])],
    )
    source = built(root)
    items, refused = listed(source)
    assert (len(items), refused) == (8, [])
    assert source.pair_ids_are_identifying is True  # type: ignore[attr-defined]
    for item in items:
        row = make_row(item, source, IngestOptions(), source.extra_schema())
        assert not isinstance(row, Rejection)
        values, *_ = row
        # The ingest hashes these three before it makes a row.
        plain = {
            key: value for key, value in values.items() if key not in ("pair_id", "patient_id", "study_id")
        }
        assert "CANARY" not in repr(plain)
    assert "CANARY" not in " ".join(source.assumptions())
