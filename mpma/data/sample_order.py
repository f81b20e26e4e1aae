"""The order in which a run sees the pairs: a pure function of a few numbers.

Promise: the global batch of step t is the same set of pairs in the same order for every number of
workers that divides the lanes; within a lane's epoch no pair is repeated or skipped; any step can be
asked for directly, so a continued run needs nothing but its step. Precondition: seed, batch size,
lanes, window and the shards' row-group counts stay what they were.

How: the split's rows are cut into L lanes of equal length. A lane is walked endlessly and each batch
takes k = G / L pairs from every lane, lane after lane. Worker r of w owns the contiguous lanes
[r L/w, (r+1) L/w), so the workers' shares in rank order are the global batch. In each epoch a lane
visits its chunks (the row groups, or parts of them, inside the lane) in a shuffled order; the pairs of
a window of successive chunks are shuffled together. A row group is therefore read once per lane and
epoch, and what must be held is one window per lane.

Cost: a step touches only the windows it draws from. Per lane and epoch one array as long as the
lane's chunk list is made (its rows over the row-group size), never one as long as the archive.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpma.data.counter_hash import counter_hash
from mpma.errors import UserError

DEFAULT_LANES: Final = 64

_KEPT_PER_LANE: Final = 4

Rows = NDArray[np.int64]


class StepRows(NamedTuple):
    """What one worker reads for one step; int64 [n] each."""

    row: Rows
    """Row in the split, counted over its shards in order."""
    epoch: Rows
    """The lane's pass over its rows."""
    position: Rows
    """step * batch size + place in the global batch; never repeats in a run."""


class Chunk(NamedTuple):
    """A row group, or the part of it that lies in one lane."""

    lane: int
    number: int
    """Place among the lane's chunks, in file order."""
    shard: int
    row_group: int
    start: int
    """First row inside the row group."""
    stop: int
    row_group_rows: int
    """Rows of the whole row group."""
    first_row: int
    """Row in the split of the first pair."""

    @property
    def rows(self) -> int:
        """Pairs of the chunk."""
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Successive chunks of a lane's epoch whose pairs are shuffled together."""

    lane: int
    epoch: int
    number: int
    """Place among the windows of the lane's epoch."""
    start: int
    """Lane position of its first pair; lane positions run on across epochs."""
    chunks: tuple[int, ...]
    """Numbers of its chunks, in the order in which they are read."""
    take: Rows
    """int64 [n]: for each pair in the order of use, its place in the chunks laid one after another."""
    row: Rows
    """int64 [n]: rows in the split in the order of use."""
    position: Rows
    """int64 [n]: positions in the sample order, in the order of use."""
    need_step: int
    """First step that draws from this window."""

    @property
    def stop(self) -> int:
        """Lane position after its last pair."""
        return self.start + len(self.row)


