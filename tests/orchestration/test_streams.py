from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from batch_equality import assert_same_batch
from PIL import Image

from mpma.data.batches import Batch, Collator, concatenate
from mpma.data.config import DataConfig
from mpma.data.dataset_info import ShardInfo
from mpma.data.rows import COLLATED_COLUMNS
from mpma.data.sample_order import SampleOrder
from mpma.data.shards import new_shard, read_row_groups, shard_schema
from mpma.data.storage import Storage, open_storage
from mpma.data.tokenizer import ReportTokenizer, train_tokenizer
from mpma.errors import JobError, UserError
from mpma.model.config import ImageConfig, ReportConfig
from orchestration import blocks, streams
from orchestration.reading import Source, read_pieces, requests
from orchestration.row_store import RowStore, plan_pieces

ROWS_PER_SHARD = (150, 64, 83)
ROWS = sum(ROWS_PER_SHARD)
BATCH = 16
LANES = 4


@dataclass
class Split:
    storage: Storage
    files: list[ShardInfo]

    def shards(self, split: str) -> list[ShardInfo]:
        assert split == "train"
        return self.files

    def table(self) -> pa.Table:
        groups = [(info, list(range(len(info.row_group_rows)))) for info in self.files]
        return pa.concat_tables([read_row_groups(self.storage, *item, COLLATED_COLUMNS) for item in groups])


def write_split(folder: Path) -> Split:
    storage = open_storage(folder)
    storage.make_directory("train")
    files, first = [], 0
    for number, count in enumerate(ROWS_PER_SHARD):
        with new_shard(storage, f"train/{number:05d}.parquet", shard_schema()) as shard:
            for row in range(first, first + count):
                shard.add(a_row(row))
        first += count
        assert shard.info is not None
        files.append(shard.info)
    return Split(storage, files)


