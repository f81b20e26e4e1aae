"""Pairs per second of the stream beside torch's DataLoader, on the same shards with the same collator.

    python -m benchmarks.streams [--rows 10000] [--out benchmarks/results/streams.jsonl]

Prints one JSON line per figure. Every way of reading is measured in turn and the turns are repeated, so
that a busy machine slows all of them; the figures are medians with the lowest and highest. Nothing
trains meanwhile: a training process leaves less of the machine to each of them, so the CPU seconds that
a way takes, over all processes, stand beside its pairs per second.

- `stream`, decode `collate`: Ray Data reads in every epoch, threads of this process decode.
- `stream`, decode `read`: Ray Data's tasks also decode and crop.
- `stream`, decode `collate`, kept: the share fits `data.cache_bytes` and was read once.
- `data_loader`: row groups shuffled and collated in the worker processes, one decoding thread each.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch
from PIL import Image

from mpma.data.batches import Batch, Collator
from mpma.data.config import DataConfig
from mpma.data.dataset_info import ShardInfo
from mpma.data.rows import COLLATED_COLUMNS
from mpma.data.sample_order import SampleOrder
from mpma.data.shards import new_shard, read_row_groups, shard_schema
from mpma.data.storage import Storage, open_storage
from mpma.data.tokenizer import ReportTokenizer, train_tokenizer
from mpma.model.config import ImageConfig, ReportConfig
from orchestration.streams import BatchStream, Decode, open_stream

_IMAGE_SIDE: Final = 256
_DISTINCT_IMAGES: Final = 256
_ROWS_PER_SHARD: Final = 1000
_MASKS: Final = (0.75, 0.5)
_FINDINGS: Final = (
    "the heart is normal in size .",
    "no focal consolidation , pleural effusion or pneumothorax is seen .",
    "there is a small opacity in the left lower lobe , which may be atelectasis .",
    "degenerative changes of the thoracic spine .",
    "the mediastinal contours are unremarkable .",
)


@dataclass
class Way:
    """A way of reading, and what was measured of it."""

    figure: str
    settings: dict[str, Any]
    open: Callable[[], Iterator[Batch]]
    rates: list[float] = field(default_factory=list)
    first_batch_seconds: list[float] = field(default_factory=list)
    cold_first_batch_seconds: float = 0.0
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU seconds of all processes for a thousand pairs."""

    def measure(self, batches: int, warm_up: int) -> None:
        """One turn: open, time the first batch, then `batches` of them after `warm_up` more."""
        began = time.perf_counter()
        stream = self.open()
        try:
            next(stream)
            self.first_batch_seconds.append(time.perf_counter() - began)
            for _ in range(warm_up):
                next(stream)
            busy, began, pairs = cpu_seconds(), time.perf_counter(), 0
            for _ in range(batches):
                pairs += len(next(stream))
            self.rates.append(pairs / (time.perf_counter() - began))
            self.cpu_seconds.append((cpu_seconds() - busy) / pairs * 1000)
        finally:
            if isinstance(stream, BatchStream):
                stream.close()


@dataclass
class Split:
    """The part of a dataset that reading needs."""

    storage: Storage
    files: list[ShardInfo]

    def shards(self, split: str) -> list[ShardInfo]:
        """The files, whatever the split is called."""
        return self.files


def cpu_seconds() -> float:
    """CPU seconds that this process and its descendants (Ray's, the loader's) have used so far."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class WindowedRows(torch.utils.data.IterableDataset[Batch]):
    """What a careful user of DataLoader writes: whole row groups, shuffled, collated in the worker."""

    def __init__(self, split: Split, collator: Collator, batch_size: int) -> None:
        self.split, self.collator, self.batch_size = split, collator, batch_size

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        place, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        generator = np.random.default_rng(place)
        groups = [
            (shard, group)
            for shard in self.split.shards("train")
            for group in range(len(shard.row_group_rows))
        ][place::workers]
        window = max(1, self.batch_size * 2 // 64)
        position = 0
        while True:
            generator.shuffle(groups)
            for first in range(0, len(groups) - window + 1, window):
                tables = [
                    read_row_groups(self.split.storage, shard, [group], COLLATED_COLUMNS)
                    for shard, group in groups[first : first + window]
                ]
                yield from self._batches(tables, generator, position)
                position += sum(map(len, tables))

    def _batches(self, tables: list[Any], generator: np.random.Generator, position: int) -> Iterator[Batch]:
        import pyarrow as pa

        rows = pa.concat_tables(tables)
        rows = rows.take(generator.permutation(len(rows)))
        for start in range(0, len(rows) - self.batch_size + 1, self.batch_size):
            places = np.arange(position + start, position + start + self.batch_size)
            yield self.collator.collate(
                rows.slice(start, self.batch_size),
                np.zeros_like(places),
                places,
                image_mask_ratio=_MASKS[0],
                report_mask_ratio=_MASKS[1],
                augment=True,
            )


def write_split(folder: str, rows: int, seed: int = 0) -> Split:
    """Shards of grey 256 x 256 JPEG of about 25 kB and short reports, read like a dataset's split."""
    generator = np.random.default_rng(seed)
    storage = open_storage(folder)
    storage.make_directory("train")
    images = []
    for _ in range(min(rows, _DISTINCT_IMAGES)):
        coarse = Image.fromarray(generator.integers(0, 256, (32, 32)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.BICUBIC))
        noisy = smooth + generator.normal(0, 6, smooth.shape)
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    shards = []
    for first in range(0, rows, _ROWS_PER_SHARD):
        with new_shard(storage, f"train/{first // _ROWS_PER_SHARD:05d}.parquet", shard_schema()) as shard:
            for row in range(first, min(rows, first + _ROWS_PER_SHARD)):
                text = " ".join(generator.permutation(_FINDINGS)[: 2 + row % 4])
                ids = dict.fromkeys(("pair_id", "patient_id", "study_id"), f"synthetic-{row}")
                shard.add(
                    ids
                    | {"image": images[row % len(images)], "width": _IMAGE_SIDE, "height": _IMAGE_SIDE}
                    | {"view": "PA", "report": text, "findings": text, "impression": ""}
                    | {"labels": None, "source": "synthetic", "license": ""}
                )
        assert shard.info is not None
        shards.append(shard.info)
    return Split(storage, shards)


