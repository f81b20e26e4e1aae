"""Tables of an archive, read in batches: CSV, TSV and Parquet behind one small interface.

Decisions: a table is never held whole, and image columns are not touched while rows are listed; text tables
are read as text, and a column becomes numbers only where every cell of the whole file survives the round
trip, so that the patient `007` stays `007` and no type hangs on what the first block held. A text row with
too many or too few cells, with a quote that is not closed, or that repeats the header (tables put together
with `cat`) is handed on as a number, not skipped in silence.
"""

from __future__ import annotations

import codecs
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mpma.data.sources.table_text import (
    MAX_ROW_BYTES,
    UNREADABLE,
    WholeRows,
    open_text,
    refuse_no_table,
    why_unreadable,
)
from mpma.errors import UserError

TEXT_SUFFIXES: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
_BATCH_ROWS: Final = 2048
_IMAGE_ROWS: Final = 16
_BLOCK_BYTES: Final = MAX_ROW_BYTES
"""Arrow reads a row only where it lies within two blocks."""
_NUMBER: Final = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"


@dataclass(frozen=True)
class Rows:
    """A run of a table's rows."""

    first: int
    """Number of the first row in the table, from 0."""
    row_group: int
    """Parquet row group; 0 in text tables."""
    first_in_group: int
    batch: pa.RecordBatch


@dataclass(frozen=True)
class BrokenRow:
    """A text row that is none of the table's: cut, torn, or the header once more."""

    line: int
    """Where in the file, from 1; rows that were torn before it and line ends in cells are not counted."""
    cells: int
    why: str = ""
    """What is wrong with it where the number of cells is not."""

    @property
    def detail(self) -> str:
        """The reason in numbers and names, for the quarantine."""
        return self.why or f"{self.cells} cells"


