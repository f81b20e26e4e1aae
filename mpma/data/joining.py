"""Datasets joined, and an archive added to them: what the new dataset is to hold.

Decisions: members are listed in the order in which they were named, the archive last, and whoever comes
first wins. The first member that lists a patient fixes the patient's split; a later row that is given
another one is refused by itself (`patient_in_two_splits`), so that nobody who is there moves. Two rows are
the same pair where source and stored id are equal, and then the later one is refused (`duplicate_id`); a
pair whose id another source has taken is stored as `source:id`, since many archives count from 1 and a pair
must not be lost for that. What a dataset has stored was judged when it came in, so rows are taken over as
they are: no threshold is asked again, no pixel encoded again, no patient hashed again. Listing reads three
short columns; texts and images are read by the tasks that write the new shards. Shards are written anew
rather than copied: the grey statistics need every image decoded in any case, and schemas may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mpma.data.dataset import Dataset
from mpma.data.dataset_info import QUARANTINE_FILE, TOKENIZER_FILE
from mpma.data.hashing import key_name
from mpma.data.history import Origin
from mpma.data.ingest_plan import (
    IngestOptions,
    IngestPlan,
    can_be_judged,
    conditions,
    hashed_item,
    hashes_pair_ids,
    plan_entries,
)
from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA, SPLITS
from mpma.data.shards import DAMAGED_HINT
from mpma.data.sources.contract import Item, Rejection, Source
from mpma.errors import UserError

ROW_OF_DATASET: Final = "row of dataset"
"""Key of a listed row's locator: number of the dataset, of its shard, of the row group, of the row in it."""

_LISTED_COLUMNS: Final = ("pair_id", "patient_id", "source")
_GROUPS_AT_ONCE: Final = 64


class NoArchive:
    """The source of a merge: it lists nothing."""

    name = "merge"
    reports_expected = False

    def assumptions(self) -> list[str]:
        return []

    def items(self) -> list[Item | Rejection]:
        return []

    def extra_schema(self) -> pa.Schema:
        return pa.schema([])

    def load_image(self, item: Item) -> bytes:
        raise FileNotFoundError

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class JoinedDatasets:
    """Finished datasets in order, and the archive that is added to them. Made by `join`; picklable."""

    datasets: tuple[Dataset, ...]
    archive: Source
    schema: pa.Schema
    """The extra columns of all of them."""
    keep_tokenizer: bool

    @property
    def key_name(self) -> str:
        """Of the one key that names the patients of all."""
        return self.datasets[0].info.key_name

    @property
    def synthetic(self) -> bool:
        """Whether all pairs were generated."""
        return self.datasets[0].info.synthetic

    @property
    def rows(self) -> int:
        """Pairs of the datasets."""
        return sum(dataset.rows(split) for dataset in self.datasets for split in SPLITS)

    def plan(
        self, options: IngestOptions, key: bytes | None, listed: Callable[[int], None] | None = None
    ) -> IngestPlan:
        """List everything and cut the work, as `mpma.data.ingest_plan.plan_ingest` does.

        Args:
            options: for the archive's pairs.
            key: by which the archive's patients are hashed; None where there is no archive.

        Raises `UserError` where the archive or a dataset cannot be read.
        """
        options = options.model_copy(update={"hash_pair_ids": hashes_pair_ids(self.archive, options)})
        parents = [(item.fingerprint, item.info.quarantine.sha256) for item in self.datasets]
        known = repr((parents, self.keep_tokenizer, conditions(self.archive, options, self.key_name)))
        return plan_entries(self._entries(key, bool(options.hash_pair_ids)), options, known, listed)

    def tokenizer(self) -> bytes | None:
        """The first dataset's tokeniser where it is kept, else None.

        Raises `UserError` where its file cannot be read.
        """
        if not self.keep_tokenizer:
            return None
        self.datasets[0].tokenizer()
        return self.datasets[0].storage.read(TOKENIZER_FILE)

    def origin(self) -> Origin:
        """What the new dataset's history tells, and what the old ones had refused."""
        merge = isinstance(self.archive, NoArchive)
        return Origin(
            "merge" if merge else "onto",
            None if merge else self.archive.name,
            tuple(dataset.info for dataset in self.datasets),
            tuple(refused for dataset in self.datasets for refused in quarantined(dataset)),
        )

    def _entries(self, key: bytes | None, hash_pair_ids: bool) -> Iterator[Item | Rejection]:
        split_of: dict[str, str] = {}
        owner_of: dict[str, str] = {}
        for number, dataset in enumerate(self.datasets):
            for item in _listed(dataset, number):
                assert item.split is not None
                if split_of.setdefault(item.patient_id, item.split) == item.split:
                    yield _told_apart(item, item.source, owner_of)
                else:
                    yield Rejection(item.path, item.pair_id, "patient_in_two_splits", item.split)
        if key is None:
            return
        for entry in self.archive.items():
            if isinstance(entry, Rejection):
                yield entry
                continue
            item = hashed_item(entry, key, hash_pair_ids)
            known = split_of.get(item.patient_id)
            if not can_be_judged(item):
                yield item
            elif known is None or item.split in (None, known):
                yield _told_apart(item, item.source or self.archive.name, owner_of)
            else:
                detail = f"given {item.split}, the dataset has {known}"
                yield Rejection(item.path, item.pair_id, "patient_in_two_splits", detail)


