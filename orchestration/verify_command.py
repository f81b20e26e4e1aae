"""`ingest --verify`: a finished dataset read anew, shard by shard, and what is wrong with it.

Decisions: on this machine shards go to plain processes, which start in a second where Ray takes several;
with an address (or RAY_ADDRESS) they are tasks of that cluster. What is shown names files, row numbers and
reasons, never an id or a text. Nothing is ever mended or written.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from mpma.data.pairs import SPLITS
from mpma.data.shard_check import DEFECTS, ShardCheck, ShardTask
from mpma.data.storage import open_storage
from mpma.data.verification import Verification
from mpma.errors import JobError
from orchestration.defects import told, without_values
from orchestration.progress import progress_bar

LINES_SHOWN: Final = 50
"""Findings of the table; --json has more."""


def execute(location: str, as_json: bool, address: str | None, cpus: int | None) -> None:
    """Verify the dataset at a path or URI and print what was found.

    Raises `UserError` where there is no dataset, `JobError` (exit code 1) where something is wrong.
    """
    verification = verify(location, address or os.environ.get("RAY_ADDRESS") or None, cpus, _Bar())
    values = summary(verification)
    if as_json:
        print(json.dumps(values))
    else:
        _show(values, verification)
    if values["defects"]:
        files = len({file for file, _ in verification.findings.counts})
        raise JobError(
            f"{values['dataset']}: {values['defects']} defect{'s' * (values['defects'] != 1)} in {files} "
            f"file{'s' * (files != 1)}",
            "restore the files from a copy, or ingest the archive again with --overwrite",
        )


def verify(
    location: str, address: str | None = None, cpus: int | None = None, bar: _Bar | None = None
) -> Verification:
    """Check everything, in parallel over shards: in processes here, or on the Ray at `address`."""
    verification = Verification(open_storage(location))
    tasks = verification.begin()
    bar = bar or _Bar(show=False)
    with bar:
        bar.total(len(tasks))
        if address is not None:
            from orchestration.cluster import connected

            with connected(address, dashboard=False):
                checks = bar.each(_on_ray(tasks))
        else:
            workers = min(cpus or os.cpu_count() or 1, len(tasks))
            checks = bar.each(_here(tasks) if workers < 2 else _in_processes(tasks, workers))
    verification.conclude([checks[number] for number in range(len(tasks))])
    return verification


def summary(verification: Verification) -> dict[str, Any]:
    """What was found, as plain values."""
    info, counts = verification.info, verification.findings.counts
    by_reason: dict[str, int] = {}
    for (_, reason), count in sorted(counts.items()):
        by_reason[reason] = by_reason.get(reason, 0) + count
    return {
        "dataset": verification.storage.described(),
        "fingerprint": None if info is None else info.fingerprint,
        "pairs": {} if info is None else {split: info.splits[split].pairs for split in SPLITS},
        "shards": {} if info is None else {split: len(info.splits[split].shards) for split in SPLITS},
        "figures_compared": verification.counted,
        "defects": counts.total(),
        "reasons": by_reason,
        "findings": [asdict(finding) for finding in verification.findings.in_order()],
    }


def _show(values: dict[str, Any], verification: Verification) -> None:
    console = Console(highlight=False)
    if values["defects"]:
        table = Table(title="Defects", title_justify="left")
        for heading in ("file", "row", "reason", "detail"):
            table.add_column(heading, justify="right" if heading == "row" else "left", overflow="fold")
        for finding in verification.findings.in_order()[:LINES_SHOWN]:
            row = "" if finding.row is None else f"{finding.row}"
            table.add_row(_plain(finding.file), row, finding.reason, _plain(finding.detail))
        console.print(table)
        if values["defects"] > LINES_SHOWN:
            console.print(
                f"{values['defects'] - LINES_SHOWN} more are not shown; --json tells up to 100 of each"
            )
        for reason, count in values["reasons"].items():
            console.print(f"{reason}: {count}, {DEFECTS[reason]}", markup=False, soft_wrap=True)
        if verification.info is not None and not verification.counted:
            console.print("the figures of dataset.json were not compared: not every row could be read")
        return
    console.print("whole: every file, row and figure is what dataset.json says", soft_wrap=True)
    table = Table()
    for heading in ("", "pairs", "shards"):
        table.add_column(heading, justify="right" if heading else "left")
    for split in SPLITS:
        table.add_row(split, f"{values['pairs'][split]}", f"{values['shards'][split]}")
    console.print(table)
    console.print(f"fingerprint: {values['fingerprint']}", markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    # A file's name may look like markup.
    return text.replace("[", "\\[")


class _Bar:
    """Shards that are done, on a terminal's standard error."""

    def __init__(self, show: bool = True) -> None:
        self._progress = progress_bar(Console(stderr=True, quiet=not show))
        self._task = self._progress.add_task("shards", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def total(self, shards: int) -> None:
        self._progress.update(self._task, total=shards)

    def each(self, checks: Iterator[tuple[int, ShardCheck]]) -> dict[int, ShardCheck]:
        """All of them by number, each told when it comes."""
        found = {}
        for number, check in checks:
            found[number] = check
            self._progress.advance(self._task)
        return found


def _here(tasks: Sequence[ShardTask]) -> Iterator[tuple[int, ShardCheck]]:
    for number, task in enumerate(tasks):
        yield number, task.check()


def _in_processes(tasks: Sequence[ShardTask], workers: int) -> Iterator[tuple[int, ShardCheck]]:
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    waiting: dict[Future[ShardCheck], int] = {}
    try:
        for number, task in enumerate(tasks):
            waiting[pool.submit(_check, task)] = number
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise JobError(
            "a process that checked a shard ended unasked (killed, or out of memory)",
            "run it again with --cpus 1, or with fewer CPUs",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a checking process: Ctrl-C is the program's to answer, and nobody outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _on_ray(tasks: Sequence[ShardTask]) -> Iterator[tuple[int, ShardCheck]]:
    """One Ray task a shard; a few more than there are CPUs wait at once."""
    import ray

    check = ray.remote(_check)
    most = 2 * int(max(ray.cluster_resources().get("CPU", 1), 1))
    left = iter(enumerate(tasks))
    waiting: dict[Any, int] = {}
    try:
        while True:
            while len(waiting) < most and (following := next(left, None)) is not None:
                waiting[check.remote(following[1])] = following[0]
            if not waiting:
                return
            done, _ = ray.wait(list(waiting))
            for reference in done:
                yield waiting.pop(reference), ray.get(reference)
    except ray.exceptions.RayError as error:
        raise JobError(
            f"a task that checked a shard broke off ({told(error)})",
            "the dataset must be at a place that all machines see; Ray's logs say more",
        ) from None


@without_values
def _check(task: ShardTask) -> ShardCheck:
    return task.check()
