"""How a dataset directory comes to be: parts first, the marker last.

Decisions: a part is one shard with what was counted about it, so any process can make one and nobody
has to hold the data; its record is written after it, so that a run that was killed goes on from its
whole parts; the tokeniser is trained on text streamed back from the training shards, and the marker,
which makes all of it readable, comes after everything it names.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mpma.data.dataset import Dataset
from mpma.data.dataset_directory import RECORD_SUFFIX, end_unfinished, unfinished_dataset
from mpma.data.dataset_info import (
    MARKER,
    QUARANTINE_FILE,
    TOKENIZER_FILE,
    DatasetInfo,
    QuarantineInfo,
    ReportsInfo,
    ShardInfo,
    SplitInfo,
    TokenizerInfo,
    fingerprint,
)
from mpma.data.dataset_quality import MarkedShard, dataset_quality
from mpma.data.hashing import PUBLIC_KEY, key_name
from mpma.data.history import Origin
from mpma.data.images import read_grey
from mpma.data.pair_marks import pair_mark
from mpma.data.pairs import SCHEMA_VERSION, SPLITS, model_text
from mpma.data.quality_info import DEFAULT_DRIFT_EFFECT
from mpma.data.shards import new_shard, read_row_groups, shard_schema
from mpma.data.sources.contract import Rejection
from mpma.data.statistics import PairStatistics, grey_histogram, merged, quantile
from mpma.data.storage import Storage, WrittenFile, open_storage
from mpma.data.tokenizer import DEFAULT_VOCABULARY_SIZE, ReportTokenizer, train_tokenizer
from mpma.errors import UserError

DEFAULT_TRUNCATED_AT: Final = 128

QUARANTINE_SCHEMA: Final = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("path", "pair_id", "reason", "detail")]
)

_TEXT_COLUMNS: Final = ("report", "findings", "impression")


class LoadedPair(NamedTuple):
    """A pair that is ready to be stored."""

    row: Mapping[str, Any]
    """A value for every column of the shard."""
    grey: np.ndarray
    """The stored image's pixels, uint8 [H, W]."""
    original_size: tuple[int, int] | None = None
    """Width and height of the image as it came; None where that is not known."""


Row = LoadedPair | tuple[Mapping[str, Any], np.ndarray]
"""What `write_part` takes: a loaded pair, or a row with the stored image's pixels."""


@dataclass
class Part:
    """One shard, what is counted about it, and what was refused on the way."""

    split: str
    shard: ShardInfo | None
    """None where every candidate of the part was refused."""
    statistics: PairStatistics = field(default_factory=PairStatistics)
    rejections: list[Rejection] = field(default_factory=list)
    marks: bytes = b""
    """`mpma.data.pair_marks` of every row, in order."""

    def to_json(self) -> bytes:
        data = {
            "split": self.split,
            "shard": None if self.shard is None else self.shard.model_dump(),
            "statistics": self.statistics.to_json(),
            "rejections": [[r.path, r.pair_id, r.reason, r.detail] for r in self.rejections],
            "marks": base64.b64encode(self.marks).decode(),
        }
        return json.dumps(data).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Part:
        data = json.loads(text)
        return cls(
            data["split"],
            None if data["shard"] is None else ShardInfo(**data["shard"]),
            PairStatistics.from_json(data["statistics"]),
            [Rejection(*values) for values in data["rejections"]],
            base64.b64decode(data["marks"]),
        )


def finished_part(storage: Storage, name: str) -> Part | None:
    """The part `name` (`train/00000`) where an earlier run of the same plan ended it, else None."""
    try:
        part = Part.from_json(storage.read(name + RECORD_SUFFIX))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if part.shard is not None:
        found = storage.filesystem.get_file_info(storage.path(part.shard.path))
        if found.type != pafs.FileType.File or found.size != part.shard.bytes:
            return None
    return part


def write_part(
    storage: Storage,
    name: str,
    split: str,
    schema: pa.Schema,
    rows: Iterable[Row | Rejection],
) -> Part:
    """Write one shard from rows with their grey pixels (uint8 [H, W]), keeping refusals aside.

    The part's record is written last, so a record without its shard does not happen.
    """
    part = Part(split, None)
    shard_name = f"{name}.parquet"
    marks = bytearray()
    with new_shard(storage, shard_name, schema) as writer:
        for entry in rows:
            if isinstance(entry, Rejection):
                part.rejections.append(entry)
            else:
                row, grey, original_size = LoadedPair(*entry)
                writer.add(row)
                part.statistics.add(row, grey_histogram(grey), original_size)
                marks += pair_mark(row, grey)
    part.marks = bytes(marks)
    if part.statistics.pairs:
        part.shard = writer.info
    else:
        storage.remove(shard_name)
    storage.write(name + RECORD_SUFFIX, part.to_json())
    return part


