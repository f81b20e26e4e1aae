"""Is a finished dataset still what its marker says? Everything in it is read and checked again.

Decisions: shards are checked by tasks of their own, anywhere, and only what they give back is put together
here, so that repeated ids and patients in two splits are found over the whole set in 32 bytes a row;
figures are compared only where every row could be read, since otherwise they would only repeat that.
Grey mean and deviation may differ by half a grey level, because an ingest counts an archive's pixels
before JPEG rounds them; everything else is compared exactly.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mpma.data.dataset_directory import QUALITY_PAGE, is_own
from mpma.data.dataset_info import (
    MARKER,
    QUARANTINE_FILE,
    TOKENIZER_FILE,
    DatasetInfo,
    parse_dataset_info,
)
from mpma.data.dataset_writing import QUARANTINE_SCHEMA, Part, reports_info, split_info
from mpma.data.pairs import SPLITS
from mpma.data.quality import REASONS
from mpma.data.quality_info import NEAR_DUPLICATES_FILE
from mpma.data.shard_check import Findings, ShardCheck, ShardTask, check_bytes
from mpma.data.statistics import merged
from mpma.data.storage import Storage
from mpma.data.tokenizer import ReportTokenizer
from mpma.errors import UserError

GREY_TOLERANCE: Final = 0.5 / 255


class Verification:
    """One dataset, checked in three steps: `begin` here, its tasks anywhere, `conclude` here."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.info: DatasetInfo | None = None
        self.findings = Findings()
        self.counted = False
        """Whether the marker's figures were compared with what is there."""
        self._measured = False

    def begin(self) -> list[ShardTask]:
        """Marker, directory, tokeniser and quarantine; the shards that are left to check.

        Raises `UserError` where there is no directory at all.
        """
        try:
            data = self.storage.read(MARKER)
        except OSError:
            if not self.storage.exists():
                raise UserError(f"{self.storage.described()}: no dataset there") from None
            self.findings.add(MARKER, "marker", detail="missing: the dataset is not finished")
            return []
        try:
            info = self.info = parse_dataset_info(data, MARKER)
        except UserError as error:
            self.findings.add(MARKER, "marker", detail=error.message)
            return []
        if info.history and info.history[-1].fingerprint != info.fingerprint:
            self.findings.add(MARKER, "marker", detail="the history ends with another fingerprint")
        if set(info.splits) != set(SPLITS):
            self.findings.add(MARKER, "marker", detail=f"its splits are not {', '.join(SPLITS)}")
            return []
        shards = [(split, shard) for split in SPLITS for shard in info.splits[split].shards]
        self._check_directory({shard.path for _, shard in shards})
        self._measured = self._check_tokenizer(info)
        self._check_quarantine(info)
        if info.quality is not None:
            check_bytes(self.storage, info.quality.near_duplicates, self.findings)
        columns = tuple(info.columns)
        return [ShardTask(self.storage, split, shard, columns, self._measured) for split, shard in shards]

    def conclude(self, checks: Sequence[ShardCheck]) -> None:
        """What only all shards together tell; `checks` as the tasks made them, in their order."""
        if self.info is None:
            return
        types = Counter(tuple(check.types) for check in checks if check.types)
        usual = list(types.most_common(1)[0][0]) if types else []
        for check in checks:
            self.findings.merge(check.findings)
            if check.types and check.types != usual:
                detail = "types differ from those of most shards"
                self.findings.add(check.shard.path, "wrong_schema", detail=detail)
        self._check_identities(checks)
        if checks and all(check.complete for check in checks):
            self.counted = True
            self._check_counts(self.info, checks)

    def _check_directory(self, shards: set[str]) -> None:
        named = {MARKER, TOKENIZER_FILE, QUARANTINE_FILE, NEAR_DUPLICATES_FILE, QUALITY_PAGE, *shards}
        storage, start = self.storage, len(self.storage.root) + 1
        foreign: Counter[str] = Counter()
        for found in storage.filesystem.get_file_info(pafs.FileSelector(storage.root, recursive=True)):
            name = found.path[start:]
            folder = found.type == pafs.FileType.Directory
            if not (name in SPLITS if folder else name in named):
                if not folder and is_own(name):
                    self.findings.add(name, "leftover_file")
                else:
                    foreign[name.rpartition("/")[0] or "."] += 1
            elif storage.is_local:
                self._check_mode(name, 0o700 if folder else 0o600)
        for folder_name, count in foreign.items():
            # Counted and not named: what somebody put there may be named after a patient.
            self.findings.add(folder_name, "foreign_file", detail=f"{count} in this folder")
        if storage.is_local:
            self._check_mode("", 0o700)

    def _check_mode(self, name: str, right: int) -> None:
        mode = stat.S_IMODE(Path(self.storage.path(name)).stat().st_mode)
        if mode != right:
            self.findings.add(name or ".", "wrong_mode", detail=f"mode {mode:04o}, not {right:04o}")

    def _check_tokenizer(self, info: DatasetInfo) -> bool:
        """Whether it is the one by which the marker's lengths of reports were measured."""
        if not check_bytes(self.storage, info.tokenizer, self.findings):
            return False
        try:
            tokenizer = ReportTokenizer(self.storage.read(TOKENIZER_FILE), TOKENIZER_FILE)
        except (UserError, OSError):
            self.findings.add(TOKENIZER_FILE, "tokenizer", detail="it does not load")
            return False
        if tokenizer.vocabulary_size != info.tokenizer.vocabulary_size:
            detail = f"{tokenizer.vocabulary_size} entries, not {info.tokenizer.vocabulary_size}"
            self.findings.add(TOKENIZER_FILE, "tokenizer", detail=detail)
        return not any(file == TOKENIZER_FILE for file, _ in self.findings.counts)

    def _check_quarantine(self, info: DatasetInfo) -> None:
        if not check_bytes(self.storage, info.quarantine, self.findings):
            return
        path, counted = self.storage.path(QUARANTINE_FILE), Counter[str]()
        try:
            with pq.ParquetFile(path, filesystem=self.storage.filesystem) as file:
                same = file.schema_arrow.equals(QUARANTINE_SCHEMA)
                for batch in file.iter_batches(columns=["reason"]) if same else ():
                    counted.update(batch.column(0).to_pylist())
        except (OSError, pa.ArrowException):
            self.findings.add(QUARANTINE_FILE, "unreadable_file", detail="not a Parquet file")
            return
        unknown = len([reason for reason in counted if reason not in REASONS])
        if not same:
            self.findings.add(QUARANTINE_FILE, "quarantine", detail="it has other columns")
        elif dict(counted) != info.quarantine.reasons or counted.total() != info.quarantine.rows:
            detail = f"{counted.total()} rows of {len(counted)} reasons"
            self.findings.add(QUARANTINE_FILE, "quarantine", detail=detail)
        elif unknown:
            self.findings.add(QUARANTINE_FILE, "quarantine", detail=f"{unknown} unknown reasons")

    def _check_identities(self, checks: Sequence[ShardCheck]) -> None:
        first = np.cumsum([0, *(check.rows for check in checks)])

        def tell(places: np.ndarray, reason: str) -> None:
            for place in places.tolist():
                shard = int(np.searchsorted(first, place, side="right")) - 1
                self.findings.add(checks[shard].shard.path, reason, place - int(first[shard]))

        ids = _numbered(check.ids for check in checks)
        patients = _numbered(check.patients for check in checks)
        _, begun = np.unique(ids, return_index=True)
        repeated = np.ones(len(ids), dtype=bool)
        repeated[begun] = False
        tell(np.flatnonzero(repeated), "repeated_id")
        code = [SPLITS.index(check.split) for check in checks]
        split = np.repeat(code, [check.rows for check in checks]).astype(np.int64)
        first_split = np.full(int(patients.max(initial=-1)) + 1, len(SPLITS))
        np.minimum.at(first_split, patients, split)
        tell(np.flatnonzero(split > first_split[patients]), "patient_in_two_splits")

    def _check_counts(self, info: DatasetInfo, checks: Sequence[ShardCheck]) -> None:
        parts = [Part(check.split, check.shard, check.statistics) for check in checks]
        total = merged(check.statistics for check in checks)
        lengths: Counter[int] = Counter()
        for check in checks:
            lengths.update(check.lengths)
        expected: dict[str, Any] = {
            "splits": {
                split: split_info([part for part in parts if part.split == split]).model_dump()
                for split in SPLITS
            },
            "images": merged(part.statistics for part in parts if part.split == "train")
            .images()
            .model_dump(),
            "labels": sorted(total.labels),
            "sources": dict(total.sources),
            "licenses": dict(total.licenses),
        }
        if self._measured:
            expected["reports"] = reports_info(lengths, info.reports.truncated_at).model_dump()
        for key, stated, counted in _differences(info.model_dump(), expected):
            self.findings.add(MARKER, "wrong_count", detail=f"{key} is {stated}, counted {counted}")


def _differences(stated: Any, counted: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted keys whose values differ; a mapping of labels, sources or licences is one value."""
    if isinstance(counted, dict) and not key.endswith(("label_counts", "sources", "licenses")):
        for name, value in counted.items():
            yield from _differences(stated[name], value, f"{key}.{name}" if key else name)
    elif stated is None or key.endswith(".shards"):
        # Written before it was counted; the shards are what was counted.
        return
    elif key.startswith("images.grey"):
        if abs(stated - counted) > GREY_TOLERANCE:
            yield key, f"{stated:.4f}", f"{counted:.4f}"
    elif stated != counted:
        # Labels, sources and licences are words of the archive: only their number is told.
        first, second = (
            f"{len(value)} names" if isinstance(value, dict | list) else f"{value}"
            for value in (stated, counted)
        )
        yield key, first, second


def _numbered(digests: Iterable[bytearray]) -> np.ndarray:
    """int64 [n]: equal digests get equal numbers."""
    pairs = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    ranked = pairs[order]
    fresh = np.ones(len(ranked), dtype=np.int64)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    numbers = np.empty(len(ranked), dtype=np.int64)
    numbers[order] = np.cumsum(fresh) - 1
    return numbers
