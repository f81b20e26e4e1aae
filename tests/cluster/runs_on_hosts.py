"""Runs on several hosts: how one is started, watched while it grows, and compared with an unbroken one."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from network_hosts import end_group, wait_until
from small_runs import recipe


def resizing_recipe(steps: int) -> dict[str, Any]:
    """A recipe of one or two workers whose numbers do not depend on how many there are."""
    settings = recipe(steps=steps, checkpoint_every_steps=5, precision="fp64", device="cpu")
    settings["training"].update(workers={"min": 1, "max": 2}, threads_per_worker=2)
    # Dropout is drawn by each worker, so it depends on their number; nothing else does.
    settings["memory"]["dropout"] = 0.0
    settings["validation"]["every_steps"] = steps
    return settings


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


def numbers(run: Path) -> dict[int, dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "loss/total" in line}


def pretrain_command(recipe_file: Path, data: Path, runs: Path, name: str, *more: str) -> list[str]:
    program = [sys.executable, "-m", "orchestration.pretrain", "--config", str(recipe_file)]
    return [*program, "--data", str(data), "--runs", str(runs), "--name", name, *more]


def unbroken(recipe_file: Path, data: Path, runs: Path, log: Path, steps: int) -> dict[int, dict[str, Any]]:
    """Lines of a run of one worker that nothing befalls, at least up to a step."""
    options = ("--set", "training.workers=1", "--no-dashboard")
    with log.open("wb") as stream:
        program = subprocess.Popen(
            pretrain_command(recipe_file, data, runs, "unbroken", *options),
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
    return numbers(runs / "unbroken")
