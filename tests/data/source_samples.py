"""Small archives of every layout, written by the tests that read them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from PIL import Image

from mpma.data.quality import CrossRowChecks, QualityConfig, check_item
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Item, Rejection, Source

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
  <uId id="{study}"/>
  <licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
  <ccLicense>byncnd</ccLicense>
  <MedlineCitation><Article><Abstract>
    <AbstractText Label="COMPARISON">None.</AbstractText>
    <AbstractText Label="INDICATION">Cough</AbstractText>
    <AbstractText Label="FINDINGS">{findings}</AbstractText>
    <AbstractText Label="IMPRESSION">{impression}</AbstractText>
  </Abstract></Article></MedlineCitation>
  <MeSH>{mesh}</MeSH>
  {images}
</eCitation>
"""


def grey_pixels(seed: int = 0, height: int = 80, width: int = 96) -> np.ndarray:
    """Smooth uint8 [height, width], another one for every seed."""
    rows, columns = np.mgrid[0:height, 0:width]
    return ((rows * (3 + seed % 5) + columns * 2 + 17 * seed) % 256).astype(np.uint8)


def encoded(pixels: np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=image_format, **options)
    return out.getvalue()


def png(seed: int = 0, height: int = 80, width: int = 96) -> bytes:
    return encoded(grey_pixels(seed, height, width))


def openi_xml(
    study: str,
    images: tuple[str, ...],
    findings: str = "The lungs are clear.",
    impression: str = "Normal chest.",
    mesh: tuple[str, ...] = ("normal",),
) -> str:
    return XML.format(
        study=study,
        findings=findings,
        impression=impression,
        mesh="".join(f"<major>{term}</major>" for term in mesh),
        images="".join(
            f'<parentImage id="{image}"><caption>PA and lateral</caption></parentImage>' for image in images
        ),
    )


def write_openi(root: Path, studies: int = 3) -> Path:
    """Studies of two images each, all there; the second study has findings."""
    (root / "ecgen-radiology").mkdir(parents=True)
    (root / "NLMCXR_png").mkdir()
    for number in range(1, studies + 1):
        images = (f"CXR{number}_IM-0001-1001", f"CXR{number}_IM-0001-2001")
        mesh = ("Cardiomegaly/mild", "Opacity/lung") if number == 2 else ("normal",)
        text = openi_xml(f"CXR{number}", images, findings=f"Heart size number {number}.", mesh=mesh)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(text, encoding="utf-8")
        for side, image in enumerate(images):
            (root / "NLMCXR_png" / f"{image}.png").write_bytes(png(2 * number + side))
    (root / "dicom_header_excerpt.csv").write_text(
        "imageid,Modality,View Position\nCXR1_IM-0001-1001,CR,PA\nCXR1_IM-0001-2001,CR,LL\n", encoding="utf-8"
    )
    return root


