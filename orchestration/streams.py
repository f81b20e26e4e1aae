"""One worker's batches: read by Ray Data in the sample order, put together in a thread of the worker.

Decisions
- Each worker makes its own Ray Data datasets from a list of requests in the order of first need, and
  iterates whole blocks in that order. About 25 MB a task; the list is cut into executions of about a
  thousand row groups, so that an endless order needs no endless list. Ray Data's Parquet reader is not
  used: it starts a pool of actors at every execution and cannot begin at a given pair.
- The first batches' rows are read by the worker itself, with the same function, up to 256 MB: Ray Data's
  first task needs some seconds to start.
- A share of the split that fits `data.cache_bytes` (encoded, per worker) is kept once it has been read,
  and Ray Data has nothing left to do after the first epoch. Only where images are decoded by the worker:
  crops made in read tasks differ from epoch to epoch.
- Larger shares are held one window per lane; what a window no longer needs is let go. Ray Data's own
  limit on the object store bounds what is read ahead.
- Nothing waits for ever: an error in a task or a thread is raised by the next `next`, and two minutes
  without any progress end the job with a line that says where to look.
"""

from __future__ import annotations

import copy
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import pyarrow as pa

from mpma.data.config import DataConfig
from mpma.data.sample_order import SampleOrder
from mpma.errors import JobError
from orchestration.defects import told

if TYPE_CHECKING:
    from mpma.data.batches import Batch, Collator
    from mpma.data.dataset_info import ShardInfo
    from mpma.data.storage import Storage
    from orchestration.reading import Piece, Source

Decode = Literal["collate", "read"]

TASK_BYTES: Final = 25_000_000
"""Aim for the rows of one read task."""

_HEAD_BYTES: Final = 256_000_000
_PIECES_PER_TASK: Final = 256
_PIECES_PER_EXECUTION: Final = 1024
_READ_AHEAD_TASKS: Final = 8
_POLL_SECONDS: Final = 0.2
_JOIN_SECONDS: Final = 2.0


def choose_decode(data: DataConfig, device: str) -> tuple[Decode, str]:
    """Where images are decoded (`collate` or `read`), and the reason in words."""
    if data.decode != "auto":
        return data.decode, f"decode: {data.decode} (as configured)"
    if device == "cuda":
        return "read", "decode: in read tasks (a GPU takes more than one process can decode)"
    return (
        "collate",
        "decode: in the training process (on CPU it starts at once and can keep what it has read)",
    )


def open_stream(
    dataset: Readable,
    order: SampleOrder,
    collator: Collator,
    *,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int | None,
    data: DataConfig,
    mask_ratios: Callable[[int], tuple[float, float]],
    decode: Decode = "collate",
    pin_memory: bool = False,
    split: str = "train",
) -> BatchStream:
    """The batches of worker `rank` of `world` for the steps [start_step, stop_step), augmented.

    `order` is the sample order of `split`; `mask_ratios` gives the image's and the report's mask ratio
    of a step; `pin_memory` puts batches into page-locked memory, from which they move to a GPU beside the
    computation. Ray must be connected. Raises UserError where `world` does not divide the lanes; the
    stream itself raises UserError naming a shard that cannot be read.
    """
    from orchestration.reading import Source

    lanes = order.lanes_of(rank, world)
    shards = dataset.shards(split)
    row_bytes = sum(shard.bytes for shard in shards) / max(1, sum(shard.rows for shard in shards))
    share_bytes = row_bytes * sum(len(order.lane_rows(lane)) for lane in lanes)
    cropper = collator.cropper if decode == "read" else None
    return BatchStream(
        Source.of(dataset.storage, shards, cropper),
        order,
        collator,
        lanes=lanes,
        steps=(start_step, stop_step),
        mask_ratios=mask_ratios,
        row_bytes=max(row_bytes, cropper.size**2) if cropper else row_bytes,
        keep=decode == "collate" and share_bytes <= data.cache_bytes,
        prefetch_batches=data.prefetch_batches,
        pin_memory=pin_memory,
    )


