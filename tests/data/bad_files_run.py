"""Takes bad files one by one in a process of its own, and tells of each how long it took and what memory.

    python bad_files_run.py images ARCHIVE OUT      python bad_files_run.py tables FOLDER

One JSON line a file goes to standard output, one with its name before it is begun: a file that hangs is
stopped by the alarm, one that takes all memory by the limit of the process, and the last line then names it.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bad_tables import bad_tables, yaml_texts

from mpma.config_tree import read_yaml
from mpma.data import pair_rows
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.ingest_plan import IngestOptions, plan_ingest
from mpma.data.sources import build_source, parse_options, source_kind
from mpma.data.sources.contract import Item
from mpma.errors import UserError
from orchestration.ingesting import carry_out, prepare

SECONDS = 5.0
"""Processor seconds of this process for one file; a busy machine does not count."""
ADDRESS_BYTES = 4 << 30


@contextmanager
def watched(name: str) -> Iterator[dict[str, Any]]:
    """Time and memory of one file, printed with what the block puts into the mapping."""
    print(json.dumps({"begun": name}), flush=True)
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = _kilobytes("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    # One that waits for a pipe takes no processor time at all.
    signal.setitimer(signal.ITIMER_REAL, 20 * SECONDS)
    found: dict[str, Any] = {"name": name}
    yield found
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (_kilobytes("VmHWM") - before) / 1024
    print(json.dumps({**found, "seconds": time.process_time() - begun, "megabytes": grown}), flush=True)


def _kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def images(archive: str, out: str) -> None:
    """Ingest an archive, each of its rows watched."""
    make_row = pair_rows.make_row

    def watched_row(item: Item, *rest: Any) -> Any:
        with watched(item.pair_id) as found:
            row = make_row(item, *rest)
            found["reason"] = getattr(row, "reason", None)
            found["detail"] = getattr(row, "detail", "")
        return row

    pair_rows.make_row = watched_row
    source = build_source("manifest", archive)
    carry_out(prepare(source, out, key=PUBLIC_KEY, options=IngestOptions(pairs_per_shard=64)))


def tables(folder: str) -> None:
    """List every bad table."""
    for table in bad_tables():
        root = Path(folder) / table.name
        for file, data in table.files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(data)
        with watched(table.name) as found:
            try:
                plan = plan_ingest(
                    build_source(table.source, root, table.options), IngestOptions(), PUBLIC_KEY
                )
            except UserError as error:
                found["line"] = f"{error.message} | {error.hint}"
            else:
                items = sorted(
                    (item for part in plan.parts for item in part.items()), key=lambda item: item.pair_id
                )
                # Where a row stands is another place beside bad ones.
                found["items"] = [repr(replace(item, locator={})) for item in items]
                found["reasons"] = [refused.reason for refused in plan.rejections]


def settings(folder: str) -> None:
    """Read every bad configuration file, as a recipe and as a list on the command line."""
    for number, (name, text) in enumerate(yaml_texts().items()):
        file = Path(folder) / f"{number}.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        with watched(name) as found:
            try:
                read_yaml(file)
            except UserError as error:
                found["line"] = error.message
        with watched(f"{name}, as a list") as found:
            try:
                parse_options(source_kind("manifest"), [f"nothing_found=[{text.partition(':')[2]}]"])
            except UserError as error:
                found["line"] = error.message


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    {"images": images, "tables": tables, "settings": settings}[sys.argv[1]](*sys.argv[2:])
