"""Listing a hospital's folder of DICOM files: headers, order, views, an index of reports, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from samples_dicom import (
    DicomStudy,
    built,
    dicom_dataset,
    dicom_file,
    encoded_dicom,
    listed,
    write_dicom,
)
from source_samples import grey_pixels

from mpma.data.sources import build_source
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Item, UnreadableImage
from mpma.data.sources.dicom_headers import DicomHeader, read_header
from mpma.data.sources.dicom_reports import Report, Reports, ReportTable
from mpma.data.sources.dicom_views import view_of
from mpma.errors import UserError

# Headers and listing.


def test_a_header_longer_than_the_first_bytes_is_read_on(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    data = dicom_dataset(grey_pixels(), PatientID="P000", AccessionNumber="ACC00001", ViewPosition="AP")
    data.SOPInstanceUID = "1.77"
    data.private_block(0x0009, "SAMPLES", create=True).add_new(1, "OB", bytes(3_000_000))
    (root / "PAT0" / "long").write_bytes(encoded_dicom(data))
    item = next(item for item in listed(built(root))[0] if item.path == "PAT0/long")
    assert (item.pair_id, item.view, item.patient_id) == ("1.77", "AP", "P000")


def test_listing_reads_the_beginning_of_a_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((3000, 3000), np.uint8)
    (tmp_path / "large.dcm").write_bytes(dicom_file(pixels, PatientID="P1"))
    read: list[int] = []
    seekable = ArchiveFolder.seekable

    def counted(self: ArchiveFolder, name: str) -> Any:
        class Counting:
            def __enter__(self) -> Any:
                self.inner = seekable(archive, name)
                self.stream = self.inner.__enter__()
                return self

            def __exit__(self, *told: Any) -> None:
                self.inner.__exit__(*told)

            def read(self, length: int) -> bytes:
                data = self.stream.read(length)
                read.append(len(data))
                return bytes(data)

        return Counting()

    archive = ArchiveFolder.open(tmp_path)
    monkeypatch.setattr(ArchiveFolder, "seekable", counted)
    header = read_header(archive, "large.dcm")
    assert isinstance(header, DicomHeader)
    assert header.patient == "P1"
    assert sum(read) == 64 * 1024


def test_a_damaged_header_is_a_reason_and_costs_no_other_file(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    sound = (root / "PAT0" / "STU0" / "IM0.dcm").read_bytes()
    draw = np.random.default_rng(3)
    for number in range(120):
        data = bytearray(sound)
        for _ in range(4):
            data[int(draw.integers(132, 900))] = int(draw.integers(256))
        cut = len(data) if number % 2 else int(draw.integers(1, 900))
        (root / "PAT0" / f"damaged{number}").write_bytes(bytes(data[:cut]))
    items, refused = listed(built(root))
    assert sum(item.path.startswith(("PAT0/STU", "PAT1/STU")) for item in items) == 8
    assert len(items) + len(refused) >= 128


def test_the_same_archive_behind_an_address_lists_and_loads_the_same(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    here, there = built(root), build_source("dicom", f"file://{root}")
    assert list(there.items()) == list(here.items())
    item = next(iter(here.items()))
    assert isinstance(item, Item)
    assert there.load_image(item) == here.load_image(item)


def test_listing_is_in_the_order_of_the_paths_whatever_the_threads_do(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_dicom(root, [DicomStudy(f"P{n}", n, f"Report {n}.") for n in range(1, 60)])
    source = built(root)
    items, _ = listed(source)
    assert [item.path for item in items] == sorted(item.path for item in items)
    assert list(source.items()) == items


# Views.


def header_of(**tags: Any) -> Dataset:
    data = Dataset()
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return data


def coded(value: str) -> DicomSequence:
    return DicomSequence([header_of(CodeValue=value, CodingSchemeDesignator="SCT")])


@pytest.mark.parametrize(
    ("tags", "view", "position"),
    [
        ({"ViewPosition": "PA"}, "PA", "PA"),
        ({"ViewPosition": "AP "}, "AP", "AP"),
        ({"ViewPosition": "LL"}, "lateral", "LL"),
        ({"ViewPosition": "LATERAL"}, "lateral", "LATERAL"),
        ({"ViewPosition": "RAO", "SeriesDescription": "Chest PA"}, "unknown", "RAO"),
        ({"ViewPosition": "CANARY SMITH"}, "unknown", ""),
        ({"ViewPosition": "", "ViewCodeSequence": coded("272479007")}, "PA", ""),
        ({"ViewCodeSequence": coded("R-10206")}, "AP", ""),
        ({"ViewCodeSequence": coded("399173006")}, "lateral", ""),
        ({"ViewCodeSequence": coded("399182000"), "SeriesDescription": "PA"}, "unknown", ""),
        ({"PatientOrientation": ["P", "F"]}, "lateral", ""),
        ({"PatientOrientation": ["L", "F"]}, "unknown", ""),
        ({"PatientOrientation": ["L", "F"], "SeriesDescription": "CHEST PA GRID"}, "PA", ""),
        ({"ProtocolName": "Thorax lat."}, "lateral", ""),
        ({"SeriesDescription": "PA & LAT"}, "unknown", ""),
        ({"SeriesDescription": "Chest portable"}, "unknown", ""),
        ({}, "unknown", ""),
    ],
)
def test_the_view_is_what_the_header_says_most_plainly(
    tags: dict[str, Any], view: str, position: str
) -> None:
    assert view_of(header_of(**tags)) == (view, position)


# Mistakes that are one line.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("reports=absent.csv",), "absent.csv does not exist"),
        (("reports=PAT0/STU0/IM0.dcm",), "is not read"),
        (("columns.report=reprt",), "no column 'reprt'"),
        (("columns.key=acc",), "no column 'acc'"),
        (("keep=[sex]",), "no column 'sex'"),
        (("join=file_name",), "meets none of the 8 headers"),
        (("patients=table", "columns.patient_id=pid"), "no column 'pid'"),
        (("modalities=[]",), "modalities"),
        (("patient_folder=0",), "patient_folder"),
    ],
)
def test_a_wrong_option_is_one_line(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    with pytest.raises(UserError, match=message) as caught:
        built(root, *options)
    assert "\n" not in caught.value.message
    assert "ACC0000" not in f"{caught.value.message} {caught.value.hint}"


def test_what_a_folder_lacks_is_one_line(tmp_path: Path) -> None:
    root = write_dicom(tmp_path / "root")
    (root / "other_reports.csv").write_text("accession,report\n")
    with pytest.raises(UserError, match=r"several: other_reports.csv, reports.csv"):
        built(root)
    (root / "other_reports.csv").unlink()
    (root / "reports.csv").write_text("accession,age\nACC00001,5\n")
    with pytest.raises(UserError, match="no column of reports"):
        built(root)
    (root / "reports.csv").write_text("befund,report\nACC00001,Clear.\n")
    with pytest.raises(UserError, match="no column that could join"):
        built(root)
    (root / "reports.csv").unlink()
    with pytest.raises(UserError, match="no table and no folder of them"):
        built(root)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "reports.csv").write_text("accession,report\nACC00001,Clear.\n")
    with pytest.raises(UserError, match="holds no DICOM image"):
        built(empty)
    pq.write_table(pa.table({"id": ["1"]}), root / "reports.parquet")
    (root / "reports.parquet").write_bytes((root / "reports.parquet").read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read as a table"):
        built(root)


# The index of reports.


def test_reports_come_back_by_their_keys_whatever_block_they_are_in(tmp_path: Path) -> None:
    reports = Reports(ReportTable(ArchiveFolder.open(tmp_path), "t.csv", ("key", "report"), ",", "utf-8"))
    rows = [
        Report(f"Zeile {n} ü \n end", labels=(str(n),) if n % 2 else None, kept=("a",)) for n in range(300)
    ]
    for number, row in enumerate(rows):
        reports.add(f"k{number}", number + 2, row)
    reports.add("k5", 400, rows[5])
    reports.add("k6", 401, rows[5])
    draw = np.random.default_rng(0)
    for number in draw.integers(7, 300, 200):
        assert reports.find(f"k{number}") == rows[number]
    assert reports.find("k5") == rows[5]
    for key, reason in (("k6", "several_reports"), ("absent", "missing_report")):
        with pytest.raises(UnreadableImage, match=reason):
            reports.find(key)
    unmet = dict(reports.unmet())
    assert unmet["k0"] == "t.csv, line 2"
    assert "k5" not in unmet
    assert "k6" not in unmet
