"""The rows of joined datasets: those of a dataset as they stand, those of an archive as an ingest makes them.

Decisions: a stored row keeps every value to the byte, save an id that was told apart; columns that its
dataset did not have are null. Each row group is read once for the run of rows that come from it, so
memory is that of one row group. An image is decoded for the grey statistics alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mpma.data.dataset_writing import Row
from mpma.data.images import HIGHEST_MAX_PIXELS, read_grey
from mpma.data.joining import ROW_OF_DATASET, JoinedDatasets
from mpma.data.pair_rows import PartMaker, make_row
from mpma.data.reading_ahead import reading_ahead
from mpma.data.shards import shard_schema
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.errors import UserError


@dataclass(frozen=True)
class JoinedPartMaker(PartMaker):
    """Makes the parts of a dataset that takes others over; `source` is the archive that is added."""

    joined: JoinedDatasets

    def extra_schema(self) -> pa.Schema:
        """The extra columns of all members."""
        return self.joined.schema

    def rows(self, items: Iterable[Item]) -> Iterator[Row | Rejection]:
        """A row or a refusal for each item, in order.

        Raises `UserError` naming the shard where a dataset's row cannot be read.
        """
        schema = self.extra_schema()
        stored = _StoredRows(self.joined, shard_schema(schema).names)
        listed = list(items)
        with reading_ahead(self.source, [item for item in listed if not _is_stored(item)]) as source:
            for item in listed:
                if _is_stored(item):
                    yield stored.row(item)
                else:
                    yield make_row(item, source, self.options, schema)


def _is_stored(item: Item) -> bool:
    return ROW_OF_DATASET in item.locator


class _StoredRows:
    """Rows of finished datasets by their place; keeps the row group that was asked for last."""

    def __init__(self, joined: JoinedDatasets, columns: list[str]) -> None:
        self._joined, self._columns = joined, columns
        self._place: tuple[Any, ...] = ()
        self._rows: list[dict[str, Any]] = []

    def row(self, item: Item) -> Row:
        number, shard, group, row = item.locator[ROW_OF_DATASET]
        dataset, split = self._joined.datasets[number], str(item.split)
        if (number, split, shard, group) != self._place:
            self._rows = dataset.read_row_groups(split, shard, [group]).to_pylist()
            self._place = (number, split, shard, group)
        values = self._rows[row]
        try:
            # Whatever limit it came in under: it was accepted then.
            pixels = read_grey(values["image"], HIGHEST_MAX_PIXELS)
        except UnreadableImage as error:
            name = dataset.storage.described(dataset.shards(split)[shard].path)
            raise UserError(
                f"{name} holds an image that does not decode ({error.reason})",
                f"python -m orchestration.ingest --verify {dataset.storage.described()} names every such row",
            ) from error
        return {
            **{name: values.get(name) for name in self._columns},
            "pair_id": item.stored_id or item.pair_id,
        }, pixels
