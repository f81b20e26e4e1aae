"""A publisher's CSV, row by row, from wherever the archive lies.

Decisions: a table is streamed, so that memory does not grow with it, and a `.gz` is unpacked as it is read;
the columns that a source needs are asked for by name and looked for once, in the header, so that another
file under the right name is one line and not thousands of empty pairs. A row is taken only if it is whole:
as many cells as the header, quotes that close, no NUL, no cell beyond a stated bound. What is not is named by
the line it starts on and counted, and reading goes on with the next line; a guess at what a torn row meant
would put one patient's report beside another's image. A file that is not UTF-8 is refused as a whole, since
a wrong encoding turns every accent of every report into something else. Messages show no cell, and that goes
for the first line too: where the header was lost it holds a patient.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Rejection
from mpma.errors import UserError

MAX_CELL_CHARACTERS: Final = 1 << 20
"""Longest cell that is read; a longer one is a quote that was never closed, or no table at all."""


@dataclass(frozen=True)
class CsvRow:
    """One whole row: the cells of the columns that were asked for."""

    line: int
    """Line of the file on which the row starts, the header's being 1."""
    cells: dict[str, str]
    """By column; a column that the table does not have is empty."""

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def columns_of(archive: ArchiveFolder, table: str, required: Sequence[str] = ()) -> list[str]:
    """The header of a table.

    Raises `UserError` where it has none, lacks a column of `required` or has it twice, is not UTF-8, or
    cannot be read.
    """
    with _reader(archive, table) as reader:
        return _header(archive, table, reader, required)


def csv_rows(
    archive: ArchiveFolder, table: str, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[CsvRow | Rejection]:
    """Every row of a table in its order; a `Rejection` with `unreadable_row` for one that is not whole.

    Args:
        required: columns without which the table is refused.
        optional: columns that are read where they are there.

    Raises `UserError` as `columns_of`.
    """
    with _reader(archive, table) as reader:
        header = _header(archive, table, reader, required)
        place = {name: header.index(name) for name in (*required, *optional) if name in header}
        empty = {name: "" for name in optional if name not in header}
        line = reader.line_num + 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield _refused(table, line, "quotes that do not close, or a cell that is too long")
            else:
                # A blank line is not a row.
                if cells and len(cells) != len(header):
                    yield _refused(table, line, f"{len(cells)} cells, the header has {len(header)}")
                elif cells and any("\0" in cell for cell in cells):
                    yield _refused(table, line, "a NUL character")
                elif cells:
                    yield CsvRow(line, {**empty, **{name: cells[index] for name, index in place.items()}})
            line = reader.line_num + 1


def described(table: str, line: int) -> str:
    """The place of a row, for a quarantine."""
    return f"{table}, line {line}"


def _refused(table: str, line: int, detail: str) -> Rejection:
    return Rejection(described(table, line), "", "unreadable_row", detail)


def _header(archive: ArchiveFolder, table: str, reader: Any, required: Sequence[str]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error:
        header = []
    if not any(header):
        raise UserError(f"{archive.described(table)} has no header", "its first line names the columns")
    for name in required:
        if header.count(name) != 1:
            wrong = "no" if name not in header else "more than one"
            raise UserError(
                f"{archive.described(table)} has {wrong} column {name!r}",
                f"its first line has {len(header)} names; needed are {', '.join(required)}",
            )
    return header


@contextmanager
def _reader(archive: ArchiveFolder, table: str) -> Iterator[Any]:
    # The limit is the process's, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    with archive.stream(table) as stream:
        try:
            yield csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        except UnicodeDecodeError:
            raise UserError(
                f"{archive.described(table)} is not UTF-8 text", "save it as UTF-8, or fetch it again"
            ) from None
