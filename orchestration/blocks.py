"""Blocks of rows in the order in which a stream needs them: read here, or by Ray Data's tasks.

Decisions
- Whose images are decoded by the training process reads them itself, in one thread: Arrow
  lets go of the interpreter's lock, while Ray Data's scheduling thread held it and took two thirds of the
  CPU time of such a stream (0.22 of torch's DataLoader on the same pairs; without it, with batches
  begun early, 0.8: `python -m benchmarks.streams`). From another machine four threads read, since each
  mostly waits.
- What is decoded where it is read is read by Ray Data: about 25 MB a task, in executions of about a
  thousand row groups, so that an endless order needs no endless list. Ray Data's Parquet reader is not
  used: it starts a pool of actors at every execution and cannot begin at a given pair. Its limit on the
  object store bounds what is read ahead.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from mpma.errors import JobError
from orchestration.defects import told

if TYPE_CHECKING:
    from orchestration.reading import Piece, Source

Tasks = Iterator[list["Piece"]]
Blocks = Generator[pa.Table, None, None]

TASK_BYTES: Final = 25_000_000
"""Aim for the rows of one read task."""

_PIECES_PER_EXECUTION: Final = 1024
_READ_AHEAD_TASKS: Final = 8
_REMOTE_THREADS: Final = 4


def blocks_of(tasks: Tasks, source: Source) -> Blocks:
    """One block per task, in order; what went wrong in a task is a block that says so."""
    if source.cropper is not None:
        return _read_by_ray_data(tasks, source)
    return _read_here(tasks, source)


def explained(error: BaseException) -> BaseException:
    """An error of Ray's as one of ours; others as they are."""
    if not type(error).__module__.startswith("ray."):
        return error
    return JobError(
        f"Ray Data's read tasks failed ({told(error)})",
        "Ray's own logs say where: `ray logs` or the dashboard",
    )


def _read_here(tasks: Tasks, source: Source) -> Blocks:
    from orchestration.reading import read_or_say_why, requests

    if source.storage.is_local:
        yield from (read_or_say_why(requests(task), source) for task in tasks)
        return
    ahead: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(_REMOTE_THREADS, thread_name_prefix="read rows") as pool:
        try:
            for task in tasks:
                ahead.append(pool.submit(read_or_say_why, requests(task), source))
                if len(ahead) == _REMOTE_THREADS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_by_ray_data(tasks: Tasks, source: Source) -> Blocks:
    while execution := _some(tasks):
        with closing(_execute(execution, source)) as blocks:
            yield from blocks


def _some(tasks: Iterator[list[Piece]]) -> list[list[Piece]]:
    """Tasks for one execution: planning more of them would hold up the first."""
    taken: list[list[Piece]] = []
    pieces = 0
    while pieces < _PIECES_PER_EXECUTION and (task := next(tasks, None)):
        taken.append(task)
        pieces += len(task)
    return taken


def _execute(tasks: list[list[Piece]], source: Source) -> Blocks:
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
