"""Images per second of an ingest beside a bare loop of processes, and its memory as the archive grows.

    python -m benchmarks.ingest [--quick] [--rows 1024] [--repeats 5] [--out benchmarks/results/ingest.jsonl]

Prints one JSON line per figure. Radiographs of 2,000 x 2,500 pixels are written as JPEG and as PNG, 4 GB in
all. The ways are measured in turn and the turns are repeated, so that a busy machine slows all of them;
figures are medians with the lowest and highest. Every way is measured with the files in memory (`cached`) and
after the system was told to forget them, as they are in an archive that is larger than the memory.

- `ingest`: the ingest program's path, a Ray Data task a shard. Measured is what is steady: from the begin of
  the first task to the end of the last, reading, checks, statistics, writing and synchronising to the disk
  included, the start of Ray not.
- `bare_loop`: a pool of as many processes that decode as the ingest does (a JPEG at a half), resize, encode,
  hash and write Parquet with the same libraries, and do nothing else: no checks, no statistics, no sections
  of reports, no synchronising. Its processes are started before, as nice as those of Ray.
- `plain_loop`: the same pool decoding every JPEG whole, which is what comes to mind first.

`ingest/peak_memory` is the peak of all processes by proportional set size, of the program as it is typed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import figures
from benchmarks.figures import Figure
from benchmarks.memory import proportional_bytes
from mpma.data.dataset_writing import Part
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.ingest_plan import IngestOptions, PartPlan
from mpma.data.pair_rows import PartMaker
from mpma.data.sources import build_source
from orchestration import ingesting

FIGURES: Final = (
    "ingest/images_per_second_per_core/*",
    "ingest/cpu_seconds_per_image/*",
    "ingest/over_bare_loop/*",
    "ingest/over_plain_loop/*",
    "ingest/peak_memory/*",
    "ingest/memory_growth",
)
HEIGHT, WIDTH = 2_500, 2_000
SHORT_SIDE: Final = 512
QUALITY: Final = 95
ROW_GROUP: Final = 64
RAY_NICENESS: Final = 15
"""What Ray gives its workers; the pool gets the same, or others on the machine would slow one side alone."""
MEMORY_HEIGHT, MEMORY_WIDTH = 1_100, 900
_REPORT: Final = (
    "FINDINGS: The heart is normal in size. No focal consolidation, effusion or pneumothorax is seen. "
    "Degenerative changes of the thoracic spine.\nIMPRESSION: No acute cardiopulmonary process. Number {}."
)


@dataclass
class Way:
    """A way of making shards, and what was measured of it."""

    name: str
    image_format: str
    cached: bool
    folder: Path
    """Of the files that it reads."""
    turn: Callable[[], tuple[float, float]]
    """Makes all shards once; returns the seconds, and the CPU seconds of those who made them."""
    rates: list[float] = field(default_factory=list)
    """Images per second and core, of each turn."""
    cpu_seconds: list[float] = field(default_factory=list)
    """CPU time of an image, of each turn: what a busy machine changes least."""

    @property
    def variant(self) -> str:
        """The last words of its figures' names."""
        return f"{self.image_format}/{'cached' if self.cached else 'read'}"


def radiographs(
    folder: Path, files: int, image_format: str, height: int, width: int, pool: Any = None
) -> list[str]:
    """Write grey pictures with the shades and the noise of a radiograph; their names."""
    suffix = "jpg" if image_format == "jpeg" else "png"
    names = [f"{number}.{suffix}" for number in range(files)]
    tasks = [(folder, names[first : first + 32], first, height, width) for first in range(0, files, 32)]
    for _ in map(_radiographs, tasks) if pool is None else pool.imap_unordered(_radiographs, tasks):
        pass
    # What is not on the disk yet cannot be forgotten.
    os.sync()
    return names


