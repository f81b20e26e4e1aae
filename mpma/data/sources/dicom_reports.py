"""The reports of a hospital's archive: a table of them, or one text file each, found by their key.

Decisions: images come in the order of their paths and reports in that of the table, so one side has to be
held; it is the table, compressed, in blocks of a few rows, since the listing holds its reports no smaller.
Only the columns that are used are read: a hospital's table holds names and dates as well. A key that stands
for two different reports stands for none, since either could be another examination's; the same report
twice (one row an image) is one. Text files are only opened when their image is there.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mpma.data.sources.archive import DAMAGED, ArchiveFolder
from mpma.data.sources.contract import Rejection, UnreadableImage
from mpma.data.sources.csv_rows import UTF_8, CsvRow, columns_of, csv_rows
from mpma.data.sources.tables import PARQUET_SUFFIXES, TEXT_SUFFIXES
from mpma.data.sources.values import as_text
from mpma.data.sources.zip_members import ZipArchive, ZipMember
from mpma.errors import UserError

MAX_REPORT_BYTES: Final = 4 * 1024 * 1024
TABLES: Final = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
_BLOCK_ROWS: Final = 64
_BLOCKS_HELD: Final = 32
_BATCH_ROWS: Final = 1024
_TORN: Final = -1


@dataclass(frozen=True)
class ReportTable:
    """A table of reports: CSV, TSV or Parquet, with the names of its columns."""

    archive: ArchiveFolder
    name: str
    columns: tuple[str, ...]
    delimiter: str
    """Empty for Parquet."""
    encoding: str

    @classmethod
    def open(
        cls, archive: ArchiveFolder, name: str, delimiter: str | None = None, encoding: str | None = None
    ) -> ReportTable:
        """Read the names of its columns. Raises `UserError` naming the file where it cannot be read."""
        if name.lower().endswith(PARQUET_SUFFIXES):
            with _parquet(archive, name) as parquet:
                return cls(archive, name, tuple(parquet.schema_arrow.names), "", "")
        separator = delimiter or ("\t" if ".tsv" in name.lower() else ",")
        columns = columns_of(archive, name, (), separator, encoding or UTF_8)
        return cls(archive, name, tuple(filter(None, columns)), separator, encoding or UTF_8)

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow | Rejection]:
        """Some columns of every row; a `Rejection` for a row that is not whole.

        Raises `UserError` where the table cannot be read.
        """
        if self.delimiter:
            for row in csv_rows(self.archive, self.name, columns, (), self.delimiter, self.encoding):
                yield TableRow(row.line, dict(row.cells)) if isinstance(row, CsvRow) else row
            return
        number = 1
        with _parquet(self.archive, self.name) as parquet:
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=list(columns)):
                for cells in batch.to_pylist():
                    yield TableRow(number, cells)
                    number += 1

    def place(self, row: int) -> str:
        """A row for the quarantine."""
        return f"{self.name}, {'line' if self.delimiter else 'row'} {row}"


class TableRow(NamedTuple):
    """One row: its line in a text table, or its number from 1, and cells by column."""

    number: int
    cells: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What belongs to one key, as plain values."""

    report: str
    findings: str | None = None
    impression: str | None = None
    labels: tuple[str, ...] | None = None
    patient: str = ""
    split: str | None = None
    """As the table writes it; None where it is blank."""
    license: str = ""
    kept: tuple[str, ...] = ()
    """Cells of the columns that the user wants kept."""


_VALUES: Final = tuple(field.name for field in fields(Report))


