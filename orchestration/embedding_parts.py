"""One part of an embedding: a range of a split's rows, read, embedded and written by one Ray task.

Decisions: a task is told places and numbers, never given tensors; it reads a batch of rows at a time and
writes its part whole, so its memory is one part's vectors whatever the size of the archive; a process keeps
model and dataset for its next part. A part's name holds what decides its content, so that parts of an
interrupted embedding are found again and never mixed with those of another.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mpma.data.dataset import Dataset
from mpma.data.pairs import model_text
from mpma.data.rows import encoded_images
from mpma.data.storage import HashingSink, Storage, open_storage
from mpma.embedding import KINDS, OF_THE_IMAGE, OF_THE_TEXT, embed_batch, widths
from mpma.errors import UserError
from orchestration.defects import without_values

if TYPE_CHECKING:
    from mpma.loading import LoadedModel

PART_ROWS: Final = 1024
METADATA_KEY: Final = b"mpma"
KEY_COLUMNS: Final = ("pair_id", "split", "patient_id")
_TEXT_COLUMNS: Final = ("report", "findings", "impression")


@dataclass(frozen=True)
class EmbedPlan:
    """What every task of an embedding shares. Hashable."""

    model: str
    """Place of the run or the exported model."""
    step: int
    """Checkpoint of the run, so that a run that trains on meanwhile changes nothing."""
    weights: str
    """Hash that the loaded weights must have."""
    data: str
    """Place of the dataset."""
    fingerprint: str
    """Fingerprint that it must have."""
    kinds: tuple[str, ...]
    """Vectors that are written."""
    device: str
    precision: str
    batch_size: int
    threads: int
    """Threads that decode for a task."""
    parts: str
    """Folder of the parts."""

    @property
    def digest(self) -> str:
        """Names all that decides a part's content."""
        decides = {k: v for k, v in asdict(self).items() if k not in ("model", "data", "parts", "threads")}
        return hashlib.sha256(json.dumps([decides, PART_ROWS], sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Part:
    """Rows `first` to `last` (exclusive) of a split."""

    split: str
    first: int
    last: int

    def name(self, plan: EmbedPlan) -> str:
        """File of the part."""
        return f"{plan.digest}-{self.split}-{self.first:010d}.parquet"


def parts_of(dataset: Dataset, splits: tuple[str, ...]) -> list[Part]:
    """All parts, in the order in which they stand in the file."""
    return [
        Part(split, first, min(first + PART_ROWS, dataset.rows(split)))
        for split in splits
        for first in range(0, dataset.rows(split), PART_ROWS)
    ]


def schema(kinds: tuple[str, ...], width: dict[str, int]) -> pa.Schema:
    """Columns of the file: keys, then a fixed-size list of float32 for each kind of vector."""
    vectors = [
        pa.field(kind, pa.list_(pa.float32(), width[kind]), nullable=kind in OF_THE_TEXT) for kind in kinds
    ]
    return pa.schema([*(pa.field(name, pa.string(), nullable=False) for name in KEY_COLUMNS), *vectors])


@contextmanager
def new_table(sink: HashingSink, columns: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A writer of embeddings: keys compressed, vectors, which hardly shrink, not."""
    keys = dict.fromkeys(KEY_COLUMNS, "ZSTD")
    vectors = {f"{name}.list.element": "NONE" for name in columns.names if name in KINDS}
    writer = pq.ParquetWriter(
        sink,
        columns,
        compression={**keys, **vectors},
        use_dictionary=["split", "patient_id"],
        write_statistics=["pair_id", "split", "patient_id"],
        write_page_checksum=True,
    )
    yield writer
    writer.close()


@without_values
def make_part(plan: EmbedPlan, part: Part) -> int:
    """Embed a part and write it; return its rows. Runs in a Ray task. Raises `UserError` and `JobError`."""
    os.umask(0o077)
    import torch

    # One thread, however many decode: a product's last bits depend on its threads.
    torch.set_num_threads(1)
    loaded, dataset = _model(plan), _dataset(plan)
    columns = schema(plan.kinds, widths(loaded))
    with _decoders(plan) as executor:
        batches = [
            _batch(plan, loaded, dataset, part.split, rows, columns, executor)
            for rows in np.array_split(
                np.arange(part.first, part.last), -(-(part.last - part.first) // plan.batch_size)
            )
        ]
    folder = open_storage(plan.parts)
    with folder.new_file(part.name(plan)) as sink, new_table(sink, columns) as writer:
        writer.write_table(pa.Table.from_batches(batches, columns).combine_chunks())
    return part.last - part.first


def _batch(
    plan: EmbedPlan,
    loaded: LoadedModel,
    dataset: Dataset,
    split: str,
    rows: np.ndarray,
    columns: pa.Schema,
    executor: Executor | None,
) -> pa.RecordBatch:
    seen = any(kind in plan.kinds for kind in (*OF_THE_IMAGE, "fused"))
    read = any(kind in plan.kinds for kind in OF_THE_TEXT)
    wanted = ["pair_id", "patient_id", *(["image"] if seen else []), *(_TEXT_COLUMNS if read else ())]
    table = dataset.read_rows(split, rows, wanted)
    texts = None
    if read:
        texts = [
            model_text(*text) for text in zip(*(table[c].to_pylist() for c in _TEXT_COLUMNS), strict=True)
        ]
    cropper = functools.partial(loaded.cropper(), executor=executor, threads=plan.threads)
    vectors = embed_batch(loaded, encoded_images(table) if seen else None, texts, plan.kinds, cropper)
    absent = None if texts is None else np.array([not text for text in texts])
    made = [
        table["pair_id"].combine_chunks(),
        pa.array([split] * len(rows), pa.string()),
        table["patient_id"].combine_chunks(),
        *(_column(vectors[kind], absent if kind in OF_THE_TEXT else None) for kind in plan.kinds),
    ]
    return pa.RecordBatch.from_arrays(made, schema=columns)


def _column(vectors: np.ndarray, absent: np.ndarray | None) -> pa.FixedSizeListArray:
    width = vectors.shape[1]
    flat = pa.array(np.nan_to_num(vectors).reshape(-1), pa.float32())
    mask = None if absent is None or not absent.any() else pa.array(absent)
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=mask)


@contextmanager
def _decoders(plan: EmbedPlan) -> Iterator[Executor | None]:
    """Threads that decode beside a GPU; on a CPU the task's one thread does all."""
    if plan.threads == 1:
        yield None
        return
    with ThreadPoolExecutor(plan.threads) as executor:
        yield executor


@functools.lru_cache(maxsize=1)
def _model(plan: EmbedPlan) -> LoadedModel:
    loaded = open_model(plan.model, plan.step, plan.device, plan.precision)
    if loaded.weights_hash != plan.weights:
        raise UserError(f"{plan.model}: its weights changed while they were used", "run the command again")
    return loaded


@functools.lru_cache(maxsize=1)
def _dataset(plan: EmbedPlan) -> Dataset:
    dataset = Dataset.open(plan.data)
    if dataset.fingerprint != plan.fingerprint:
        raise UserError(f"{plan.data}: its pairs changed while they were read", "run the command again")
    return dataset


def open_model(place: str, step: int | None, device: str, precision: str) -> LoadedModel:
    """A run's checkpoint (None: the newest) or an exported model. Raises `UserError`."""
    from mpma.exporting.export import is_export, load_export
    from mpma.loading import load_run
    from mpma.training.run_directory import RunDirectory

    folder: Storage = open_storage(place)
    if is_export(folder):
        return load_export(folder, device=device, precision=precision)
    return load_run(RunDirectory.opened(place), device=device, precision=precision, step=step)


def metadata(plan: EmbedPlan, loaded: LoadedModel, rows: dict[str, int]) -> dict[bytes, bytes]:
    """What the file says of itself, in its schema."""
    told: dict[str, Any] = {
        "format": "mpma-embeddings",
        "format_version": 1,
        "weights": plan.weights,
        "model": loaded.origin,
        "data": plan.fingerprint,
        "rows": rows,
        "widths": {kind: widths(loaded)[kind] for kind in plan.kinds},
        "precision": plan.precision,
        "view": "centre square of the image, whole report",
    }
    return {METADATA_KEY: json.dumps(told).encode()}
