"""One shard of a finished dataset, read anew: what is wrong with it, and what is counted in it.

Decisions: nothing stops at the first defect, each one is a `Finding` that names the file, the row's number
in it (from 0) and a reason, never an id or a text; one row group is in memory at a time; what is given
back is the shard's counts and 32 bytes a row, digests of its id and its patient.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from mpma.data.dataset_info import TOKENIZER_FILE, FileInfo, ShardInfo
from mpma.data.images import HIGHEST_MAX_PIXELS, read_grey
from mpma.data.masks import mask_values
from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA, VIEWS, model_text
from mpma.data.quality import system_reason
from mpma.data.shards import read_row_groups
from mpma.data.sources.contract import UnreadableImage
from mpma.data.statistics import PairStatistics, grey_histogram
from mpma.data.storage import Storage
from mpma.data.tokenizer import ReportTokenizer
from mpma.errors import UserError

DEFECTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "marker": "dataset.json is missing, damaged or contradicts itself",
        "missing_file": "a file that the marker names is not there",
        "wrong_length": "the file has another length than the marker says",
        "wrong_hash": "the file's bytes are not those that the marker names",
        "unreadable_file": "the file cannot be read",
        "foreign_file": "files or folders stand there that are no part of the dataset",
        "leftover_file": "the file was left by an ingest that broke off",
        "wrong_mode": "others than the owner have access to the file or folder",
        "wrong_schema": "the shard has other columns, or columns of other types",
        "wrong_rows": "the shard has other row groups than the marker says",
        "unreadable_rows": "the rows of a row group, from this one on, cannot be read",
        "missing_value": "the row lacks a value that every pair has",
        "unknown_view": "the view is none of those known",
        "undecodable_image": "the image does not decode",
        "image_size": "the image has another width or height than its columns say",
        "undecodable_mask": "the mask does not decode",
        "mask_size": "the mask has another size than its image",
        "repeated_id": "an earlier row has the same pair_id",
        "patient_in_two_splits": "the patient has rows in an earlier split too",
        "wrong_count": "a figure of dataset.json is not what is counted",
        "tokenizer": "the tokeniser does not load, or has another vocabulary than the marker says",
        "quarantine": "quarantine.parquet does not hold what the marker counts",
    }
)
"""Every reason a finding may have, with its meaning in one line."""

MOST_TOLD: Final = 100
"""Findings of one reason that are kept for one file; the others are counted."""

DIGEST_BYTES: Final = 16


@dataclass(frozen=True)
class Finding:
    """One defect."""

    file: str
    """Name relative to the dataset directory."""
    row: int | None
    """Number of the row in the file, from 0; None where the file itself is meant."""
    reason: str
    """A key of `DEFECTS`."""
    detail: str = ""
    """Numbers, and names of columns, files and settings."""


@dataclass
class Findings:
    """Defects by file and reason, the first of each kept."""

    told: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many there are of each (file, reason)."""

    def add(self, file: str, reason: str, row: int | None = None, detail: str = "") -> None:
        """One more."""
        self.counts[file, reason] += 1
        if self.counts[file, reason] <= MOST_TOLD:
            self.told.append(Finding(file, row, reason, detail))

    def merge(self, other: Findings) -> None:
        """Those of another part of the work, on other files or reasons."""
        self.told += other.told
        self.counts.update(other.counts)

    def in_order(self) -> list[Finding]:
        """By file, row and reason."""
        return sorted(self.told, key=lambda f: (f.file, -1 if f.row is None else f.row, f.reason, f.detail))


