"""Six hundred bad files: none crashes, hangs or eats the memory, each is named, good rows beside them stay.

The rule for a file: one of the reasons that are written beside it, or, where that is allowed, a row. Flipped
bytes may leave a picture, and then it is kept; a cut file may be whole, and then its pixels are those of the
uncut one.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from bad_files import BadFile, bad_images, encodings
from bad_paths import bad_paths
from bad_tables import SOUND, bad_tables, parquet, yaml_texts
from source_samples import png

from mpma.data.dataset import Dataset
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.images import read_grey
from mpma.data.ingest_plan import IngestOptions
from mpma.data.pairs import SPLITS
from mpma.data.quality import REASONS, image_problem
from mpma.data.sources import build_source, parquet_cells
from mpma.data.sources.contract import Item
from orchestration.ingesting import carry_out, prepare

HERE = Path(__file__).parent
MEGABYTES = 150
"""Memory that one file may cost beyond what the process held before it."""
GOOD_EVERY = 10


def in_a_process_of_its_own(*arguments: str) -> dict[str, dict[str, Any]]:
    """What `bad_files_run` tells of each file, by its name."""
    path = os.pathsep.join((str(HERE), str(HERE.parents[1])))
    done = subprocess.run(
        [sys.executable, str(HERE / "bad_files_run.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"ended by {done.returncode} at {lines[-1:]}:\n{done.stderr[-2000:]}"
    return {line["name"]: line for line in lines if "name" in line}


def write_archive(root: Path, files: Sequence[BadFile], paths: Sequence[str], bad: bool = True) -> Path:
    """A manifest with a sound row before every tenth bad one; `bad` False leaves the bad ones out."""
    rows = [("id", "patient_id", "path", "report", "split")]
    named = [(file.name, file.name) for file in files]
    named += [(f"path-{number}", path) for number, path in enumerate(paths)]
    for number, (name, path) in enumerate(named):
        if number % GOOD_EVERY == 0:
            good = f"good-{number}"
            (root / f"{good}.png").write_bytes(png(number))
            report, split = f"The heart is normal, {number}.", SPLITS[number // GOOD_EVERY % 3]
            rows.append((good, good, f"{good}.png", report, split))
        if bad:
            rows.append((name, name, path, "A report beside it.", "train"))
    with (root / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    for file in files if bad else ():
        (root / file.name).write_bytes(file.data)
    return root


def rows_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Every row by its pair's id, with its split."""
    return {
        row["pair_id"]: {**row, "split": split}
        for split in SPLITS
        for row in dataset.read_rows(split, range(dataset.rows(split))).to_pylist()
    }


