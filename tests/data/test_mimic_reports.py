"""Where the parts of MIMIC-CXR lie, and what is and is not taken for a report."""

from __future__ import annotations

import gzip
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from samples_mimic import (
    Image,
    built,
    dicom_id,
    listed,
    report_texts,
    sample_images,
    write_gzip,
    write_images,
    write_mimic,
    write_report_zip,
    write_tables,
)
from source_samples import checked_items, encoded, grey_pixels

from mpma.data.item_packing import pack_items
from mpma.data.quality import resolve_sections
from mpma.data.sources import build_source
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.mimic_cxr import MimicCxrSource
from mpma.data.sources.mimic_reports import MAX_REPORT_BYTES, find_reports
from mpma.errors import UserError

LAYOUTS = ("zip", "folder", "beside", "wget")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reports_are_the_same_wherever_they_lie(tmp_path: Path, layout: Any) -> None:
    root = write_mimic(tmp_path / layout, layout)
    items, refusals = built(root)
    texts = report_texts(sample_images())
    assert not refusals
    assert [item.report for item in items] == [
        texts[f"files/p{item.patient_id[:2]}/p{item.patient_id}/s{item.study_id}.txt"] for item in items
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reports_of_a_folder_are_read_by_study_without_the_images(tmp_path: Path, layout: Any) -> None:
    folder = ArchiveFolder.open(write_mimic(tmp_path / "mimic", layout))
    reports = find_reports(folder)
    assert reports is not None
    assert pickle.loads(pickle.dumps(reports)) == reports
    with reports.opened() as reader:
        for name, text in report_texts(sample_images()).items():
            _, _, patient, study = name.removesuffix(".txt").split("/")
            assert reader.text(patient[1:], study[1:]) == text
        assert reader.text("10000032", "59999999") is None


def test_a_folder_without_reports_has_none(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    assert find_reports(ArchiveFolder.open(root / "files")) is None


def text_of(number: int) -> str:
    return list(report_texts(sample_images()).values())[number - 1]


def test_a_study_without_a_report_is_refused_or_taken_without_one(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    texts = report_texts(sample_images())
    write_report_zip(root / "mimic-cxr-reports.zip", dict(list(texts.items())[1:]))
    items, refusals = built(root)
    assert len(items) == 14
    assert [(r.pair_id, r.reason, r.detail) for r in refusals] == [
        (image.dicom, "missing_report", "the study has no report file") for image in sample_images()[:2]
    ]
    items, refusals = built(root, "reports=optional")
    assert not refusals
    assert [item.report for item in items[:2]] == ["", ""]
    assert not any(item.report == "" for item in items[2:])


def test_images_and_labels_alone_are_taken_only_when_that_is_said(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    (root / "mimic-cxr-reports.zip").unlink()
    with pytest.raises(UserError, match=r"neither mimic-cxr-reports\.zip nor") as caught:
        build_source("mimic_cxr", root)
    assert "--min-words 0" in str(caught.value.hint)
    source = build_source("mimic_cxr", root, ("reports=optional",))
    assert not source.reports_expected
    assert checked_items(source) == listed(source)[0]
    assert len(listed(source)[0]) == 16


@pytest.mark.parametrize("layout", ["zip", "folder"])
@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html>\n<html><title>Log in</title></html>", "a web page"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "not text in UTF-8"),
        ("FINDINGS: Clear.".encode("utf-16"), "not text in UTF-8"),
        (bytes(range(128, 256)) * 4, "not text in UTF-8"),
        (b"x" * (MAX_REPORT_BYTES + 1), f"{MAX_REPORT_BYTES + 1} bytes, the limit is {MAX_REPORT_BYTES}"),
    ],
)
def test_what_is_no_report_never_becomes_one(
    tmp_path: Path, layout: Any, content: bytes, detail: str
) -> None:
    root = write_mimic(tmp_path / "mimic", layout)
    name = next(iter(report_texts(sample_images())))
    if layout == "zip":
        texts: dict[str, Any] = {**report_texts(sample_images()), name: content}
        write_report_zip(root / "mimic-cxr-reports.zip", texts)
    else:
        (root / "mimic-cxr-reports" / name).write_bytes(content)
    items, refusals = built(root)
    assert len(items) == 14
    assert [(r.reason, r.detail) for r in refusals] == [("unreadable_report", detail)] * 2
    assert [r.pair_id for r in refusals] == [image.dicom for image in sample_images()[:2]]
    assert all("50414267" in r.path for r in refusals)


def test_damaged_members_and_links_of_the_zip_are_refused_and_the_others_kept(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    names = list(report_texts(sample_images()))
    link = zipfile.ZipInfo(names[1])
    link.external_attr = 0o120777 << 16
    file = root / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(names[0], "\0" * (1 << 23))
        archive.writestr(link, "/etc/passwd")
        archive.writestr(f"../{names[2]}", "FINDINGS: From elsewhere.")
        for name in names[3:]:
            archive.writestr(name, report_texts(sample_images())[name])
        archive.writestr(f"__MACOSX/{names[4].replace('/s', '/._s')}", b"\0\5\x16\7")
    items, refusals = built(root)
    assert [item.report for item in items] == [text_of(1 + number) for number in range(3, 8) for _ in "fl"]
    assert [r.detail for r in refusals[::2]] == [
        f"{1 << 23} bytes, the limit is {MAX_REPORT_BYTES}",
        "the member is no regular file",
        "the member's name leads out of the archive",
    ]
    assert {r.reason for r in refusals} == {"unreadable_report"}


def test_an_unpacked_report_that_is_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic", "folder")
    (tmp_path / "secret.txt").write_text("FINDINGS: Of another place.")
    file = root / "mimic-cxr-reports" / next(iter(report_texts(sample_images())))
    file.unlink()
    file.symlink_to(tmp_path / "secret.txt")
    _, refusals = built(root)
    assert {(r.reason, r.detail) for r in refusals} == {("unreadable_report", "a link leads out of the root")}


def test_empty_reports_are_refused_by_the_usual_checks_and_foreign_letters_kept(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    texts: dict[str, Any] = report_texts(sample_images())
    names = list(texts)
    texts[names[0]] = "                                 FINAL REPORT\n \n ___\n"
    texts[names[1]] = ""
    texts[names[2]] = " FINAL REPORT\n INDICATION:  ___F with cough\n"
    texts[names[3]] = "FINDINGS: Größe \N{DEGREE SIGN}, " + "clear lungs, " * 9
    texts[names[4]] = b"IMPRESSION: No " + b"\xff" + b" pneumonia, clear lungs."
    write_report_zip(root / "mimic-cxr-reports.zip", texts)
    found = checked_items(build_source("mimic_cxr", root))
    assert [entry.reason for entry in found if isinstance(entry, Rejection)] == [
        *["nothing_described"] * 2,
        *["empty_report"] * 2,
        *["nothing_described"] * 2,
    ]
    kept = [entry for entry in found if isinstance(entry, Item)]
    assert kept[0].report == texts[names[3]]
    assert kept[2].report == "IMPRESSION: No \N{REPLACEMENT CHARACTER} pneumonia, clear lungs."


def test_a_wet_read_is_kept_in_the_text_and_out_of_the_findings(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic", images=[Image(10000032, 50414267, dicom_id(1))])
    text = (
        " WET READ: ___ ___ ___ 10:15 PM\n  Perhaps a small effusion.\n ______________________________\n"
        "                                 FINAL REPORT\n INDICATION:  Cough.\n\n"
        " FINDINGS:  The lungs are clear.\n\n IMPRESSION:  No effusion.\n"
    )
    write_report_zip(root / "mimic-cxr-reports.zip", {"files/p10/p10000032/s50414267.txt": text})
    ((item,), _) = built(root)
    assert item.report == text
    assert resolve_sections(item) == ("The lungs are clear.", "No effusion.")


# Where things lie.


@pytest.mark.parametrize("depth", ["", "physionet.org", "physionet.org/files", "mirror/mimic-cxr-jpg/2.1.0"])
def test_the_root_may_be_any_folder_above(tmp_path: Path, depth: str) -> None:
    if depth.startswith("physionet"):
        root = write_mimic(tmp_path / "mimic", "wget") / depth
    else:
        write_mimic(tmp_path / "mimic" / depth)
        root = tmp_path / "mimic"
    source = build_source("mimic_cxr", root)
    items, refusals = listed(source)
    assert (len(items), len(refusals)) == (16, 0)
    assert source.load_image(items[0]).startswith(b"\xff\xd8")


def test_reports_beside_the_root_or_at_an_address_are_named(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic", "wget")
    jpg = root / "physionet.org" / "files" / "mimic-cxr-jpg" / "2.0.0"
    reports = root / "physionet.org" / "files" / "mimic-cxr" / "2.0.0" / "mimic-cxr-reports.zip"
    wanted = [item.report for item in built(root)[0]]
    for given in ("../../mimic-cxr/2.0.0/mimic-cxr-reports.zip", str(reports), f"file://{reports}"):
        assert [item.report for item in built(jpg, f"report_files={given}")[0]] == wanted
    write_mimic(tmp_path / "other", "folder")
    for given in ("../other/mimic-cxr-reports", "../other/mimic-cxr-reports/files"):
        source = build_source("mimic_cxr", root, (f"report_files={given}",))
        assert [item.report for item in listed(source)[0]] == wanted
    for given in ("nowhere.zip", "physionet.org", str(jpg / "mimic-cxr-2.0.0-split.csv.gz")):
        with pytest.raises(UserError, match=r"report_files: .* is neither a zip nor a folder of reports"):
            build_source("mimic_cxr", root, (f"report_files={given}",))


def test_what_is_there_twice_is_said_and_the_zip_wins(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic", "folder")
    write_report_zip(
        root / "mimic-cxr-reports.zip",
        dict.fromkeys(report_texts(sample_images()), "IMPRESSION: Of the zip."),
    )
    write_tables(root / "tables" / "2.0.0", sample_images())
    source = build_source("mimic_cxr", root)
    assert "not read, although there: tables in tables/2.0.0, reports in mimic-cxr-reports/files" in (
        source.assumptions()
    )
    assert {item.report for item in listed(source)[0]} == {"IMPRESSION: Of the zip."}


def test_tables_that_were_unpacked_are_read_too(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    wanted = built(root)
    for kind in ("metadata", "split", "chexpert", "negbio"):
        file = root / f"mimic-cxr-2.0.0-{kind}.csv.gz"
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert built(root) == wanted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_archive_in_a_bucket_is_listed_as_on_a_disk(
    tmp_path: Path, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_mimic(tmp_path / "mimic", layout)
    wanted = built(root)
    bucket = ArchiveFolder(pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem()), "/", "s3://bucket")
    monkeypatch.setattr(ArchiveFolder, "open", lambda location: bucket)
    source = MimicCxrSource.resolve("s3://bucket")
    assert listed(source) == wanted
    fourth = wanted[0][3]
    assert pickle.loads(pickle.dumps(source)).load_image(fourth) == (root / fourth.path).read_bytes()


def test_the_order_of_folders_and_processes_changes_nothing(tmp_path: Path) -> None:
    first = built(write_mimic(tmp_path / "a"))[0]
    images = sample_images()
    other = tmp_path / "b"
    write_images(other, images[::-1])
    write_mimic(other)
    for number, image in enumerate(images):
        (other / image.path).write_bytes(encoded(grey_pixels(number, 80 + number % 3), "JPEG"))
    assert pack_items(built(other)[0]) == pack_items(first)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "mimic-cxr-2.0.0-metadata.csv.gz").unlink(),
            "holds no mimic-cxr-2.0.0-metadata",
        ),
        (lambda root: shutil.rmtree(root / "files"), "holds no images such as files/p10"),
        (
            lambda root: [file.rename(file.with_suffix(".dcm")) for file in root.rglob("*.jpg")],
            "holds DICOM files and no JPEG",
        ),
        (
            lambda root: write_gzip(root / "mimic-cxr-2.0.0-metadata.csv.gz", ["a,b", "1,2"]),
            "no column 'dicom_id'",
        ),
        (
            lambda root: write_gzip(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id,study_id", "1,2"]),
            "has no column of findings",
        ),
        (
            lambda root: (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(
                (root / "mimic-cxr-2.0.0-split.csv.gz").read_bytes()[:-20]
            ),
            "cannot be read to its end",
        ),
        (
            lambda root: (root / "mimic-cxr-reports.zip").write_bytes(
                (root / "mimic-cxr-reports.zip").read_bytes()[:-20]
            ),
            "is not a whole zip archive",
        ),
    ],
)
def test_an_archive_that_is_not_whole_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    root = write_mimic(tmp_path / "mimic")
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        built(root)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("layout", ["zip", "folder"])
def test_trees_of_images_and_reports_may_be_links_to_other_disks(tmp_path: Path, layout: Any) -> None:
    root = write_mimic(tmp_path / "mimic", layout)
    wanted = built(root)
    for number, place in enumerate(("files", "mimic-cxr-reports.zip", "mimic-cxr-reports/files")):
        if (root / place).exists():
            (root / place).rename(tmp_path / f"disk{number}")
            (root / place).symlink_to(tmp_path / f"disk{number}")
    source = build_source("mimic_cxr", root)
    assert listed(source) == wanted
    assert source.load_image(wanted[0][0]).startswith(b"\xff\xd8")


def test_an_image_is_read_below_the_root_alone(tmp_path: Path) -> None:
    root = write_mimic(tmp_path / "mimic")
    (tmp_path / "outside.jpg").write_bytes(encoded(grey_pixels(1), "JPEG"))
    file = root / sample_images()[0].path
    file.unlink()
    file.symlink_to(tmp_path / "outside.jpg")
    source = build_source("mimic_cxr", root)
    with pytest.raises(UnreadableImage) as caught:
        source.load_image(listed(source)[0][0])
    assert caught.value.reason == "outside_root"
