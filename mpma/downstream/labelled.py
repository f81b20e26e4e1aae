"""Labelled pairs as downstream tasks see them: a dataset directory, its truth, and subsets of patients.

Decisions:
- Truth is read column by column and only where a task asks for it; pictures are read last and in parts.
- A share of the labels is a share of the training patients, taken in an order that the seed and the
  patient's own hash decide: the subsets of one seed are nested, and neither the order of the rows nor
  another patient's presence moves anybody.
- Batches are drawn from counters as in pre-training, so a fit is a function of its seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mpma.data.counter_hash import counter_hash, text_hash
from mpma.data.dataset import Dataset
from mpma.data.pairs import model_text
from mpma.data.rows import encoded_images
from mpma.downstream.contract import NotPossible

Rows = NDArray[np.int64]

TEXT_COLUMNS: Final = ("report", "findings", "impression")

_NEVER_GROUPS: Final = ("pair_id", "patient_id", "study_id", "report", "findings", "impression")
"""Identifiers and texts: a value of theirs would be shown."""

_WINDOW_ROW_GROUPS: Final = 32
"""Row groups that are shuffled together where the images of a fit do not stay in memory."""


@dataclass(frozen=True)
class LabelledRows:
    """Labelled pairs of one split, in row order."""

    rows: Rows
    """[n]."""
    patients: NDArray[np.str_]
    """[n]: keyed hashes."""
    labels: NDArray[np.float64]
    """[n, L]: 1 or 0 by label name."""


class LabelledData:
    """A dataset opened for evaluation. Picklable."""

    def __init__(self, dataset: Dataset, split: str = "auto") -> None:
        """`split`: `auto`, `test` or `val`. Raises `NotPossible` where that split is empty."""
        self.dataset = dataset
        self.judged_split = self._choose_split(split)

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        return self.dataset.fingerprint

    @property
    def synthetic(self) -> bool:
        """Whether no patient is shown."""
        return self.dataset.info.synthetic

    @property
    def label_names(self) -> list[str]:
        """The label vocabulary, sorted."""
        return self.dataset.label_names

    @property
    def columns(self) -> list[str]:
        """Columns of the shards, from the footer of the first."""
        return list(self._schema.names)

    @cached_property
    def _schema(self) -> pa.Schema:
        for split in ("train", "val", "test"):
            if self.dataset.rows(split):
                return self.dataset.read_rows(split, [0]).schema
        return pa.schema([])

    def rows(self, split: str) -> int:
        """Pairs of a split."""
        return self.dataset.rows(split)

    def table(self, split: str, columns: Sequence[str], rows: Rows | None = None) -> pa.Table:
        """Columns of all rows of a split, or of some in the order asked for."""
        wanted = np.arange(self.rows(split)) if rows is None else rows
        return self.dataset.read_rows(split, wanted, list(columns))

    def patients(self, split: str, rows: Rows | None = None) -> NDArray[np.str_]:
        """Keyed hashes of patients."""
        return np.array(self.table(split, ["patient_id"], rows)["patient_id"].to_pylist(), dtype=np.str_)

    def labelled(self, split: str) -> LabelledRows:
        """All labelled pairs of a split; none where nothing is labelled."""
        names = {name: number for number, name in enumerate(self.label_names)}
        table = self.table(split, ["patient_id", "labels"])
        present = table["labels"].to_pylist()
        rows = np.array([row for row, found in enumerate(present) if found is not None], dtype=np.int64)
        labels = np.zeros((len(rows), len(names)))
        for place, row in enumerate(rows.tolist()):
            labels[place, [names[name] for name in present[row]]] = 1.0
        patients = np.array(table["patient_id"].to_pylist(), dtype=np.str_)
        return LabelledRows(rows, patients[rows] if len(rows) else patients[:0], labels)

    def texts(self, split: str, rows: Rows | None = None) -> list[str]:
        """What the model reads of each report; empty where a pair has none."""
        table = self.table(split, TEXT_COLUMNS, rows)
        columns = (table[name].to_pylist() for name in TEXT_COLUMNS)
        return [model_text(*text) for text in zip(*columns, strict=True)]

    def images(self, split: str, rows: Rows, column: str = "image") -> list[memoryview]:
        """Encoded images (or masks, none missing) of some rows, in the order asked for."""
        return encoded_images(self.table(split, [column], rows), column)

    def masks(self, split: str, rows: Rows, column: str = "mask") -> list[bytes | None]:
        """Encoded masks of some rows; None where a pair has none."""
        found: list[bytes | None] = self.table(split, [column], rows)[column].to_pylist()
        return found

    def questions(self, split: str) -> list[list[dict[str, Any]]]:
        """Questions of every row (`question`, `answers`, `type`); an empty list where there are none."""
        if "questions" not in self.columns:
            return [[] for _ in range(self.rows(split))]
        return [found or [] for found in self.table(split, ["questions"])["questions"].to_pylist()]

    def group_values(self, split: str, rows: Rows, column: str) -> list[str]:
        """A breakdown column as text, empty where a row has no value. Raises `NotPossible` where unknown."""
        known = [
            field.name for field in self._schema if field.name not in _NEVER_GROUPS and _is_scalar(field.type)
        ]
        if column not in known:
            raise NotPossible(
                f"breakdown: the data have no column {column!r} that may be shown and grouped by",
                f"one of {', '.join(known)}",
            )
        values = self.table(split, [column], rows)[column].to_pylist()
        return ["" if value is None else str(value) for value in values]

    def _choose_split(self, wanted: str) -> str:
        candidates = ("test", "val") if wanted == "auto" else (wanted,)
        for split in candidates:
            if self.rows(split):
                return split
        raise NotPossible(
            f"{self.dataset.path} has no pairs in its {' or '.join(candidates)} split",
            "ingest with a share for test, such as --split 0.7/0.1/0.2",
        )


def _is_scalar(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    return text or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def patients_within(patients: NDArray[np.str_], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Which of [n] pairs belong to the chosen share of patients: bool [n].

    ceil(fraction * patients) patients are taken, in the order of a hash of (seed, patient): for one seed
    a smaller fraction's pairs are among a larger one's. All pairs of a patient come together.
    """
    names = np.unique(patients)
    if fraction >= 1.0 or not len(names):
        return np.ones(len(patients), dtype=bool)
    draws = counter_hash(seed, "label fraction", np.array([text_hash(str(name)) for name in names]))
    order = np.argsort(draws, kind="stable")
    chosen = names[order[: math.ceil(fraction * len(names) - 1e-9)]]
    return np.isin(patients, chosen)