def write_csv(root: Path, rows: int = 6) -> Path:
    """A CSV of image paths, with a split column and columns of its own."""
    (root / "images").mkdir(parents=True)
    lines = ["image_id,subject_id,filename,text,labels,ViewPosition,split,age"]
    splits = ("train", "train", "validate", "validate", "test", "test")
    for number in range(rows):
        (root / "images" / f"{number}.png").write_bytes(png(number))
        labels = "Edema|Effusion" if number % 2 else "No Finding"
        text = f'"FINDINGS: Heart ""size"" {number}, normal.\nIMPRESSION: Number {number}."'
        lines.append(
            f"{number:03d},{number // 2:02d},images/{number}.png,{text},{labels},AP,"
            f"{splits[number % 6]},{40 + number}"
        )
    (root / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / "pairs.csv"


def parquet_rows(rows: int = 9, first: int = 0) -> pa.Table:
    """Embedded PNG images with reports, masks and columns of their own."""
    numbers = range(first, first + rows)
    return pa.table(
        {
            "id": [f"pair-{number}" for number in numbers],
            "patient_id": [f"patient-{number // 2}" for number in numbers],
            "image": pa.array([png(number) for number in numbers], type=pa.binary()),
            "width": pa.array([96] * rows, type=pa.int32()),
            "report": [f"Report number {number} on clear lungs." for number in numbers],
            "labels": pa.array(
                [["Edema"] if number % 2 else [] for number in numbers], type=pa.list_(pa.string())
            ),
            "modality": ["XR" if number % 3 else "CT" for number in numbers],
            "mask": pa.array([png(100 + number) for number in numbers], type=pa.binary()),
        }
    )


def write_parquet(root: Path, row_group_size: int = 4) -> Path:
    """Three Parquet tables whose names give the split, with several row groups each."""
    root.mkdir(parents=True)
    for place, split in enumerate(("train", "val", "test")):
        pq.write_table(
            parquet_rows(10, 10 * place), root / f"set-{split}.parquet", row_group_size=row_group_size
        )
    return root


def quality_of(source: Source) -> QualityConfig:
    """The thresholds that an ingest of the source takes by itself."""
    return QualityConfig(min_report_words=int(source.reports_expected))


def checked_items(source: Source) -> list[Item | Rejection]:
    """What a source lists, after the checks of single rows and of all rows together, in its order."""
    checks = CrossRowChecks()
    listed = list(source.items())
    for item in listed:
        if isinstance(item, Item):
            checks.observe(item)
    return [
        item
        if isinstance(item, Rejection)
        else check_item(item, quality_of(source)) or checks.judge(item) or item
        for item in listed
    ]


def write_nih14(root: Path, images: int = 8, lists: bool = True) -> Path:
    """Two images of each patient over two folders, with a box and, if wanted, the official lists."""
    rows = [
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    ]
    names = [f"{number // 2 + 1:08d}_{number % 2:03d}.png" for number in range(images)]
    for number, name in enumerate(names):
        folder = root / f"images_{1 + number % 2:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
        labels = "Edema|Pleural_Thickening" if number % 3 == 1 else "No Finding"
        view = "AP" if number % 2 else "PA"
        rows.append(f"{name},{labels},{number % 2},{number // 2 + 1},{50 + number},M,{view},96,80,0.1,0.1,")
    (root / "Data_Entry_2017.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "BBox_List_2017.csv").write_text(
        f"Image Index,Finding Label,Bbox [x,y,w,h],,,\n{names[1]},Infiltrate,1.5,2.0,30.25,40.0,,,\n",
        encoding="utf-8",
    )
    if lists:
        (root / "train_val_list.txt").write_text("\n".join(names[:-2]) + "\n", encoding="utf-8")
        (root / "test_list.txt").write_text("\n".join(names[-2:]), encoding="utf-8")
    return root


def write_vqamed2019(root: Path, images: int = 3) -> Path:
    """The three parts, with images and two questions of each image."""
    parts = (
        ("ImageClef-2019-VQA-Med-Training", "Train_images", "All_QA_Pairs_train.txt"),
        ("ImageClef-2019-VQA-Med-Validation", "Val_images", "All_QA_Pairs_val.txt"),
        ("VQAMed2019Test", "VQAMed2019_Test_Images", "VQAMed2019_Test_Questions_w_Ref_Answers.txt"),
    )
    for place, (folder, picture_folder, file) in enumerate(parts):
        pictures = root / folder / picture_folder
        pictures.mkdir(parents=True)
        modality, organ = [], []
        for number in range(images):
            name = f"synpic{10 * place + number}"
            (pictures / f"{name}.jpg").write_bytes(encoded(grey_pixels(10 * place + number), "JPEG"))
            kinds = ("modality|", "organ|") if place == 2 else ("", "")
            modality.append(f"{name}|{kinds[0]}is this a ct scan?|{'yes' if number % 2 else 'no'}")
            organ.append(f"{name}|{kinds[1]}what organ is shown?|lung, mediastinum#heart" + str(number))
        (root / folder / file).write_text("\n".join([*modality, *organ]) + "\n", encoding="utf-8")
        if place < 2:
            categories = root / folder / "QAPairsByCategory"
            categories.mkdir()
            split = ("train", "val")[place]
            for kind, lines in (("C1_Modality", modality), ("C3_Organ", organ)):
                (categories / f"{kind}_{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def mask_pixels(seed: int = 0, height: int = 80, width: int = 96) -> np.ndarray:
    """uint8 [height, width]: 255 in a box, a margin of 127 around it, 0 elsewhere."""
    values = np.zeros((height, width), np.uint8)
    values[8 : 40 + seed % 7, 8:60] = 127
    values[12 : 36 + seed % 7, 12:56] = 255
    return values


def write_masks(root: Path, images: int = 6) -> Path:
    """Images and masks of the same names; the masks' endings differ."""
    (root / "images" / "series").mkdir(parents=True)
    (root / "masks" / "series").mkdir(parents=True)
    for number in range(images):
        folder = "series/" if number % 2 else ""
        (root / "images" / f"{folder}{number}.v1.jpg").write_bytes(encoded(grey_pixels(number), "JPEG"))
        (root / "masks" / f"{folder}{number}.v1.png").write_bytes(encoded(mask_pixels(number)))
    return root


def write_questions(root: Path, rows: int = 8) -> Path:
    """Images of two splits without a report, and their questions in tables of their own."""
    root.mkdir(parents=True)
    for place, split in enumerate(("train", "val")):
        numbers = range(rows * place, rows * (place + 1))
        pairs = parquet_rows(rows, rows * place).select(["id", "patient_id", "image"])
        pq.write_table(pairs, root / f"{split}-images.parquet", row_group_size=3)
        asked = {
            "image_id": [f"pair-{number}" for number in numbers for _ in range(2)],
            "question": ["is this a chest?", "which side?"] * rows,
            "answers": pa.array([["yes"], ["left", "left side"]] * rows, type=pa.list_(pa.string())),
            "category": ["organ", "side"] * rows,
        }
        pq.write_table(pa.table(asked), root / f"{split}-qa.parquet")
    return root


def in_a_bucket(source: Any) -> Any:
    """The same source over a filesystem that is known through pyarrow alone, as a bucket is."""
    archive = source.archive
    filesystem = pafs.SubTreeFileSystem(archive.root, archive.filesystem)
    return replace(source, archive=ArchiveFolder(filesystem, "", "s3://bucket/archive"))
