"""What a read task does: row groups of the shards in, rows ready to be batched out.

Decisions: a request is a chunk (a row group, or the part of it that one lane owns) and a task answers
many, reading each row group once. The same function runs in Ray Data's tasks and, for the first
batches, in the training process. A damaged shard is answered by a row that says so rather than by an
exception, and a defect likewise: it costs no retries and prints no traceback in a worker's log. Torch
is imported only where the task makes crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mpma.data.dataset_info import ShardInfo
from mpma.data.rows import COLLATED_COLUMNS, PIXELS_COLUMN, encoded_images
from mpma.data.sample_order import Chunk, Rows
from mpma.data.shards import DAMAGED_HINT, read_row_groups
from mpma.data.storage import Storage
from mpma.errors import JobError, UserError
from orchestration.defects import hold_back_library_messages, told

if TYPE_CHECKING:
    from mpma.data.decoding import Cropper

PIECE_COLUMN: Final = "piece"
"""Number of the request that a row answers."""

FAILURE_COLUMN: Final = "failure"
HINT_COLUMN: Final = "hint"
JOB_COLUMN: Final = "job"
"""Whether the failure is none that the user can mend."""

_REQUESTS: Final = pa.schema(
    [
        (PIECE_COLUMN, pa.int64()),
        ("shard", pa.int64()),
        ("row_group", pa.int64()),
        ("row_group_rows", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("epoch", pa.int64()),
        ("position", pa.list_(pa.int64())),
    ]
)


class Piece(NamedTuple):
    """One chunk that a stream asks for."""

    number: int
    """Counts the stream's requests."""
    chunk: Chunk
    epoch: int
    need_step: int
    position: Rows | None
    """int64 [rows], in file order: positions in the sample order, where the crops are made by the task."""


@dataclass(frozen=True)
class Source:
    """Where a stream's rows come from and what a task does to them. Picklable."""

    storage: Storage
    shards: tuple[ShardInfo, ...]
    cropper: Cropper | None = None
    """Makes the training crops in the task; None leaves images encoded."""

    @classmethod
    def of(cls, storage: Storage, shards: Sequence[ShardInfo], cropper: Cropper | None) -> Source:
        """Without the row-group counts, which a task has no use for and an archive has many of."""
        slim = tuple(shard.model_copy(update={"row_group_rows": []}) for shard in shards)
        return cls(storage, slim, cropper)


def requests(pieces: Sequence[Piece]) -> pa.Table:
    """The requests of one task as a table."""
    columns = [
        [piece.number for piece in pieces],
        [piece.chunk.shard for piece in pieces],
        [piece.chunk.row_group for piece in pieces],
        [piece.chunk.row_group_rows for piece in pieces],
        [piece.chunk.start for piece in pieces],
        [piece.chunk.stop for piece in pieces],
        [piece.epoch for piece in pieces],
        [piece.position for piece in pieces],
    ]
    return pa.Table.from_arrays(
        [pa.array(values, field.type) for values, field in zip(columns, _REQUESTS, strict=True)],
        schema=_REQUESTS,
    )


def read_pieces(asked: pa.Table, source: Source) -> pa.Table:
    """The rows of the requested chunks, in the order asked for, with the column PIECE_COLUMN.

    Columns are COLLATED_COLUMNS; where the source has a cropper, PIXELS_COLUMN stands in for `image`.
    Raises `UserError` naming the shard where it is missing or damaged.
    """
    wanted = asked.to_pylist()
    groups = _row_groups(wanted, source)
    parts = []
    for request in wanted:
        rows = groups[request["shard"], request["row_group"]].slice(
            request["start"], request["stop"] - request["start"]
        )
        if source.cropper is not None:
            rows = _cropped(rows, source.cropper, request["epoch"], np.array(request["position"], np.int64))
        number = pa.array(np.full(len(rows), request[PIECE_COLUMN]))
        parts.append(rows.append_column(PIECE_COLUMN, number))
    return pa.concat_tables(parts)


def read_or_say_why(asked: pa.Table, source: Source) -> pa.Table:
    """`read_pieces` for a task: what goes wrong comes back as one row with message and hint."""
    hold_back_library_messages()
    try:
        return read_pieces(asked, source)
    except UserError as error:
        return _failure(error.message, error.hint or "", isinstance(error, JobError))
    except Exception as error:
        return _failure(f"a defect of this software: {told(error)}", "", True)


def raise_failure(block: pa.Table) -> None:
    """Raise what a task met instead of the rows it was asked for, if it met anything."""
    if FAILURE_COLUMN in block.column_names:
        row = block.to_pylist()[0]
        raise (JobError if row[JOB_COLUMN] else UserError)(row[FAILURE_COLUMN], row[HINT_COLUMN] or None)


def _failure(message: str, hint: str, job: bool) -> pa.Table:
    return pa.table({FAILURE_COLUMN: [message], HINT_COLUMN: [hint], JOB_COLUMN: [job]})


def _row_groups(wanted: list[dict[str, int]], source: Source) -> dict[tuple[int, int], pa.Table]:
    """Every row group that is asked for, each shard opened once."""
    groups: dict[tuple[int, int], pa.Table] = {}
    for shard in sorted({request["shard"] for request in wanted}):
        sizes = {
            request["row_group"]: request["row_group_rows"] for request in wanted if request["shard"] == shard
        }
        info = source.shards[shard]
        table = read_row_groups(source.storage, info, list(sizes), COLLATED_COLUMNS)
        if len(table) != sum(sizes.values()):
            raise UserError(
                f"{source.storage.described(info.path)} has other row groups than the dataset says",
                DAMAGED_HINT,
            )
        first = 0
        for number, size in sizes.items():
            groups[shard, number] = table.slice(first, size)
            first += size
    return groups


def _cropped(rows: pa.Table, cropper: Cropper, epoch: int, position: NDArray[np.int64]) -> pa.Table:
    crops = cropper(encoded_images(rows), np.full(len(rows), epoch), position, augment=True).numpy()
    kind = pa.binary(cropper.size * cropper.size)
    pixels = pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pa.py_buffer(crops)])
    return rows.drop_columns("image").append_column(PIXELS_COLUMN, pixels)