class Reports:
    """The rows of a table by their keys."""

    def __init__(self, table: ReportTable) -> None:
        self._table = table
        self._row_of: dict[str, int] = {}
        self._places: list[int] = []
        self._digests: list[bytes] = []
        self._blocks: list[bytes] = []
        self._waiting: list[str] = []
        self._met = bytearray()
        self._block = lru_cache(_BLOCKS_HELD)(self._unpacked)

    def add(self, key: str, place: int, report: Report) -> None:
        """Note a row. One that repeats a key with other content makes the key stand for no report."""
        text = json.dumps(list(vars(report).values()), ensure_ascii=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        row = self._row_of.setdefault(key, len(self._places))
        if row == _TORN:
            return
        if row < len(self._places):
            if self._digests[row] != digest:
                self._row_of[key] = _TORN
            return
        self._places.append(place)
        self._digests.append(digest)
        self._met.append(0)
        self._waiting.append(text)
        if len(self._waiting) == _BLOCK_ROWS:
            self._blocks.append(zlib.compress("\n".join(self._waiting).encode("ascii"), 1))
            self._waiting = []

    def find(self, key: str) -> Report:
        """The report of a key.

        Raises `UnreadableImage` with `missing_report` or `several_reports`.
        """
        row = self._row_of.get(key)
        if row is None:
            raise UnreadableImage("missing_report")
        if row == _TORN:
            raise UnreadableImage("several_reports")
        self.note(key)
        block, place = divmod(row, _BLOCK_ROWS)
        lines = self._waiting if block == len(self._blocks) else self._block(block)
        values = dict(zip(_VALUES, json.loads(lines[place]), strict=True))
        labels, kept = values.pop("labels"), values.pop("kept")
        return Report(labels=None if labels is None else tuple(labels), kept=tuple(kept), **values)

    def note(self, key: str) -> None:
        """Note that an image has this key, whatever becomes of it."""
        row = self._row_of.get(key, _TORN)
        if row != _TORN:
            self._met[row] = 1

    def unmet(self) -> Iterator[tuple[str, str]]:
        """Keys that no image has, with the place of their row."""
        for key, row in self._row_of.items():
            if row != _TORN and not self._met[row]:
                yield key, self._table.place(self._places[row])

    def _unpacked(self, block: int) -> list[str]:
        return zlib.decompress(self._blocks[block]).decode("ascii").split("\n")


@dataclass(frozen=True)
class ReportFiles:
    """Reports as text files, each named by its key, in a folder or a zip archive."""

    archive: ArchiveFolder
    place: str
    """The folder or the zip."""
    encoding: str

    @property
    def is_zip(self) -> bool:
        return self.place.lower().endswith(".zip")

    def names(self) -> Iterator[tuple[str, str | ZipMember]]:
        """Key and place of every report, in order."""
        if self.is_zip:
            for member in ZipArchive(self.archive, self.place).members():
                if member.name.lower().endswith(".txt"):
                    yield _stem(member.name), member
        else:
            for name in self.archive.files(self.place, (".txt",)):
                yield _stem(name), name

    def read(self, place: str | ZipMember) -> str:
        """One report's text. Raises `UnreadableImage` with `unreadable_report`."""
        try:
            if isinstance(place, str):
                data = self.archive.read(place, MAX_REPORT_BYTES)
            else:
                data = ZipArchive(self.archive, self.place).read(place, MAX_REPORT_BYTES)
        except UnreadableImage as error:
            raise UnreadableImage("unreadable_report", error.detail) from None
        except DAMAGED as error:
            raise UnreadableImage("unreadable_report", type(error).__name__) from None
        try:
            return data.decode(self.encoding).strip()
        except UnicodeDecodeError:
            raise UnreadableImage("unreadable_report", f"not text in {self.encoding}") from None


class ReportsByFile:
    """Text files by their keys."""

    def __init__(self, files: ReportFiles) -> None:
        self._files = files
        self._place_of: dict[str, str | ZipMember | None] = {}
        self._met: set[str] = set()
        for key, place in files.names():
            self._place_of[key] = None if key in self._place_of else place
        # Images of one examination follow each other.
        self._text = lru_cache(2)(self._read)

    def find(self, key: str) -> Report:
        """The report of a key; see `Reports.find`. Raises `unreadable_report` as well."""
        if key not in self._place_of:
            raise UnreadableImage("missing_report")
        self.note(key)
        return Report(self._text(key))

    def note(self, key: str) -> None:
        """Note that an image has this key, whatever becomes of it."""
        self._met.add(key)

    def unmet(self) -> Iterator[tuple[str, str]]:
        """Keys that no image has, with the name of their file."""
        for key, place in self._place_of.items():
            if key not in self._met and place is not None:
                yield key, place if isinstance(place, str) else place.name

    def _read(self, key: str) -> str:
        place = self._place_of[key]
        if place is None:
            raise UnreadableImage("several_reports")
        return self._files.read(place)


def find_reports(archive: ArchiveFolder, given: str | None) -> str:
    """The table, folder or zip that holds the reports, by its path in the archive.

    Raises `UserError` where it is not there, or where several could be meant.
    """
    if given is not None:
        if archive.has_folder(given) or (
            archive.has_file(given) and given.lower().endswith((*TABLES, ".zip"))
        ):
            return given
        if archive.has_file(given):
            raise UserError(
                f"reports: {archive.described(given)} is not read",
                f"reports are a file that ends in {', '.join((*TABLES, '.zip'))}, or a folder of .txt files",
            )
        raise UserError(f"reports: {archive.described(given)} does not exist", "it is relative to the root")
    tables = [name for name in archive.names() if name.lower().endswith(TABLES) and name[0] not in "._"]
    texts = [name for name in archive.names() if name.lower().endswith(".zip")] + archive.folders()
    named = [name for name in (*tables, *texts) if "report" in name.lower()]
    for found in (named, tables):
        if len(found) == 1:
            return found[0]
    several = (
        f"several: {', '.join(named or tables)}" if named or tables else "no table and no folder of them"
    )
    raise UserError(
        f"{archive.described()} holds {several}; which holds the reports is not clear",
        "name it: --set reports=FILE, a CSV, TSV or Parquet table, or a folder or zip of .txt files",
    )


def text_cells(row: TableRow, columns: Collection[str]) -> dict[str, str]:
    """Some cells of a row as text."""
    return {column: as_text(row.cells.get(column)) for column in columns}


class _parquet:  # noqa: N801 - reads as the file it opens
    """An open Parquet file; what Arrow says of a damaged one becomes one line."""

    def __init__(self, archive: ArchiveFolder, name: str) -> None:
        self._archive, self._name, self._stack = archive, name, ExitStack()

    def __enter__(self) -> Any:
        try:
            stream = self._stack.enter_context(self._archive.seekable(self._name))
            return self._stack.enter_context(pq.ParquetFile(stream))
        except BaseException as error:
            self._stack.close()
            self._told(error)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._stack.close()
        self._told(error)

    def _told(self, error: BaseException | None) -> None:
        if isinstance(error, UnreadableImage | pa.ArrowException | OSError):
            raise UserError(
                f"{self._archive.described(self._name)} cannot be read as a table ({type(error).__name__})",
                "it may be cut short, or of another format than its name says",
            ) from None


def _stem(name: str) -> str:
    return name.rpartition("/")[2][: -len(".txt")]
