"""A run and a search in a bucket: killed on one machine, continued on another, with equal numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bucket_server import CREDENTIALS, bucket_server, settings_of
from small_runs import TIMINGS, Command, phantom_dataset, recipe, write_recipe
from small_searches import course, events_of, state_of, write_space

import mpma
from mpma.data.storage import open_storage
from mpma.training.checkpoint import MARKER_FILE, MODEL_FILE, OPTIMIZER_FILE, checkpoint_name
from mpma.training.metrics_log import read_lines
from mpma.training.ownership import CLAIM_FILE
from mpma.training.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(mpma.__file__).parents[1]
STEPS = 40


@dataclass(frozen=True)
class Machine:
    """A working folder, a home and a place for Ray's files, shared with no other."""

    folder: Path
    started: list[Command] = field(default_factory=list)

    @classmethod
    def new(cls, root: Path, name: str) -> Machine:
        made = cls(root / name)
        for part in ("work", "home", "ray"):
            (made.folder / part).mkdir(parents=True)
        return made

    def runs(self, *arguments: str) -> Command:
        """A program of this project that runs here."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        mine = {
            "HOME": str(self.folder / "home"),
            "RAY_TMPDIR": str(self.folder / "ray"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        program = Command(
            log, *arguments, environment={**kept, **CREDENTIALS, **mine}, folder=self.folder / "work"
        )
        self.started.append(program)
        return program


@dataclass(frozen=True)
class Bucket:
    """The bucket's folders, and where the data and the settings of the programs lie on every machine."""

    settings: str
    here: Path

    def __call__(self, folder: str) -> str:
        """The address of a folder."""
        return f"s3://archive/{folder}{self.settings}"

    def pretrain(self, recipe_file: Path, name: str) -> tuple[str, ...]:
        """The command of a run in the bucket."""
        given = ("--config", str(recipe_file), "--data", str(self.here / "phantom"))
        return ("orchestration.pretrain", *given, "--runs", self("runs"), "--name", name, "--no-dashboard")

    def tune(self, space: Path, name: str) -> tuple[str, ...]:
        """The command of a search."""
        given = ("--space", str(space), "--data", str(self.here / "phantom"))
        quiet = ("--no-dashboard",)
        return ("orchestration.tune", *given, "--searches", self("searches"), "--name", name, *quiet)

    def run(self, name: str) -> RunDirectory:
        return RunDirectory.at(self("runs"), name)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    root = tmp_path_factory.mktemp("bucket")
    phantom_dataset(root / "phantom")
    with pytest.MonkeyPatch.context() as patch, bucket_server() as place:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield Bucket(settings_of(place), root)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    # Ray's sockets lie below it, and their paths may not be long.
    root = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    both = Machine.new(root, "1"), Machine.new(root, "2")
    try:
        yield both
    finally:
        for program in (*both[0].started, *both[1].started):
            program.kill()
        shutil.rmtree(root, ignore_errors=True)


def _lines(run: RunDirectory) -> list[dict[str, object]]:
    """metrics.jsonl without what depends on the clock."""
    found = read_lines(run.folder)
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in found]


def _record(run: RunDirectory) -> dict[str, str]:
    """The hash of every file of a run."""
    return {name: run.folder.hash_file(name) for name in run.folder.sizes()}


def test_a_run_that_was_killed_goes_on_on_another_machine_with_equal_numbers(
    bucket: Bucket, machines: tuple[Machine, Machine]
) -> None:
    settings = recipe(threads_per_worker=1, steps=STEPS, checkpoint_every_steps=10)
    settings["validation"]["every_steps"] = STEPS // 2
    recipe_file = write_recipe(bucket.here / "recipe.yaml", settings)
    first, second = machines
    command = bucket.pretrain(recipe_file, "broken")
    run = bucket.run("broken")

    def saved() -> int:
        return sum(name.endswith(MARKER_FILE) for name in run.checkpoints.sizes())

    unbroken = second.runs(*bucket.pretrain(recipe_file, "unbroken"))
    killed = first.runs(*command)
    killed.until(lambda: saved() >= 1)
    killed.kill()
    assert unbroken.wait() == 0, unbroken.output()
    assert run.finished_steps() is None
    claims = [run.folder.read(CLAIM_FILE)]

    # Cut off rather than dead: it comes back when another has brought the run to its end.
    cut_off = second.runs(*command)
    cut_off.until(lambda: run.folder.read(CLAIM_FILE) != claims[0])
    claims.append(run.folder.read(CLAIM_FILE))
    cut_off.process.send_signal(signal.SIGSTOP)
    assert run.finished_steps() is None
    last = first.runs(*command)
    assert last.wait() == 0, last.output()
    assert "from checkpoint step_" in last.output()
    claims.append(run.folder.read(CLAIM_FILE))
    assert len(set(claims)) == 3
    written = _record(run)
    cut_off.process.send_signal(signal.SIGCONT)
    assert cut_off.wait() == 1, cut_off.output()
    assert "broken: another program or group of workers has taken over this run" in cut_off.output()

    assert run.finished_steps() == STEPS
    assert _record(run) == written
    unbroken_run = bucket.run("unbroken")
    assert _lines(run) == _lines(unbroken_run)
    for part in (MODEL_FILE, OPTIMIZER_FILE):
        ended = f"{checkpoint_name(STEPS)}/{part}"
        assert run.checkpoints.hash_file(ended) == unbroken_run.checkpoints.hash_file(ended)


def test_a_search_that_was_killed_goes_on_on_another_machine_with_equal_decisions(
    bucket: Bucket, machines: tuple[Machine, Machine]
) -> None:
    space = write_space(
        bucket.here, concurrency=1, budget={"trials": 4}, searcher={"name": "tpe", "startup_trials": 2}
    )
    first, second = machines
    place = open_storage(bucket("searches"))
    broken, unbroken = (place.child(name).location for name in ("broken", "unbroken"))
    whole = second.runs(*bucket.tune(space, "unbroken"))
    killed = first.runs(*bucket.tune(space, "broken"))
    killed.until(lambda: sum(event["event"] == "report" for event in events_of(broken)) >= 2)
    killed.kill()
    assert not state_of(broken).ended
    assert whole.wait() == 0, whole.output()
    continued = second.runs(*bucket.tune(space, "broken"))
    assert continued.wait() == 0, continued.output()
    assert state_of(broken).ended
    assert course(state_of(broken)) == course(state_of(unbroken))
    assert [name for name in place.child("broken").names() if name.startswith(".")] == []

    listed = first.runs("orchestration.report", bucket("searches"), "--json")
    shown = second.runs("orchestration.report", bucket("searches"))
    assert listed.wait() == 0, listed.output()
    entries = [json.loads(line) for line in listed.output().splitlines()]
    assert [(entry["name"], entry["state"], entry["done"]) for entry in entries] == [
        ("broken", "finished", 4),
        ("unbroken", "finished", 4),
    ]
    assert entries[0]["best"] == entries[1]["best"]
    assert shown.wait() == 0, shown.output()
    assert "s3://archive/searches, best complete trials" in shown.output()
