"""Pairs per second of the stream beside torch's DataLoader, MosaicML Streaming, LitData and WebDataset.

    python -m benchmarks.streams [--quick] [--out benchmarks/results/streams.jsonl]

All read the same pairs, decode and crop with the same `Collator`, batches of 64, on two cores: two threads
or two processes each. They are measured in turns, the order of a turn rotated, so that a busy machine
slows all of them; ratios are taken turn by turn. Each way's warm-up (its processes import for seconds) and
first epoch are not counted. Nothing trains meanwhile, so the CPU seconds of a thousand
pairs stand beside the rates.

- `kept`: the default where the share fits `data.cache_bytes`; read once, decoded by threads here.
- `here`: the share is larger: read in every epoch, decoded by threads here.
- `tasks`: Ray Data's tasks read, decode and crop.
- The floor is bare decoding and cropping of the same files in two processes, no batch made of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import torch

from benchmarks import figures
from benchmarks.stream_memory import first_batch, memory
from benchmarks.stream_pairs import MASKS, CollatePairs, Split, make_collator, write_split
from benchmarks.stream_peers import PEERS
from mpma.data.batches import Batch
from mpma.data.config import DataConfig
from mpma.data.decoding import Cropper
from mpma.data.sample_order import SampleOrder
from orchestration.streams import BatchStream, Decode, open_stream

FIGURES: Final = (
    "streams/floor",
    "streams/pairs_per_second/*",
    "streams/share_of_floor/*",
    "streams/cpu_seconds_per_1000/*",
    "streams/over/*",
    "streams/here_over/fastest_peer",
    "streams/tasks_over/fastest_peer",
    "streams/first_batch_seconds",
    "streams/first_batch_seconds_of_tasks",
    "streams/memory_growth_per_epoch",
    "streams/memory_growth_per_epoch_of_here",
)
DURATION: Final = "about 4 minutes on 2 cores"

Tell = Callable[[figures.Figure], None]

CORES: Final = 2
_PARTS: Final = ("rates", "first", "memory")
_PREPARED: Final = 12
"""More batches than any way holds ready."""
_BATCH: Final = 64
_IMAGE_SIZE: Final = 224
_LANES_OF_TASKS: Final = 4
_MODULES: Final = {"mosaicml_streaming": "streaming", "litdata": "litdata", "webdataset": "webdataset"}
_OURS: Final[dict[str, tuple[Decode, int]]] = {
    "kept": ("collate", 2**40),
    "here": ("collate", 0),
    "tasks": ("read", 0),
}


@dataclass
class Way:
    """A way of reading, and what was measured of it; kept open from turn to turn."""

    open: Callable[[], Iterator[Batch]]
    stays_open: bool = True
    """Between its turns; not where it works on while others are measured."""
    rates: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of all processes, for a thousand pairs."""
    _stream: Iterator[Batch] | None = None

    def measure(self, batches: int) -> None:
        """One turn: `batches` of them, after what was prepared while nobody asked."""
        warm_up = _PREPARED
        if self._stream is None:
            self._stream, warm_up = self.open(), batches
        for _ in range(warm_up):
            next(self._stream)
        busy, began, pairs = cpu_seconds(), time.perf_counter(), 0
        for _ in range(batches):
            pairs += len(next(self._stream))
        self.rates.append(pairs / (time.perf_counter() - began))
        self.cpu_seconds.append((cpu_seconds() - busy) / pairs * 1000)
        if not self.stays_open:
            self.close()

    def close(self) -> None:
        """End its threads or processes."""
        if isinstance(self._stream, BatchStream):
            self._stream.close()
        self._stream = None


def cpu_seconds() -> float:
    """CPU seconds that this process and its descendants (Ray's, the loaders') have used so far."""
    total = 0.0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def open_ours(
    split: Split, decode: Decode, cache_bytes: int, threads: int = CORES, lanes: int | None = None
) -> BatchStream:
    """The stream from its beginning, without end."""
    groups = [shard.row_group_rows for shard in split.shards("train")]
    return open_stream(
        split,
        SampleOrder(groups, seed=0, batch_size=_BATCH, lanes=lanes),
        make_collator(_IMAGE_SIZE, threads),
        rank=0,
        world=1,
        start_step=0,
        stop_step=None,
        data=DataConfig(cache_bytes=cache_bytes),
        mask_ratios=lambda step: MASKS,
        decode=decode,
    )


class Floor:
    """Bare decoding and cropping in `CORES` processes that are kept from turn to turn."""

    def __init__(self, files: list[bytes], cropper: Cropper) -> None:
        context = multiprocessing.get_context("spawn")
        self._begin, self._end = (context.Barrier(CORES + 1) for _ in range(2))
        self._files = CORES * len(files)
        for _ in range(CORES):
            arguments = (files, cropper, self._begin, self._end)
            context.Process(target=_crop_all, args=arguments, daemon=True).start()

    def rate(self) -> float:
        """Pictures per second."""
        self._begin.wait()
        began = time.perf_counter()
        self._end.wait()
        return self._files / (time.perf_counter() - began)