def _radiographs(task: tuple[Path, list[str], int, int, int]) -> None:
    folder, names, seed, height, width = task
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 3.5, (height + 64, width + 64)).astype(np.float32)
    for name in names:
        coarse = Image.fromarray(generator.integers(0, 256, (height // 40, width // 40), dtype=np.uint8))
        shades = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
        down, across = generator.integers(0, 64, 2)
        grey = shades * 0.7 + 30 + noise[down : down + height, across : across + width]
        picture = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        if name.endswith("jpg"):
            picture.save(folder / name, quality=92)
        else:
            picture.save(folder / name, compress_level=4)


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from its memory."""
    for entry in os.scandir(folder):
        descriptor = os.open(entry.path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_table(folder: Path, names: list[str], rows: int, name: str, split: str | None) -> Path:
    """A manifest that names the files one after the other, as often as it takes."""
    with (folder / name).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "patient_id", "path", "report", *(["split"] if split else [])])
        for row in range(rows):
            cells = [f"{row:07d}", f"p{row // 2}", names[row % len(names)], _REPORT.format(row)]
            writer.writerow([*cells, *([split] if split else [])])
    return folder / name


# The ingest.


@dataclass(frozen=True)
class TimedMaker(PartMaker):
    """A maker of parts that notes in a folder when it began and ended."""

    def make(self, plan: PartPlan) -> Part:
        begun, busy = time.time(), time.process_time()
        part = super().make(plan)
        busy = time.process_time() - busy
        place = Path(self.storage.root + ".times")
        place.mkdir(exist_ok=True)
        (place / plan.name.replace("/", "-")).write_text(json.dumps([begun, time.time(), busy]))
        return part


def ingest_seconds(table: Path, out: Path, pairs_per_shard: int) -> tuple[float, float]:
    """Seconds from the begin of the first task to the end of the last, and CPU seconds of all tasks."""
    options = IngestOptions(pairs_per_shard=pairs_per_shard, vocabulary_size=1_000)
    prepared = ingesting.prepare(
        build_source("manifest", table), str(out), key=PUBLIC_KEY, options=options, overwrite=True
    )
    ingesting.carry_out(prepared)
    files = list(out.with_name(f"{out.name}.times").iterdir())
    begun, ended, busy = zip(*(json.loads(file.read_text()) for file in files), strict=True)
    for file in files:
        file.unlink()
    return max(ended) - min(begun), sum(busy)


# The bare loop.


def bare_shard(task: tuple[str, list[tuple[str, str, str]], bool]) -> float:
    """Decode, resize, encode, hash and write the images of one shard; CPU seconds."""
    begun = time.process_time()
    target, rows, whole = task
    schema = pa.schema(
        [("id", pa.string()), ("report", pa.string()), ("image", pa.binary()), ("sha", pa.string())]
    )
    with pq.ParquetWriter(target, schema, compression="NONE") as writer:
        for first in range(0, len(rows), ROW_GROUP):
            group = []
            for row_id, path, report in rows[first : first + ROW_GROUP]:
                with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
                    scale = SHORT_SIDE / min(image.size)
                    size = round(image.width * scale), round(image.height * scale)
                    if not whole:
                        image.draft(None, (size[0] * 3 // 2, size[1] * 3 // 2))
                    grey = image.convert("L").resize(size, Image.Resampling.BICUBIC)
                out = io.BytesIO()
                grey.save(out, "JPEG", quality=QUALITY)
                data = out.getvalue()
                digest = hashlib.sha256(data).hexdigest()
                group.append({"id": row_id, "report": report, "image": data, "sha": digest})
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return time.process_time() - begun


def bare_seconds(pool: Any, table: Path, out: Path, pairs_per_shard: int, whole: bool) -> tuple[float, float]:
    """Seconds that the pool takes for the same shards, and CPU seconds of its processes."""
    out.mkdir(exist_ok=True)
    with table.open(newline="") as stream:
        rows = [(row["id"], str(table.parent / row["path"]), row["report"]) for row in csv.DictReader(stream)]
    tasks = [
        (str(out / f"{first}.parquet"), rows[first : first + pairs_per_shard], whole)
        for first in range(0, len(rows), pairs_per_shard)
    ]
    begun = time.perf_counter()
    busy = sum(pool.imap_unordered(bare_shard, tasks))
    return time.perf_counter() - begun, busy


def throughput(folder: Path, rows: int, pairs_per_shard: int, repeats: int, cores: int) -> list[Figure]:
    """The figures of both formats."""
    from orchestration.cluster import connected

    ingesting.PartMaker = TimedMaker  # type: ignore[misc]
    sizes: dict[str, float] = {}
    with (
        multiprocessing.get_context("spawn").Pool(cores, os.nice, (RAY_NICENESS,)) as pool,
        connected(None, cores, dashboard=False),
    ):
        ways: list[Way] = []
        for image_format in ("jpeg", "png"):
            place = folder / image_format
            place.mkdir()
            names = radiographs(place, rows, image_format, HEIGHT, WIDTH, pool)
            sizes[image_format] = statistics.mean((place / name).stat().st_size for name in names) / 1e6
            table = write_table(place, names, rows, "pairs.csv", "train")
            warm = write_table(place, names, 2 * cores * ROW_GROUP, "warm.csv", "train")
            # Ray's workers and the pool's import for seconds, once.
            ingest_seconds(warm, folder / "warm", ROW_GROUP)
            bare_seconds(pool, warm, folder / "bare", ROW_GROUP, False)

            def ingest(table: Path = table) -> tuple[float, float]:
                return ingest_seconds(table, folder / "made", pairs_per_shard)

            def bare(table: Path = table) -> tuple[float, float]:
                return bare_seconds(pool, table, folder / "bare", pairs_per_shard, False)

            def plain(table: Path = table) -> tuple[float, float]:
                return bare_seconds(pool, table, folder / "bare", pairs_per_shard, True)

            for cached in (False, True):
                ways.append(Way("ingest", image_format, cached, place, ingest))
                ways.append(Way("bare_loop", image_format, cached, place, bare))
                if image_format == "jpeg":
                    ways.append(Way("plain_loop", image_format, cached, place, plain))
        for turn in range(repeats):
            # Whoever goes first in a turn is another one each time.
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                if way.cached:
                    for entry in os.scandir(way.folder):
                        Path(entry.path).read_bytes()
                else:
                    forget(way.folder)
                seconds, busy = way.turn()
                way.rates.append(rows / seconds / cores)
                way.cpu_seconds.append(busy / rows)
    told = []
    ours = {way.variant: way for way in ways if way.name == "ingest"}
    for way in ways:
        settings = {
            "image": f"{WIDTH} x {HEIGHT}",
            "mean_megabytes": round(sizes[way.image_format], 2),
            "rows": rows,
            "pairs_per_shard": pairs_per_shard,
            "processes": cores,
        }
        name = f"{way.name}/{way.variant}"
        told.append(
            figures.of(f"ingest/images_per_second_per_core/{name}", way.rates, "images/s/core", settings)
        )
        told.append(figures.of(f"ingest/cpu_seconds_per_image/{name}", way.cpu_seconds, "s", settings))
        if way.name != "ingest":
            mine = ours[way.variant]
            name = f"ingest/over_{way.name}/{way.variant}"
            told.append(figures.ratio(name, mine.rates, way.rates, settings))
            name = f"ingest/over_{way.name}/by_cpu_time/{way.variant}"
            told.append(figures.ratio(name, way.cpu_seconds, mine.cpu_seconds, settings))
    return told


def memory(folder: Path, sizes: list[int], cores: int) -> list[Figure]:
    """Peaks of the program for archives of so many images, and how much the largest needs more."""
    place = folder / "memory"
    place.mkdir()
    names = radiographs(place, 200, "jpeg", MEMORY_HEIGHT, MEMORY_WIDTH)
    told: list[Figure] = []
    peaks: list[float] = []
    for rows in sizes:
        table = write_table(place, names, rows, f"{rows}.csv", None)
        command = [sys.executable, "-m", "orchestration.ingest", "manifest", str(table)]
        command += ["--out", str(folder / f"made-{rows}"), "--key-file", str(folder / "key"), "--json"]
        command += ["--cpus", str(cores)]
        peak = processes = 0
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            root = psutil.Process(process.pid)
            begun = time.monotonic()
            while process.poll() is None:
                try:
                    now, count = proportional_bytes(root)
                except psutil.NoSuchProcess:
                    break
                if now > peak:
                    peak, processes = now, count
                time.sleep(0.25)
            assert process.wait() == 0
            assert process.stdout is not None
            kept = json.loads(process.stdout.read())["kept"]
        assert kept == rows
        settings = {"rows": rows, "image": f"{MEMORY_WIDTH} x {MEMORY_HEIGHT}", "cores": cores}
        settings |= {"processes_at_peak": processes, "seconds": round(time.monotonic() - begun, 1)}
        peaks.append(peak / 2**30)
        told.append(figures.of(f"ingest/peak_memory/{rows}_images", peaks[-1:], "GiB", settings))
    if len(sizes) > 1:
        ends = {"from_rows": sizes[0], "to_rows": sizes[-1]}
        told.append(figures.ratio("ingest/memory_growth", peaks[-1:], peaks[:1], ends))
    return told


def main() -> None:
    parser = figures.options(__doc__)
    parser.add_argument("--rows", type=int, default=None, help="images of a turn; a multiple of a shard's")
    parser.add_argument("--pairs-per-shard", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=None, help="turns of every way")
    parser.add_argument("--memory-rows", type=int, nargs="*", default=None)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--folder", default=None, help="where the archives are made for a while")
    options = parser.parse_args()
    # Of each pair, what a quick run takes and what counts.
    for name, values in {
        "rows": (128, 1_024),
        "pairs_per_shard": (64, 256),
        "repeats": (1, 5),
        "memory_rows": ([100, 200], [1_000, 3_000, 10_000]),
    }.items():
        if getattr(options, name) is None:
            setattr(options, name, values[0 if options.quick else 1])
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        figures.report("ingest", options) as tell,
    ):
        if options.repeats:
            for figure in throughput(
                Path(folder), options.rows, options.pairs_per_shard, options.repeats, options.cores
            ):
                tell(figure)
        if options.memory_rows:
            for figure in memory(Path(folder), options.memory_rows, options.cores):
                tell(figure)


if __name__ == "__main__":
    main()
