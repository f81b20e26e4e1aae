"""DICOM files and a hospital's folder of them, written by the tests that read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite, write_dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian
from source_samples import grey_pixels

from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, Source

DX_CLASS = "1.2.840.10008.5.1.4.1.1.1.1"
UID_ROOT = "1.2.826.0.1.3680043.10.9999"


def dicom_dataset(pixels: np.ndarray, *, photometric: str = "", **tags: Any) -> Dataset:
    """The data set of one image: unsigned or signed [H, W], or uint8 or uint16 [H, W, 3]; tags win."""
    data = Dataset()
    data.SOPClassUID = DX_CLASS
    data.SOPInstanceUID = f"{UID_ROOT}.1"
    data.Modality = "DX"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric or ("MONOCHROME2" if pixels.ndim == 2 else "RGB")
    bits = 8 * pixels.dtype.itemsize
    data.BitsAllocated = bits
    data.BitsStored = tags.get("BitsStored", bits)
    data.HighBit = tags.get("HighBit", (data.BitsStored or bits) - 1)
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    data["PixelData"].VR = "OB" if bits == 8 else "OW"
    for keyword, value in tags.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return data


def encoded_dicom(data: Dataset, syntax: UID | str = ExplicitVRLittleEndian, prefix: bool = True) -> bytes:
    """The bytes of a file in an uncompressed (or deflated) transfer syntax; values given little endian."""
    syntax = UID(syntax)
    if syntax == "1.2.840.10008.1.2.2" and data.get("BitsAllocated", 8) > 8:
        values = np.frombuffer(data.PixelData, f"<u{data.BitsAllocated // 8}")
        data.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes()
    out = io.BytesIO()
    if not prefix:
        write_dataset(_raw(out, syntax), data)
        return out.getvalue()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.get("SOPClassUID", DX_CLASS)
    data.file_meta.MediaStorageSOPInstanceUID = data.get("SOPInstanceUID", f"{UID_ROOT}.1")
    dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


def dicom_file(
    pixels: np.ndarray, syntax: UID | str = ExplicitVRLittleEndian, *, prefix: bool = True, **tags: Any
) -> bytes:
    """A file of one uncompressed image."""
    return encoded_dicom(dicom_dataset(pixels, **tags), syntax, prefix)


def compressed_dicom(frames: Sequence[bytes], pixels: np.ndarray, syntax: UID | str, **tags: Any) -> bytes:
    """A file whose pixels are already compressed; `pixels` gives the size and kind that the header says."""
    data = dicom_dataset(pixels, **tags)
    data.PixelData = encapsulate(list(frames))
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    return encoded_dicom(data, syntax)


def compressed_by_gdcm(plain: bytes, syntax: str, folder: Path) -> bytes:
    """The same file in a lossless compressed transfer syntax that GDCM writes."""
    import gdcm

    (folder / "plain.dcm").write_bytes(plain)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "compressed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "compressed.dcm").read_bytes()


def encoded_picture(pixels: np.ndarray, image_format: str, **options: Any) -> bytes:
    """The codestream that Pillow writes."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=image_format, **options)
    return out.getvalue()