def _crop_all(files: list[bytes], cropper: Cropper, begin: Any, end: Any) -> None:
    torch.set_num_threads(1)
    counters = np.zeros(len(files), np.int64), np.arange(len(files))
    cropper(files[:16], counters[0][:16], counters[1][:16], augment=True)
    while True:
        begin.wait()
        for start in range(0, len(files), _BATCH):
            part = slice(start, start + _BATCH)
            cropper(files[part], counters[0][part], counters[1][part], augment=True)
        end.wait()


def ways(split: Split, folder: Path) -> tuple[dict[str, Way], dict[str, str]]:
    """The ways that are compared, and why others are not."""
    found, missing = {}, {}
    for name, (decode, cache_bytes) in _OURS.items():
        # What tasks have decoded ahead would be counted, were there windows of all lanes to hold it.
        lanes = _LANES_OF_TASKS if decode == "read" else None
        opened = partial(open_ours, split, decode, cache_bytes, lanes=lanes)
        found[name] = Way(opened, stays_open=decode == "collate")
    for name, peer in PEERS.items():
        module = _MODULES.get(name)
        if module is not None and importlib.util.find_spec(module) is None:
            missing[name] = f"{module} is not installed (the extra `peers`)"
            continue
        collate = CollatePairs(make_collator(_IMAGE_SIZE, 1))
        found[name] = Way(peer(split, folder / name, collate, _BATCH, CORES))
    return found, missing


def compare(
    arguments: argparse.Namespace, tell: Callable[[figures.Figure], None], split: Split, folder: Path
) -> None:
    """Rates of all ways in turns, and ours over each other's."""
    found, missing = ways(split, folder)
    rows = sum(shard.rows for shard in split.files)
    batches = max(1, rows // _BATCH)
    files = [pair["image"] for pair in islice(split.pairs(), 1_000)]
    floor, floors = Floor(files, make_collator(_IMAGE_SIZE, 1).cropper), []
    for turn in range(arguments.repeats):
        floors.append(floor.rate())
        names = list(found)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].measure(batches)
    for way in found.values():
        way.close()
    settings = {"rows": rows, "batch_size": _BATCH, "crop": _IMAGE_SIZE, "cores": CORES}
    tell(figures.of("streams/floor", floors, "pairs/s", settings))
    for name, way in found.items():
        tell(figures.of(f"streams/pairs_per_second/{name}", way.rates, "pairs/s", settings))
        tell(figures.ratio(f"streams/share_of_floor/{name}", way.rates, floors, settings))
        tell(figures.of(f"streams/cpu_seconds_per_1000/{name}", way.cpu_seconds, "s", settings))
    peers = [name for name in PEERS if name in found]
    fastest = [max(turn) for turn in zip(*(found[name].rates for name in peers), strict=True)]
    kept = found["kept"].rates
    for name in peers:
        tell(figures.ratio(f"streams/over/{name}", kept, found[name].rates, settings))
    for name, reason in missing.items():
        tell(figures.blank(f"streams/over/{name}", figures.RATIO, reason))
    tell(figures.ratio("streams/over/fastest_peer", kept, fastest, settings | {"peers": peers}))
    for name in ("here", "tasks"):
        tell(figures.ratio(f"streams/{name}_over/fastest_peer", found[name].rates, fastest, settings))


def main() -> None:
    parser = figures.options(__doc__)
    parser.add_argument("--rows", type=int, default=3_000, help="pairs of the synthetic split")
    parser.add_argument("--repeats", type=int, default=5, help="turns of every way")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="parts to measure")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.repeats = 1_500, 2
    from orchestration.cluster import connected

    torch.set_num_threads(1)
    with (
        figures.report("streams", arguments) as tell,
        tempfile.TemporaryDirectory() as folder,
        connected(None, dashboard=False),
    ):
        split = write_split(folder, arguments.rows)
        if "rates" in arguments.only:
            compare(arguments, tell, split, Path(folder))
        default, larger, tasks = (partial(open_ours, split, *way) for way in _OURS.values())
        if "first" in arguments.only:
            first_batch(tell, "streams/first_batch_seconds", default, arguments.repeats)
            first_batch(tell, "streams/first_batch_seconds_of_tasks", tasks, min(3, arguments.repeats))
        if "memory" in arguments.only:
            memory(tell, "streams/memory_growth_per_epoch", default, arguments.rows // _BATCH)
            memory(tell, "streams/memory_growth_per_epoch_of_here", larger, arguments.rows // _BATCH)


if __name__ == "__main__":
    main()
