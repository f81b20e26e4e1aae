"""First batch of a warm start, and memory over ten epochs.

Called by `benchmarks.streams`. Warm: Ray is up, the files are in the page cache, the process has decoded
before; each sample opens a new stream. Memory is the proportional set size of this process and its
descendants after every epoch; its growth is the slope of a line through epochs 2 to 10 over their mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
import psutil

from benchmarks import figures
from benchmarks.memory import proportional_bytes
from orchestration.streams import BatchStream

Opened = Callable[[], BatchStream]
Tell = Callable[[figures.Figure], None]

EPOCHS: Final = 10


def first_batch(tell: Tell, figure: str, opened: Opened, repeats: int) -> None:
    """Seconds from opening a stream to its first batch; the first opening is not counted."""
    samples = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        stream = opened()
        next(stream)
        samples.append(time.perf_counter() - began)
        stream.close()
    tell(figures.of(figure, samples[1:], figures.SECONDS, {"warm": True}))


def memory(tell: Tell, figure: str, opened: Opened, batches: int) -> None:
    """Memory added by an epoch, and what is held."""
    stream, held = opened(), []
    for _ in range(EPOCHS):
        for _ in range(batches):
            next(stream)
        held.append(proportional_bytes(psutil.Process())[0])
    stream.close()
    later = np.array(held[1:], float)
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0])
    settings = {"epochs": EPOCHS, "megabytes": [round(value / 1e6) for value in held]}
    tell(figures.of(figure, [slope / later.mean()], figures.FRACTION, settings))
