"""torch's DataLoader, MosaicML Streaming, LitData and WebDataset over the same encoded pairs.

Decisions: each has its own format, written once from the same pairs, two worker processes that start by
`spawn`, its shuffle on, and the mode in which it can resume: StreamingDataset with StreamingDataLoader
(MosaicML, `state_dict`), the same names in LitData. WebDataset and a DataLoader over an iterable have no
exact resume; they are measured for their speed. A library that is not installed says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch

from benchmarks.stream_pairs import CollatePairs, Split
from mpma.data.batches import Batch
from mpma.data.rows import COLLATED_COLUMNS
from mpma.data.shards import read_row_groups

Opened = Callable[[], Iterator[Batch]]

_SHARD_BYTES: Final = 2**25
_PAIRS_PER_TAR: Final = 500
_START: Final = "spawn"


class WindowedRows(torch.utils.data.IterableDataset[Batch]):
    """What a careful user of DataLoader writes: whole row groups, shuffled, collated in the worker."""

    def __init__(self, split: Split, collate: CollatePairs, batch_size: int) -> None:
        self.split, self.collate, self.batch_size = split, collate, batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        place, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        generator = np.random.default_rng(place)
        groups = [
            (shard, group)
            for shard in self.split.shards("train")
            for group in range(len(shard.row_group_rows))
        ][place::workers]
        window = max(1, self.batch_size * 2 // 64)
        while True:
            generator.shuffle(groups)
            for first in range(0, len(groups) - window + 1, window):
                rows = pa.concat_tables(
                    [
                        read_row_groups(self.split.storage, shard, [group], COLLATED_COLUMNS)
                        for shard, group in groups[first : first + window]
                    ]
                )
                rows = rows.take(generator.permutation(len(rows)))
                for start in range(0, len(rows) - self.batch_size + 1, self.batch_size):
                    yield self.collate.of_rows(rows.slice(start, self.batch_size))


def data_loader(split: Split, folder: Path, collate: CollatePairs, batch_size: int, workers: int) -> Opened:
    """torch's DataLoader on the Parquet shards."""
    return lambda: iter(
        torch.utils.data.DataLoader(
            WindowedRows(split, collate, batch_size),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=_START,
        )
    )


def mosaic(split: Split, folder: Path, collate: CollatePairs, batch_size: int, workers: int) -> Opened:
    """MosaicML Streaming on MDS shards."""
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    columns = {name: "bytes" if name == "image" else "str" for name in COLLATED_COLUMNS}
    with MDSWriter(out=str(folder), columns=columns, size_limit=_SHARD_BYTES) as out:
        for pair in split.pairs():
            out.write(pair)

    def opened() -> Iterator[Batch]:
        clean_stale_shared_memory()
        data = StreamingDataset(local=str(folder), shuffle=True, batch_size=batch_size)
        loader = StreamingDataLoader(
            data,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_Named(collate),
            drop_last=True,
            persistent_workers=True,
            multiprocessing_context=_START,
        )
        while True:
            yield from (found["batch"] for found in loader)

    return opened


def litdata(split: Split, folder: Path, collate: CollatePairs, batch_size: int, workers: int) -> Opened:
    """LitData on its chunks."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    out = BinaryWriter(str(folder), chunk_bytes=_SHARD_BYTES)
    for number, pair in enumerate(split.pairs()):
        out[number] = pair
    out.done()
    out.merge()

    def opened() -> Iterator[Batch]:
        data = StreamingDataset(str(folder), shuffle=True, drop_last=True)
        loader = StreamingDataLoader(
            data,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=True,
            multiprocessing_context=_START,
        )
        while True:
            yield from loader

    return opened


def webdataset(split: Split, folder: Path, collate: CollatePairs, batch_size: int, workers: int) -> Opened:
    """WebDataset on tar files."""
    import webdataset as wds

    folder.mkdir()
    with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=_PAIRS_PER_TAR, verbose=0) as out:
        for number, pair in enumerate(split.pairs()):
            texts = {name: pair[name] for name in COLLATED_COLUMNS if name != "image"}
            out.write({"__key__": f"{number:08d}", "jpg": pair["image"], "json": json.dumps(texts).encode()})
    tars = sorted(str(file) for file in folder.glob("*.tar"))

    def opened() -> Iterator[Batch]:
        data = wds.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False)
        data = data.shuffle(1000).batched(batch_size, collation_fn=_FromTar(collate), partial=False)
        loader = wds.WebLoader(
            data,
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context=_START,
        )
        while True:
            yield from loader

    return opened


PEERS: Final = {
    "data_loader": data_loader,
    "mosaicml_streaming": mosaic,
    "litdata": litdata,
    "webdataset": webdataset,
}


class _Named:
    """StreamingDataLoader counts the first value of a dictionary."""

    def __init__(self, collate: CollatePairs) -> None:
        self._collate = collate

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Batch]:
        return {"batch": self._collate(pairs)}


class _FromTar:
    def __init__(self, collate: CollatePairs) -> None:
        self._collate = collate

    def __call__(self, samples: list[dict[str, Any]]) -> Batch:
        return self._collate([{"image": sample["jpg"]} | json.loads(sample["json"]) for sample in samples])
