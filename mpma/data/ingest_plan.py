"""From a source's listing to shard-sized pieces of work, with every patient's split decided.

Decisions: the source is listed once, and what it lists is kept compressed in memory (some hundred
bytes a candidate), because no split is certain before the last row is seen: a patient may turn up
again under another split. Identifiers are hashed as they are listed, so no raw patient id leaves this
module; a pair's own id goes on beside its hash, because the quarantine names by it what was refused.
Pieces keep the source's order, so that neighbours in an archive's file are read together, and their
size depends on the number of candidates alone, never on the machines: same archive, options and key,
same dataset to the byte.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import Field

from mpma.data.dataset_writing import software_versions
from mpma.data.hashing import key_name, keyed_hash
from mpma.data.item_packing import pack_items, unpack_items
from mpma.data.pairs import SCHEMA_VERSION, SPLITS
from mpma.data.quality import CrossRowChecks, QualityConfig, is_missing
from mpma.data.shards import ROW_GROUP_ROWS
from mpma.data.sources.contract import Item, Rejection, Source
from mpma.data.splits import DEFAULT_FRACTIONS, assign_patients
from mpma.strict import StrictConfig

CHUNK_ITEMS: Final = 512

SMALLEST_SHARD: Final = 512
LARGEST_SHARD: Final = 3456
"""Pairs; about 256 MB of radiographs at the default size of 512 pixels."""

WANTED_SHARDS: Final = 64
"""Shards of a split where there are pairs enough: the pieces that can be worked on at once."""


class IngestOptions(StrictConfig):
    """What an ingest does with what a source lists; everything here changes the dataset."""

    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
    """Shares of patients for train, val and test, where the source gives no split."""
    split_seed: int = Field(default=0, ge=0)
    """Another seed draws other patients."""
    short_side_pixels: int | None = Field(default=512, ge=32, le=8192)
    """Images are shrunk to this shorter side, never enlarged. None: kept at their size."""
    image_format: Literal["jpeg", "png"] = "jpeg"
    """How an image that was decoded is stored. A small grey JPEG is stored as it came either way."""
    jpeg_quality: int = Field(default=95, ge=50, le=100)
    """Quality of the JPEG; 95 costs about 75 kB at 512 pixels."""
    quality: QualityConfig = QualityConfig()
    """Thresholds below which a candidate goes to the quarantine."""
    vocabulary_size: int = Field(default=30_000, ge=64, le=1_000_000)
    """Most entries of the tokeniser; little text gives fewer."""
    truncated_at: int = Field(default=128, ge=8, le=4096)
    """Reports of more tokens are counted as cut; does not change what is stored."""
    hash_pair_ids: bool | None = None
    """Store a keyed hash in place of each pair's id. None: where the source says that its ids identify."""
    pairs_per_shard: int | None = Field(default=None, ge=ROW_GROUP_ROWS, le=1_000_000)
    """Pairs of a shard. None: by the number of candidates, at most about 256 MB."""


@dataclass(frozen=True)
class PartPlan:
    """One shard's worth of candidates."""

    name: str
    split: str
    candidates: int
    packed: bytes
    """The candidates, as `mpma.data.item_packing` packs them."""

    def items(self) -> list[Item]:
        return unpack_items(self.packed)


@dataclass(frozen=True)
class IngestPlan:
    """All the work of an ingest."""

    parts: list[PartPlan]
    rejections: list[Rejection]
    """Refused while listing: by the source itself, or by a look at all rows together."""
    candidates: int
    """Everything the source listed; parts and rejections add up to it."""
    identity: str
    """Hash of listing, options and key; equal plans give equal datasets."""


def plan_ingest(
    source: Source, options: IngestOptions, key: bytes, listed: Callable[[int], None] | None = None
) -> IngestPlan:
    """List a source, hash its patients, decide the splits, cut the work.

    Args:
        key: of the keyed hash; names patients and studies, and with them the splits.
        listed: told now and then how many candidates have been listed.

    Raises `UserError` where the source does.
    """
    options = options.model_copy(update={"hash_pair_ids": hashes_pair_ids(source, options)})
    pair_too = bool(options.hash_pair_ids)
    entries = (
        entry if isinstance(entry, Rejection) else hashed_item(entry, key, pair_too)
        for entry in source.items()
    )
    return plan_entries(entries, options, conditions(source, options, key_name(key)), listed)


