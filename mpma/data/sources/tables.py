"""Tables of an archive, read in batches: CSV, TSV and Parquet behind one small interface.

Decisions: a table is never held whole, and image columns are not touched while rows are listed; text tables
are read as text, and a column becomes numbers only where every cell of the whole file survives the round
trip, so that the patient `007` stays `007` and no type hangs on what the first block held. A text row with
too many or too few cells, with a quote that is not closed, or that repeats the header (tables put together
with `cat`) is handed on as a number, not skipped in silence.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any, Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mpma.data.quality import system_reason
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.parquet_cells import open_parquet, read_cell
from mpma.data.sources.table_text import (
    MAX_ROW_BYTES,
    START_BYTES,
    UNREADABLE,
    WholeRows,
    refuse_other_encoding,
    refuse_what_begins,
    why_unreadable,
)
from mpma.errors import UserError

TEXT_SUFFIXES: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
_BATCH_ROWS: Final = 2048
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

    archive: ArchiveFolder
    file: str
    """Its path in the archive."""
    schema: pa.Schema
    """Columns with their types, in the order of the file."""
    rows_in_file: int
    delimiter: str = ""
    """Empty for Parquet."""
    encoding: str = "utf-8"
    version: tuple[int, int] = (0, 0)
    """Of Parquet: time of change and length when it was opened. Cells are not looked for in what another
    version of the file left open, and none of them costs a look at the file."""

    @classmethod
    def open(
        cls, archive: ArchiveFolder, file: str, delimiter: str | None = None, encoding: str = "utf-8"
    ) -> Table:
        """Read a table's columns. Raises `UserError` naming the file where it cannot be read."""
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise UserError(f"encoding: {encoding!r} is not known", "for example utf-8 or latin-1") from None
        table = cls(archive, file, pa.schema([]), 0, "", encoding)
        start = table._start()
        refuse_what_begins(start, table.place)
        name = table.name.lower()
        if name.endswith(PARQUET_SUFFIXES):
            return table._with_schema()
        refuse_other_encoding(start, table.place, encoding)
        return replace(table, delimiter=delimiter or ("\t" if ".tsv" in name else ","))._with_types()

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return self.file.rpartition("/")[2]

    @property
    def place(self) -> str:
        """The file as messages name it."""
        return self.archive.described(self.file)

    def rows(self, columns: Sequence[str]) -> Iterator[Rows | BrokenRow]:
        """The table's rows in order, with these columns only; the cells of text tables as text.

        Raises `UserError` where the table cannot be read.
        """
        with _readable(self.place):
            yield from self._text_rows(columns) if self.delimiter else self._parquet_rows(columns)

    def cell(self, column: str, row_group: int, row: int) -> bytes | None:
        """The binary cell of one Parquet row; None where it is null.

        Raises `OSError` where the file has no such row or cannot be read.
        """
        return read_cell(self.archive, self.file, self.version, column, row_group, row)

    def _start(self) -> bytes:
        try:
            with self.archive.filesystem.open_input_file(self.archive.path(self.file)) as opened:
                return cast(bytes, opened.read(START_BYTES))
        except OSError as error:
            raise UserError(f"{self.place} cannot be read ({system_reason(error)})") from None

    def _with_schema(self) -> Table:
        """The same Parquet table with its columns."""
        with _readable(self.place), open_parquet(self.archive, self.file) as parquet:
            _refuse_repeated(self.place, parquet.schema_arrow.names)
            status = self.archive.filesystem.get_file_info(self.archive.path(self.file))
            return replace(
                self,
                schema=parquet.schema_arrow.remove_metadata(),
                rows_in_file=parquet.metadata.num_rows,
                version=(status.mtime_ns or 0, status.size),
            )

    def typed(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        """Some columns of a batch of `rows`, with the types of `schema`."""
        arrays = [batch.column(name).cast(self.schema.field(name).type) for name in columns]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def _parquet_rows(self, columns: Sequence[str]) -> Iterator[Rows]:
        first = 0
        with open_parquet(self.archive, self.file) as parquet:
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
        for batch in self._text_batches(self.schema.names, list(columns), broken):
            yield from _drained(broken)
            yield Rows(first, 0, first, batch)
            first += batch.num_rows
        yield from _drained(broken)

    def _text_batches(
        self, names: list[str], wanted: list[str], noted: list[BrokenRow]
    ) -> Iterator[pa.RecordBatch]:
        """Some of a text table's columns, of which `names` are all that have a name."""
        convert = pacsv.ConvertOptions(
            column_types={name: pa.string() for name in names},
            include_columns=wanted,
            strings_can_be_null=True,
        )
        with self._text() as text:
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

    @contextmanager
    def _text(self) -> Iterator[WholeRows]:
        with (
            self.archive.unfolded(self.file) as unfolded,
            closing(WholeRows(cast(IO[bytes], unfolded), self.delimiter, self.encoding)) as text,
        ):
            yield text

    def _header(self) -> list[str]:
        """The columns that have a name: those without one (a trailing comma) hold nothing to be asked for."""
        with self._text() as text, self._csv(text, []) as reader:
            return [name for name in reader.schema.names if name]

    def _with_types(self) -> Table:
        """The same text table with the types that all of its cells allow, in one pass."""
        with _readable(self.place):
            names = self._header()
            _refuse_repeated(self.place, names)
            candidates: dict[str, list[pa.DataType]] = {name: [pa.int64(), pa.float64()] for name in names}
            filled = dict.fromkeys(names, False)
            count = 0
            for batch in self._text_batches(names, names, []):
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
        return replace(self, schema=pa.schema(fields), rows_in_file=count)


def find_tables(archive: ArchiveFolder, file: str = "", pattern: str | None = None) -> list[str]:
    """The table files of a root: the one that it is, or those in the folder, in order of their names.

    Raises `UserError` where there is none.
    """
    suffixes = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
    if file:
        if not file.lower().endswith(suffixes):
            raise UserError(
                f"{archive.described(file)} is not a table that can be read",
                f"read are {', '.join(suffixes)}",
            )
        return [file]
    root = archive.described()
    if pattern is not None and (pattern.startswith("/") or ".." in PurePosixPath(pattern).parts):
        raise UserError(
            f"tables: {pattern!r} leads out of {root}", "for example --set tables='reports-*.csv'"
        )
    files = [
        path
        for path in (archive.names() if pattern is None else archive.matching(pattern))
        if path.lower().endswith(suffixes) and not path.rpartition("/")[2].startswith((".", "_"))
    ]
    if not files:
        wanted = f"no table {pattern!r}" if pattern else "no CSV, TSV or Parquet table"
        raise UserError(f"{root} holds {wanted}", f"read are files that end in {', '.join(suffixes)}")
    return files


class _readable:  # noqa: N801 - reads as the condition it is
    """Turns what Arrow says of a file into one line: its own words may quote a report."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError) or kind is None:
            return
        if "UTF8" in str(error):
            raise UserError(f"{self._place} is not text in UTF-8") from None
        if isinstance(error, (*UNREADABLE, pa.ArrowException, MemoryError)):
            raise why_unreadable(self._place, error, "name it, for example --set encoding=latin-1") from None


def _drained(broken: list[BrokenRow]) -> Iterator[BrokenRow]:
    while broken:
        yield broken.pop(0)


def _refuse_repeated(place: str, names: Sequence[str]) -> None:
    repeated = [name for name in dict.fromkeys(names) if name and list(names).count(name) > 1]
    if repeated:
        raise UserError(f"{place} has more than one column {repeated[0]!r}")


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
