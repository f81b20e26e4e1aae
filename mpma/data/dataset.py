"""A finished dataset directory, opened for reading.

Decisions: without a valid `dataset.json` nothing is readable; opening compares every shard's length
with the marker's (cheap: one listing), `verify` compares hashes (reads everything); rows are named by
their number in the split, shards in order, and reading some of them touches only the row groups that
hold them. A `Dataset` holds no open file, so it is picklable and threads may share it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from mpma.data.dataset_info import (
    MARKER,
    TOKENIZER_FILE,
    DatasetInfo,
    FileInfo,
    ShardInfo,
    parse_dataset_info,
)
from mpma.data.pairs import SPLITS
from mpma.data.shards import DAMAGED_HINT, read_row_groups
from mpma.data.storage import Storage, open_storage
from mpma.data.tokenizer import ReportTokenizer
from mpma.errors import UserError


class Dataset:
    """Pairs in three splits, with everything `dataset.json` says about them.

    Example:
        >>> dataset = Dataset.open("datasets/openi")
        >>> dataset.read_rows("train", [0, 5], columns=["report"]).column("report")
    """

    def __init__(self, storage: Storage, info: DatasetInfo) -> None:
        self.storage = storage
        self.info = info
        self._first_rows = {
            split: np.cumsum([0, *itertools.chain.from_iterable(self.row_group_rows(split))])
            for split in SPLITS
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str], filesystem: pafs.FileSystem | None = None) -> Dataset:
        """Open a dataset at a local path or URI and check that it is whole.

        Raises `UserError`, one line, where there is no dataset, where it is unfinished or of another
        schema version, and where a shard is missing or has another length than the marker says.
        """
        storage = open_storage(path, filesystem)
        try:
            data = storage.read(MARKER)
        except OSError as error:
            raise _no_dataset(storage) from error
        dataset = cls(storage, parse_dataset_info(data, storage.described(MARKER)))
        dataset._check_lengths()
        return dataset

    @property
    def path(self) -> str:
        """As the user wrote it."""
        return self.storage.location

    @property
    def filesystem(self) -> pafs.FileSystem:
        """Where the files are; `storage.path(name)` is the path of one on it."""
        return self.storage.filesystem

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        return self.info.fingerprint

    @property
    def grey_mean(self) -> float:
        """Mean of the training split's pixels, scaled 0..1."""
        return self.info.images.grey_mean

    @property
    def grey_std(self) -> float:
        """Standard deviation of the training split's pixels, scaled 0..1."""
        return self.info.images.grey_deviation

    @property
    def label_names(self) -> list[str]:
        """The label vocabulary, sorted."""
        return self.info.labels

    def tokenizer(self) -> ReportTokenizer:
        """The tokeniser trained on this dataset's training split."""
        name = self.storage.described(TOKENIZER_FILE)
        try:
            return ReportTokenizer(self.storage.read(TOKENIZER_FILE), name)
        except OSError as error:
            raise UserError(f"{name} cannot be read: missing or damaged", DAMAGED_HINT) from error

    def require_reports(self) -> None:
        """Raises `UserError` where the pairs of train or val have no report at all: a labelled set."""
        for split in ("train", "val"):
            if self.rows(split) and self.info.splits[split].reports == 0:
                raise UserError(
                    f"{self.path}: no pair of its {split} split has a report, and pre-training needs both",
                    "a labelled set without reports serves evaluation; pre-train on pairs: --data DIRECTORY",
                )

    def shards(self, split: str) -> list[ShardInfo]:
        """The split's files in row order."""
        return self.info.splits[split].shards

    def rows(self, split: str) -> int:
        """Pairs of a split."""
        return self.info.splits[split].pairs

    def row_group_rows(self, split: str) -> list[list[int]]:
        """Rows of each row group of each shard."""
        return [shard.row_group_rows for shard in self.shards(split)]

    def read_row_groups(
        self, split: str, shard: int, groups: Sequence[int], columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows of some row groups of one shard, in the order asked for.

        Raises `UserError` naming the shard where it cannot be read.
        """
        return read_row_groups(self.storage, self.shards(split)[shard], groups, columns)

    def read_rows(
        self, split: str, row_indices: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows by their number in the split, in the order asked for, repeats allowed.

        Reads each row group that holds one of them once. Raises `IndexError` outside the split,
        `UserError` naming the shard where one cannot be read.
        """
        wanted = np.asarray(row_indices, dtype=np.int64).reshape(-1)
        first = self._first_rows[split]
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= first[-1]):
            raise IndexError(
                f"row {wanted.min()} or {wanted.max()} is outside the {first[-1]} rows of {split}"
            )
        if not len(wanted):
            return self.schema(columns).empty_table()
        group_of_row = np.searchsorted(first, wanted, side="right") - 1
        groups, position = np.unique(group_of_row, return_inverse=True)
        group_count = [len(shard.row_group_rows) for shard in self.shards(split)]
        first_group = np.cumsum([0, *group_count])
        shard_of_group = np.searchsorted(first_group, groups, side="right") - 1
        tables = []
        for shard in np.unique(shard_of_group):
            inside = groups[shard_of_group == shard] - first_group[shard]
            tables.append(self.read_row_groups(split, int(shard), inside.tolist(), columns))
        # Where each group that was read begins in the concatenation.
        begins = np.cumsum([0, *(first[groups + 1] - first[groups])])[:-1]
        return pa.concat_tables(tables).take(pa.array(begins[position] + wanted - first[group_of_row]))

    def schema(self, columns: Sequence[str] | None = None) -> pa.Schema:
        """Arrow schema of the rows."""
        split = next(name for name in SPLITS if self.shards(name))
        return self.read_row_groups(split, 0, [], columns).schema

    def verify(self) -> None:
        """Read every file and compare its hash with the marker's.

        Raises `UserError` naming the first file that differs.
        """
        for name, sha256 in ((file.path, file.sha256) for file in self._files()):
            try:
                found = self.storage.hash_file(name)
            except OSError as error:
                raise UserError(f"{self.storage.described(name)} cannot be read", DAMAGED_HINT) from error
            if found != sha256:
                raise UserError(
                    f"{self.storage.described(name)} is damaged: its hash is not the marker's", DAMAGED_HINT
                )

    def _files(self) -> list[FileInfo]:
        shards = itertools.chain.from_iterable(map(self.shards, SPLITS))
        named = [] if self.info.quality is None else [self.info.quality.near_duplicates]
        return [*shards, self.info.tokenizer, self.info.quarantine, *named]

    def _check_lengths(self) -> None:
        found = self.storage.sizes()
        for name, length in ((file.path, file.bytes) for file in self._files()):
            if name not in found:
                raise UserError(f"{self.storage.described(name)} is missing", DAMAGED_HINT)
            if found[name] != length:
                raise UserError(
                    f"{self.storage.described(name)} is torn: {found[name]} bytes, not {length}",
                    DAMAGED_HINT,
                )


def _no_dataset(storage: Storage) -> UserError:
    if not storage.exists():
        return UserError(
            f"{storage.described()}: no dataset there",
            "make one with `python -m orchestration.ingest SOURCE ROOT --out DIRECTORY`",
        )
    return UserError(
        f"{storage.described()} is not a finished dataset: it has no {MARKER}",
        "if an ingest was interrupted here, run the same command again; it goes on where it stopped",
    )
