"""A hospital's own archive: a folder of DICOM files and the reports that belong to them.

Layout: DICOM files at any depth, with or without an ending, and a table of reports, or a folder or zip of
text files (`s50414267.txt`) named by what they are joined by.

Decisions: image and report find each other by whatever meets (`mpma.data.sources.dicom_join`), which is
tried on the first headers and printed. Of a header, the modality, the view position, the distance of the
pixels and the flag of burned-in text are kept; of the table, what a pair consists of and what the user
names: names, dates, places, devices and everything private are never copied. Image ids are UIDs of the
hospital, by which anyone who has its archive finds the examination, so they are stored as keyed hashes. A
patient is the header's PatientID, with its issuer where the headers name one; a table that writes patients
in the same numbers is compared with the headers, and one that writes them in others replaces them. Files
that are no radiograph of one frame are refused by their headers; files whose endings say that they are
something else are counted and not opened. Frontal and lateral views are kept.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa

from mpma.data.dicom import with_prefix
from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import DicomOptions
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.dicom_columns import ReportColumns, resolve_report_columns
from mpma.data.sources.dicom_headers import DicomHeader, read_headers
from mpma.data.sources.dicom_join import MEANINGS, ChosenJoin, choose_join, key_of, key_of_cell
from mpma.data.sources.dicom_patients import PatientRule, patient_rule
from mpma.data.sources.dicom_reports import (
    ReportFiles,
    Reports,
    ReportsByFile,
    ReportTable,
    TableRow,
    find_reports,
    text_cells,
)
from mpma.data.sources.values import as_split
from mpma.errors import UserError

LOOKED_AT: Final = 200
"""Headers by which join and patients are decided."""
SEARCHED: Final = 5000
"""Files among which they are looked for."""

OTHER_ENDINGS: Final = frozenset(
    (
        *("bmp", "bz2", "csv", "db", "doc", "docx", "exe", "gif", "gz", "htm", "html", "inf", "ini", "jpeg"),
        *("jpg", "js", "json", "log", "md", "md5", "mp4", "nii", "parquet", "pdf", "png", "pq", "py", "rtf"),
        *("sh", "sha256", "sql", "tar", "tgz", "tif", "tiff", "tsv", "txt", "xls", "xlsx", "xml", "yaml"),
        *("yml", "zip"),
    )
)
"""Endings of files that are not opened to see whether they are DICOM."""

_MODALITIES: Final = frozenset(
    (
        *("CR", "CT", "DR", "DX", "DOC", "ES", "IO", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "PX", "RF"),
        *("RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SC", "SEG", "SR", "US", "XA", "XC", "XR"),
    )
)
"""Modalities that a quarantine names; any other text of that element stays unsaid."""
_OWN: Final = (
    pa.field("modality", pa.string()),
    pa.field("view_position", pa.string()),
    pa.field("pixel_spacing_mm", pa.float64()),
    pa.field("burned_in_annotation", pa.string()),
)


@dataclass(frozen=True)
class DicomSource:
    """The archive below a root; `resolve` looks at its first headers and at the reports' keys."""

    archive: ArchiveFolder
    options: DicomOptions
    table: ReportTable | None
    """None where reports are text files."""
    files: ReportFiles | None
    columns: ReportColumns
    join: ChosenJoin
    patients: PatientRule
    name: str = "dicom"
    reports_expected: bool = True
    pair_ids_are_identifying: ClassVar[bool] = True

    @classmethod
    def resolve(cls, root: str | Path, options: DicomOptions | None = None) -> DicomSource:
        """Find the reports and what joins them. Raises `UserError` naming what was looked for."""
        options = options or DicomOptions()
        if options.encoding is not None:
            _check_encoding(options.encoding)
        archive = ArchiveFolder.open(root)
        place = find_reports(archive, options.reports)
        headers = _first_headers(archive, place)
        if not headers:
            raise UserError(
                f"{archive.described()} holds no DICOM image",
                "the root of dicom is a folder of DICOM files, at any depth, and their reports",
            )
        if archive.has_folder(place) or place.lower().endswith(".zip"):
            files = ReportFiles(archive, place, options.encoding or "utf-8")
            join = choose_join(headers, ({"": key} for key, _ in files.names()), options.join)
            columns, table = ReportColumns({}, (), ()), None
        else:
            table, files = ReportTable.open(archive, place, options.delimiter, options.encoding), None
            columns = resolve_report_columns(table, options)
            rows = (row for row in table.rows(columns.keys) if isinstance(row, TableRow))
            join = choose_join(headers, (text_cells(row, columns.keys) for row in rows), options.join)
        if join is None:
            tried = f"columns {', '.join(columns.keys)}" if table is not None else "names of the files"
            raise UserError(
                f"{archive.described(place)} meets none of the {len(headers)} headers looked at ({tried})",
                "name what joins them: --set columns.key=COLUMN and --set join=accession_number or the like",
            )
        patients = patient_rule(headers, table, columns, join, options)
        return cls(archive, options, table, files, columns, join, patients)

    def assumptions(self) -> list[str]:
        key = f"column {self.join.column}" if self.join.column else "names of the text files"
        lines = [
            f"reports are read from {self._reports_place()}, and joined: {key} = {MEANINGS[self.join.join]} "
            f"({self.join.met} of the {self.join.seen} headers looked at have a report)",
            *self.columns.described(),
            *self.patients.described(given=self.options.patients is not None),
            f"radiographs are the modalities {', '.join(self.options.modalities)}",
            "files of several frames are refused",
            "files whose header says that text is burned in are "
            + ("kept" if self.options.burned_in == "keep" else "refused"),
            "of the headers, only modality, view, pixel spacing and that flag are kept",
        ]
        if "split" in self.columns.of and self.options.splits == "keep":
            lines.append(f"splits are kept from the column {self.columns.of['split']}")
        else:
            lines.append("patients are drawn for the splits")
        return lines

    def extra_schema(self) -> pa.Schema:
        return pa.schema([*_OWN, *(pa.field(stored, pa.string()) for stored in self._kept_names())])

    def items(self) -> Iterator[Item | Rejection]:
        reports: Reports | ReportsByFile
        if self.table is not None:
            reports = Reports(self.table)
            yield from self._rows_noted(self.table, reports)
        else:
            assert self.files is not None
            reports = ReportsByFile(self.files)
        others: Counter[str] = Counter()
        for header in read_headers(self.archive, _candidates(self.archive, self._reports_place(), others)):
            yield header if isinstance(header, Rejection) else self._item(header, reports)
        for key, place in reports.unmet():
            yield Rejection(place, key, "missing_image", "no image has this report")
        for ending, count in sorted(others.items()):
            yield Rejection(f"*.{ending}", "", "not_an_image", f"{count} files of this ending, not opened")

    def load_image(self, item: Item) -> bytes:
        data = self.archive.read(item.locator["file"], self.options.max_image_bytes)
        return with_prefix(data, keep_burned_in=self.options.burned_in == "keep")

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    def _item(self, header: DicomHeader, reports: Reports | ReportsByFile) -> Item | Rejection:
        pair_id = header.image_uid or header.name
        key = key_of(header, self.join.join)
        refused = self._refusal(header)
        if refused is not None:
            # The report has its image, though one that is not wanted.
            reports.note(key)
            return Rejection(header.name, pair_id, *refused)
        if not key:
            return Rejection(header.name, pair_id, "missing_report", f"no {MEANINGS[self.join.join]}")
        try:
            report = reports.find(key)
            patient = self.patients.patient(header, report)
        except UnreadableImage as error:
            return Rejection(header.name, pair_id, error.reason, error.detail)
        split = None
        if self.options.splits == "keep" and report.split is not None:
            split = as_split(report.split)
            if split is None:
                return Rejection(header.name, pair_id, "unknown_split")
        return Item(
            pair_id=pair_id,
            patient_id=patient,
            study_id=header.study_uid or header.accession or header.name.rpartition("/")[0] or pair_id,
            report=report.report,
            path=header.name,
            locator={"file": header.name},
            findings=report.findings,
            impression=report.impression,
            view=header.view,
            labels=report.labels,
            split=split,
            license=report.license or self.options.license,
            extra={
                "modality": header.modality,
                "view_position": header.view_position or None,
                "pixel_spacing_mm": header.spacing_mm,
                "burned_in_annotation": header.burned_in or None,
                **dict(zip(self._kept_names(), report.kept, strict=True)),
            },
        )

    def _refusal(self, header: DicomHeader) -> tuple[str, str] | None:
        """Why a file is no candidate, from its header alone."""
        modality = header.modality if header.modality in _MODALITIES else "unknown"
        if not header.has_picture:
            return "no_pixels", f"modality {modality}"
        if header.modality not in {name.strip().upper() for name in self.options.modalities}:
            return "other_modality", f"modality {modality}"
        if header.frames != 1:
            return "multiple_frames", f"{header.frames} frames"
        if header.burned_in == "YES" and self.options.burned_in == "refuse":
            return "burned_in_annotation", ""
        return None

    def _rows_noted(self, table: ReportTable, reports: Reports) -> Iterator[Rejection]:
        of = self.columns.of
        wanted = list(dict.fromkeys((self.join.column, *of.values(), *self.columns.kept)))
        for row in table.rows(wanted):
            if isinstance(row, Rejection):
                yield row
                continue
            key = key_of_cell(text_cells(row, (self.join.column,))[self.join.column], self.join.join)
            if not key:
                yield Rejection(table.place(row.number), "", "missing_id", f"column {self.join.column}")
                continue
            reports.add(key, row.number, self.columns.report_of(row, self.options))

    def _kept_names(self) -> list[str]:
        taken = {*PAIR_SCHEMA.names, *OPTIONAL_FIELDS, *(field.name for field in _OWN)}
        return [f"table_{name}" if name in taken else name for name in self.columns.kept]

    def _reports_place(self) -> str:
        return self.table.name if self.table is not None else self.files.place if self.files else ""


def _check_encoding(name: str) -> None:
    try:
        codecs.lookup(name)
    except LookupError:
        raise UserError(f"encoding: {name!r} is not known", "for example utf-8 or latin-1") from None


def _candidates(archive: ArchiveFolder, reports: str, others: Counter[str]) -> Iterator[str]:
    """Files that may be DICOM, in order; what is left out is counted by its ending."""
    for name in archive.files():
        if name == reports or name.startswith(f"{reports}/"):
            continue
        _, dot, ending = name.rpartition("/")[2].rpartition(".")
        if dot and ending.lower() in OTHER_ENDINGS:
            others[ending.lower()] += 1
        else:
            yield name


def _first_headers(archive: ArchiveFolder, reports: str) -> list[DicomHeader]:
    """Headers of the first files that have a picture."""
    names = islice(_candidates(archive, reports, Counter()), SEARCHED)
    found = (
        header
        for header in read_headers(archive, names)
        if isinstance(header, DicomHeader) and header.has_picture
    )
    return list(islice(found, LOOKED_AT))
