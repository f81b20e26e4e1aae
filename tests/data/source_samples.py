"""Small archives of every layout, written by the tests that read them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mpma.data.quality import CrossRowChecks, check_item
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


def checked_items(source: Source) -> list[Item | Rejection]:
    """What a source lists, after the checks of single rows and of all rows together, in its order."""
    checks = CrossRowChecks()
    listed = list(source.items())
    for item in listed:
        if isinstance(item, Item):
            checks.observe(item)
    return [
        item if isinstance(item, Rejection) else check_item(item) or checks.judge(item) or item
        for item in listed
    ]
