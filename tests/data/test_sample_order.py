from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.data.sample_order import SampleOrder
from mpma.errors import UserError

SHARDS = [[40, 40, 17], [64, 3, 64, 30], [0, 51]]  # 309 rows, one empty row group

FROZEN = [30, 13, 37, 23, 43, 58, 55, 45]


def an_order(**changes: object) -> SampleOrder:
    settings = {"seed": 3, "batch_size": 32, "lanes": 8, "window_row_groups": 2} | changes
    return SampleOrder(settings.pop("shards", SHARDS), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("step", [0, 1, 8, 9, 10, 37])
def test_the_global_batch_is_the_same_for_every_number_of_workers(world: int, step: int) -> None:
    whole = an_order().rows(step)
    shares = [an_order().rows(step, rank, world) for rank in range(world)]
    for column, expected in zip(zip(*shares, strict=True), whole, strict=True):
        assert all(len(part) == 32 // world for part in column)
        np.testing.assert_array_equal(np.concatenate(column), expected)


@pytest.mark.parametrize("world", [1, 4])
def test_every_worker_reads_only_rows_of_its_own_lanes(world: int) -> None:
    for rank in range(world):
        low, high = rank * 309 // world, (rank + 1) * 309 // world
        for step in range(25):
            rows = an_order().rows(step, rank, world).row
            assert ((low <= rows) & (rows < high)).all()


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=6), min_size=1, max_size=4),
    lanes=st.sampled_from([1, 2, 3, 8]),
    per_lane=st.integers(1, 5),
    window=st.integers(1, 4),
    seed=st.integers(0, 2**62),
)
def test_no_pair_is_repeated_or_skipped_within_a_lanes_epoch(
    groups: list[list[int]], lanes: int, per_lane: int, window: int, seed: int
) -> None:
    total, batch = sum(map(sum, groups)), lanes * per_lane
    if total < batch:
        return
    order = SampleOrder(groups, seed=seed, batch_size=batch, lanes=lanes, window_row_groups=window)
    steps = 2 * total // batch + 2
    drawn = [order.rows(step) for step in range(steps)]
    rows, epochs, positions = (np.concatenate(column) for column in zip(*drawn, strict=True))
    np.testing.assert_array_equal(positions, np.arange(steps * batch))
    owner = (positions % batch) // per_lane
    for lane in range(lanes):
        mine, passes = rows[owner == lane], epochs[owner == lane]
        expected = np.array(order.lane_rows(lane))
        size = len(expected)
        np.testing.assert_array_equal(passes, np.arange(len(mine)) // size)
        for epoch in range(len(mine) // size):
            np.testing.assert_array_equal(np.sort(mine[epoch * size : (epoch + 1) * size]), expected)
    assert sorted(row for lane in range(lanes) for row in order.lane_rows(lane)) == list(range(total))


def test_positions_run_on_across_epochs_and_a_batch_may_straddle_two() -> None:
    straddling = [step for step in range(40) if len(set(an_order().rows(step).epoch.tolist())) > 1]
    assert straddling
    position = np.concatenate([an_order().rows(step).position for step in range(40)])
    np.testing.assert_array_equal(position, np.arange(40 * 32))


def test_a_fresh_order_asked_for_a_step_gives_what_the_unbroken_one_gave() -> None:
    unbroken = an_order()
    walked = [unbroken.rows(step, 1, 2) for step in range(30)]
    for step in (29, 11, 0):
        for expected, got in zip(walked[step], an_order().rows(step, 1, 2), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_epochs_and_seeds_give_other_orders() -> None:
    order = an_order(lanes=1, batch_size=1)
    first, second = ([int(order.rows(e * 309 + i).row[0]) for i in range(309)] for e in (0, 1))
    other = an_order(lanes=1, batch_size=1, seed=4)
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != [int(other.rows(i).row[0]) for i in range(309)]
    assert first != sorted(first)


def test_the_pairs_of_a_window_come_from_few_row_groups_and_are_shuffled() -> None:
    order = SampleOrder([[64] * 40] * 5, seed=0, batch_size=16, lanes=4, window_row_groups=3)
    for window in islice(order.windows(range(4), 0), 60):
        assert 1 <= len(window.chunks) <= 3
        chunks = [order.chunk(window.lane, number) for number in window.chunks]
        rows = np.concatenate([np.arange(c.first_row, c.first_row + c.rows) for c in chunks])
        np.testing.assert_array_equal(rows[window.take], window.row)
        assert window.row.tolist() != sorted(window.row.tolist())
    long = [window for window in islice(order.windows(range(4), 0), 60) if len(window.chunks) == 3]
    groups = long[0].row // 64
    assert len(set(groups[:40].tolist())) == 3  # mixed from the start, not one group after another


def test_a_chunk_says_where_its_rows_lie_in_the_shards() -> None:
    order = an_order()
    for lane in range(8):
        rows: list[int] = []
        for number in range(order.chunk_count(lane)):
            chunk = order.chunk(lane, number)
            before = sum(sum(shard) for shard in SHARDS[: chunk.shard])
            before += sum(SHARDS[chunk.shard][: chunk.row_group])
            assert chunk.row_group_rows == SHARDS[chunk.shard][chunk.row_group]
            assert 0 <= chunk.start < chunk.stop <= chunk.row_group_rows
            assert chunk.first_row == before + chunk.start
            rows += range(chunk.first_row, chunk.first_row + chunk.rows)
        assert rows == list(order.lane_rows(lane))


@pytest.mark.parametrize("start_step", [0, 7, 23])
@pytest.mark.parametrize("world", [1, 2])
def test_windows_come_in_the_order_of_first_need_and_cover_every_step(start_step: int, world: int) -> None:
    order = an_order()
    steps = range(start_step, start_step + 20)
    needed = {
        (window.lane, window.start)
        for step in steps
        for lane in order.lanes_of(world - 1, world)
        for window, _, _ in order.parts(step, lane)
    }
    given_windows = []
    for window in order.windows(order.lanes_of(world - 1, world), start_step):
        if window.need_step >= steps.stop:
            break
        given_windows.append(window)
    needs = [max(window.need_step, start_step) for window in given_windows]
    assert needs == sorted(needs)
    assert {(window.lane, window.start) for window in given_windows} == needed
    assert len(given_windows) == len(needed)


def test_eight_workers_read_hardly_more_bytes_than_one() -> None:
    shards = [[100] * 250] * 20  # half a million pairs
    size = np.array([len(shard) for shard in shards])

    def rows_read(world: int) -> int:
        """Pairs in every row group that is opened in one epoch, counted each time it is opened."""
        order = SampleOrder(shards, seed=1, batch_size=256, window_row_groups=2)
        read = 0
        for rank in range(world):
            for lane in order.lanes_of(rank, world):
                stop, place = len(order.lane_rows(lane)), 0
                while place < stop:
                    window = order.parts(place // order.pairs_per_lane, lane)[-1][0]
                    read += 100 * len(window.chunks) if window.epoch == 0 else 0
                    place = window.stop
        return read

    one = rows_read(1)
    assert one <= 1.2 * 100 * size.sum()
    assert rows_read(8) <= 1.2 * one


def test_a_step_costs_no_array_as_long_as_the_archive() -> None:
    order = SampleOrder([[100] * 1000] * 100, seed=1, batch_size=256)  # ten million pairs
    order.rows(30_000)
    held = [array for plan in order._epochs.values() for array in plan]
    held += [array for window in order._windows.values() for array in (window.take, window.row)]
    assert max(len(array) for array in held) <= 10_000_000 // 64 // 100 + 2


def test_sizes_that_do_not_fit_are_refused_with_what_would_fit() -> None:
    with pytest.raises(UserError, match=r"data.lanes 12 does not divide training.batch_size 32") as refused:
        an_order(lanes=12)
    assert refused.value.hint is not None
    assert "data.lanes=4" in refused.value.hint
    with pytest.raises(UserError, match=r"training.batch_size 320 is more than the split's 309 pairs"):
        an_order(batch_size=320)
    with pytest.raises(UserError, match="0 pairs"):
        an_order(shards=[])
    with pytest.raises(UserError, match=r"training.workers 3 does not divide data.lanes 8") as refused:
        an_order().rows(0, 0, 3)
    assert refused.value.hint is not None
    assert "training.workers=2" in refused.value.hint


def test_the_order_is_frozen_so_that_old_runs_continue_exactly() -> None:
    assert an_order().rows(5).row.tolist()[:8] == FROZEN