@pytest.mark.timeout(240)
def test_six_hundred_bad_images_are_named_and_no_good_row_is_lost(tmp_path: Path) -> None:
    files, root = bad_images(), tmp_path / "archive"
    root.mkdir()
    paths = bad_paths(root)
    write_archive(root, files, [path for path, _ in paths])
    found = in_a_process_of_its_own("images", str(root), str(tmp_path / "made"))
    quarantine = {
        row["pair_id"]: row for row in pq.read_table(tmp_path / "made" / "quarantine.parquet").to_pylist()
    }
    made = Dataset.open(tmp_path / "made")
    made.verify()
    rows = rows_of(made)
    assert len(files) + len(paths) >= 600

    wrong = []
    expected = [(file.name, file.reasons, file.may_be_kept) for file in files]
    expected += [(f"path-{n}", reasons, False) for n, (_, reasons) in enumerate(paths)]
    for name, reasons, may_be_kept in expected:
        reason = quarantine[name]["reason"] if name in quarantine else None
        assert (name in rows) == (reason is None), name
        if reason is None and not (may_be_kept or not reasons):
            wrong.append(f"{name} was kept")
        elif reason is not None and reason not in reasons:
            wrong.append(f"{name}: {reason} ({quarantine[name]['detail']}), not {reasons}")
    assert not wrong, wrong
    assert {row["reason"] for row in quarantine.values()} <= set(REASONS)

    slow = {name: line["seconds"] for name, line in found.items() if line["seconds"] > 5}
    large = {name: line["megabytes"] for name, line in found.items() if line["megabytes"] > MEGABYTES}
    assert not slow
    assert not large

    # A file that was cut and is kept shows every pixel it ever had.
    whole = encodings()
    cut = [file for file in files if file.name.startswith("cut-") and file.name in rows]
    assert cut
    for file in cut:
        np.testing.assert_array_equal(read_grey(file.data), read_grey(whole[file.name.partition(".")[2]]))

    clean_root = tmp_path / "clean"
    clean_root.mkdir()
    write_archive(clean_root, files, [path for path, _ in paths], bad=False)
    clean = carry_out(
        prepare(
            build_source("manifest", clean_root),
            str(tmp_path / "clean-made"),
            key=PUBLIC_KEY,
            options=IngestOptions(pairs_per_shard=64),
        )
    )
    good = rows_of(clean.dataset)
    assert len(good) == -(-(len(files) + len(paths)) // GOOD_EVERY)
    assert {name: row for name, row in rows.items() if name.startswith("good-")} == good


@pytest.mark.timeout(240)
def test_bad_tables_and_archives_are_one_line_or_lose_their_bad_rows_alone(tmp_path: Path) -> None:
    found = in_a_process_of_its_own("tables", str(tmp_path))
    wrong = []
    for table in bad_tables():
        line = found[table.name]
        message, listed = line.get("line"), line.get("items")
        if message is not None and ("\n" in message or not message.strip() or "Heart" in message):
            wrong.append(f"{table.name}: not one line without its text: {message!r}")
        if table.anything:
            assert (message is None) != (listed is None)
            assert set(line.get("reasons", ())) <= set(REASONS)
        elif table.message is not None:
            if message is None or re.search(table.message, message) is None:
                wrong.append(f"{table.name}: {message!r}, not {table.message!r}")
        elif tuple(line.get("reasons", ())) != table.reasons:
            wrong.append(f"{table.name}: {message or line['reasons']}, not {table.reasons}")
        elif table.whole and listed != found[SOUND[table.source]]["items"]:
            wrong.append(f"{table.name}: the sound rows are not what they were")
    assert not wrong, wrong
    assert all(len(found[name]["items"]) == 8 for name in SOUND.values())
    assert {name: line["seconds"] for name, line in found.items() if line["seconds"] > 5} == {}
    assert {name: line["megabytes"] for name, line in found.items() if line["megabytes"] > MEGABYTES} == {}


def test_a_configuration_file_that_grows_or_lies_is_one_line(tmp_path: Path) -> None:
    found = in_a_process_of_its_own("settings", str(tmp_path))
    for name in yaml_texts():
        assert "\n" not in found[name]["line"]
        assert ".yaml" in found[name]["line"]


def test_a_damaged_page_costs_its_rows_and_one_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(parquet(rows=400, row_groups=1))
    (tmp_path / "sound.parquet").write_bytes(bytes(data))
    column = pq.ParquetFile(tmp_path / "sound.parquet").metadata.row_group(0).column(2)
    assert column.path_in_schema == "image"
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 3_000] = bytes(3_000)
    (tmp_path / "damaged.parquet").write_bytes(bytes(data))
    (tmp_path / "sound.parquet").unlink()
    source = build_source("manifest", tmp_path)
    opened: list[Any] = []
    real = pq.ParquetFile
    monkeypatch.setattr(
        parquet_cells.pq, "ParquetFile", lambda *given, **more: opened.append(1) or real(*given, **more)
    )
    items = [item for item in source.items() if isinstance(item, Item)]
    opened.clear()
    read, reasons = [], set()
    for item in items:
        try:
            read.append(source.load_image(item) == png(int(item.pair_id[1:])))
        except OSError as error:
            reasons.add(image_problem(error)[0])
            read.append(False)
    assert reasons == {"unreadable_image"}
    assert 100 < sum(read) < 300
    assert read == sorted(read, reverse=True)
    assert len(opened) == 1
