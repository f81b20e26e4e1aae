"""Parquet shards: how pairs lie in a file, and how a part of a file is read.

Decisions: row groups of 64 pairs, so that any of them is a cheap random read; text compressed with
zstd, pixels not at all (they are JPEG or PNG already); pages carry checksums, so that a damaged one
is an error when it is read and not noise in a batch; a file's bytes depend on its rows alone. Readers
open the file for each read: a footer costs well under a millisecond, and nothing shared needs a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mpma.data.dataset_info import ShardInfo
from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA
from mpma.data.storage import HashingSink, Storage
from mpma.errors import UserError

ROW_GROUP_ROWS: Final = 64

DAMAGED_HINT: Final = "restore the file from a copy, or ingest the archive again with --overwrite"

_PIXEL_COLUMNS: Final = ("image", "mask")
_REPEATING_COLUMNS: Final = ("patient_id", "study_id", "view", "source", "license", "labels.list.element")


def shard_schema(extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """The pair's columns, then optional and extra ones in the order given.

    Raises `ValueError` where an extra column takes the name of a pair's own.
    """
    fields = list(extra)
    clash = {item.name for item in fields} & set(PAIR_SCHEMA.names)
    if clash:
        raise ValueError(f"extra columns named like the pair's own: {', '.join(sorted(clash))}")
    return pa.schema([*PAIR_SCHEMA, *(OPTIONAL_FIELDS.get(item.name, item) for item in fields)])


class ShardWriter:
    """Takes the pairs of one shard; made by `new_shard`. Memory: the rows of one row group."""

    def __init__(self, sink: HashingSink, name: str, schema: pa.Schema) -> None:
        leaves = _leaf_names(schema)
        self.info: ShardInfo | None = None
        """Set once the shard stands under its name."""
        self._name, self._schema, self._sink = name, schema, sink
        self._rows: list[Mapping[str, Any]] = []
        self._groups: list[int] = []
        self._writer = pq.ParquetWriter(
            sink,
            schema,
            compression={leaf: "NONE" if leaf in _PIXEL_COLUMNS else "ZSTD" for leaf in leaves},
            use_dictionary=[leaf for leaf in leaves if leaf in _REPEATING_COLUMNS],
            write_statistics=False,
            write_page_checksum=True,
        )

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one pair: a mapping with a value for every column of the schema."""
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
            self._groups.append(len(self._rows))
            self._rows = []

    def _close(self) -> None:
        self._flush()
        self._writer.close()

    def _abandon(self) -> None:
        # Else it would try to end its file when it is collected, after the sink was closed.
        with suppress(Exception):
            self._writer.close()
        self._writer.is_open = False

    def _finished(self) -> ShardInfo:
        return ShardInfo(
            path=self._name,
            rows=sum(self._groups),
            row_group_rows=self._groups,
            bytes=self._sink.tell(),
            sha256=self._sink.sha256,
        )


@contextmanager
def new_shard(storage: Storage, name: str, schema: pa.Schema) -> Iterator[ShardWriter]:
    """A writer whose shard appears under `name` when the block ends well, and never otherwise."""
    with storage.new_file(name) as sink:
        writer = ShardWriter(sink, name, schema)
        try:
            yield writer
            writer._close()
        except BaseException:
            writer._abandon()
            raise
    writer.info = writer._finished()


def encoded_length(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Bytes that a shard of these rows has, hashed as it would be and kept nowhere."""
    writer = ShardWriter(HashingSink(_Nowhere()), "", schema)
    for row in rows:
        writer.add(row)
    writer._close()
    return writer._finished().bytes


class _Nowhere:
    """Takes what is written and keeps nothing."""

    def write(self, data: Any) -> None: ...


def read_row_groups(
    storage: Storage, shard: ShardInfo, groups: Sequence[int], columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows of some row groups of a shard, in the order asked for; all columns when none are named.

    Raises `UserError` naming the shard where it is missing or damaged.
    """
    try:
        with pq.ParquetFile(
            storage.path(shard.path), filesystem=storage.filesystem, page_checksum_verification=True
        ) as file:
            # Threads would only fight the other readers of a training process.
            wanted = None if columns is None else list(columns)
            return file.read_row_groups(list(groups), columns=wanted, use_threads=False)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, IndexError) as error:
        # pyarrow's own message may quote content; the file's name says enough.
        raise UserError(
            f"{storage.described(shard.path)} cannot be read: missing or damaged", DAMAGED_HINT
        ) from error


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Parquet's names of the leaf columns of an Arrow schema, which its writer's options go by."""
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [leaves.column(index).path for index in range(len(leaves))]