def finish_dataset(
    storage: Storage,
    parts: Sequence[Part],
    rejections: Iterable[Rejection],
    *,
    key_name: str,
    synthetic: bool,
    columns: Sequence[str],
    vocabulary_size: int = DEFAULT_VOCABULARY_SIZE,
    truncated_at: int = DEFAULT_TRUNCATED_AT,
    tokenizer: bytes | None = None,
    drift_effect: float = DEFAULT_DRIFT_EFFECT,
    origin: Origin | None = None,
) -> DatasetInfo:
    """Tokeniser, quarantine and, last of all, the marker; then the records of the parts go.

    Args:
        parts: in row order within each split.
        rejections: those that belong to no part.
        key_name: `mpma.data.hashing.key_name` of the key that names the patients.
        tokenizer: content of a `tokenizer.json` to use; None trains one on the training split's reports,
            or, where it has none at all, on its questions.
        drift_effect: differences between splits above it are marked.
        origin: what the marker's history tells; None where the rows come from no archive.

    Raises `UserError` where no pair is left to train on.
    """
    refused = [*rejections, *(item for part in parts for item in part.rejections)]
    splits = {name: split_info([part for part in parts if part.split == name]) for name in SPLITS}
    if not splits["train"].pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in _reasons(refused).items())
        raise UserError(
            f"no pair is left for the training split ({reasons or 'the source lists none'})",
            "check the root and the options of the source; docs/data.md explains the reasons",
        )
    total = merged(part.statistics for part in parts)
    kept = tokenizer is not None
    if tokenizer is None:
        words = _texts if splits["train"].reports else _question_texts
        tokenizer = train_tokenizer(words(storage, splits["train"].shards), vocabulary_size)
    reader = ReportTokenizer(tokenizer)
    shards = [shard for name in SPLITS for shard in splits[name].shards]
    reports = _reports_info(storage, shards, reader, truncated_at)
    by_split = {name: merged(part.statistics for part in parts if part.split == name) for name in SPLITS}
    marked = [
        MarkedShard(name, part.shard, part.marks)
        for name in SPLITS
        for part in parts
        if part.split == name and part.shard is not None
    ]
    quality = dataset_quality(storage, marked, by_split, drift_effect)
    tokenizer_file = storage.write(TOKENIZER_FILE, tokenizer)
    name, software, history = fingerprint(splits, tokenizer_file.sha256), software_versions(), []
    if origin is not None:
        history = origin.history(splits, refused, name, "kept" if kept else "trained", software)
        refused += origin.carried
    quarantine_file = _write_quarantine(storage, refused)
    info = DatasetInfo(
        schema_version=SCHEMA_VERSION,
        fingerprint=name,
        synthetic=synthetic,
        key_name=key_name,
        columns=list(columns),
        splits=splits,
        images=by_split["train"].images(),
        reports=reports,
        labels=sorted(total.labels),
        sources=dict(sorted(total.sources.items())),
        licenses=dict(sorted(total.licenses.items())),
        tokenizer=TokenizerInfo(
            path=TOKENIZER_FILE,
            bytes=tokenizer_file.bytes,
            sha256=tokenizer_file.sha256,
            vocabulary_size=reader.vocabulary_size,
        ),
        quarantine=QuarantineInfo(
            path=QUARANTINE_FILE,
            bytes=quarantine_file.bytes,
            sha256=quarantine_file.sha256,
            rows=len(refused),
            reasons=_reasons(refused),
        ),
        quality=quality,
        software=software,
        history=history,
    )
    storage.write(MARKER, info.to_json())
    end_unfinished(storage)
    return info


def write_dataset(
    location: str | os.PathLike[str],
    rows: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    extra: Iterable[pa.Field] = (),
    key: bytes = PUBLIC_KEY,
    synthetic: bool = True,
    pairs_per_shard: int = 1024,
    vocabulary_size: int = DEFAULT_VOCABULARY_SIZE,
    tokenizer: bytes | None = None,
    overwrite: bool = False,
    filesystem: pafs.FileSystem | None = None,
) -> Dataset:
    """Write rows that are pairs already (every column of the schema, image encoded), in this process.

    For sets made in a notebook or a test; archives go through the ingest. `patient_id` and `study_id`
    are stored as they come. Raises as `unfinished_dataset` and `finish_dataset`.
    """
    storage = open_storage(location, filesystem)
    schema = shard_schema(extra)
    parts = []
    with unfinished_dataset(storage, "rows", overwrite=overwrite, keep_parts=False):
        for split in SPLITS:
            waiting = iter(rows.get(split, ()))
            number = 0
            while chunk := [row for _, row in zip(range(pairs_per_shard), waiting, strict=False)]:
                greyed = ((row, read_grey(row["image"])) for row in chunk)
                parts.append(write_part(storage, f"{split}/{number:05d}", split, schema, greyed))
                number += 1
        finish_dataset(
            storage,
            parts,
            [],
            key_name=key_name(key),
            synthetic=synthetic,
            columns=schema.names,
            vocabulary_size=vocabulary_size,
            tokenizer=tokenizer,
        )
    return Dataset.open(location, filesystem)


