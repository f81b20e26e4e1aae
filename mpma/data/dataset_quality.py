"""What is told about a whole dataset: what stands in it twice, and how its splits differ.

Decisions: nothing is refused for it. Templates ("normal chest") are legitimate reports of many patients, and
which of two copies of a picture is right only the user can know; so pairs are counted in the marker, named in
`near_duplicates.parquet`, and kept. That file names every group of pictures, but of reports only the groups
that cross splits. Identifiers are read back from the shards, and of the rows in question alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mpma.data.dataset_info import ShardInfo
from mpma.data.drift import NUMERIC, drift, histogram, numeric_counts
from mpma.data.file_info import FileInfo
from mpma.data.near_duplicates import Groups, equal_groups, picture_groups
from mpma.data.pair_marks import MARK_WORDS, PATIENT, REPORT, Marks, read_marks
from mpma.data.pairs import SPLITS
from mpma.data.picture_signs import WORDS, has_signs
from mpma.data.quality_info import NEAR_DUPLICATES_FILE, GroupsInfo, QualityInfo
from mpma.data.shards import read_row_groups
from mpma.data.statistics import PairStatistics
from mpma.data.storage import Storage

NEAR_DUPLICATES_SCHEMA: Final = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("group", pa.int64(), nullable=False),
        pa.field("relation", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
    ]
)
"""`kind`: `picture` or `report`; `relation`: `one_patient`, `across_patients` or `across_splits`."""

_RELATIONS: Final = ("one_patient", "across_patients", "across_splits")


@dataclass(frozen=True)
class MarkedShard:
    """A shard with the marks of its rows, as bytes; without any where they were not taken."""

    split: str
    shard: ShardInfo
    marks: bytes


def dataset_quality(
    storage: Storage,
    shards: Sequence[MarkedShard],
    statistics: Mapping[str, PairStatistics],
    drift_effect: float,
) -> QualityInfo:
    """Compare all pairs, write `near_duplicates.parquet`, and say what was found.

    Args:
        shards: of all splits, in row order within each.
        statistics: by split.
        drift_effect: effects above it are marked.
    """
    marks = _all_marks(shards)
    splits = np.repeat(
        [SPLITS.index(one.split) for one in shards], [one.shard.rows for one in shards]
    ).astype(np.int64)
    tables, pictures, reports, by_bytes = [], None, None, 0
    if marks is not None:
        by_bytes = int((~has_signs(marks[:, :WORDS])).sum())
        groups = picture_groups(marks[:, :WORDS])
        pictures, relation = _told(groups, marks[:, PATIENT], splits)
        tables.append(_named(storage, shards, splits, "picture", groups, relation, relation >= 0))
        groups = equal_groups(marks[:, REPORT])
        silent = marks[:, REPORT] == 0
        groups[silent] = np.flatnonzero(silent)
        reports, relation = _told(groups, marks[:, PATIENT], splits)
        crossing = relation == _RELATIONS.index("across_splits")
        tables.append(_named(storage, shards, splits, "report", groups, relation, crossing))
    histograms = {
        name: histogram({split: numeric_counts(statistics[split], name) for split in SPLITS})
        for name in NUMERIC
    }
    return QualityInfo(
        near_duplicates=_write(storage, tables),
        pictures=pictures,
        pictures_by_bytes=by_bytes,
        reports=reports,
        histograms={name: found for name, found in histograms.items() if found is not None},
        views={split: dict(sorted(statistics[split].views.items())) for split in SPLITS},
        drift=drift(statistics, drift_effect),
        drift_effect=drift_effect,
    )


def _all_marks(shards: Sequence[MarkedShard]) -> Marks | None:
    """Marks of all rows; None where a part has none."""
    found = np.empty((sum(one.shard.rows for one in shards), MARK_WORDS), dtype=np.uint64)
    first = 0
    for one in shards:
        marks = read_marks(one.marks)
        if len(marks) != one.shard.rows:
            return None
        found[first : first + len(marks)] = marks
        first += len(marks)
    return found


def _told(
    groups: Groups, patients: NDArray[np.uint64], splits: NDArray[np.int64]
) -> tuple[GroupsInfo, NDArray[np.int64]]:
    """Counts over groups of two or more, and each row's place in `_RELATIONS` (-1: alone)."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # How many patients and splits a group has: distinct combinations, counted by group.
    _, patient = np.unique(patients, return_inverse=True)
    several_patients = _distinct(group, patient, len(sizes)) > 1
    several_splits = _distinct(group, splits, len(sizes)) > 1
    relation = np.where(several_splits, 2, np.where(several_patients, 1, 0))
    relation[sizes < 2] = -1
    count = [int((relation == place).sum()) for place in range(len(_RELATIONS))]
    in_train = np.zeros(len(sizes), dtype=bool)
    in_train[group[splits == 0]] = True
    shared = in_train[group]
    return (
        GroupsInfo(
            groups=sum(count),
            pairs=int(sizes[sizes > 1].sum()),
            one_patient=int(((sizes > 1) & ~several_patients).sum()),
            across_patients=int(((sizes > 1) & several_patients).sum()),
            across_splits=count[2],
            held_out={
                split: int((shared & (splits == place)).sum())
                for place, split in enumerate(SPLITS)
                if split != "train"
            },
        ),
        relation[group],
    )


