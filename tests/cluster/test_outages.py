"""A run on three hosts goes on through whatever befalls them, with the same pairs and the same numbers."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from network_hosts import Host, cluster_of_hosts, end_group, wait_until
from small_runs import phantom_dataset, recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 20_000
"""More than are ever made: both runs are stopped when enough has happened."""
CUT_SECONDS = 20.0


@dataclass
class Progress:
    """What a run's record shows while it grows: when each step was there for the first time, by how many
    workers."""

    file: Path
    seen: list[tuple[float, int, int]] = field(default_factory=list)
    """(moment, step, workers), a new step each."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look ten times a second."""
        end = threading.Event()

        def watch() -> None:
            while not end.wait(0.1):
                self._look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(timeout=5)

    def _look(self) -> None:
        try:
            lines = self.file.read_text().splitlines()
        except OSError:
            return
        for text in reversed(lines):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if "loss/total" in line:
                if not self.seen or line["step"] > self.seen[-1][1]:
                    self.seen.append((time.monotonic(), line["step"], line["workers"]))
                return

    @property
    def step(self) -> int:
        """The furthest step so far."""
        return self.seen[-1][1] if self.seen else 0

    @property
    def workers(self) -> int:
        """How many workers made it."""
        return self.seen[-1][2] if self.seen else 0

    def longest_pause(self, since: float) -> float:
        """Seconds without a step that was not there before, the longest since a moment."""
        before = [moment for moment, _, _ in self.seen if moment <= since][-1:]
        moments = [*before, *(moment for moment, _, _ in self.seen if moment > since)]
        return max(later - earlier for earlier, later in itertools.pairwise(moments))


def _numbers(run: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss/total" in line}


def _program(recipe_file: Path, data: Path, runs: Path, name: str, *more: str) -> list[str]:
    program = [sys.executable, "-m", "orchestration.pretrain", "--config", str(recipe_file)]
    return [*program, "--data", str(data), "--runs", str(runs), "--name", name, *more]


def test_a_run_survives_a_killed_worker_a_cut_a_lost_node_and_one_that_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, runs, recipe_file = phantom_dataset(tmp_path / "data"), tmp_path / "runs", tmp_path / "recipe.yaml"
    settings = recipe(steps=STEPS, checkpoint_every_steps=5, precision="fp64", device="cpu")
    settings["training"].update(workers={"min": 1, "max": 2}, threads_per_worker=2)
    # Dropout is drawn by each worker, so it depends on their number; nothing else does.
    settings["memory"]["dropout"] = 0.0
    settings["validation"]["every_steps"] = STEPS
    recipe_file.write_text(yaml.safe_dump(settings))
    # Sockets lie below it, and their paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    outages: dict[str, float] = {}
    log = (tmp_path / "driver.log").open("wb")
    driver: subprocess.Popen[bytes] | None = None
    try:
        with cluster_of_hosts(2, cpus=3, folder=folder) as (network, supervisor, head, (first, second)):
            progress = Progress(runs / "broken" / "metrics.jsonl")
            driver = subprocess.Popen(
                head.command(
                    _program(recipe_file, data, runs, "broken", "--address", f"{head.address}:6379")
                ),
                env=network.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

            def reaches(workers: int, steps_more: int = 15, seconds: float = 120) -> None:
                """Wait until so many workers have made so many new steps."""
                begun: list[int] = []

                def there() -> bool:
                    assert driver is not None
                    assert driver.poll() is None, (tmp_path / "driver.log").read_text()[-3000:]
                    if progress.workers != workers:
                        begun.clear()
                        return False
                    begun.append(progress.step)
                    return progress.step - begun[0] >= steps_more

                wait_until(there, seconds, f"{workers} workers do not make {steps_more} steps")

            with progress.watched():
                reaches(2)

                def befalls(name: str, event: Any, workers: int, more: Any = None) -> None:
                    since = time.monotonic()
                    event()
                    if more is not None:
                        more()
                    reaches(workers)
                    outages[name] = progress.longest_pause(since)

                befalls("a worker killed", lambda: _one_worker(second).kill(), 2)
                befalls(
                    "a node cut off for 20 s",
                    lambda: network.cable(second, "down"),
                    2,
                    lambda: (time.sleep(CUT_SECONDS), network.cable(second, "up")),
                )
                befalls("a node removed", lambda: _remove(network, supervisor, first), 1)
                befalls("a node that returns", lambda: _return(network, supervisor, first), 2)
                driver.send_signal(signal.SIGINT)
                assert driver.wait(timeout=120) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        if driver is not None:
            end_group(driver)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)

    found = _numbers(runs / "broken")
    expected = _unbroken(recipe_file, data, runs, tmp_path / "unbroken.log", len(found))
    assert list(found) == list(range(1, len(found) + 1))
    assert {line["workers"] for line in found.values()} == {1, 2}
    for step, line in found.items():
        assert line["batch_digest"] == expected[step]["batch_digest"], step
    assert len({line["batch_digest"] for line in found.values()}) == len(found)
    worst = max(
        abs(expected[step][name] - value)
        for step, line in found.items()
        for name, value in line.items()
        if name.startswith("loss/")
    )
    with capsys.disabled():
        print("\nseconds without a new step:", {name: round(value, 1) for name, value in outages.items()})
        print(f"largest difference of a loss over {len(found)} steps: {worst:.1e}")
    assert worst < 1e-8
    assert outages["a worker killed"] < 20
    assert max(outages.values()) < 60


def _unbroken(recipe_file: Path, data: Path, runs: Path, log: Path, steps: int) -> dict[int, dict[str, Any]]:
    """Lines of a run of one worker that nothing befalls, at least up to a step."""
    options = ("--set", "training.workers=1", "--no-dashboard")
    with log.open("wb") as stream:
        program = subprocess.Popen(
            _program(recipe_file, data, runs, "unbroken", *options),
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        progress = Progress(runs / "unbroken" / "metrics.jsonl")
        with progress.watched():
            wait_until(
                lambda: progress.step >= steps or program.poll() is not None, 240, "the unbroken run is slow"
            )
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=60) == 0, log.read_text()[-3000:]
    finally:
        end_group(program)
    return _numbers(runs / "unbroken")


def _one_worker(host: Host) -> Any:
    workers = host.training_workers()
    assert workers, "a worker trains on this host"
    return workers[0]


def _remove(network: Any, supervisor: Any, host: Host) -> None:
    supervisor.forget(host)
    network.cable(host, "down")
    host.kill_everything()


def _return(network: Any, supervisor: Any, host: Host) -> None:
    network.cable(host, "up")
    supervisor.keep(host)