def a_row(row: int) -> dict[str, object]:
    pixels = np.random.default_rng(row).integers(0, 256, (40, 36)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG")
    name, text = f"p{row}", f"heart size {row % 17} normal lungs clear " * 2
    return {
        "pair_id": name,
        "patient_id": name,
        "study_id": f"s{row // 2}",
        "image": out.getvalue(),
        "width": 36,
        "height": 40,
        "view": "PA",
        "report": text,
        "findings": text,
        "impression": "",
        "labels": None,
        "source": "test",
        "license": "",
    }


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return write_split(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def collator() -> Collator:
    texts = enumerate(["heart size normal lungs clear 0 1 2 3"] * 4)
    tokenizer = ReportTokenizer.load(train_tokenizer(texts, 60))
    return Collator(tokenizer, ImageConfig(size=32, patch_size=16), ReportConfig(max_tokens=16), 5, 1)


def an_order(split: Split) -> SampleOrder:
    groups = [info.row_group_rows for info in split.files]
    return SampleOrder(groups, seed=2, batch_size=BATCH, lanes=LANES, window_row_groups=2)


def masks(step: int) -> tuple[float, float]:
    return (0.75, 0.5) if step < 30 else (0.0, 0.25)


def opened(
    split: Split,
    collator: Collator,
    *,
    start: int = 0,
    stop: int | None = None,
    rank: int = 0,
    world: int = 1,
    decode: streams.Decode = "collate",
    cache_bytes: int = 0,
) -> streams.BatchStream:
    return streams.open_stream(
        split,
        an_order(split),
        collator,
        rank=rank,
        world=world,
        start_step=start,
        stop_step=stop,
        data=DataConfig(cache_bytes=cache_bytes),
        mask_ratios=masks,
        decode=decode,
    )


def expected(split: Split, collator: Collator, step: int) -> Batch:
    """The batch read in the plainest way."""
    numbers = an_order(split).rows(step)
    image_ratio, report_ratio = masks(step)
    return collator.collate(
        split.table().take(pa.array(numbers.row)),
        numbers.epoch,
        numbers.position,
        image_mask_ratio=image_ratio,
        report_mask_ratio=report_ratio,
        augment=True,
    )


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many executions of a few tasks with two or three row groups each; a small head."""
    monkeypatch.setattr(blocks, "TASK_BYTES", 250_000)
    monkeypatch.setattr(streams, "_HEAD_BYTES", 250_000)
    monkeypatch.setattr(blocks, "_PIECES_PER_EXECUTION", 5)


# --- through Ray Data --------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_local", "small_tasks")
@pytest.mark.parametrize(("decode", "cache_bytes"), [("collate", 0), ("collate", 2**30), ("read", 0)])
def test_the_stream_gives_the_batches_of_the_sample_order_across_epochs(
    split: Split, collator: Collator, decode: streams.Decode, cache_bytes: int
) -> None:
    stream = opened(split, collator, stop=40, decode=decode, cache_bytes=cache_bytes)
    batches = list(stream)
    assert len(batches) == 40
    assert int(batches[-1].epoch.max()) >= 2
    for step in (0, 1, 9, 17, 18, 19, 29, 30, 39):
        assert_same_batch(batches[step], expected(split, collator, step))
    assert stream.wait_seconds > 0
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.usefixtures("ray_local", "small_tasks")
@pytest.mark.parametrize("decode", ["collate", "read"])
def test_a_shard_that_tears_while_it_is_read_is_named_in_one_line(
    tmp_path: Path, collator: Collator, decode: streams.Decode
) -> None:
    torn = write_split(tmp_path)
    stream = opened(torn, collator, decode=decode)
    next(stream)
    data = (tmp_path / "train/00002.parquet").read_bytes()
    (tmp_path / "train/00002.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"train/00002.parquet") as refused:
        list(islice(stream, 400))
    assert "\n" not in refused.value.message
    with pytest.raises(UserError, match=r"train/00002.parquet"):
        next(stream)


# --- without Ray -------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_tasks")
def test_several_threads_read_from_another_machine_in_the_order_of_need(
    split: Split, collator: Collator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Storage, "is_local", property(lambda storage: False))
    batches = list(opened(split, collator, stop=30))
    for step, batch in enumerate(batches):
        assert_same_batch(batch, expected(split, collator, step))


@pytest.mark.usefixtures("small_tasks")
def test_a_stream_opened_at_a_step_is_the_tail_of_the_unbroken_one(split: Split, collator: Collator) -> None:
    tail = list(opened(split, collator, start=25, stop=34))
    for offset, batch in enumerate(tail):
        assert_same_batch(batch, expected(split, collator, 25 + offset))


@pytest.mark.usefixtures("small_tasks")
def test_the_workers_shares_in_rank_order_are_the_global_batch(split: Split, collator: Collator) -> None:
    shares = [list(opened(split, collator, stop=20, rank=rank, world=2)) for rank in range(2)]
    for step, parts in enumerate(zip(*shares, strict=True)):
        assert_same_batch(concatenate(parts), expected(split, collator, step))


def test_a_shard_that_is_missing_at_the_start_is_named_in_one_line(
    tmp_path: Path, collator: Collator
) -> None:
    torn = write_split(tmp_path)
    (tmp_path / "train/00001.parquet").unlink()
    with pytest.raises(UserError, match=r"train/00001.parquet"):
        next(opened(torn, collator))


def test_no_progress_ends_the_job_with_where_to_look(
    split: Split, collator: Collator, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def stuck(*_: object) -> Iterator[pa.Table]:
        release.wait(20)
        yield from ()

    monkeypatch.setattr(blocks, "blocks_of", stuck)
    monkeypatch.setattr(streams, "_HEAD_BYTES", 0)
    monkeypatch.setattr(streams.BatchStream, "no_progress_seconds", 0.5)
    began = time.monotonic()
    with pytest.raises(JobError, match="no data for") as failed:
        next(opened(split, collator))
    release.set()
    assert time.monotonic() - began < 10
    assert failed.value.hint is not None
    assert "CPU" in failed.value.hint


def test_an_error_behind_the_stream_reaches_its_consumer(
    split: Split, collator: Collator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_HEAD_BYTES", 0)
    ray_error = type("NodeDiedError", (Exception,), {"__module__": "ray.exceptions"})
    for error, expected_error, words in (
        (AssertionError("a defect"), AssertionError, "a defect"),
        (ray_error("address 10.0.0.7"), JobError, r"read tasks failed \(NodeDiedError\)$"),
    ):
        monkeypatch.setattr(blocks, "blocks_of", _raising(error))
        with pytest.raises(expected_error, match=words):
            next(opened(split, collator))


def test_closing_ends_the_threads_and_the_iteration(split: Split, collator: Collator) -> None:
    before = set(threading.enumerate())
    stream = opened(split, collator, cache_bytes=2**30)
    next(stream)
    stream.close()
    stream.close()
    mine = {thread for thread in threading.enumerate() if not thread.name.startswith("decode")}
    assert mine <= before
    with pytest.raises(StopIteration):
        next(stream)


def test_time_spent_waiting_is_counted_and_time_spent_elsewhere_is_not(
    split: Split, collator: Collator
) -> None:
    stream = opened(split, collator, cache_bytes=2**30)
    next(stream)
    waited = stream.wait_seconds
    assert waited > 0
    time.sleep(0.5)
    next(stream)
    assert stream.wait_seconds - waited < 0.4
    stream.close()


def test_a_worker_count_that_does_not_divide_the_lanes_is_refused(split: Split, collator: Collator) -> None:
    with pytest.raises(UserError, match=r"training.workers 3 does not divide data.lanes 4"):
        opened(split, collator, world=3)


@pytest.mark.parametrize("keep", [True, False])
def test_pieces_come_in_the_order_of_need_and_kept_ones_once(split: Split, keep: bool) -> None:
    order = an_order(split)
    pieces = list(plan_pieces(order, range(LANES), 3, 60, keep=keep, with_positions=False))
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    needs = [max(piece.need_step, 3) for piece in pieces]
    assert needs == sorted(needs)
    chunks = [(piece.chunk.lane, piece.chunk.number) for piece in pieces]
    whole = {(lane, number) for lane in range(LANES) for number in range(order.chunk_count(lane))}
    assert set(chunks) == whole
    assert (len(chunks) == len(whole)) is keep


def test_a_store_that_keeps_nothing_holds_little_more_than_a_window_per_lane(split: Split) -> None:
    order = an_order(split)
    store = RowStore(order, range(LANES))
    source = Source.of(split.storage, split.files, None)
    pieces = plan_pieces(order, range(LANES), 0, None, keep=False, with_positions=False)
    for step in range(60):
        while store.lacks(step):
            piece = next(pieces)
            store.add(piece, read_pieces(requests([piece]), source).drop_columns("piece"))
        rows, numbers = store.rows(step)
        assert rows.equals(split.table().take(pa.array(numbers.row)))
        assert len(store._windows) <= 2 * LANES
        # A step that draws from two windows of a lane may bring other lanes' chunks early.
        assert len(store._chunks) <= 2 * LANES


def test_a_read_task_opens_each_shard_once_and_keeps_the_order_asked_for(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(storage: Storage, shard: ShardInfo, groups: list[int], columns: list[str]) -> pa.Table:
        calls.append((shard.path, len(groups)))
        return read_row_groups(storage, shard, groups, columns)

    monkeypatch.setattr("orchestration.reading.read_row_groups", counted)
    order = an_order(split)
    pieces = list(plan_pieces(order, range(LANES), 0, None, keep=True, with_positions=False))
    table = read_pieces(requests(pieces), Source.of(split.storage, split.files, None))
    assert len(calls) == 3
    assert sum(count for _, count in calls) == sum(len(info.row_group_rows) for info in split.files)
    asked = [range(p.chunk.first_row, p.chunk.first_row + p.chunk.rows) for p in pieces]
    rows = split.table().take(pa.array(np.concatenate(asked)))
    assert table.drop_columns("piece").equals(rows)
    assert table["piece"].to_pylist() == [p.number for p in pieces for _ in range(p.chunk.rows)]


def test_a_shard_with_other_row_groups_than_promised_is_refused(split: Split) -> None:
    order = SampleOrder([[100, 50], [64], [83]], seed=2, batch_size=BATCH, lanes=LANES)
    pieces = list(plan_pieces(order, range(LANES), 0, None, keep=True, with_positions=False))
    with pytest.raises(UserError, match=r"train/00000.parquet has other row groups"):
        read_pieces(requests(pieces), Source.of(split.storage, split.files, None))


def _raising(error: Exception) -> Callable[..., Iterator[pa.Table]]:
    def execute(*_: object) -> Iterator[pa.Table]:
        raise error

    return execute