@dataclass(frozen=True)
class Table:
    """One table file: where it is, how it is read, and the columns it has."""

    file: Path
    schema: pa.Schema
    """Columns with their types, in the order of the file."""
    rows_in_file: int
    delimiter: str = ""
    """Empty for Parquet."""
    encoding: str = "utf-8"

    @classmethod
    def open(cls, file: Path, delimiter: str | None = None, encoding: str = "utf-8") -> Table:
        """Read a table's columns. Raises `UserError` naming the file where it cannot be read."""
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise UserError(f"encoding: {encoding!r} is not known", "for example utf-8 or latin-1") from None
        refuse_no_table(file, encoding)
        if file.name.lower().endswith(PARQUET_SUFFIXES):
            with _readable(file), pq.ParquetFile(file) as parquet:
                _refuse_repeated(file, parquet.schema_arrow.names)
                return cls(file, parquet.schema_arrow.remove_metadata(), parquet.metadata.num_rows)
        separator = delimiter or ("\t" if ".tsv" in file.name.lower() else ",")
        table = cls(file, pa.schema([]), 0, separator, encoding)
        return table._with_types()

    def rows(self, columns: Sequence[str]) -> Iterator[Rows | BrokenRow]:
        """The table's rows in order, with these columns only; the cells of text tables as text.

        Raises `UserError` where the table cannot be read.
        """
        with _readable(self.file):
            yield from self._text_rows(columns) if self.delimiter else self._parquet_rows(columns)

    def typed(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        """Some columns of a batch of `rows`, with the types of `schema`."""
        arrays = [batch.column(name).cast(self.schema.field(name).type) for name in columns]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def _parquet_rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        first = 0
        with pq.ParquetFile(self.file) as parquet:
            for group in range(parquet.num_row_groups):
                first_in_group = 0
                for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(columns)):
                    # Arrow believes the file that text is UTF-8, and fails later, at whoever reads the cell.
                    batch.validate(full=True)
                    yield Rows(first, group, first_in_group, batch)
                    first += batch.num_rows
                    first_in_group += batch.num_rows

    def _text_rows(self, columns: Sequence[str]) -> Iterator[Rows | BrokenRow]:
        first = 0
        broken: list[BrokenRow] = []
        for batch in self._text_batches(list(columns), broken):
            yield from _drained(broken)
            yield Rows(first, 0, first, batch)
            first += batch.num_rows
        yield from _drained(broken)

    def _text_batches(
        self, columns: list[str] | None, broken: list[BrokenRow] | None = None
    ) -> Iterator[pa.RecordBatch]:
        noted: list[BrokenRow] = [] if broken is None else broken
        names = self._header()
        # Columns without a name (a trailing comma) hold nothing that could be asked for.
        wanted = [name for name in (names if columns is None else columns) if name]
        convert = pacsv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            include_columns=wanted,
            strings_can_be_null=True,
        )
        with closing(open_text(self.file, self.delimiter, self.encoding)) as text:
            with self._csv(text, noted, convert) as reader:
                for batch in reader:
                    noted += [BrokenRow(line, 0, "a quote that is not closed") for line in text.broken]
                    text.broken.clear()
                    again = _repeats_header(batch)
                    noted += [BrokenRow(0, len(names), "the header once more")] * (pc.sum(again).as_py() or 0)
                    yield batch.filter(pc.invert(again))
            noted += [BrokenRow(line, 0, "a quote that is not closed") for line in text.broken]

    def _csv(
        self, text: WholeRows, broken: list[BrokenRow], convert: pacsv.ConvertOptions | None = None
    ) -> pacsv.CSVStreamingReader:
        def note(row: Any) -> str:
            broken.append(BrokenRow(int(row.number or 0), int(row.actual_columns)))
            return "skip"

        return pacsv.open_csv(
            pa.PythonFile(text, mode="r"),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pacsv.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=convert,
        )

    def _header(self) -> list[str]:
        with (
            closing(open_text(self.file, self.delimiter, self.encoding)) as text,
            self._csv(text, []) as reader,
        ):
            return list(reader.schema.names)

    def _with_types(self) -> Table:
        """The same text table with the types that all of its cells allow, in one pass."""
        with _readable(self.file):
            names = [name for name in self._header() if name]
            _refuse_repeated(self.file, names)
            candidates: dict[str, list[pa.DataType]] = {name: [pa.int64(), pa.float64()] for name in names}
            filled = dict.fromkeys(names, False)
            count = 0
            for batch in self._text_batches(None):
                count += batch.num_rows
                for name in names:
                    values = batch.column(name)
                    if values.null_count == len(values):
                        continue
                    filled[name] = True
                    candidates[name] = [kind for kind in candidates[name] if _survives(values, kind)]
        fields = [
            pa.field(name, candidates[name][0] if filled[name] and candidates[name] else pa.string())
            for name in names
        ]
        return Table(self.file, pa.schema(fields), count, self.delimiter, self.encoding)


def find_tables(root: Path, pattern: str | None = None) -> list[Path]:
    """The table files that a root names: itself, or those directly in the folder, in order of their names.

    Raises `UserError` where there is none.
    """
    suffixes = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
    if root.is_file():
        if not root.name.lower().endswith(suffixes):
            raise UserError(f"{root} is not a table that can be read", f"read are {', '.join(suffixes)}")
        return [root]
    if not root.is_dir():
        raise UserError(f"{root} does not exist", "the root of manifest is a table, or a folder of tables")
    if pattern is not None and (pattern.startswith("/") or ".." in Path(pattern).parts):
        raise UserError(
            f"tables: {pattern!r} leads out of {root}", "for example --set tables='reports-*.csv'"
        )
    files = sorted(
        file
        for file in (root.iterdir() if pattern is None else root.glob(pattern))
        if file.is_file() and file.name.lower().endswith(suffixes) and not file.name.startswith((".", "_"))
    )
    if not files:
        wanted = f"no table {pattern!r}" if pattern else "no CSV, TSV or Parquet table"
        raise UserError(f"{root} holds {wanted}", f"read are files that end in {', '.join(suffixes)}")
    return files


