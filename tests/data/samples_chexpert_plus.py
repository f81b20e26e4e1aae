"""A small tree of CheXpert Plus, built from its published documentation."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

from source_samples import png

HEADER = [
    *("path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id"),
    *("patient_report_date_order", "report", "section_narrative", "section_clinical_history"),
    *("section_history", "section_comparison", "section_technique", "section_procedure_comments"),
    *("section_findings", "section_impression", "section_end_of_impression", "section_summary"),
    *("section_accession_number", "age", "sex", "race", "ethnicity", "interpreter_needed"),
    *("insurance_type", "recent_bmi", "deceased", "split"),
]
FINDINGS = [
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices", "No Finding"),
]


def table_rows() -> list[dict[str, Any]]:
    """Six images of three patients: two studies of a frontal and a lateral view, two of a frontal one."""
    places = [
        *("train/patient00001/study1/view1_frontal", "train/patient00001/study1/view2_lateral"),
        *("train/patient00002/study1/view1_frontal", "train/patient00002/study2/view1_frontal"),
        *("valid/patient64541/study1/view1_frontal", "valid/patient64541/study1/view2_lateral"),
    ]
    return [
        {
            "path_to_image": f"{place}.jpg",
            "path_to_dcm": f"{place}.dcm",
            "frontal_lateral": "Lateral" if "lateral" in place else "Frontal",
            "ap_pa": "" if "lateral" in place else ("AP", "PA")[number % 4 // 2],
            "deid_patient_id": place.split("/")[1],
            "patient_report_date_order": 1,
            "report": f"NARRATIVE:\n \nCHEST\n \nFINDINGS: Heart {number}.\n\nIMPRESSION:\n1.CLEAR {number}.",
            "section_findings": f"Heart {number}.",
            "section_impression": f"\n1.CLEAR {number}.",
            "section_accession_number": "1234567",
            "age": f"{60 + number}.0",
            "sex": "Female",
            "race": "Secret",
            "ethnicity": "Secret",
            "insurance_type": "Secret",
            "recent_bmi": "22.2",
            "deceased": "No",
            "split": place.split("/")[0],
        }
        for number, place in enumerate(places)
    ]


def label_records(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Nothing found in even rows; edema, and perhaps pneumonia, in odd ones."""
    records: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        values: dict[str, Any] = dict.fromkeys(FINDINGS)
        if number % 2:
            values |= {"Edema": 1.0, "Pneumonia": -1.0, "Fracture": 0.0}
        else:
            values["No Finding"] = 1.0
        records.append({"path_to_image": row["path_to_image"], **values})
    return records


def write_table(root: Path, rows: list[dict[str, Any]]) -> None:
    """The table alone."""
    with (root / "df_chexpert_plus_240401.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, HEADER, restval="")
        table.writeheader()
        table.writerows(rows)


def write_chexpert_plus(
    root: Path, *, zipped: bool = False, images: str = "PNG", rows: list[dict[str, Any]] | None = None
) -> Path:
    """Table, images (in a folder, or in two zips) and the three files of labels (in a zip too)."""
    root.mkdir(parents=True)
    found = table_rows() if rows is None else rows
    write_table(root, found)
    lines = "".join(json.dumps(record) + "\n" for record in label_records(found))
    names = [f"{part}_fixed.json" for part in ("impression", "findings", "report")]
    if zipped:
        with zipfile.ZipFile(root / "chexbert_labels.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(f"chexbert_labels/{name}", lines)
    else:
        (root / "chexbert_labels").mkdir()
        for name in names:
            (root / "chexbert_labels" / name).write_text(lines, encoding="utf-8")
    files = [row["path_to_image"].replace(".jpg", ".png") for row in found]
    if zipped:
        (root / "PNG").mkdir()
        for chunk in range(2):
            with zipfile.ZipFile(root / "PNG" / f"png_chexpert_plus_chunk_{chunk}.zip", "w") as archive:
                for number, file in enumerate(files):
                    if number % 2 == chunk:
                        archive.writestr(f"PNG/{file}", png(number))
        return root
    for number, file in enumerate(files):
        place = root / images / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(png(number))
    return root