def split_info(parts: Sequence[Part]) -> SplitInfo:
    """What the marker says of a split with these parts, in row order."""
    statistics = merged(part.statistics for part in parts)
    return SplitInfo(
        pairs=statistics.pairs,
        patients=len(statistics.patients),
        studies=len(statistics.studies),
        labelled_pairs=statistics.labelled_pairs,
        label_counts=dict(sorted(statistics.labels.items())),
        reports=statistics.reports,
        masks=statistics.masks,
        empty_masks=statistics.empty_masks,
        questions=statistics.questions,
        shards=[part.shard for part in parts if part.shard is not None],
    )


def _texts(storage: Storage, shards: Sequence[ShardInfo], groups: int = 8) -> Iterator[tuple[str, str]]:
    """Patient and the text a model reads of every row, a few row groups in memory at a time."""
    for shard in shards:
        for start in range(0, len(shard.row_group_rows), groups):
            wanted = range(start, min(start + groups, len(shard.row_group_rows)))
            table = read_row_groups(storage, shard, list(wanted), ("patient_id", *_TEXT_COLUMNS))
            texts = map(model_text, *(table.column(name).to_pylist() for name in _TEXT_COLUMNS))
            yield from zip(table.column("patient_id").to_pylist(), texts, strict=True)


def _question_texts(storage: Storage, shards: Sequence[ShardInfo]) -> Iterator[tuple[str, str]]:
    """Patient, questions and answers of every row; nothing where the shards have none."""
    for shard in shards:
        for group in range(len(shard.row_group_rows)):
            table = read_row_groups(storage, shard, [group], ["patient_id", "questions"])
            if "questions" not in table.column_names:
                return
            for patient, row in zip(*(table.column(n).to_pylist() for n in table.column_names), strict=True):
                for question in row or ():
                    answers = filter(None, question["answers"] or ())
                    yield patient, " ".join((question["question"] or "", *answers))


def _reports_info(
    storage: Storage, shards: Sequence[ShardInfo], tokenizer: ReportTokenizer, truncated_at: int
) -> ReportsInfo:
    counts: Counter[int] = Counter()
    texts = (text for _, text in _texts(storage, shards) if text)
    while chunk := [text for _, text in zip(range(512), texts, strict=False)]:
        counts.update(tokenizer.lengths(chunk).tolist())
    return reports_info(counts, truncated_at)


def reports_info(counts: Mapping[int, int], truncated_at: int) -> ReportsInfo:
    """What the marker says of reports of which so many have each length in tokens."""
    return ReportsInfo(
        tokens_median=quantile(counts, 0.5),
        tokens_p95=quantile(counts, 0.95),
        tokens_max=max(counts, default=0),
        truncated_at=truncated_at,
        truncated=sum(count for length, count in counts.items() if length > truncated_at),
    )


def _write_quarantine(storage: Storage, refused: Sequence[Rejection]) -> WrittenFile:
    ordered = sorted(refused, key=lambda item: (item.reason, item.path, item.pair_id, item.detail))
    columns = {name: [_storable(getattr(item, name)) for item in ordered] for name in QUARANTINE_SCHEMA.names}
    with storage.new_file(QUARANTINE_FILE) as sink:
        pq.write_table(pa.table(columns, QUARANTINE_SCHEMA), sink, compression="zstd")
    return WrittenFile(QUARANTINE_FILE, sink.tell(), sink.sha256)


def _storable(text: str) -> str:
    # A file name need not be UTF-8; what cannot be stored is shown escaped rather than lost.
    return text.encode("utf-8", "backslashreplace").decode()


def _reasons(refused: Iterable[Rejection]) -> dict[str, int]:
    return dict(Counter(item.reason for item in sorted(refused, key=lambda item: item.reason)))


def software_versions() -> dict[str, str]:
    """Versions of what a dataset's bytes depend on."""
    found = {}
    for package in ("mpma", "pyarrow", "tokenizers", "pillow", "pydicom", "python-gdcm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
