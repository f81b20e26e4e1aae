"""Who the patient of a hospital's image is, decided once for the whole archive.

Decisions: the unit of the split must have one name everywhere, so one rule holds for all files and is
printed. A table that writes the same numbers as the headers is a check on them, and one that never does (a
study's own numbering) is believed, since somebody made it on purpose. Where headers name an issuer of
patient ids, the id alone may stand for two people; then a file without an issuer has no patient, since
taking the bare number would be a third. Nobody named anywhere is refused: a split by chance would put one
person on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mpma.data.sources.config import DicomOptions
from mpma.data.sources.contract import UnreadableImage
from mpma.data.sources.dicom_columns import ReportColumns
from mpma.data.sources.dicom_headers import DicomHeader
from mpma.data.sources.dicom_join import ChosenJoin, key_of, key_of_cell
from mpma.data.sources.dicom_reports import Report, ReportTable, TableRow, text_cells
from mpma.errors import UserError


@dataclass(frozen=True)
class PatientRule:
    """Where patients are read."""

    place: Literal["header", "table", "both", "folder"]
    issuers: bool
    """Whether the issuer is part of who a patient is."""
    depth: int
    """Folders below the root that name a patient."""
    column: str
    """The table's column, empty where it has none."""

    def patient(self, header: DicomHeader, report: Report) -> str:
        """The patient of one image.

        Raises `UnreadableImage` with `missing_patient` or `conflicting_patient`.
        """
        if self.place == "folder":
            folders = header.name.split("/")[:-1]
            if len(folders) < self.depth:
                raise UnreadableImage("missing_patient", f"{len(folders)} folders below the root")
            return "/".join(folders[: self.depth])
        if self.place == "table":
            if not report.patient:
                raise UnreadableImage("missing_patient", "the table names none")
            return report.patient
        if self.place == "both" and header.patient and report.patient not in ("", header.patient):
            raise UnreadableImage("conflicting_patient")
        if not header.patient:
            # Without the issuer, the table's number is not the patient that other headers name.
            if self.place == "both" and report.patient and not self.issuers:
                return report.patient
            raise UnreadableImage("missing_patient", "the header names none")
        if not self.issuers:
            return header.patient
        if not header.issuer:
            raise UnreadableImage("missing_patient", "no issuer, which the other headers name")
        return f"{header.patient} of {header.issuer}"

    def described(self, given: bool) -> list[str]:
        """The rule, in lines for the terminal; `given` tells whether the user chose it."""
        lines = [
            {
                "header": "patients are those of the headers (PatientID)",
                "table": f"patients are those of the table ({self.column})",
                "both": f"patients are those of the headers (PatientID), compared with {self.column}",
                "folder": f"patients are the folders {self.depth} below the root",
            }[self.place]
        ]
        if self.place == "table" and not given:
            lines.append("THE TABLE'S PATIENTS ARE NOT THE HEADERS': if that is wrong, --set patients=header")
        if self.issuers:
            lines.append("the same patient id of two issuers is two patients")
        return lines


def patient_rule(
    headers: Sequence[DicomHeader],
    table: ReportTable | None,
    columns: ReportColumns,
    join: ChosenJoin,
    options: DicomOptions,
) -> PatientRule:
    """Decide where patients are read. Raises `UserError` where nobody names them."""
    column = columns.of.get("patient_id", "")
    named = [header for header in headers if header.patient]
    issuers = options.issuer == "auto" and bool(named) and all(header.issuer for header in named)
    if options.patient_folder is not None:
        return PatientRule("folder", False, options.patient_folder, column)
    if options.patients == "header":
        return PatientRule("header", issuers, 0, column)
    if options.patients == "table":
        if not column:
            raise UserError(
                "patients: the table has no column of patients", "name it: --set columns.patient_id=COLUMN"
            )
        return PatientRule("table", False, 0, column)
    if table is None or not column:
        if not named:
            raise UserError(
                "none of the headers looked at names a patient, without whom no split is sound",
                "name a column of the table: --set columns.patient_id=COLUMN; or, where a folder is a "
                "patient, its depth below the root: --set patient_folder=1",
            )
        return PatientRule("header", issuers, 0, column)
    of_key = {key_of(header, join.join): header.patient for header in named}
    for row in table.rows((join.column, column)):
        if isinstance(row, TableRow):
            cells = text_cells(row, (join.column, column))
            if cells[column] and of_key.get(key_of_cell(cells[join.column], join.join)) == cells[column]:
                return PatientRule("both", issuers, 0, column)
    return PatientRule("table", False, 0, column)
