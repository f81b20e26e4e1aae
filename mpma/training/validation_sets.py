"""Which held-out pairs a model is judged on: the gallery, the probe's subsets, the blocks of visual gain.

Decisions:
- Everything is a function of the dataset, the sizes and `validation.seed`, never of training.seed, the
  model or the number of workers, so that all runs on a dataset are compared on the same pairs. The test
  split is laid out as the val split is, so that its figures mean the same.
- Gallery: one pair per patient, and reports that differ from each other as long as there are enough;
  only then patients with a repeated report fill it up.
- Row groups are visited in a shuffled order and whole, and only as many as are needed. So the cost
  follows the size of the sets and not that of the archive, pictures that are decoded later lie
  together on disk, and only identifiers, report text and labels are read here, never pictures. Where
  the val split has too few patients or distinct reports, its text columns are read to the end once.
- Visual gain exchanges pictures within blocks of 32 pairs, never between pairs of the same report, so
  each picture is encoded once, and the exchange does not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mpma.data.counter_hash import counter_hash, text_hash
from mpma.data.pairs import model_text
from mpma.data.quality import normalised_report
from mpma.errors import UserError
from mpma.metrics.probe import usable_labels
from mpma.training.config import ValidationConfig

GAIN_BLOCK: Final = 32
"""Pairs among which visual gain exchanges pictures."""

TEXT_COLUMNS: Final = ("report", "findings", "impression")

Rows = NDArray[np.int64]


class ValidationDataset(Protocol):
    """What is asked of a dataset here."""

    @property
    def label_names(self) -> Sequence[str]: ...

    def shards(self, split: str) -> Sequence[Any]:
        """Shards in row order, each with `row_group_rows`."""

    def read_rows(self, split: str, row_indices: Any, columns: Sequence[str]) -> pa.Table:
        """Rows of a split by number, in the order asked for."""


class GainBlock(NamedTuple):
    """Pairs that exchange pictures."""

    rows: Rows
    """int64 [n]: rows of the split."""
    partner: Rows
    """int64 [n]: place in the block whose picture each pair is also given."""


@dataclass(frozen=True)
class LabelledSet:
    """Labelled pairs of one split, in row order."""

    rows: Rows
    """int64 [n]."""
    patients: NDArray[np.str_]
    """[n]: keyed hashes of patients."""
    labels: NDArray[np.float64]
    """[n, L]: 1, 0, or NaN where the pair is not labelled."""


@dataclass(frozen=True)
class ValidationSets:
    """All rows that a validation touches. `gallery_rows` is ascending and `gallery_class` goes with it.

    `probe_train` is of the train split, the others of the split that is judged on.
    """

    gallery_rows: Rows
    gallery_class: Rows
    """int64 [N]: equal where the normalised reports are equal."""
    loss_rows: Rows
    gain_blocks: tuple[GainBlock, ...]
    probe_train: LabelledSet | None
    """None where no label has enough positives and negatives."""
    probe_val: LabelledSet | None


def choose_sets(dataset: ValidationDataset, config: ValidationConfig, split: str = "val") -> ValidationSets:
    """The sets of a dataset. Raises `UserError` where the split has fewer than two patients."""
    rows, classes = choose_gallery(dataset, config.gallery_size, config.seed, split)
    train, val = (
        choose_labelled(dataset, part, config.probe_train_pairs, config.seed) for part in ("train", split)
    )
    probed = bool(usable_labels(train.labels, val.labels)[0])
    order = np.argsort(rows)
    return ValidationSets(
        gallery_rows=rows[order],
        gallery_class=classes[order],
        loss_rows=rows[: config.loss_pairs],
        gain_blocks=gain_blocks(rows[: config.visual_gain_pairs], classes[: config.visual_gain_pairs]),
        probe_train=train if probed else None,
        probe_val=val if probed else None,
    )


def choose_gallery(dataset: ValidationDataset, size: int, seed: int, split: str = "val") -> tuple[Rows, Rows]:
    """At most `size` rows of the split in the order of their choice, and their report hashes.

    Raises `UserError` where there are fewer than two patients.
    """
    chosen: dict[str, tuple[int, int]] = {}
    repeated: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for row, patient, report in _reports(dataset, split, seed):
        if patient in chosen:
            continue
        if report in seen:
            repeated.setdefault(patient, (row, report))
            continue
        chosen[patient] = (row, report)
        repeated.pop(patient, None)
        seen.add(report)
        if len(chosen) == size:
            break
    picked = [*chosen.values(), *repeated.values()][:size]
    if len(picked) < 2:
        raise UserError(
            f"validation needs at least 2 patients in the {split} split; "
            f"this dataset has {len(picked)} there",
            f"ingest more pairs, or with a larger share for {split} (--split)",
        )
    rows, classes = np.array(picked, dtype=np.int64).T
    return rows.copy(), classes.copy()


def _reports(dataset: ValidationDataset, split: str, seed: int) -> Iterator[tuple[int, str, int]]:
    """(row, patient, report hash) of a split, in a shuffled order of row groups."""
    for rows, table in _shuffled_row_groups(dataset, split, ("patient_id", *TEXT_COLUMNS), seed):
        texts = zip(*(table[name].to_pylist() for name in TEXT_COLUMNS), strict=True)
        for row, patient, text in zip(rows.tolist(), table["patient_id"].to_pylist(), texts, strict=True):
            yield row, patient, text_hash(normalised_report(model_text(*text)))


def choose_labelled(dataset: ValidationDataset, split: str, at_most: int, seed: int) -> LabelledSet:
    """Labelled rows of a split, at most so many; empty where nothing is labelled."""
    names = list(dataset.label_names)
    column = {name: number for number, name in enumerate(names)}
    rows: list[int] = []
    patients: list[str] = []
    labels: list[NDArray[np.float64]] = []
    if names:
        for group, table in _shuffled_row_groups(dataset, split, ("patient_id", "labels"), seed):
            found = zip(
                group.tolist(), table["patient_id"].to_pylist(), table["labels"].to_pylist(), strict=True
            )
            for row, patient, present in found:
                if present is not None and len(rows) < at_most:
                    values = np.zeros(len(names))
                    values[[column[name] for name in present]] = 1.0
                    rows.append(row)
                    patients.append(patient)
                    labels.append(values)
            if len(rows) == at_most:
                break
    order = np.argsort(np.array(rows, dtype=np.int64))
    return LabelledSet(
        np.array(rows, dtype=np.int64)[order],
        np.array(patients, dtype=np.str_)[order],
        np.array(labels, dtype=np.float64).reshape(len(rows), len(names))[order],
    )


def _shuffled_row_groups(
    dataset: ValidationDataset, split: str, columns: Sequence[str], seed: int
) -> Iterator[tuple[Rows, pa.Table]]:
    """Row numbers and columns of a split's row groups, both groups and the rows inside shuffled."""
    lengths = [length for shard in dataset.shards(split) for length in shard.row_group_rows]
    starts = np.cumsum([0, *lengths])
    for group in np.argsort(counter_hash(seed, "validation row groups", np.arange(len(lengths)))):
        rows = np.arange(starts[group], starts[group + 1], dtype=np.int64)
        table = dataset.read_rows(split, rows, columns)
        inside = np.argsort(counter_hash(seed, "validation rows", rows))
        yield rows[inside], table.take(pa.array(inside))