def plan_entries(
    entries: Iterable[Item | Rejection],
    options: IngestOptions,
    conditions: str,
    listed: Callable[[int], None] | None = None,
) -> IngestPlan:
    """Decide the splits of what was listed, and cut the work.

    Args:
        entries: patients and studies are keyed hashes already.
        conditions: everything else that the bytes of the dataset depend on.
        listed: told now and then how many candidates have been listed.
    """
    checks = CrossRowChecks()
    identity = hashlib.blake2b(digest_size=16)
    identity.update(conditions.encode())
    rejections: list[Rejection] = []
    chunks: list[bytes] = []
    waiting: list[Item] = []
    rows_of_patient: Counter[str] = Counter()
    given: dict[str, str] = {}
    count = 0
    for entry in entries:
        count += 1
        identity.update(repr(entry).encode("utf-8", "surrogatepass"))
        if isinstance(entry, Rejection):
            rejections.append(entry)
        else:
            if can_be_judged(entry):
                checks.observe(entry)
                rows_of_patient[entry.patient_id] += 1
                if entry.split is not None:
                    given[entry.patient_id] = entry.split
            waiting.append(entry)
            if len(waiting) == CHUNK_ITEMS:
                chunks.append(pack_items(waiting))
                waiting = []
        if listed is not None and count % CHUNK_ITEMS == 0:
            listed(count)
    chunks.append(pack_items(waiting))
    if listed is not None:
        listed(count)
    split_of = assign_patients(rows_of_patient, given, options.fractions, options.split_seed)
    sizes = Counter[str]()
    for patient, rows in rows_of_patient.items():
        sizes[split_of[patient]] += rows
    name = identity.hexdigest()
    parts = _cut(_judged(chunks, checks, rejections), split_of, sizes, options, name[:8])
    return IngestPlan(list(parts), rejections, count, name)


def _judged(chunks: list[bytes], checks: CrossRowChecks, rejections: list[Rejection]) -> Iterator[Item]:
    chunks.reverse()
    while chunks:
        # Dropped one by one, so that listing and plan are never both whole in memory.
        for item in unpack_items(chunks.pop()):
            refused = checks.judge(item) if can_be_judged(item) else None
            if refused is None:
                yield item
            else:
                rejections.append(refused)


def _cut(
    items: Iterator[Item],
    split_of: dict[str, str],
    sizes: Counter[str],
    options: IngestOptions,
    suffix: str,
) -> Iterator[PartPlan]:
    """The items in parts; names carry a piece of the plan's identity, so that two plans share no file."""
    waiting: dict[str, list[Item]] = {split: [] for split in SPLITS}
    numbers = Counter[str]()

    def part(split: str) -> PartPlan:
        items, waiting[split] = waiting[split], []
        name = f"{split}/{numbers[split]:05d}-{suffix}"
        numbers[split] += 1
        return PartPlan(name, split, len(items), pack_items(items))

    for item in items:
        # A row without a patient is refused by its own check, wherever it is looked at.
        split = split_of.get(item.patient_id, "train")
        waiting[split].append(item)
        if len(waiting[split]) == (options.pairs_per_shard or pairs_per_shard(sizes[split])):
            yield part(split)
    for split in SPLITS:
        if waiting[split]:
            yield part(split)


def pairs_per_shard(candidates: int) -> int:
    """Pairs of each shard of a split with so many candidates; a multiple of the row group."""
    wanted = -(-candidates // (WANTED_SHARDS * ROW_GROUP_ROWS)) * ROW_GROUP_ROWS
    return min(max(wanted, SMALLEST_SHARD), LARGEST_SHARD)


def conditions(source: Source, options: IngestOptions, key_name: str) -> str:
    """Everything but the listing that the bytes of a dataset depend on."""
    versions = sorted(software_versions().items())
    schema = [(field.name, str(field.type)) for field in source.extra_schema()]
    return repr((SCHEMA_VERSION, source.name, schema, options.model_dump_json(), key_name, versions))


def can_be_judged(item: Item) -> bool:
    """Whether a row can be compared with others; without an identity its own check refuses it."""
    known_split = item.split is None or item.split in SPLITS
    return bool(item.patient_id) and not is_missing(item.pair_id) and known_split


def hashes_pair_ids(source: Source, options: IngestOptions) -> bool:
    """Whether pairs are stored under keyed hashes: as the user says, else as the source says of its ids."""
    if options.hash_pair_ids is not None:
        return options.hash_pair_ids
    return bool(getattr(source, "pair_ids_are_identifying", False))


def hashed_item(item: Item, key: bytes, pair_too: bool) -> Item:
    """The item with keyed hashes for patient and study; a missing patient stays missing."""
    patient = "" if is_missing(item.patient_id) else keyed_hash(key, "patient", item.patient_id)
    # Without a study of its own an image is one; the pair's id keeps it apart from all others.
    study = f"pair {item.pair_id}" if is_missing(item.study_id) else item.study_id
    stored = keyed_hash(key, "pair", item.pair_id) if pair_too and not is_missing(item.pair_id) else ""
    return replace(item, patient_id=patient, study_id=keyed_hash(key, "study", study), stored_id=stored)
