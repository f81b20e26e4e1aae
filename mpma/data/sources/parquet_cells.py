"""Single cells of Parquet tables: the images and masks that are embedded in their rows.

Decisions: a reader walks its row group in small steps and stays open for the next row, so that rows asked for
in order are decoded once and a row group of any size costs the memory of a few rows. Each thread has one per
column of the table it read last. What a reader holds belongs to the file as it was when its rows were listed;
no cell costs a look at whether it changed, which in a bucket would be a request for every image. Rows behind
a damaged page are refused without another look, which would walk to it again for each.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mpma.data.sources.archive import READ_AHEAD_BYTES, ArchiveFolder

_ROWS: Final = 16
_DAMAGED: Final = (pa.ArrowException, OSError, StopIteration, MemoryError)
_THREAD = threading.local()


def open_parquet(archive: ArchiveFolder, file: str, buffer_size: int = 0) -> pq.ParquetFile:
    """A Parquet file of an archive. Raises as Arrow does.

    `buffer_size` is how many bytes are read ahead; 0 for the columns of a row group at once.
    """
    return pq.ParquetFile(
        archive.path(file),
        filesystem=archive.filesystem,
        buffer_size=buffer_size,
        pre_buffer=buffer_size == 0,
    )


def read_cell(
    archive: ArchiveFolder, file: str, version: tuple[int, int], column: str, row_group: int, row: int
) -> bytes | None:
    """The binary cell of one row; None where it is null.

    Args:
        file: the table's path in the archive.
        version: what tells this file from another one at its place.
        column: Parquet's name of it, such as `image` or `image.bytes`.
        row: counted from the beginning of the row group.

    Raises `OSError` where the file has no such row or cannot be read, FileNotFoundError where it is gone.
    """
    key = (archive.location, archive.root, file, version, row_group)
    cursors: dict[str, _Cursor] = _THREAD.__dict__.setdefault("cursors", {})
    if any(cursor.key != key for cursor in cursors.values()):
        cursors.clear()
    try:
        if column not in cursors or row < cursors[column].first:
            parquet = open_parquet(archive, file, READ_AHEAD_BYTES)
            cursors[column] = _Cursor(key, parquet, row_group, column)
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        raise OSError(f"the table cannot be read ({type(error).__name__})") from None
    return cursors[column].cell(row)


class _Cursor:
    def __init__(self, key: tuple[Any, ...], parquet: pq.ParquetFile, row_group: int, column: str) -> None:
        self.key = key
        self._batches = parquet.iter_batches(_ROWS, row_groups=[row_group], columns=[column])
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
