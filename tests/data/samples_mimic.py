"""A small MIMIC-CXR-JPG in the publisher's layout, after its documentation: names, columns and quirks."""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from source_samples import encoded, grey_pixels

from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, Source

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
FINDINGS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
SHIFTED_DATE = "21800506"
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST ({views})
 \n INDICATION:  ___F with cough  // number {study}
 \n TECHNIQUE:  Chest {views}
 \n COMPARISON:  None.
 \n FINDINGS: \n \n The heart is of normal size, as in study number {study}. The lungs are
 clear.
 \n IMPRESSION: \n \n No acute process, {study}.
"""


@dataclass
class Image:
    """A row of the metadata."""

    subject: int
    study: int
    dicom: str
    position: str = "PA"
    coded: str = "postero-anterior"
    split: str = "train"

    @property
    def folder(self) -> str:
        return f"files/p{str(self.subject)[:2]}/p{self.subject}/s{self.study}"

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.dicom}.jpg"

    @property
    def row(self) -> str:
        return (
            f"{self.dicom},{self.subject},{self.study},CHEST (PA AND LAT),{self.position},80,96,"
            f"{SHIFTED_DATE},213014.531,CHEST (PA AND LAT),{self.coded},Erect"
        )


def dicom_id(number: int) -> str:
    return "-".join(f"{(number + 1) * (77_777_777 + 1_000_003 * part) % (1 << 32):08x}" for part in range(5))


def sample_images() -> list[Image]:
    """Two groups of patients, four studies each of one frontal and one lateral, all splits."""
    images = []
    for number in range(8):
        subject = (10000032, 10000764, 11000011, 11000183)[number // 2]
        split = ("train", "train", "validate", "test")[number // 2]
        study = 50414267 + 1_003 * number
        images.append(Image(subject, study, dicom_id(2 * number), split=split))
        images.append(Image(subject, study, dicom_id(2 * number + 1), "LATERAL", "lateral", split))
    return images


def write_gzip(file: Path, lines: list[str]) -> None:
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))


def labels_row(*values: str) -> str:
    """Values as `Pneumonia=1.0`, in the order of the publisher's columns."""
    given = dict(value.split("=") for value in values)
    return ",".join(given.get(name, "") for name in FINDINGS.split(","))


def write_tables(folder: Path, images: list[Image]) -> None:
    """Metadata, split and both labellers' tables; one study of three has findings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_gzip(folder / "mimic-cxr-2.0.0-metadata.csv.gz", [METADATA, *(image.row for image in images)])
    split = [f"{image.dicom},{image.study},{image.subject},{image.split}" for image in images]
    write_gzip(folder / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id,study_id,subject_id,split", *split])
    studies = dict.fromkeys((image.subject, image.study) for image in images)
    rows = []
    for number, (subject, study) in enumerate(studies):
        found = (
            ("Edema=1.0", "Pneumonia=-1.0", "Pneumothorax=0.0") if number % 3 == 1 else ("No Finding=1.0",)
        )
        rows.append(f"{subject},{study},{labels_row(*found)}")
    for labeller in ("chexpert", "negbio"):
        write_gzip(folder / f"mimic-cxr-2.0.0-{labeller}.csv.gz", [f"subject_id,study_id,{FINDINGS}", *rows])
    (folder / "IMAGE_FILENAMES").write_text("".join(f"{image.path}\n" for image in images))
    (folder / "SHA256SUMS.txt").write_text("".join(f"{'0' * 64} {image.path}\n" for image in images))


def write_images(folder: Path, images: list[Image]) -> None:
    for number, image in enumerate(images):
        file = folder / image.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(grey_pixels(number, 80 + number % 3), "JPEG"))


def report_texts(images: list[Image]) -> dict[str, str]:
    """Path inside the project of reports to text, one of each study."""
    return {
        f"files/p{str(image.subject)[:2]}/p{image.subject}/s{image.study}.txt": REPORT.format(
            study=image.study, views="PA AND LAT"
        )
        for image in images
    }


def write_report_folder(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())


def write_report_zip(file: Path, texts: dict[str, str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/", b"")
        for name, text in texts.items():
            archive.writestr(name, text)
    return file


def write_mimic(
    root: Path, layout: Literal["zip", "folder", "beside", "wget"] = "zip", images: list[Image] | None = None
) -> Path:
    """The archive with reports in a zip, unpacked, beside the images, or as `wget -r` leaves it."""
    images = sample_images() if images is None else images
    jpg, reports = root, root
    if layout == "wget":
        jpg = root / "physionet.org" / "files" / "mimic-cxr-jpg" / "2.0.0"
        reports = root / "physionet.org" / "files" / "mimic-cxr" / "2.0.0"
    write_tables(jpg, images)
    write_images(jpg, images)
    texts = report_texts(images)
    if layout in ("zip", "wget"):
        write_report_zip(reports / "mimic-cxr-reports.zip", texts)
    else:
        write_report_folder(root if layout == "beside" else root / "mimic-cxr-reports", texts)
    return root


def listed(source: Source) -> tuple[list[Item], list[Rejection]]:
    """What a source lists: what it takes, and what it refuses."""
    found = list(source.items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def built(root: Path, *options: str) -> tuple[list[Item], list[Rejection]]:
    """What the source of a root lists."""
    return listed(build_source("mimic_cxr", root, options))
