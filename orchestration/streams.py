"""One worker's batches: read in the sample order, put together in a thread of the worker.

Decisions
- Each worker lists what it needs in the order of first need; whole blocks come in that order
  (`orchestration.blocks`).
- The first batches' rows are read at once by the thread that puts batches together, with the same
  function, up to 256 MB: Ray Data's first task needs some seconds to start.
- The images of the next batch are given to the decoding threads before the present batch is asked for, so
  that no thread waits for the slowest of a batch.
- A share of the split that fits `data.cache_bytes` (encoded, per worker) is kept once it has been read,
  with the tokens of its reports, and nothing is read after the first epoch. Only where images are decoded
  by the worker: crops made in read tasks differ from epoch to epoch.
- Larger shares are held one window per lane; what a window no longer needs is let go.
- Nothing waits for ever: an error in a task or a thread is raised by the next `next`, and two minutes
  without any progress end the job with a line that says where to look.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Protocol

import pyarrow as pa

from mpma.data.config import DataConfig
from mpma.data.sample_order import SampleOrder
from mpma.errors import JobError
from orchestration import blocks
from orchestration.decode_placement import Decode

if TYPE_CHECKING:
    from mpma.data.batches import Batch, Collator
    from mpma.data.dataset_info import ShardInfo
    from mpma.data.storage import Storage
    from orchestration.kept_rows import KeptRows
    from orchestration.reading import Piece, Source
    from orchestration.row_store import RowStore

_BATCHES_BEGUN: Final = 2
"""Batches whose images are being decoded at once."""

_HEAD_BYTES: Final = 256_000_000
_PIECES_PER_TASK: Final = 256
_POLL_SECONDS: Final = 0.2
_JOIN_SECONDS: Final = 2.0


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
    computation. With `decode` read, Ray must be connected. Raises UserError where `world` does not divide
    the lanes; the stream itself raises UserError naming a shard that cannot be read.
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
        from orchestration.kept_rows import KeptRows
        from orchestration.row_store import RowStore, plan_pieces

        self.wait_seconds = 0.0
        """Seconds that the consumer has waited for batches so far."""
        self._source, self._collator, self._mask_ratios = source, collator, mask_ratios
        self._first, self._stop_step = steps
        self._row_bytes = row_bytes
        # Orders keep windows they have made; each thread gets its own.
        own_order = copy.deepcopy(order)
        self._kept = KeptRows(own_order, lanes, collator.tokenizer, collator.max_tokens) if keep else None
        self._rows = RowStore(own_order, lanes)
        self._store: KeptRows | RowStore = self._kept or self._rows
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
            begun: deque[Callable[[], Batch]] = deque()
            while begun or step != self._stop_step:
                more = step != self._stop_step and len(begun) < _BATCHES_BEGUN
                if more and self._has_rows(step, bool(begun)):
                    begun.append(self._begin(step))
                    step += 1
                    continue
                batch = begun.popleft()()
                self._offer(self._batches, batch.pin_memory() if self._pin else batch)
            self._offer(self._batches, StopIteration())
        except _ClosedError:
            pass
        except BaseException as error:
            self._offer_last(self._batches, error)

    def _has_rows(self, step: int, others_begun: bool) -> bool:
        """Whether the rows of `step` are here; waits for them only where no other batch is begun."""
        while self._store.lacks(step):
            if not self._take_block(wait=not others_begun):
                return False
        return True

    def _begin(self, step: int) -> Callable[[], Batch]:
        image_ratio, report_ratio = self._mask_ratios(step)
        threads = self._collator.decode_threads
        if self._kept is not None:
            _, epoch, position = self._kept.numbers(step)
            return self._collator.put_together(
                self._collator.begin_crops(
                    self._kept.images(step), epoch, position, augment=True, threads=threads
                ),
                self._kept.reports(step),
                epoch,
                position,
                image_mask_ratio=image_ratio,
                report_mask_ratio=report_ratio,
            )
        rows, (_, epoch, position) = self._rows.rows(step)
        return self._collator.begin(
            rows,
            epoch,
            position,
            image_mask_ratio=image_ratio,
            report_mask_ratio=report_ratio,
            augment=True,
            threads=threads,
        )

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

    def _take_block(self, wait: bool) -> bool:
        """Store the rows of the next block; False where none is there and none is waited for."""
        while True:
            if self._closed.is_set():
                raise _ClosedError
            try:
                block = self._blocks.get(timeout=_POLL_SECONDS if wait else 0)
            except queue.Empty:
                if not wait:
                    return False
                continue
            break
        if isinstance(block, BaseException):
            raise block
        self._keep_rows(block)
        return True

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
            if rows * self._row_bytes >= blocks.TASK_BYTES or len(task) == _PIECES_PER_TASK:
                yield task
                task, rows = [], 0
        if task:
            yield task

    # --- the reading thread ------------------------------------------------------------------

    def _read(self, pieces: Iterator[Piece]) -> None:
        try:
            with closing(blocks.blocks_of(self._tasks(pieces), self._source)) as found:
                for block in found:
                    self._offer(self._blocks, block)
        except _ClosedError:
            pass
        except BaseException as error:
            self._offer_last(self._blocks, blocks.explained(error))

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


class _ClosedError(Exception):
    """The consumer closed the stream."""
