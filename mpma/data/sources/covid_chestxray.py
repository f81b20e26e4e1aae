"""The COVID-19 image data collection (Cohen et al., 2020), as its git repository is cloned.

Layout: `metadata.csv`, one row an image, and the files in `images/`; CT volumes, which the table lists under
`volumes/`, are fetched apart.

Decisions: every row is a candidate, X-ray or CT, since the table says which is which and the option
`modalities` leaves out the others; an image that is not there is found while listing, by one look at each
folder that the table names. The clinical notes are the report: prose of a case, often one text for all
images of a patient. `finding` is a path in a tree of diagnoses (`Pneumonia/Viral/COVID-19`), kept as one
label, since cutting it would make three findings of one; `No Finding` is the empty list, and `todo`,
`Unknown` and a blank say nothing, so the image is not labelled. Images of a patient taken on one day of the
illness are one study. Each image has a licence of its own, and most ask for attribution: address, DOI and
credits are kept; date and place of the examination are not, since no one needs them to train.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import CovidChestxrayOptions
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.csv_rows import CsvRow, columns_of, csv_rows, described
from mpma.data.sources.paths import forward, lexically_inside
from mpma.data.sources.values import as_fraction, as_labels, as_text, as_view, as_whole
from mpma.errors import UserError

TABLE: Final = "metadata.csv"
IMAGE_FOLDER: Final = "images"
MAX_IMAGE_BYTES: Final = 256 * 1024 * 1024

_REQUIRED: Final = ("patientid", "finding", "filename", "clinical_notes")
_OPTIONAL: Final = (
    *("offset", "sex", "age", "view", "modality", "folder", "doi", "url", "license", "other_notes"),
)
_EXTRA: Final = pa.schema(
    [
        pa.field("modality", pa.string()),
        pa.field("offset_days", pa.float64()),
        pa.field("age", pa.int32()),
        pa.field("sex", pa.string()),
        pa.field("doi", pa.string()),
        pa.field("url", pa.string()),
        pa.field("other_notes", pa.string()),
    ]
)
_KINDS: Final = ("CT", "X-ray")
_NOT_DECIDED: Final = ("todo", "unknown")
_VOLUMES: Final = (".nii", ".nii.gz")


@dataclass(frozen=True)
class CovidChestxraySource:
    """The collection below a root; `resolve` finds what the clone holds."""

    archive: ArchiveFolder
    options: CovidChestxrayOptions
    name: str = "covid_chestxray"
    reports_expected: bool = True

    @classmethod
    def resolve(cls, root: str | Path, options: CovidChestxrayOptions | None = None) -> CovidChestxraySource:
        """Open the clone at a path or a URI. Raises `UserError` naming what was looked for."""
        options = options or CovidChestxrayOptions()
        archive = ArchiveFolder.open(root)
        if not archive.has_file(TABLE):
            raise UserError(
                f"{root} holds no {TABLE}",
                "the root of covid_chestxray is the cloned repository ieee8023/covid-chestxray-dataset",
            )
        header = columns_of(archive, TABLE, _REQUIRED)
        if options.modalities is not None and "modality" not in header:
            raise UserError(f"modalities: {archive.described(TABLE)} has no column 'modality'")
        return cls(archive, options)

    def assumptions(self) -> list[str]:
        found: Counter[str] = Counter()
        for row in self._rows():
            if isinstance(row, CsvRow):
                found["rows"] += 1
                found["kept"] += self._is_wanted(row["modality"])
                # Only words known beforehand are shown: a shifted table may hold anything in its cells.
                found[next((kind for kind in _KINDS if _same(kind, row["modality"])), "of another kind")] += 1
        rows, kept = found.pop("rows", 0), found.pop("kept", 0)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
        lines = [f"{rows} rows in {TABLE}: {kinds}"]
        if self.options.modalities is not None:
            lines.append(f"modalities {', '.join(self.options.modalities)} keep {kept} of {rows} rows")
        lines += [
            "the report is clinical_notes; one note often covers all images of a patient",
            "labels are read from finding: `No Finding` is the empty list, `todo` and `Unknown` no labels",
            "images of a patient with one offset are one study",
            "the licence is each image's own; doi, url and other_notes are kept for attribution",
        ]
        return lines

    def extra_schema(self) -> pa.Schema:
        return _EXTRA

    def items(self) -> Iterator[Item | Rejection]:
        present: dict[str, frozenset[str]] = {}
        for row in self._rows():
            if isinstance(row, Rejection):
                yield row
            elif self._is_wanted(row["modality"]):
                yield self._item(row, present)

    def load_image(self, item: Item) -> bytes:
        return self.archive.read(item.locator["file"], MAX_IMAGE_BYTES)

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    def _rows(self) -> Iterator[CsvRow | Rejection]:
        return csv_rows(self.archive, TABLE, _REQUIRED, _OPTIONAL)

    def _is_wanted(self, modality: str) -> bool:
        wanted = self.options.modalities
        return wanted is None or any(_same(kind, modality) for kind in wanted)

    def _item(self, row: CsvRow, present: dict[str, frozenset[str]]) -> Item | Rejection:
        where = described(TABLE, row.line)
        file = forward(row["filename"].strip())
        if not file:
            return Rejection(where, "", "missing_id")
        path = f"{forward(row['folder'].strip()) or IMAGE_FOLDER}/{file}"
        if not lexically_inside(path):
            return Rejection(path, file, "outside_root", where)
        if file.lower().endswith(_VOLUMES):
            return Rejection(path, file, "not_an_image", "a NIfTI volume, not a picture")
        folder, _, name = path.rpartition("/")
        if folder not in present:
            present[folder] = frozenset(self.archive.names(folder))
        if name not in present[folder]:
            return Rejection(path, file, "missing_image", where)
        patient = as_text(row["patientid"])
        if not patient:
            return Rejection(path, file, "missing_patient", where)
        offset = as_text(row["offset"])
        return Item(
            pair_id=file,
            patient_id=patient,
            study_id=f"{patient}/{offset}" if offset else file,
            report=as_text(row["clinical_notes"]),
            path=path,
            locator={"file": path},
            view=as_view(row["view"]),
            labels=_labels(row["finding"]),
            license=as_text(row["license"]),
            source=self.name,
            extra={
                "modality": as_text(row["modality"]) or None,
                "offset_days": as_fraction(offset),
                "age": as_whole(row["age"]),
                "sex": as_text(row["sex"]) or None,
                "doi": as_text(row["doi"]) or None,
                "url": as_text(row["url"]) or None,
                "other_notes": as_text(row["other_notes"]) or None,
            },
        )


def _same(kind: str, modality: str) -> bool:
    return kind.strip().lower() == modality.strip().lower()


def _labels(finding: str) -> tuple[str, ...] | None:
    """Early editions name two findings with a comma between them."""
    found = as_labels(finding, ",", ("No Finding",))
    decided = tuple(label for label in found or () if label.lower() not in _NOT_DECIDED)
    return None if found is None or (found and not decided) else decided