class SampleOrder:
    """Sample order of one split; see the module's promise.

    `row_group_rows` holds, per shard, the row counts of its row groups. `lanes` None means
    gcd(64, batch_size). Raises UserError where the sizes do not fit one another.
    """

    def __init__(
        self,
        row_group_rows: Sequence[Sequence[int]],
        *,
        seed: int,
        batch_size: int,
        lanes: int | None = None,
        window_row_groups: int = 2,
    ) -> None:
        counts = [np.asarray(groups, np.int64).reshape(-1) for groups in row_group_rows]
        self.rows_total = int(sum(int(groups.sum()) for groups in counts))
        self.seed = seed
        self.batch_size = batch_size
        self.lanes = math.gcd(DEFAULT_LANES, batch_size) if lanes is None else lanes
        self.window_row_groups = window_row_groups
        self._check()
        self.pairs_per_lane = batch_size // self.lanes
        """Pairs that a batch takes from each lane."""
        flat = np.concatenate(counts)
        filled = flat > 0
        self._group_shard = np.repeat(np.arange(len(counts)), [len(groups) for groups in counts])[filled]
        self._group_number = np.concatenate([np.arange(len(groups)) for groups in counts])[filled]
        self._group_stop = np.cumsum(flat[filled])
        self._group_start = self._group_stop - flat[filled]
        self._epochs: OrderedDict[tuple[int, int], _LaneEpoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], Window] = OrderedDict()

    def _check(self) -> None:
        if self.batch_size % self.lanes:
            fitting = math.gcd(self.lanes, self.batch_size)
            raise UserError(
                f"data.lanes {self.lanes} does not divide training.batch_size {self.batch_size}",
                f"data.lanes={fitting} does; so does every divisor of the batch size",
            )
        if self.rows_total < self.batch_size:
            raise UserError(
                f"training.batch_size {self.batch_size} is more than the split's {self.rows_total} pairs",
                f"a batch of at most {self.rows_total} pairs holds no pair twice"
                if self.rows_total
                else "the split is empty: name a dataset that has training pairs",
            )

    def lanes_of(self, rank: int, world: int) -> range:
        """Lanes of worker `rank` of `world`. Raises UserError where `world` does not divide the lanes."""
        if self.lanes % world:
            fitting = max(n for n in range(1, min(world, self.lanes) + 1) if self.lanes % n == 0)
            raise UserError(
                f"training.workers {world} does not divide data.lanes {self.lanes}",
                f"training.workers={fitting} does, or set data.lanes to a multiple of {world} "
                "that divides the batch size",
            )
        share = self.lanes // world
        return range(rank * share, (rank + 1) * share)

    def lane_rows(self, lane: int) -> range:
        """Rows of the split that lane `lane` owns."""
        total = self.rows_total
        return range(lane * total // self.lanes, (lane + 1) * total // self.lanes)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> StepRows:
        """Rows of worker `rank`'s share of the global batch of `step`, in batch order."""
        return step_rows(part for lane in self.lanes_of(rank, world) for part in self.parts(step, lane))

    def parts(self, step: int, lane: int) -> list[tuple[Window, int, int]]:
        """Windows that `step` draws from in `lane`, each with the slice [start, stop) of its order of use."""
        place, last = step * self.pairs_per_lane, (step + 1) * self.pairs_per_lane
        parts = []
        while place < last:
            window = self._window_at(lane, place)
            stop = min(last, window.stop)
            parts.append((window, place - window.start, stop - window.start))
            place = stop
        return parts

    def windows(self, lanes: range, start_step: int) -> Iterator[Window]:
        """Windows of `lanes` without end, from those of `start_step` on, in the order of first need.

        Windows first needed by the same step come lane by lane, as the batch takes them.
        """
        return heapq.merge(
            *(self._lane_windows(lane, start_step) for lane in lanes),
            key=lambda window: (max(window.need_step, start_step), window.lane, window.start),
        )

    def chunk(self, lane: int, number: int) -> Chunk:
        """Where chunk `number` of `lane` lies in the shards."""
        rows = self.lane_rows(lane)
        group = int(np.searchsorted(self._group_stop, rows.start, side="right")) + number
        offset = int(self._group_start[group])
        first = max(rows.start, offset)
        last = min(rows.stop, int(self._group_stop[group]))
        return Chunk(
            lane=lane,
            number=number,
            shard=int(self._group_shard[group]),
            row_group=int(self._group_number[group]),
            start=first - offset,
            stop=last - offset,
            row_group_rows=int(self._group_stop[group]) - offset,
            first_row=first,
        )

    def chunk_count(self, lane: int) -> int:
        """Chunks of `lane`."""
        return len(self._chunk_starts(lane)) - 1

    def _chunk_starts(self, lane: int) -> Rows:
        """int64 [chunks + 1]: first row of each of the lane's chunks, and the lane's end."""
        rows = self.lane_rows(lane)
        first, last = np.searchsorted(self._group_stop, [rows.start, rows.stop - 1], side="right")
        inner: Rows = self._group_stop[first:last]
        return np.concatenate([[rows.start], inner, [rows.stop]]).astype(np.int64)

    def _epoch(self, lane: int, epoch: int) -> _LaneEpoch:
        """The lane's shuffled chunks of one epoch, cut into windows."""
        key = (lane, epoch)
        if key not in self._epochs:
            sizes = np.diff(self._chunk_starts(lane))
            noise = counter_hash(self.seed, "chunk order", lane, epoch, np.arange(len(sizes)))
            chunks = np.argsort(noise, kind="stable")
            # A first window of random length keeps the lanes from all needing their next one at once.
            phase = int(counter_hash(self.seed, "window phase", lane, epoch)) % self.window_row_groups
            cuts = np.arange(phase, len(sizes), self.window_row_groups)
            cuts = np.unique(np.concatenate([[0], cuts, [len(sizes)]]))
            stops = np.concatenate([[0], np.cumsum(sizes[chunks])])
            self._epochs[key] = _LaneEpoch(chunks, cuts, stops[cuts[:-1]])
            if len(self._epochs) > _KEPT_PER_LANE * self.lanes:
                self._epochs.popitem(last=False)
        return self._epochs[key]

    def _window_at(self, lane: int, place: int) -> Window:
        epoch, inside = divmod(place, len(self.lane_rows(lane)))
        starts = self._epoch(lane, epoch).starts
        return self._window(lane, epoch, int(np.searchsorted(starts, inside, side="right")) - 1)

    def _window(self, lane: int, epoch: int, number: int) -> Window:
        key = (lane, epoch, number)
        if key not in self._windows:
            self._windows[key] = self._make_window(lane, epoch, number)
            if len(self._windows) > _KEPT_PER_LANE * self.lanes:
                self._windows.popitem(last=False)
        return self._windows[key]

    def _make_window(self, lane: int, epoch: int, number: int) -> Window:
        plan = self._epoch(lane, epoch)
        chunks = plan.chunks[plan.cuts[number] : plan.cuts[number + 1]]
        found = [self.chunk(lane, int(chunk)) for chunk in chunks]
        rows = np.concatenate([np.arange(one.first_row, one.first_row + one.rows) for one in found])
        take = np.argsort(counter_hash(self.seed, "pair order", epoch, rows), kind="stable")
        start = epoch * len(self.lane_rows(lane)) + int(plan.starts[number])
        step, inside = np.divmod(start + np.arange(len(rows)), self.pairs_per_lane)
        return Window(
            lane=lane,
            epoch=epoch,
            number=number,
            start=start,
            chunks=tuple(int(chunk) for chunk in chunks),
            take=take,
            row=rows[take],
            position=step * self.batch_size + lane * self.pairs_per_lane + inside,
            need_step=int(step[0]),
        )

    def _lane_windows(self, lane: int, start_step: int) -> Iterator[Window]:
        window = self._window_at(lane, start_step * self.pairs_per_lane)
        while True:
            yield window
            window = self._window_at(lane, window.stop)


def step_rows(parts: Iterable[tuple[Window, int, int]]) -> StepRows:
    """The numbers of slices [start, stop) of windows, one after another."""
    columns = [
        (window.row[start:stop], np.full(stop - start, window.epoch), window.position[start:stop])
        for window, start, stop in parts
    ]
    return StepRows(*(np.concatenate(column) for column in zip(*columns, strict=True)))


class _LaneEpoch(NamedTuple):
    chunks: Rows
    """Chunk numbers in the order in which the epoch visits them."""
    cuts: Rows
    """Where the visiting order is cut into windows."""
    starts: Rows
    """First pair of each window, counted within the epoch."""
