"""A small clone of the COVID-19 image data collection."""

from __future__ import annotations

import csv
from pathlib import Path

from source_samples import encoded, grey_pixels

HEADER = [
    *("patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "view", "modality"),
    *("date", "location", "folder", "filename", "doi", "url", "license", "clinical_notes", "other_notes", ""),
]
PLAIN = {
    "offset": "0",
    "sex": "F",
    "age": "65",
    "finding": "Pneumonia/Viral/COVID-19",
    "view": "PA",
    "modality": "X-ray",
    "date": "January 22, 2020",
    "location": "A hospital, a town",
    "folder": "images",
    "doi": "10.1000/1",
    "url": "https://example.org/1",
    "license": "CC BY-NC-SA",
    "other_notes": "Credit to a colleague",
}


def write_covid_chestxray(root: Path, rows: list[dict[str, str]] | None = None) -> Path:
    """The given rows over plain ones; by default eight images of four patients, two of them CT."""
    (root / "images").mkdir(parents=True)
    wanted = default_rows() if rows is None else rows
    with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, HEADER, restval="")
        table.writeheader()
        table.writerows({**PLAIN, **row} for row in wanted)
    for number, row in enumerate(wanted):
        file = root / "images" / row["filename"]
        if row.get("folder", "images") == "images" and not Path(row["filename"]).is_absolute():
            image_format = "PNG" if file.suffix == ".png" else "JPEG"
            file.write_bytes(encoded(grey_pixels(number), image_format))
    return root


def default_rows() -> list[dict[str, str]]:
    names = [f"case-{number}, pdf-001 (á#%20).{'png' if number % 2 else 'jpg'}" for number in range(8)]
    return [
        {
            "patientid": str(1 + number // 2),
            "filename": name,
            "offset": str(number % 2),
            "clinical_notes": f"A note, with commas and a\nnew line, on patient {number // 2}.",
            **({"modality": "CT", "view": "Axial"} if number >= 6 else {}),
        }
        for number, name in enumerate(names)
    ]
