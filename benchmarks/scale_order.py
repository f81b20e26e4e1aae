"""The sample order at any size: every pair once an epoch, equal for all workers, any step at once.

Decisions: the checks are exact (a count per pair, every position compared), since an order that repeats one
pair in ten million would pass any statistic.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from mpma.data.sample_order import SampleOrder

ROW_GROUP: Final = 96
SHARD_ROW_GROUPS: Final = 1_000
PAIRS_PER_WORKER: Final = 64
SEED: Final = 7


def an_order(pairs: int, workers: int) -> SampleOrder:
    """Row groups of 96 pairs, the last one shorter; one lane a worker and at least 64."""
    groups = np.full(-(-pairs // ROW_GROUP), ROW_GROUP)
    groups[-1] -= groups.sum() - pairs
    shards = [groups[start : start + SHARD_ROW_GROUPS] for start in range(0, len(groups), SHARD_ROW_GROUPS)]
    lanes = max(workers, 64)
    return SampleOrder(
        [shard.tolist() for shard in shards],
        seed=SEED,
        batch_size=max(workers * PAIRS_PER_WORKER, lanes),
        lanes=lanes,
    )


@dataclass(frozen=True)
class EpochCheck:
    """What a walk over an epoch found and took."""

    steps: int
    positions: int
    missing: int
    """Pairs that the epoch did not give."""
    repeated: int
    """Pairs that it gave more than once."""
    seconds: float


def walk_an_epoch(order: SampleOrder, pairs: int) -> EpochCheck:
    """Every step of the first epoch of all lanes, the pairs counted one by one."""
    longest = max(len(order.lane_rows(lane)) for lane in range(order.lanes))
    steps = -(-longest // order.pairs_per_lane)
    seen = np.zeros(pairs, np.uint8)
    begun = time.perf_counter()
    for step in range(steps):
        drawn = order.rows(step)
        expected = step * order.batch_size + np.arange(order.batch_size)
        if not np.array_equal(drawn.position, expected):
            raise AssertionError(f"step {step}: positions are not those of the batch")
        first = drawn.row[drawn.epoch == 0]
        np.add.at(seen, first, 1)
    seconds = time.perf_counter() - begun
    return EpochCheck(steps, steps * order.batch_size, int((seen == 0).sum()), int((seen > 1).sum()), seconds)


def shares_make_the_batch(order: SampleOrder, steps: Sequence[int], worlds: Sequence[int]) -> int:
    """Compare the workers' shares, in rank order, with the whole batch; returns the shares compared."""
    compared = 0
    for step in steps:
        whole = order.rows(step)
        for world in worlds:
            shares = [order.rows(step, rank, world) for rank in range(world)]
            compared += world
            for parts, expected in zip(zip(*shares, strict=True), whole, strict=True):
                if not np.array_equal(np.concatenate(parts), expected):
                    raise AssertionError(f"step {step}: {world} workers do not get the batch")
    return compared


def resumes(pairs: int, workers: int, ranks: Sequence[int], steps: Sequence[int]) -> Iterator[float]:
    """Seconds to the first step of a fresh order that goes on somewhere; it must be the unbroken one's.

    The windows that a stream reads from there on must hold the step's pairs.
    """
    unbroken = an_order(pairs, workers)
    for rank, step in zip(ranks, steps, strict=True):
        order = an_order(pairs, workers)
        begun = time.perf_counter()
        got = order.rows(step, rank, workers)
        yield time.perf_counter() - begun
        for column, expected in zip(got, unbroken.rows(step, rank, workers), strict=True):
            if not np.array_equal(column, expected):
                raise AssertionError(f"rank {rank} does not go on at step {step} where it stopped")
        lanes = order.lanes_of(rank, workers)
        read = np.concatenate([one.position for one in islice(order.windows(lanes, step), 4 * len(lanes))])
        if not np.isin(got.position, read).all():
            raise AssertionError(f"rank {rank}: the stream from step {step} does not read that step's pairs")


def seconds_per_position(pairs: int, workers: int, positions: int) -> float:
    """Of one worker that walks through its share, the order's making left out."""
    order = an_order(pairs, workers)
    share = order.batch_size // workers
    steps = max(1, positions // share)
    order.rows(0, 0, workers)
    begun = time.perf_counter()
    for step in range(1, steps + 1):
        order.rows(step, 0, workers)
    return (time.perf_counter() - begun) / (steps * share)