class Readable(Protocol):
    """The part of a dataset that a stream needs."""

    storage: Storage

    def shards(self, split: str) -> Sequence[ShardInfo]: ...


class BatchStream:
    """Iterator of batches; made by `open_stream`. Close it when done: it has threads and tasks."""

    no_progress_seconds = 120.0
    """Wait without a block or a batch after which the job is given up."""

    def __init__(
        self,
        source: Source,
        order: SampleOrder,
        collator: Collator,
        *,
        lanes: range,
        steps: tuple[int, int | None],
        mask_ratios: Callable[[int], tuple[float, float]],
        row_bytes: float,
        keep: bool,
        prefetch_batches: int,
        pin_memory: bool,
    ) -> None:
        from orchestration.row_store import RowStore, plan_pieces

        self.wait_seconds = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self._source, self._collator, self._mask_ratios = source, collator, mask_ratios
        self._first, self._stop_step = steps
        self._row_bytes = row_bytes
        # Orders keep windows they have made; each thread gets its own.
        own_order = copy.deepcopy(order)
        self._store = RowStore(own_order, lanes, keep=keep)
        self._pieces = plan_pieces(
            copy.deepcopy(order), lanes, *steps, keep=keep, with_positions=source.cropper is not None
        )
        self._prefetch, self._pin = prefetch_batches, pin_memory
        self._asked: dict[int, Piece] = {}
        self._blocks: queue.Queue[pa.Table | BaseException] = queue.Queue(1)
        self._batches: queue.Queue[Batch | BaseException] = queue.Queue(prefetch_batches)
        self._closed = threading.Event()
        self._ended: BaseException | None = None
        self._progress = time.monotonic()
        self._threads = [threading.Thread(target=self._assemble, name="assemble batches", daemon=True)]
        self._threads[0].start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next step's batch. Raises UserError or JobError of whatever went wrong behind it."""
        if self._ended is not None:
            raise self._ended
        began = time.monotonic()
        try:
            got = self._wait_for_batch(began)
        finally:
            self.wait_seconds += time.monotonic() - began
        if isinstance(got, BaseException):
            self._ended = got
            self.close()
            raise got
        return got

    def close(self) -> None:
        """End the threads and the reading; safe to call twice."""
        self._ended = self._ended or StopIteration()
        self._closed.set()
        for thread in list(self._threads):
            # One that waits for a read task ends, with its execution, when the task does.
            thread.join(timeout=_JOIN_SECONDS)

    def _wait_for_batch(self, began: float) -> Batch | BaseException:
        while True:
            try:
                return self._batches.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                idle = time.monotonic() - max(began, self._progress)
                if idle > self.no_progress_seconds:
                    return JobError(
                        f"no data for {idle:.0f} seconds: Ray Data's read tasks do not finish",
                        "see `ray status`: one logical CPU must be free for Ray Data",
                    )

    # --- the assembling thread ---------------------------------------------------------------

    def _assemble(self) -> None:
        try:
            self._read_head()
            step = self._first
            while step != self._stop_step:
                while self._store.lacks(step):
                    self._take_block()
                rows, numbers = self._store.rows(step)
                image_ratio, report_ratio = self._mask_ratios(step)
                batch = self._collator.collate(
                    rows,
                    numbers.epoch,
                    numbers.position,
                    image_mask_ratio=image_ratio,
                    report_mask_ratio=report_ratio,
                    augment=True,
                )
                self._offer(self._batches, batch.pin_memory() if self._pin else batch)
                step += 1
            self._offer(self._batches, StopIteration())
        except _ClosedError:
            pass
        except BaseException as error:
            self._offer_last(self._batches, error)

    def _read_head(self) -> None:
        """Read what the first batches need in this process while Ray Data's tasks start."""
        from orchestration.reading import read_pieces, requests

        most = int(_HEAD_BYTES / self._row_bytes)
        head: list[Piece] = []
        rest: list[Piece] = []
        for piece in self._pieces:
            if piece.need_step >= self._first + self._prefetch or most <= 0:
                rest.append(piece)
                break
            head.append(piece)
            most -= piece.chunk.rows
        remaining = chain(rest, self._pieces)
        thread = threading.Thread(target=self._read, args=(remaining,), name="read blocks", daemon=True)
        self._threads.append(thread)
        thread.start()
        for task in self._tasks(iter(head)):
            self._keep_rows(read_pieces(requests(task), self._source))

    def _take_block(self) -> None:
        """Wait for the next block and store its rows."""
        while True:
            if self._closed.is_set():
                raise _ClosedError
            try:
                block = self._blocks.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            break
        if isinstance(block, BaseException):
            raise block
        self._keep_rows(block)

    def _keep_rows(self, block: pa.Table) -> None:
        from orchestration.reading import PIECE_COLUMN, raise_failure

        raise_failure(block)
        numbers = block[PIECE_COLUMN].to_numpy()
        rows = block.drop_columns(PIECE_COLUMN)
        first = 0
        while first < len(numbers):
            piece = self._asked.pop(int(numbers[first]))
            self._store.add(piece, rows.slice(first, piece.chunk.rows))
            first += piece.chunk.rows
        self._progress = time.monotonic()

    def _tasks(self, pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
        """The pieces in groups of about TASK_BYTES."""
        task: list[Piece] = []
        rows = 0
        for piece in pieces:
            self._asked[piece.number] = piece
            task.append(piece)
            rows += piece.chunk.rows
            if rows * self._row_bytes >= TASK_BYTES or len(task) == _PIECES_PER_TASK:
                yield task
                task, rows = [], 0
        if task:
            yield task

    # --- the reading thread ------------------------------------------------------------------

    def _read(self, pieces: Iterator[Piece]) -> None:
        try:
            tasks = self._tasks(pieces)
            while execution := _some(tasks):
                with closing(_execute(execution, self._source)) as blocks:
                    for block in blocks:
                        self._offer(self._blocks, block)
        except _ClosedError:
            pass
        except BaseException as error:
            self._offer_last(self._blocks, _explained(error))

    def _offer(self, target: queue.Queue[Any], item: Any) -> None:
        """Put `item` when there is room. Raises _ClosedError when the stream was closed meanwhile."""
        while not self._closed.is_set():
            try:
                target.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            self._progress = time.monotonic()
            return
        raise _ClosedError

    def _offer_last(self, target: queue.Queue[Any], item: Any) -> None:
        with suppress(_ClosedError):
            self._offer(target, item)


def _some(tasks: Iterator[list[Piece]]) -> list[list[Piece]]:
    """Tasks for one execution: planning more of them would hold up the first."""
    taken: list[list[Piece]] = []
    pieces = 0
    while pieces < _PIECES_PER_EXECUTION and (task := next(tasks, None)):
        taken.append(task)
        pieces += len(task)
    return taken


def _execute(tasks: list[list[Piece]], source: Source) -> Generator[pa.Table, None, None]:
    """Blocks of one Ray Data execution, in order; one block answers one task."""
    import ray.data

    from orchestration.reading import read_or_say_why, requests
    from orchestration.scheduling_pause import SchedulingPause

    if not ray.is_initialized():
        raise RuntimeError("a stream reads through Ray Data: connect to Ray first")
    # A torn shard is reported in one line by the consumer; Ray Data's own account would come first.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
        object_store_memory=_READ_AHEAD_TASKS * TASK_BYTES
    )
    context.custom_execution_callback_classes = [SchedulingPause]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_arrow([requests(task) for task in tasks]).map_batches(
            partial(read_or_say_why, source=source), batch_size=None, batch_format="pyarrow"
        )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _explained(error: BaseException) -> BaseException:
    """An error of Ray's as one of ours; others as they are."""
    if not type(error).__module__.startswith("ray."):
        return error
    return JobError(
        f"Ray Data's read tasks failed ({told(error)})",
        "Ray's own logs say where: `ray logs` or the dashboard",
    )


class _ClosedError(Exception):
    """The consumer closed the stream."""
