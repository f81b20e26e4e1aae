"""An evaluation that is killed goes on to the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from downstream.task_samples import phantom_rows, written
from small_runs import Command
from test_evaluate import SETTINGS, small_run

from mpma.downstream.config import TASKS


@pytest.mark.slow
def test_an_evaluation_killed_at_random_moments_ends_with_the_figures_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    written(tmp_path / "pretraining", phantom_rows(40, 12, 12, seed=5))
    written(tmp_path / "labelled", phantom_rows(64, 16, 40, seed=6))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    generator = np.random.default_rng(0)

    def command(run: str, log: str) -> Command:
        return Command(
            tmp_path / log,
            *("orchestration.evaluate", "--run", str(tmp_path / "runs" / run), "--no-dashboard"),
            *("--data", str(tmp_path / "labelled"), "--config", str(tmp_path / "settings.yaml")),
            *("--features", str(tmp_path / f"features-{run}")),
        )

    for run in ("unbroken", "killed"):
        small_run(tmp_path / "runs", run, tmp_path / "pretraining")
    unbroken = command("unbroken", "unbroken.log")
    assert unbroken.wait() == 0, unbroken.output()

    results = tmp_path / "runs/killed/evaluations/labelled"

    def count() -> int:
        return len(list(results.glob("*.npz")))

    for kill in range(3):
        program = command("killed", f"killed-{kill}.log")
        wanted = count() + int(generator.integers(1, 6))
        program.until_or_end(lambda wanted=wanted: count() >= wanted, 180)  # type: ignore[misc]
        program.kill()
    last = command("killed", "last.log")
    assert last.wait() == 0, last.output()
    assert "jobs are done already" in last.output()
    one, other = (
        json.loads((tmp_path / "runs" / run / "evaluation-labelled.json").read_text())
        for run in ("unbroken", "killed")
    )
    for task in TASKS:
        assert one[task] == other[task], task
