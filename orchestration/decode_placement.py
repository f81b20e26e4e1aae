"""Where images are decoded: in the training process's threads or in Ray Data's tasks, by a short trial.

Decisions
- Beside a GPU a trial decodes a few of the run's own images with its own crop, in one thread and then in as
  many as the configuration allows: about a tenth of a second, and a third at most unless one image takes
  longer. What a stream yields does not depend on it, only how fast it comes.
- On a CPU the tasks would take the same cores as the step, and cost copies and a process besides, and what
  they decode is not kept for the next epoch: threads are taken, and nothing is tried out. A trial there was
  misled by whatever else used the cores in its tenth of a second.
- Beside a GPU whichever makes more images a second is taken: the threads as measured, or the CPUs that
  Ray has besides the training workers, each at four fifths of what one thread was measured at: tasks gave
  0.79 of what as many threads gave (`python -m benchmarks.streams`).
- Where the configuration names the place there is no trial. A process tries out the same images once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from mpma.data.config import DataConfig

if TYPE_CHECKING:
    from mpma.data.dataset_info import ShardInfo
    from mpma.data.decoding import Cropper
    from mpma.data.storage import Storage

Decode = Literal["collate", "read"]

_TRIAL_SECONDS: Final = 0.1
"""For each of the two counts of threads."""
_MOST_IMAGES: Final = 32
_TASK_SHARE: Final = 0.8


@dataclass(frozen=True)
class Trial:
    """What a trial measured, in images per second."""

    one_thread: float
    threads: int
    all_threads: float

    @property
    def milliseconds(self) -> float:
        """Per image, in one thread."""
        return 1e3 / self.one_thread


def choose_decode(
    data: DataConfig, device: str, trial: Trial | None = None, spare_cpus: float = 0
) -> tuple[Decode, str]:
    """Where images are decoded (`collate` or `read`), and the reason in words.

    `spare_cpus`: those of Ray that no training worker has. Beside a GPU and without a trial the tasks do it.
    """
    if data.decode != "auto":
        return data.decode, f"decode: {data.decode} (as configured)"
    if device != "cuda":
        return "collate", "decode: in the training process (tasks would take the same CPUs)"
    if trial is None:
        return "read", "decode: in read tasks (a GPU takes more than one process can decode)"
    tasks = spare_cpus * trial.one_thread * _TASK_SHARE
    place: Decode = "read" if tasks > trial.all_threads else "collate"
    where = "in read tasks" if place == "read" else "in the training process"
    here = f"{trial.threads} thread{'s' * (trial.threads > 1)} here {trial.all_threads:,.0f} images/s"
    there = f"{spare_cpus:g} CPUs of Ray Data's tasks about {tasks:,.0f}"
    return place, f"decode: {where} ({trial.milliseconds:.2f} ms an image; {here}, {there})"


def try_out(storage: Storage, shards: Sequence[ShardInfo], cropper: Cropper, threads: int) -> Trial:
    """Decode some of the first shard's images. Raises `UserError` where they cannot be read."""
    return _tried_out(_FirstShard(storage, shards[0]), cropper, threads)


class _FirstShard:
    """What a trial reads; equal where it would read the same."""

    def __init__(self, storage: Storage, shard: ShardInfo) -> None:
        self.storage, self.shard = storage, shard

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FirstShard) and hash(self) == hash(other)

    def __hash__(self) -> int:
        return hash((self.shard.path, self.shard.sha256))


@lru_cache(maxsize=8)
def _tried_out(source: _FirstShard, cropper: Cropper, threads: int) -> Trial:
    from mpma.data.rows import encoded_images
    from mpma.data.shards import read_row_groups

    images = encoded_images(read_row_groups(source.storage, source.shard, [0], ["image"]))[:_MOST_IMAGES]
    one = _rate(images, cropper, 1)
    return Trial(one, threads, one if threads == 1 else _rate(images, cropper, threads))


def _rate(images: Sequence[memoryview], cropper: Cropper, threads: int) -> float:
    """Images per second; how many are decoded depends on how long the first takes."""
    began = time.perf_counter()
    counters = np.zeros(len(images), np.int64), np.arange(len(images))
    cropper(images[:1], counters[0][:1], counters[1][:1], augment=True)
    each = time.perf_counter() - began
    count = min(len(images), max(threads, int(_TRIAL_SECONDS * threads / each)))
    part = images[:count], counters[0][:count], counters[1][:count]
    with ThreadPoolExecutor(threads) as executor:
        began = time.perf_counter()
        cropper(*part, augment=True, executor=executor, threads=threads)
        return count / (time.perf_counter() - began)