def ways(split: Split, batch_size: int, image_size: int, loader_workers: int, threads: int) -> list[Way]:
    """The ways that are compared."""
    tokenizer = ReportTokenizer.load(train_tokenizer(enumerate(list(_FINDINGS) * 4), 400))
    order = SampleOrder(
        [shard.row_group_rows for shard in split.shards("train")], seed=0, batch_size=batch_size
    )

    def collator(decode_threads: int) -> Collator:
        return Collator(tokenizer, ImageConfig(size=image_size), ReportConfig(), 0, 1, decode_threads)

    def stream(decode: Decode, cache_bytes: int) -> Callable[[], Iterator[Batch]]:
        return lambda: open_stream(
            split,
            order,
            collator(threads),
            rank=0,
            world=1,
            start_step=0,
            stop_step=None,
            data=DataConfig(cache_bytes=cache_bytes),
            mask_ratios=lambda step: _MASKS,
            decode=decode,
        )

    def loader() -> Iterator[Batch]:
        rows = WindowedRows(split, collator(1), batch_size)
        return iter(
            torch.utils.data.DataLoader(
                rows, batch_size=None, num_workers=loader_workers, multiprocessing_context="spawn"
            )
        )

    return [
        Way("stream", {"decode": "collate", "kept": False, "threads": threads}, stream("collate", 0)),
        Way("stream", {"decode": "read", "kept": False}, stream("read", 0)),
        Way("stream", {"decode": "collate", "kept": True, "threads": threads}, stream("collate", 2**40)),
        Way("data_loader", {"workers": loader_workers}, loader),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Pairs per second of the stream and of torch's DataLoader.")
    parser.add_argument("--rows", type=int, default=10_000, help="pairs of the synthetic split")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every way")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224, help="side of the crop in pixels")
    parser.add_argument("--loader-workers", type=int, default=2)
    parser.add_argument("--decode-threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="also write the lines to this file")
    options = parser.parse_args()
    from orchestration.cluster import connected

    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder, connected(None, dashboard=False):
        split = write_split(folder, options.rows)
        compared = ways(
            split, options.batch_size, options.image_size, options.loader_workers, options.decode_threads
        )
        batches = max(1, options.rows // options.batch_size)
        load = os.getloadavg()[0]
        for way in compared:
            # Ray's and the loader's first processes import for seconds; that is told apart.
            way.measure(max(1, batches // 4), warm_up=0)
            way.cold_first_batch_seconds = way.first_batch_seconds[0]
            way.rates, way.cpu_seconds, way.first_batch_seconds = [], [], []
        for turn in range(options.repeats):
            # Whoever goes first in a turn is another one each time.
            for way in compared[turn % len(compared) :] + compared[: turn % len(compared)]:
                way.measure(batches, warm_up=batches // 4)
        for way in compared:
            lines.append(
                {"figure": f"{way.figure}_pairs_per_second"}
                | way.settings
                | {"median": round(statistics.median(way.rates), 1)}
                | {"lowest": round(min(way.rates), 1), "highest": round(max(way.rates), 1)}
                | {"cpu_seconds_per_1000_pairs": round(statistics.median(way.cpu_seconds), 3)}
                | {"first_batch_seconds": round(statistics.median(way.first_batch_seconds), 3)}
                | {"cold_first_batch_seconds": round(way.cold_first_batch_seconds, 3)}
                | {"repeats": options.repeats, "rows": options.rows, "batch_size": options.batch_size}
                | {"image_size": options.image_size, "cpus": os.cpu_count(), "load_before": round(load, 2)}
            )
        loader = statistics.median(compared[-1].rates)
        for way in compared[:-1]:
            ratios = [mine / other for mine, other in zip(way.rates, compared[-1].rates, strict=True)]
            lines.append(
                {"figure": "stream_over_data_loader"}
                | way.settings
                | {"median": round(statistics.median(ratios), 3)}
                | {"lowest": round(min(ratios), 3), "highest": round(max(ratios), 3)}
                | {"data_loader_pairs_per_second": round(loader, 1)}
            )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    print(text, end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