def gain_blocks(rows: Rows, classes: Rows) -> tuple[GainBlock, ...]:
    """Blocks of at most GAIN_BLOCK pairs with their partners; pairs that cannot have one are left out."""
    blocks = []
    for start in range(0, len(rows), GAIN_BLOCK):
        kept, partner = derangement(classes[start : start + GAIN_BLOCK])
        if len(kept):
            blocks.append(GainBlock(rows[start : start + GAIN_BLOCK][kept], partner))
    return tuple(blocks)


def derangement(classes: Rows) -> tuple[Rows, Rows]:
    """A partner of another class for every pair, each serving once.

    classes int64 [n] -> (kept int64 [m]: pairs that take part, partner int64 [m]: places among the kept).
    Pairs of one class that outnumber all others together cannot all have a partner: the surplus is
    left out. Sorted by class, the pairs m places on are of another class, m being the largest class.
    """
    _, inverse, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    largest = int(sizes.argmax())
    surplus = max(0, 2 * int(sizes[largest]) - len(classes))
    members = np.flatnonzero(inverse == largest)
    kept = np.setdiff1d(np.arange(len(classes)), members[len(members) - surplus :])
    if len(kept) < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    order = np.argsort(inverse[kept], kind="stable")
    shift = min(int(sizes[largest]), len(classes) - int(sizes[largest]))
    partner = np.empty(len(kept), dtype=np.int64)
    partner[order] = np.roll(order, -max(1, shift))
    return kept.astype(np.int64), partner