def join(
    datasets: Sequence[Dataset],
    archive: Source | None = None,
    *,
    key: bytes | None = None,
    synthetic: bool = False,
    keep_tokenizer: bool = False,
) -> JoinedDatasets:
    """Datasets, and an archive where one is given, that may stand in one dataset.

    Args:
        datasets: at least one.
        archive: what is added; None merges the datasets alone.
        key: by which the archive's patients will be hashed.
        synthetic: whether the archive's pairs are generated.
        keep_tokenizer: take over the first dataset's tokeniser instead of training one.

    Raises `UserError`, one line, where patients are named by different keys, where generated pairs would
    mix with real ones, or where a column has two types.
    """
    known = [(item.storage.described(), item.info.synthetic, item.info.key_name) for item in datasets]
    first, first_synthetic, first_key = known[0]
    if archive is not None and key is not None:
        known.append((archive.name, synthetic, key_name(key)))
    for name, generated, named_by in known:
        if generated != first_synthetic:
            one, other = (name, first) if generated else (first, name)
            raise UserError(
                f"{one} is synthetic and {other} is real: they do not go into one dataset",
                "keep generated pairs in a dataset of their own",
            )
        if named_by != first_key:
            raise UserError(
                f"key_name differs: {first} has {first_key}, {name} has {named_by}; patients cannot be "
                "recognised",
                "ingest them with one --key-file",
            )
    schemas = [(dataset.storage.described(), dataset.schema()) for dataset in datasets]
    if archive is not None:
        schemas.append((archive.name, archive.extra_schema()))
    return JoinedDatasets(tuple(datasets), archive or NoArchive(), joined_schema(schemas), keep_tokenizer)


def joined_schema(members: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """The extra columns of all members, each once, in the order in which they are met.

    Raises `UserError` naming the column and both members where its types differ.
    """
    found: dict[str, tuple[str, pa.DataType]] = {}
    for name, schema in members:
        for field in schema:
            if field.name in PAIR_SCHEMA.names:
                continue
            before = found.setdefault(field.name, (name, field.type))
            if before[1] == field.type or pa.types.is_null(field.type):
                continue
            if not pa.types.is_null(before[1]):
                raise UserError(
                    f"column {field.name} is {before[1]} in {before[0]} and {field.type} in {name}",
                    "ingest one of them again with the column renamed or of the other's type",
                )
            # A column without any value takes the type of one that has some.
            found[field.name] = (name, field.type)
    return pa.schema([OPTIONAL_FIELDS.get(name, pa.field(name, kind)) for name, (_, kind) in found.items()])


def quarantined(dataset: Dataset) -> list[Rejection]:
    """What a dataset's ingest had refused. Raises `UserError` where the file cannot be read."""
    storage = dataset.storage
    try:
        table = pq.read_table(storage.path(QUARANTINE_FILE), filesystem=storage.filesystem)
        return [Rejection(**row) for row in table.to_pylist()]
    except (OSError, pa.ArrowInvalid, TypeError) as error:
        raise UserError(f"{storage.described(QUARANTINE_FILE)} cannot be read", DAMAGED_HINT) from error


def _listed(dataset: Dataset, number: int) -> Iterator[Item]:
    """Every row of a dataset by its identifiers alone, with its split as given."""
    name = dataset.fingerprint[:12]
    for split in SPLITS:
        for index, shard in enumerate(dataset.shards(split)):
            sizes = shard.row_group_rows
            row_in_shard = 0
            for start in range(0, len(sizes), _GROUPS_AT_ONCE):
                groups = range(start, min(start + _GROUPS_AT_ONCE, len(sizes)))
                rows = zip(
                    *_columns(dataset, split, index, list(groups)),
                    ((group, row) for group in groups for row in range(sizes[group])),
                    strict=True,
                )
                for pair_id, patient_id, source, (group, row) in rows:
                    yield Item(
                        pair_id=pair_id,
                        patient_id=patient_id,
                        study_id="",
                        report="",
                        path=f"{name}/{shard.path} row {row_in_shard}",
                        locator={ROW_OF_DATASET: [number, index, group, row]},
                        split=split,
                        source=source,
                    )
                    row_in_shard += 1


def _columns(dataset: Dataset, split: str, shard: int, groups: list[int]) -> list[list[str]]:
    table = dataset.read_row_groups(split, shard, groups, _LISTED_COLUMNS)
    sizes = dataset.shards(split)[shard].row_group_rows
    if table.num_rows != sum(sizes[group] for group in groups):
        name = dataset.storage.described(dataset.shards(split)[shard].path)
        raise UserError(f"{name} has other rows than the marker says", DAMAGED_HINT)
    return [table.column(name).to_pylist() for name in _LISTED_COLUMNS]


def _told_apart(item: Item, source: str, owner_of: dict[str, str]) -> Item:
    """The item under an id that no other source has; a repetition within one source keeps its own."""
    stored_id = item.stored_id or item.pair_id
    while owner_of.setdefault(stored_id, source) != source:
        stored_id = f"{source}:{stored_id}"
    return item if stored_id == item.pair_id else replace(item, stored_id=stored_id)
