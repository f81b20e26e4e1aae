"""`dataset.json`: the marker that makes a dataset directory readable, and everything known about it.

Decisions: the marker names every shard with its length and hash, so that a torn dataset is seen
before a run begins; the fingerprint is a hash over the shards' hashes, the tokeniser's and the schema
version, so it names the content and not the place or the time; for the same reason the history has no
dates, so that equal inputs give an equal marker; unknown keys are refused, a marker of another schema
version is refused before anything else is looked at. No identifier stands here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError

from mpma.data.file_info import FileInfo
from mpma.data.pairs import SCHEMA_VERSION
from mpma.data.quality_info import QualityInfo
from mpma.errors import UserError
from mpma.strict import StrictConfig

MARKER = "dataset.json"
TOKENIZER_FILE = "tokenizer.json"
QUARANTINE_FILE = "quarantine.parquet"


class ShardInfo(FileInfo):
    """One Parquet file of pairs."""

    rows: int
    """Pairs in the file."""
    row_group_rows: list[int]
    """Pairs of each row group, in order."""


class SplitInfo(StrictConfig):
    """One of train, val, test."""

    pairs: int
    """Rows of all shards."""
    patients: int
    """Distinct patients; none of them is in another split."""
    studies: int
    """Distinct studies."""
    labelled_pairs: int
    """Pairs whose labels are known; the others have null."""
    label_counts: dict[str, int]
    """Labelled pairs that carry each label."""
    reports: int | None = None
    """Pairs with a report. None, here and below: written before it was counted."""
    masks: int | None = None
    """Pairs with a mask."""
    empty_masks: int | None = None
    """Masks without foreground."""
    questions: int | None = None
    """Questions of all pairs."""
    shards: list[ShardInfo]
    """Files in row order."""


class ImagesInfo(StrictConfig):
    """The training split's images, for normalisation and for the choice of the target's scale."""

    grey_mean: float
    """Mean of all stored pixels, scaled 0..1; those of an archive count before JPEG rounds them."""
    grey_deviation: float
    """Their standard deviation."""
    short_side_median: int
    """Median over images of the shorter side, in pixels (the lower of two middle values)."""
    short_side_min: int
    """Smallest shorter side."""
    short_side_max: int
    """Largest shorter side."""


class ReportsInfo(StrictConfig):
    """Lengths of all reports in tokens, class and end tokens included; all 0 where no pair has a report."""

    tokens_median: int
    """Median length."""
    tokens_p95: int
    """Length that 95 of 100 reports do not exceed."""
    tokens_max: int
    """Longest report."""
    truncated_at: int
    """The length at which `truncated` was counted."""
    truncated: int
    """Reports longer than that, which a model of this many tokens reads cut."""


class TokenizerInfo(FileInfo):
    """The tokeniser trained on the training split."""

    vocabulary_size: int
    """Entries, special tokens included."""


class QuarantineInfo(FileInfo):
    """What was not kept; this file alone names paths and the publisher's identifiers of what was refused."""

    rows: int
    """Candidates that were refused."""
    reasons: dict[str, int]
    """How many for each reason code."""


class ParentInfo(StrictConfig):
    """A dataset whose pairs another one took over."""

    fingerprint: str
    """Its fingerprint."""
    pairs: int
    """Pairs it had, in all splits."""


class HistoryStep(StrictConfig):
    """One command that made a dataset, this one or one that its pairs come from."""

    step: Literal["ingest", "onto", "merge"]
    """`ingest`: from an archive alone; `onto`: an archive added to a dataset; `merge`: datasets alone."""
    source: str | None
    """Name of the archive's source; None for a merge."""
    parents: list[ParentInfo]
    """The datasets taken over, in the order in which they were named; none for an ingest."""
    candidates: int
    """The parents' pairs and everything that the archive listed."""
    quarantined: dict[str, int]
    """How many of these the step refused, by reason; what the parents had refused is not among them."""
    pairs: dict[str, int]
    """Pairs of the result by split: the candidates less the quarantined."""
    tokenizer: Literal["trained", "kept"]
    """Whether the tokeniser was trained on the result or taken over from the first parent."""
    fingerprint: str
    """That of the result."""
    software: dict[str, str]
    """Versions that took the step."""


class DatasetInfo(StrictConfig):
    """Content of `dataset.json`."""

    schema_version: int
    """Version of the pair's schema and of this file."""
    fingerprint: str
    """Hash over the content; names the data in every run."""
    synthetic: bool
    """True where every pair was generated and shows no person."""
    key_name: str
    """Tells datasets ingested with one patient key from others; not the key."""
    columns: list[str]
    """Columns of every shard, the extra ones of the source last."""
    splits: dict[str, SplitInfo]
    """Always train, val and test; the latter two may be empty."""
    images: ImagesInfo
    reports: ReportsInfo
    labels: list[str]
    """The label vocabulary over all splits, sorted."""
    sources: dict[str, int]
    """Pairs by source."""
    licenses: dict[str, int]
    """Pairs by licence; an empty name counts pairs without a stated one."""
    tokenizer: TokenizerInfo
    quarantine: QuarantineInfo
    quality: QualityInfo | None = None
    """What stands twice, and how the splits differ. None: written before it was looked at."""
    software: dict[str, str]
    """Versions that wrote it."""
    history: list[HistoryStep] = Field(default=[])
    """The steps that led here, its own last. Empty: made from no archive, or before this was kept."""

    def to_json(self) -> bytes:
        return (json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n").encode()


def fingerprint(splits: Mapping[str, SplitInfo], tokenizer_sha256: str) -> str:
    """32 hex letters over schema version, shards in order and tokeniser."""
    content = [SCHEMA_VERSION, tokenizer_sha256]
    content += [[name, shard.rows, shard.sha256] for name in sorted(splits) for shard in splits[name].shards]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def parse_dataset_info(data: bytes, name: str) -> DatasetInfo:
    """The marker's content.

    Raises `UserError` naming `name` where it is torn, of another schema version or not a marker.
    """
    again = "ingest the archive again, with --overwrite"
    try:
        raw = json.loads(data)
    except ValueError as error:
        raise UserError(f"{name} is damaged: not JSON", again) from error
    if not isinstance(raw, dict) or not isinstance(raw.get("schema_version"), int):
        raise UserError(f"{name} is not the marker of a dataset: no schema_version", again)
    if raw["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{name}: dataset of another schema version ({raw['schema_version']}; this software reads "
            f"{SCHEMA_VERSION})",
            "use the version of the software that wrote it, or " + again,
        )
    try:
        info = DatasetInfo.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} is damaged: {where}: {first['msg']}", again) from error
    if info.fingerprint != fingerprint(info.splits, info.tokenizer.sha256):
        raise UserError(f"{name} is damaged: the fingerprint is not that of the shards it names", again)
    return info
