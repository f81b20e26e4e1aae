"""A small tree of PadChest, built from its published documentation."""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from source_samples import encoded, grey_pixels

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = [
    *("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth"),
    *("PatientSex_DICOM", "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric"),
    *("Modality_DICOM", "Manufacturer_DICOM", "PhotometricInterpretation_DICOM"),
    *("PixelRepresentation_DICOM", "PixelAspectRatio_DICOM", "SpatialResolution_DICOM"),
    *("BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Rows_DICOM", "Columns_DICOM"),
    *("XRayTubeCurrent_DICOM", "Exposure_DICOM", "ExposureInuAs_DICOM", "ExposureTime"),
    *("RelativeXRayExposure_DICOM", "ReportID", "Report", "MethodLabel", "Labels", "Localizations"),
    *("LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
]


def pixels_12_bits(number: int) -> np.ndarray:
    """uint16 [80, 96] with values of 12 bits, as the publisher's PNG hold them."""
    return grey_pixels(number).astype(np.uint16) * 16 + 15


def table_rows() -> list[dict[str, Any]]:
    """Eight images of four patients in two folders: PA and lateral of four studies, one MONOCHROME1."""
    return [
        {
            "": number,
            "ImageID": f"2168401113669640{number}_00-0{number}.png",
            "ImageDir": number % 2,
            "StudyDate_DICOM": "20140915",
            "StudyID": f"study{number // 2}",
            "PatientID": f"8398604886942916376{number // 2}",
            "PatientBirth": f"{1930 + number}.0",
            "PatientSex_DICOM": "F",
            "Projection": "L" if number % 2 else "PA",
            "MethodProjection": "Manual review of DICOM fields",
            "Pediatric": "No",
            "PhotometricInterpretation_DICOM": "MONOCHROME1" if number == 4 else "MONOCHROME2",
            "BitsStored_DICOM": "12",
            "ReportID": f"446522{number // 2}",
            "Report": f"sin hallazg patolog signific . elongacion aort numer {number} ñ .",
            "MethodLabel": "Physician" if number < 4 else "RNN_model",
            "Labels": "['normal']" if number < 4 else "['cardiomegaly', 'pleural effusion', 'unchanged']",
            "Localizations": "[]" if number < 4 else "['loc right', 'loc pleural']",
            "labelCUIS": "['C0018800']",
        }
        for number in range(8)
    ]


def table_text(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO(newline="")
    table = csv.DictWriter(out, HEADER, restval="")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()


def write_table(root: Path, rows: list[dict[str, Any]], packed: bool = False) -> None:
    data = table_text(rows).encode()
    (root / (f"{TABLE}.gz" if packed else TABLE)).write_bytes(gzip.compress(data) if packed else data)


def write_padchest(root: Path, *, zipped: bool = False, images: str = "") -> Path:
    """Table (packed where the images are) and images, in folders or in zips."""
    (root / images).mkdir(parents=True)
    rows = table_rows()
    write_table(root, rows, packed=zipped)
    for folder in range(2):
        files = {
            row["ImageID"]: encoded(pixels_12_bits(number))
            for number, row in enumerate(rows)
            if row["ImageDir"] == folder
        }
        if zipped:
            with zipfile.ZipFile(root / images / f"{folder}.zip", "w") as archive:
                for name, data in files.items():
                    archive.writestr(name if folder else f"{folder}/{name}", data)
        else:
            (root / images / str(folder)).mkdir()
            for name, data in files.items():
                (root / images / str(folder) / name).write_bytes(data)
    return root
