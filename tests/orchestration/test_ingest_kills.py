"""An ingest of image files, killed at random moments and continued: ten times, twenty by `make chaos`."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from ingest_to_kill import PAIRS_PER_SHARD
from PIL import Image

from mpma.data.dataset import Dataset
from mpma.errors import UserError

KILLS = 20 if "MPMA_CHAOS_KILLS" in os.environ else 5
IMAGES = 900
PLAN = (
    *(("start", "driver"), ("listing", "family"), ("parts", "driver"), ("parts", "worker")),
    *(("finishing", "family"), ("start", "family"), ("listing", "driver"), ("parts", "family")),
    *(("parts", "worker"), ("finishing", "driver")),
)
"""Stage and victim of each kill, and again from the start."""
PATIENCE_SECONDS = 300
POLL_SECONDS = 0.005

Tree = dict[str, str]
"""Every file of a directory, by its name relative to it, to its hash."""


class Ingest:
    """The program, running in a session of its own."""

    def __init__(self, root: Path, out: Path, log: Path) -> None:
        self.log, self.out, self.begun = log, out, time.monotonic()
        program = Path(__file__).with_name("ingest_to_kill.py")
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(program), str(root), str(out)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(program.parents[2])},
            )

    def until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; False where the program ended before it."""
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < self.begun + PATIENCE_SECONDS, self.log.read_text()
            time.sleep(POLL_SECONDS)
        return self.process.poll() is None

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def after(self, seconds: float) -> bool:
        """Wait so long from now; False where the program ended before."""
        end = time.monotonic() + seconds
        return self.until(lambda: time.monotonic() >= end)

    def reached(self, stage: str) -> bool:
        return stage in self.log.read_text().split()

    def parts(self) -> int:
        """Parts that stand."""
        return len(list(self.out.glob("*/*.json")))

    def family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def working(self) -> list[psutil.Process]:
        """Those that are making a part."""
        return [process for process in self.family() if _title(process).startswith("ray::Map")]

    def kill(self, victim: str, generator: np.random.Generator) -> str:
        """SIGKILL to the driver, to all of its processes, or to one that makes a part; tells which it was."""
        working, family = self.working(), self.family()
        if victim == "worker" and working:
            _end([working[int(generator.integers(len(working)))]])
            assert self.process.wait(PATIENCE_SECONDS) in (0, 1), self.log.read_text()
            return "worker"
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if victim == "family":
            _end(family)
            return "family"
        # Nobody waits for what the driver leaves behind: the next run begins beside it.
        return "driver"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=20)


def write_archive(root: Path) -> Path:
    """A table of PNG and JPEG files, a few of them torn, two images a patient."""
    root.mkdir()
    generator = np.random.default_rng(0)
    rows: list[tuple[object, ...]] = [("id", "patient_id", "path", "report")]
    for number in range(IMAGES):
        kind = ("png", "jpg")[number % 2]
        coarse = Image.fromarray(generator.integers(0, 256, (20, 24), dtype=np.uint8))
        coarse.resize((480, 400), Image.Resampling.BICUBIC).save(root / f"{number}.{kind}")
        if number % 100 == 7:
            data = (root / f"{number}.{kind}").read_bytes()
            (root / f"{number}.{kind}").write_bytes(data[: len(data) // 2])
        rows.append(
            (number, number // 2, f"{number}.{kind}", f"The heart is normal, the lung has {number} spots.")
        )
    with (root / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return root


def tree(directory: Path) -> Tree:
    """The files of a directory but the lock, which a straggler may hold."""
    return {
        file.relative_to(directory).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def is_finished(directory: Path) -> bool:
    try:
        Dataset.open(directory).verify()
    except UserError as error:
        if "not a finished dataset" in error.message:
            return False
        raise
    return True


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_ingest_killed_at_random_moments_ends_with_the_bytes_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    root, out = write_archive(tmp_path / "archive"), tmp_path / "killed"
    generator = np.random.default_rng(20)
    unbroken = Ingest(root, tmp_path / "unbroken", tmp_path / "unbroken.log")
    reached: dict[str, float] = {}
    for stage in ("listing", "planned", "finishing"):
        assert unbroken.until(lambda stage=stage: unbroken.reached(stage)), unbroken.log.read_text()  # type: ignore[misc]
        reached[stage] = unbroken.seconds()
    assert unbroken.process.wait(PATIENCE_SECONDS) == 0, unbroken.log.read_text()
    finishing_seconds = unbroken.seconds() - reached["finishing"]
    expected = tree(tmp_path / "unbroken")
    shards = [name for name in expected if name.endswith(".parquet") and "/" in name]
    assert len(shards) >= IMAGES / PAIRS_PER_SHARD
    assert "dataset.json" in expected

    killed: Counter[tuple[str, str]] = Counter()
    ends = runs = 0
    while killed.total() < KILLS:
        # A plan of stages, so that the short ones are met as well; the moment in each is drawn.
        stage, victim = PLAN[killed.total() % len(PLAN)]
        share = float(generator.random())
        run = Ingest(root, out, tmp_path / f"killed-{runs}.log")
        runs += 1
        assert runs < 5 * KILLS
        if stage == "start":
            alive = run.after(share * reached["planned"])
        elif stage == "listing":
            alive = run.until(lambda: run.reached("listing"))  # noqa: B023
            alive = alive and run.after(share * (reached["planned"] - reached["listing"]))
        elif stage == "parts":
            wanted = run.parts() + 1 + int(share * 3)
            alive = run.until(lambda: run.parts() >= wanted or run.reached("finishing"))  # noqa: B023
            if victim == "worker":
                alive = alive and run.until(lambda: bool(run.working()) or run.reached("finishing"))  # noqa: B023
            else:
                alive = alive and run.after(float(generator.random()) * 0.2)
        else:
            alive = run.until(lambda: run.reached("finishing"))  # noqa: B023
            alive = alive and run.after(share * finishing_seconds)
        if alive:
            killed[stage, run.kill(victim, generator)] += 1
        if is_finished(out) if out.exists() else False:
            ends += 1
            assert {name: found for name, found in tree(out).items() if name in expected} == expected
            shutil.rmtree(out)
    last = Ingest(root, out, tmp_path / "last.log")
    assert last.process.wait(PATIENCE_SECONDS) == 0, last.log.read_text()
    assert tree(out) == expected
    assert {victim for _, victim in killed} == {"driver", "family", "worker"}
    print(dict(killed), f"{runs} runs, {ends} of which ended")