@dataclass(frozen=True)
class ShardTask:
    """One shard to be checked; picklable."""

    storage: Storage
    split: str
    shard: ShardInfo
    columns: tuple[str, ...]
    tokenizer: bool
    """Whether the tokeniser loads, so that reports can be measured."""

    def check(self) -> ShardCheck:
        """Read everything once for its hash and once for its rows."""
        found = ShardCheck(self.split, self.shard)
        if not check_bytes(self.storage, self.shard, found.findings):
            return found
        types = self._structure(found.findings)
        if types is None:
            return found
        found.types = types
        found.complete = True
        reader = None
        if self.tokenizer:
            reader = ReportTokenizer(self.storage.read(TOKENIZER_FILE))
        first = 0
        for group, size in enumerate(self.shard.row_group_rows):
            try:
                rows = read_row_groups(self.storage, self.shard, [group]).to_pylist()
            except (UserError, UnicodeError, pa.ArrowException):
                found.findings.add(self.shard.path, "unreadable_rows", first, f"{size} rows")
                found.complete = False
                rows = []
                for number in range(first, first + size):
                    # Rows that nobody can compare are like no other, so that the others keep their numbers.
                    found.identify(f"{self.shard.path} {number}", f"{self.shard.path} {number}")
            for number, row in enumerate(rows, first):
                self._check_row(row, number, found)
            if reader is not None and found.complete:
                texts = [model_text(row["report"], row["findings"], row["impression"]) for row in rows]
                found.lengths.update(reader.lengths([text for text in texts if text]).tolist())
            first += size
        return found

    def _structure(self, findings: Findings) -> list[tuple[str, str]] | None:
        """Names and types of the columns, where they and the row groups are those of a shard."""
        path = self.storage.path(self.shard.path)
        try:
            with pq.ParquetFile(path, filesystem=self.storage.filesystem) as file:
                schema, metadata = file.schema_arrow, file.metadata
                sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        except (OSError, pa.ArrowException):
            findings.add(self.shard.path, "unreadable_file", detail="not a Parquet file")
            return None
        expected = {item.name: item.type for item in (*PAIR_SCHEMA, *OPTIONAL_FIELDS.values())}
        wrong = sorted(
            item.name for item in schema if item.name in expected and item.type != expected[item.name]
        )
        if schema.names != list(self.columns):
            odd = sorted(set(schema.names) ^ set(self.columns)) or ["their order"]
            findings.add(self.shard.path, "wrong_schema", detail=f"columns differ: {', '.join(odd)}")
        elif wrong or schema.names[: len(PAIR_SCHEMA)] != PAIR_SCHEMA.names:
            findings.add(self.shard.path, "wrong_schema", detail=f"types differ: {', '.join(wrong)}")
        elif sizes != self.shard.row_group_rows or sum(sizes) != self.shard.rows:
            detail = f"{len(sizes)} row groups of {sum(sizes)} rows"
            findings.add(self.shard.path, "wrong_rows", detail=detail)
        else:
            return [(item.name, str(item.type)) for item in schema]
        return None

    def _check_row(self, row: Mapping[str, Any], number: int, found: ShardCheck) -> None:
        def tell(reason: str, detail: str = "") -> None:
            found.findings.add(self.shard.path, reason, number, detail)

        absent = [item.name for item in PAIR_SCHEMA if not item.nullable and row[item.name] is None]
        absent += [name for name in ("pair_id", "patient_id", "study_id") if row[name] == ""]
        found.identify(row["pair_id"], row["patient_id"])
        if absent:
            tell("missing_value", f"column {', '.join(absent)}")
            found.complete = False
            return
        if row["view"] not in VIEWS:
            tell("unknown_view")
        try:
            pixels = read_grey(row["image"], HIGHEST_MAX_PIXELS)
        except UnreadableImage as error:
            tell("undecodable_image", error.reason)
            found.complete = False
            return
        height, width = pixels.shape
        if (width, height) != (row["width"], row["height"]):
            tell("image_size", f"{width} x {height}, the columns say {row['width']} x {row['height']}")
        if row.get("mask") is not None:
            try:
                mask = mask_values(row["mask"], HIGHEST_MAX_PIXELS)
            except UnreadableImage as error:
                tell("undecodable_mask", error.reason)
            else:
                if mask.shape != pixels.shape:
                    tell("mask_size", f"mask {mask.shape[1]} x {mask.shape[0]}, image {width} x {height}")
        found.statistics.add(row, grey_histogram(pixels))


@dataclass
class ShardCheck:
    """What came of one shard."""

    split: str
    shard: ShardInfo
    findings: Findings = field(default_factory=Findings)
    complete: bool = False
    """Whether every row was read and counted."""
    types: list[tuple[str, str]] = field(default_factory=list)
    statistics: PairStatistics = field(default_factory=PairStatistics)
    lengths: Counter[int] = field(default_factory=Counter)
    """Reports by length in tokens."""
    ids: bytearray = field(default_factory=bytearray)
    """Digest of every row's id, in order."""
    patients: bytearray = field(default_factory=bytearray)
    """Digest of every row's patient."""

    def identify(self, pair_id: str | None, patient_id: str | None) -> None:
        """Note who the next row is."""
        self.ids += _digest(pair_id)
        self.patients += _digest(patient_id)

    @property
    def rows(self) -> int:
        """Rows that were looked at."""
        return len(self.ids) // DIGEST_BYTES


def check_bytes(storage: Storage, file: FileInfo, findings: Findings) -> bool:
    """Compare a file's length and hash with the marker's; False where it cannot be read at all."""
    try:
        digest, length = hashlib.sha256(), 0
        with storage.filesystem.open_input_stream(storage.path(file.path), compression=None) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
                length += len(block)
    except FileNotFoundError:
        findings.add(file.path, "missing_file")
        return False
    except OSError as error:
        findings.add(file.path, "unreadable_file", detail=system_reason(error))
        return False
    if length != file.bytes:
        findings.add(file.path, "wrong_length", detail=f"{length} bytes, not {file.bytes}")
    elif digest.hexdigest() != file.sha256:
        findings.add(file.path, "wrong_hash")
    return True


def _digest(text: str | None) -> bytes:
    return hashlib.blake2b((text or "").encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
