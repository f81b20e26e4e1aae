"""A publisher's CSV, row by row, from wherever the archive lies.

Decisions: a table is streamed, so that memory does not grow with it, and a `.gz` is unpacked as it is read;
the columns that a source needs are asked for by name and looked for once, in the header, so that another
file under the right name is one line and not thousands of empty pairs. A row is taken only if it is whole:
as many cells as the header, quotes that close, no NUL, no cell beyond a stated bound. What is not is named by
the line it starts on and counted; a guess at what a torn row meant would put one patient's report beside
another's image. Reading goes on with the very next line, since a quote that was never closed runs on over
the rows behind it, which are sound. (`table_text.WholeRows` takes such rows out before Arrow reads a user's
table, by a looser rule, since those tables hold quotes inside a line; it could not give each row its line
here, nor make a line of any length cost that line alone.) A file that is not UTF-8 is refused as a whole,
since a wrong encoding turns every accent of every report into something else. Messages show no cell, and
that goes for the first line too: where the header was lost it holds a patient.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Rejection
from mpma.errors import UserError

UTF_8: Final = "utf-8-sig"
"""What a publisher's table is written in, with or without a byte order mark."""

MAX_CELL_CHARACTERS: Final = 1 << 20
"""Longest cell that is read; a longer one is a quote that was never closed, or no table at all."""

MAX_LINE_CHARACTERS: Final = 4 << 20
"""Longest line that is held; the rest of a longer one is passed over."""


@dataclass(frozen=True)
class CsvRow:
    """One whole row: the cells of the columns that were asked for."""

    line: int
    """Line of the file on which the row starts, the header's being 1."""
    cells: dict[str, str]
    """By column; a column that the table does not have is empty."""

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def columns_of(
    archive: ArchiveFolder,
    table: str,
    required: Sequence[str] = (),
    delimiter: str = ",",
    encoding: str = UTF_8,
) -> list[str]:
    """The header of a table.

    Raises `UserError` where it has none, lacks a column of `required` or has it twice, is not text in the
    encoding, or cannot be read.
    """
    with _opened(archive, table, delimiter, encoding) as (_, reader):
        return _header(archive, table, reader, required)


def csv_rows(
    archive: ArchiveFolder,
    table: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    delimiter: str = ",",
    encoding: str = UTF_8,
) -> Iterator[CsvRow | Rejection]:
    """Every row of a table in its order; a `Rejection` with `unreadable_row` for one that is not whole.

    Args:
        required: columns without which the table is refused.
        optional: columns that are read where they are there.
        delimiter: one character between the cells.
        encoding: of the text, as Python names it.

    Raises `UserError` as `columns_of`.
    """
    with _opened(archive, table, delimiter, encoding) as (lines, reader):
        header = _header(archive, table, reader, required)
        place = {name: header.index(name) for name in (*required, *optional) if name in header}
        empty = {name: "" for name in optional if name not in header}
        while True:
            line = lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                lines.return_to_second()
                yield _refused(table, line, "quotes that do not close, or a cell that is too long")
            else:
                # A blank line is not a row.
                if cells and len(cells) != len(header):
                    yield _refused(table, line, f"{len(cells)} cells, the header has {len(header)}")
                elif cells and any("\0" in cell for cell in cells):
                    yield _refused(table, line, "a NUL character")
                elif cells:
                    yield CsvRow(line, {**empty, **{name: cells[index] for name, index in place.items()}})


def described(table: str, line: int) -> str:
    """The place of a row, for a quarantine."""
    return f"{table}, line {line}"


def _refused(table: str, line: int, detail: str) -> Rejection:
    return Rejection(described(table, line), "", "unreadable_row", detail)


def _header(
    archive: ArchiveFolder, table: str, reader: Iterator[list[str]], required: Sequence[str]
) -> list[str]:
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


class _Lines:
    """The lines of a table; those of the row at hand are kept, so that it can be given up after its first.

    No line is read more than twice or so: a row runs on only while its quotes stand open, and the next
    line with an odd number of them ends it.
    """

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._next = 1
        self._row: list[str] = []
        self._returned: deque[str] = deque()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else self._read()
        self._next += 1
        self._row.append(line)
        return line

    def begin(self) -> int:
        """A new row begins: the number of its first line."""
        self._row.clear()
        return self._next

    def return_to_second(self) -> None:
        """Give back all lines of the row but the first."""
        again = self._row[1:]
        self._returned.extendleft(reversed(again))
        self._next -= len(again)

    def _read(self) -> str:
        line = self._text.readline(MAX_LINE_CHARACTERS)
        if not line:
            raise StopIteration
        if len(line) < MAX_LINE_CHARACTERS or line.endswith(("\n", "\r")):
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._text.readline(MAX_LINE_CHARACTERS)
        # Refused wherever it stands.
        return "\0\n"


@contextmanager
def _opened(
    archive: ArchiveFolder, table: str, delimiter: str, encoding: str
) -> Iterator[tuple[_Lines, Iterator[list[str]]]]:
    # The limit is the process's, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    with archive.stream(table) as stream:
        lines = _Lines(io.TextIOWrapper(stream, encoding=encoding, newline=""))
        try:
            yield lines, csv.reader(lines, delimiter=delimiter, strict=True)
        except UnicodeError:
            named, hint = (
                ("UTF-8 text", "save it as UTF-8, or fetch it again")
                if encoding == UTF_8
                else (f"text in the encoding {encoding}", None)
            )
            raise UserError(f"{archive.described(table)} is not {named}", hint) from None
