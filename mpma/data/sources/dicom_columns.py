"""Which column of a hospital's table of reports holds what, by the names in use.

Decisions: a column is used where its name is usual (as in a table of pairs) or typed, and all others are
left out unless they are asked for: a hospital's table holds birth dates and names beside the reports, and
what nobody asked for must not reach a dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mpma.data.quality import is_missing
from mpma.data.sources.config import DicomOptions
from mpma.data.sources.dicom_join import KEY_COLUMNS
from mpma.data.sources.dicom_reports import Report, ReportTable, TableRow
from mpma.data.sources.manifest_columns import USUAL_NAMES, nearest_column, usual_column
from mpma.data.sources.values import as_labels, as_text
from mpma.errors import UserError

_FIELDS: Final = ("report", "findings", "impression", "labels", "patient_id", "split", "license")
_TEXTS: Final = ("report", "findings", "impression")


@dataclass(frozen=True)
class ReportColumns:
    """The columns of a table of reports that are used."""

    of: dict[str, str]
    """Field of a pair to column."""
    keys: tuple[str, ...]
    """Columns that may join."""
    kept: tuple[str, ...]
    """Columns kept as they are."""
    left_out: int = 0
    """Columns that are not used."""

    def described(self) -> list[str]:
        """What was recognised, in lines for the terminal."""
        lines = []
        if self.of:
            lines.append(f"columns: {', '.join(f'{field} = {name}' for field, name in self.of.items())}")
        if self.kept:
            lines.append(f"kept as they are: {', '.join(self.kept)}")
        if self.left_out:
            lines.append(
                f"{self.left_out} other columns of the table are not kept (--set keep=[...] keeps some)"
            )
        return lines

    def report_of(self, row: TableRow, options: DicomOptions) -> Report:
        """What a row says of its images."""
        cells = {field: row.cells.get(column) for field, column in self.of.items()}
        findings, impression = (
            None if is_missing(cells.get(field)) else as_text(cells[field])
            for field in ("findings", "impression")
        )
        sections = (("FINDINGS", findings), ("IMPRESSION", impression))
        whole = "\n".join(f"{name}: {text}" for name, text in sections if text)
        split = cells.get("split")
        return Report(
            report=as_text(cells["report"]) if "report" in cells else whole,
            findings=findings,
            impression=impression,
            labels=as_labels(cells.get("labels"), options.label_separators, options.nothing_found),
            patient=as_text(cells.get("patient_id")),
            split=None if is_missing(split) else as_text(split),
            license=as_text(cells.get("license")),
            kept=tuple(as_text(row.cells.get(name)) for name in self.kept),
        )


def resolve_report_columns(table: ReportTable, options: DicomOptions) -> ReportColumns:
    """Find each field's column.

    Raises `UserError` where a given column is not there (the nearest is named), or where the table has no
    column of reports or none that could join.
    """
    described = table.archive.described(table.name)
    of: dict[str, str] = {}
    for field in _FIELDS:
        given = getattr(options.columns, field)
        if given is not None:
            _check_there(table, f"columns.{field}", given)
        found = given or usual_column(table.columns, USUAL_NAMES[field])
        if found is not None:
            of[field] = found
    has = f"its columns are {', '.join(table.columns)}"
    if not any(field in of for field in _TEXTS):
        raise UserError(
            f"{described} has no column of reports", f"name it: --set columns.report=COLUMN ({has})"
        )
    if options.columns.key is not None:
        _check_there(table, "columns.key", options.columns.key)
        keys: tuple[str, ...] = (options.columns.key,)
    else:
        keys = tuple(name for name in table.columns if usual_column([name], sorted(KEY_COLUMNS)) is not None)
    if not keys:
        raise UserError(
            f"{described} has no column that could join reports and images",
            f"name it: --set columns.key=COLUMN ({has})",
        )
    for name in options.keep:
        _check_there(table, "keep", name)
    kept = tuple(dict.fromkeys(options.keep))
    used = {*of.values(), *keys, *kept}
    return ReportColumns(of, keys, kept, sum(name not in used for name in table.columns))


def _check_there(table: ReportTable, option: str, column: str) -> None:
    if column not in table.columns:
        raise UserError(
            f"{option}: {table.archive.described(table.name)} has no column {column!r}",
            nearest_column(column, table.columns),
        )