def _distinct(group: NDArray[np.int64], value: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """Distinct values [groups] of each group."""
    together = np.unique(group * (int(value.max(initial=0)) + 1) + value)
    return np.bincount(together // (int(value.max(initial=0)) + 1), minlength=groups)


def _named(
    storage: Storage,
    shards: Sequence[MarkedShard],
    splits: NDArray[np.int64],
    kind: str,
    groups: Groups,
    relation: NDArray[np.int64],
    wanted: NDArray[np.bool_],
) -> pa.Table:
    """The wanted rows with their identifiers, group by group."""
    rows = np.flatnonzero(wanted)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    if not len(rows):
        return NEAR_DUPLICATES_SCHEMA.empty_table()
    identifiers = _identifiers(storage, shards, rows)
    return pa.table(
        [
            pa.repeat(kind, len(rows)),
            pa.array(np.unique(groups[rows], return_inverse=True)[1]),
            pa.array([_RELATIONS[place] for place in relation[rows]]),
            pa.array([SPLITS[place] for place in splits[rows]]),
            identifiers.column("pair_id").combine_chunks(),
            identifiers.column("patient_id").combine_chunks(),
        ],
        schema=NEAR_DUPLICATES_SCHEMA,
    )


def _identifiers(storage: Storage, shards: Sequence[MarkedShard], rows: NDArray[np.int64]) -> pa.Table:
    """`pair_id` and `patient_id` of rows counted over all shards, in the order asked for."""
    ordered, place = np.unique(rows, return_inverse=True)
    parts, first = [], 0
    for one in shards:
        inside = ordered[(ordered >= first) & (ordered < first + one.shard.rows)] - first
        first += one.shard.rows
        if not len(inside):
            continue
        begins = np.cumsum([0, *one.shard.row_group_rows])
        of_row = np.searchsorted(begins, inside, side="right") - 1
        read = np.unique(of_row)
        table = read_row_groups(storage, one.shard, read.tolist(), ["pair_id", "patient_id"])
        # Where each row group that was read begins in the table.
        starts = np.cumsum([0, *np.asarray(one.shard.row_group_rows)[read]])[:-1]
        at = starts[np.searchsorted(read, of_row)] + inside - begins[of_row]
        parts.append(table.take(pa.array(at)))
    return pa.concat_tables(parts).take(pa.array(place))


def _write(storage: Storage, tables: Sequence[pa.Table]) -> FileInfo:
    with storage.new_file(NEAR_DUPLICATES_FILE) as sink:
        table = pa.concat_tables([NEAR_DUPLICATES_SCHEMA.empty_table(), *tables])
        pq.write_table(table, sink, compression="zstd")
    return FileInfo(path=NEAR_DUPLICATES_FILE, bytes=sink.tell(), sha256=sink.sha256)