def lookup_table(values: np.ndarray, first: int, bits: int) -> DicomSequence:
    """A lookup table sequence of one item."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values) & 0xFFFF, first & 0xFFFF, bits])
    item.add_new("LUTData", "OW", values.astype("<u2").tobytes())
    return DicomSequence([item])


@dataclass(frozen=True)
class DicomStudy:
    """One examination of the sample folder: its images and its report."""

    patient: str
    number: int
    report: str
    views: tuple[str, ...] = ("PA", "LL")
    tags: dict[str, Any] = field(default_factory=dict)
    """Elements of every image beside the usual ones, by keyword."""

    @property
    def study_uid(self) -> str:
        return f"{UID_ROOT}.2.{self.number}"

    def sop_uid(self, place: int) -> str:
        return f"{UID_ROOT}.4.{self.number}.{place}"

    @property
    def accession(self) -> str:
        return str(self.tags.get("AccessionNumber", f"ACC{self.number:05d}"))


def sample_studies(count: int = 4) -> list[DicomStudy]:
    """Studies of two images; two studies a patient."""
    return [
        DicomStudy(
            f"P{number // 2:03d}",
            number,
            f"FINDINGS: Heart size number {number}, normal.\nIMPRESSION: Clear lungs, number {number}.",
        )
        for number in range(1, count + 1)
    ]


def write_dicom(
    root: Path,
    studies: Iterable[DicomStudy] | None = None,
    names: Sequence[str] = (),
    private: Sequence[str] = (),
    columns: Sequence[tuple[str, Sequence[str]]] = (),
) -> Path:
    """A hospital's folder: PATIENT/STUDY/IM0.dcm, and `reports.csv` beside it, joined by accession numbers.

    Args:
        root: the folder, made here.
        studies: what is in it; None: `sample_studies()`.
        names: people and places to plant; they go in turn through PatientName, OtherPatientIDs,
            InstitutionName, ReferringPhysicianName and OperatorsName of the files.
        private: values of a private element, in turn.
        columns: further columns of the table, by name, with their cells in turn.

    Patients, accession numbers, reports and any other element are planted through the studies.
    """
    studies = sample_studies() if studies is None else list(studies)
    root.mkdir(parents=True)
    planted = _in_turn(names)
    private_values = _in_turn(private)
    rows = []
    for place, study in enumerate(studies):
        folder = root / f"PAT{place // 2}" / f"STU{place}"
        folder.mkdir(parents=True)
        for number, view in enumerate(study.views):
            data = dicom_dataset(
                grey_pixels(7 * place + number), SOPInstanceUID=study.sop_uid(number), ViewPosition=view
            )
            data.StudyInstanceUID = study.study_uid
            data.SeriesInstanceUID = f"{UID_ROOT}.3.{study.number}"
            data.PatientID = study.patient
            data.AccessionNumber = study.accession
            data.StudyDate = "20200101"
            for keyword in ("PatientName", "OtherPatientIDs", "InstitutionName", "ReferringPhysicianName"):
                data.add_new(keyword, "LO" if keyword.startswith(("Other", "Inst")) else "PN", next(planted))
            data.OperatorsName = next(planted)
            block = data.private_block(0x0029, "SAMPLES", create=True)
            block.add_new(0x10, "LT", next(private_values))
            for keyword, value in study.tags.items():
                setattr(data, keyword, value)
            (folder / f"IM{number}.dcm").write_bytes(encoded_dicom(data))
        further = [cells[place % len(cells)] for _, cells in columns]
        rows.append([study.accession, study.patient, study.report, *further])
    with (root / "reports.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["accession_number", "patient_id", "report", *(name for name, _ in columns)])
        writer.writerows(rows)
    return root


def _in_turn(values: Sequence[str]) -> Any:
    place = 0
    while True:
        yield values[place % len(values)] if values else ""
        place += 1


def _raw(out: io.BytesIO, syntax: UID) -> Any:
    from pydicom.filebase import DicomFileLike

    stream = DicomFileLike(out)
    stream.is_implicit_VR, stream.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    return stream


def listed(source: Source) -> tuple[list[Item], list[Rejection]]:
    found = list(source.items())
    return (
        [item for item in found if isinstance(item, Item)],
        [item for item in found if isinstance(item, Rejection)],
    )


def built(root: Path, *options: str) -> Source:
    return build_source("dicom", root, options)


def write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]], **options: Any) -> None:
    with file.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as stream:
        writer = csv.writer(stream, **options)
        writer.writerow(header)
        writer.writerows(rows)


def table_of(root: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """The sample folder with another table."""
    write_dicom(root)
    write_table(root / "reports.csv", header, rows)
    return root
