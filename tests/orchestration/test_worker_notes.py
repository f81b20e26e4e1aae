"""What the workers of a group say reaches the person, also after one was restarted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from mpma.training.run_directory import RunDirectory
from orchestration.worker import FIRST_STEP_NOTE, NOTES_FILE, WorkerEvents


def test_a_restarted_worker_adds_to_what_was_said_and_does_not_replace_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.util.metrics.Gauge", MagicMock())
    folder = RunDirectory.at(str(tmp_path), "run").folder
    folder.make_directory()
    plan = SimpleNamespace(name="run", runs=str(tmp_path), steps=10)
    first = WorkerEvents(plan)
    first.note("decode: here")
    first.progress(1)
    second = WorkerEvents(plan)
    second.note("continuing at step 5")
    second.progress(6)
    lines = folder.read(NOTES_FILE).decode().splitlines()
    assert lines == ["decode: here", FIRST_STEP_NOTE, "continuing at step 5"]