def fit_order(rows: Rows, row_group: NDArray[np.int64] | None, seed: int, epoch: int) -> NDArray[np.int64]:
    """Places [n] of the fitted rows in the order of an epoch: a permutation of 0..n-1.

    Without row groups all are shuffled together; with them, groups are shuffled and then the rows of
    `_WINDOW_ROW_GROUPS` neighbours, so that a batch touches few row groups.
    """
    inside = counter_hash(seed, "fit order", np.full(len(rows), epoch), rows)
    if row_group is None:
        return np.argsort(inside, kind="stable")
    groups = counter_hash(seed, "fit groups", np.full(len(rows), epoch), row_group)
    _, rank = np.unique(groups, return_inverse=True)
    return np.lexsort((inside, rank // _WINDOW_ROW_GROUPS))


class FitImages:
    """Encoded images (or masks) of the rows of one fit, kept in memory where they fit into a budget."""

    def __init__(
        self, data: LabelledData, split: str, rows: Rows, budget_bytes: int, column: str = "image"
    ) -> None:
        self.data, self.split, self.rows, self.column = data, split, rows, column
        self._kept: dict[int, bytes] | None = {}
        left = budget_bytes
        for start in range(0, len(rows), 1024):
            part = rows[start : start + 1024]
            for row, image in zip(part.tolist(), data.images(split, part, column), strict=True):
                left -= len(image)
                self._kept[row] = bytes(image)
            if left < 0:
                self._kept = None
                break

    @property
    def row_groups(self) -> NDArray[np.int64] | None:
        """Row group of each row where images are read again and again; None where they are kept."""
        if self._kept is not None:
            return None
        lengths = [n for shard in self.data.dataset.row_group_rows(self.split) for n in shard]
        return np.searchsorted(np.cumsum([0, *lengths]), self.rows, side="right") - 1

    def get(self, rows: Rows) -> Sequence[bytes | memoryview]:
        """Encoded images in the order asked for."""
        if self._kept is None:
            return self.data.images(self.split, rows, self.column)
        return [self._kept[row] for row in rows.tolist()]


def batches(count: int, batch_size: int, steps: int, order: Any) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(epoch, places [batch_size]) of each step; epochs run on inside a batch, none is ever short.

    `order(epoch)` gives a permutation of 0..count-1.
    """
    epoch, left = 0, order(0)
    for _ in range(steps):
        while len(left) < batch_size:
            epoch += 1
            left = np.concatenate([left, order(epoch)])
        yield epoch, left[:batch_size]
        left = left[batch_size:]
