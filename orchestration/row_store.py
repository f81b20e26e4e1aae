"""Which chunks a worker asks for, and the rows it holds until they are used.

Decisions: chunks are asked for in the order of first need, so whoever waits for a batch waits for what
comes next. Rows are held as Arrow tables; a window is laid in its order of use once, by one copy, and
a batch is then a concatenation of slices. A window's rows are let go when the next window of its lane is
opened. (A share that is small enough is kept whole: `orchestration.kept_rows`.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from mpma.data.sample_order import SampleOrder, StepRows, Window, step_rows
from orchestration.reading import Piece


def plan_pieces(
    order: SampleOrder,
    lanes: range,
    start_step: int,
    stop_step: int | None,
    *,
    keep: bool,
    with_positions: bool,
) -> Iterator[Piece]:
    """What the steps [start_step, stop_step) of `lanes` need, in the order of first need.

    `keep`: every chunk is asked for once only. `with_positions`: pieces say which positions their rows
    take, for crops that are made where the rows are read. `stop_step` None: without end, save with `keep`.
    """
    asked: set[tuple[int, int]] = set()
    chunks = sum(order.chunk_count(lane) for lane in lanes)
    number = 0
    for window in order.windows(lanes, start_step):
        if (stop_step is not None and window.need_step >= stop_step) or (keep and len(asked) == chunks):
            return
        positions = np.empty_like(window.position)
        positions[window.take] = window.position
        first = 0
        for chunk in (order.chunk(window.lane, index) for index in window.chunks):
            last = first + chunk.rows
            if not keep or (chunk.lane, chunk.number) not in asked:
                position = positions[first:last] if with_positions else None
                yield Piece(number, chunk, window.epoch, window.need_step, position)
                number += 1
            if keep:
                asked.add((chunk.lane, chunk.number))
            first = last


class RowStore:
    """Rows that have been read and are still needed, by lane."""

    def __init__(self, order: SampleOrder, lanes: range) -> None:
        self._order, self._lanes = order, lanes
        self._chunks: dict[tuple[int, int, int], pa.Table] = {}
        self._windows: dict[tuple[int, int], pa.Table] = {}

    def add(self, piece: Piece, rows: pa.Table) -> None:
        """Take the rows of a piece, in file order."""
        self._chunks[piece.chunk.lane, piece.epoch, piece.chunk.number] = rows

    def lacks(self, step: int) -> bool:
        """Whether a chunk that `step` draws from has not come yet."""
        return any(
            (window.lane, window.epoch, chunk) not in self._chunks
            for lane in self._lanes
            for window, _, _ in self._order.parts(step, lane)
            if (lane, window.start) not in self._windows
            for chunk in window.chunks
        )

    def rows(self, step: int) -> tuple[pa.Table, StepRows]:
        """The rows of `step` in batch order; windows that end before it are let go."""
        parts = [part for lane in self._lanes for part in self._order.parts(step, lane)]
        opened: dict[tuple[int, int], pa.Table] = {}
        for window, _, _ in parts:
            opened[window.lane, window.start] = self._opened(window)
        self._windows = opened
        slices = [
            opened[window.lane, window.start].slice(start, stop - start) for window, start, stop in parts
        ]
        return pa.concat_tables(slices), step_rows(parts)

    def _opened(self, window: Window) -> pa.Table:
        """The window's rows in their order of use; its chunks are let go."""
        ready = self._windows.get((window.lane, window.start))
        if ready is not None:
            return ready
        held = [self._chunks.pop((window.lane, window.epoch, chunk)) for chunk in window.chunks]
        return pa.concat_tables(held).take(pa.array(window.take))