def read_cell(file: Path, column: str, row_group: int, row: int) -> bytes | None:
    """The binary cell of one Parquet row; None where it is null.

    A reader walks its row group in small steps and stays open for the next row, so that rows asked for in
    order are decoded once and a row group of any size costs the memory of a few rows. Each thread has one
    per column of the table it read last.
    Rows behind a damaged page are refused without another look, which would walk to it again for each.
    Raises `OSError` where the file has no such row or cannot be read.
    """
    status = file.stat()
    key = (file, status.st_mtime_ns, status.st_size, row_group)
    cursors: dict[str, _Cursor] = _THREAD.__dict__.setdefault("cursors", {})
    if any(cursor.key != key for cursor in cursors.values()):
        cursors.clear()
    try:
        if column not in cursors or row < cursors[column].first:
            cursors[column] = _Cursor(key, column)
    except _DAMAGED as error:
        raise OSError(f"the table cannot be read ({type(error).__name__})") from None
    return cursors[column].cell(row)


class _Cursor:
    def __init__(self, key: tuple[Path, int, int, int], column: str) -> None:
        self.key = key
        file, _, _, row_group = key
        self._parquet = pq.ParquetFile(file, buffer_size=1 << 20)
        self._batches = self._parquet.iter_batches(_IMAGE_ROWS, row_groups=[row_group], columns=[column])
        self._column = column
        self.first = 0
        self._damage: str | None = None
        self._cells: pa.Array = pa.array([], type=pa.binary())

    def cell(self, row: int) -> bytes | None:
        while row >= self.first + len(self._cells):
            if self._damage is not None:
                raise OSError(f"the table's cell cannot be read ({self._damage})")
            try:
                array = next(self._batches).column(0)
            except _DAMAGED as error:
                self._damage = type(error).__name__
                continue
            self.first += len(self._cells)
            if pa.types.is_struct(array.type):
                array = array.field(self._column.rpartition(".")[2])
            self._cells = array
        found: bytes | None = self._cells[row - self.first].as_py()
        return found


_DAMAGED: Final = (pa.ArrowException, OSError, StopIteration, MemoryError)

_THREAD = threading.local()


class _readable:  # noqa: N801 - reads as the condition it is
    """Turns what Arrow says of a file into one line: its own words may quote a report."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError) or kind is None:
            return
        if "UTF8" in str(error):
            raise UserError(f"{self._file} is not text in UTF-8") from None
        if isinstance(error, (*UNREADABLE, pa.ArrowException, MemoryError)):
            raise why_unreadable(self._file, error, "name it, for example --set encoding=latin-1") from None


def _drained(broken: list[BrokenRow]) -> Iterator[BrokenRow]:
    while broken:
        yield broken.pop(0)


def _refuse_repeated(file: Path, names: Sequence[str]) -> None:
    repeated = [name for name in dict.fromkeys(names) if name and list(names).count(name) > 1]
    if repeated:
        raise UserError(f"{file} has more than one column {repeated[0]!r}")


def _repeats_header(batch: pa.RecordBatch) -> pa.BooleanArray:
    """Which rows hold in every column that column's name."""
    again = pa.array([batch.num_columns > 0] * batch.num_rows, pa.bool_())
    for name in batch.schema.names:
        again = pc.and_(again, pc.fill_null(pc.equal(batch.column(name), name), False))
    return again


def _survives(values: pa.Array, kind: pa.DataType) -> bool:
    """Whether text cells are numbers of a kind, and written as numbers are: `007` is not."""
    try:
        numbers = values.cast(kind)
    except pa.ArrowInvalid:
        return False
    if not pa.types.is_integer(kind):
        return bool(pc.all(pc.match_substring_regex(values, _NUMBER)).as_py())
    return bool(pc.all(pc.equal(numbers.cast(pa.string()), values)).as_py())
