"""Runs and searches as their programs leave them, and the program that reports on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_runs import recipe

from mpma.config import validate_tree
from mpma.data.storage import open_storage
from mpma.training.run_directory import RunDirectory
from orchestration.search.journal import Journal
from orchestration.search.space import SearchSpace

SCORE = "val/representation_score"
KEY = "image.mask_ratio"


def begin_run(runs: Path, name: str, fingerprint: str = "sha256:ab", **training: Any) -> Path:
    """A run that was begun, and has lines up to step 8 and validations of which the one at step 4 is best."""
    run = RunDirectory.at(runs, name)
    run.begin_or_continue(validate_tree(recipe(**training)), fingerprint)
    lines: list[dict[str, Any]] = [{"step": 0, "val/retrieval/mean_recall": 0.1, "val/probe/auroc": 0.5}]
    for step in range(1, 9):
        lines.append({"step": step, "loss/total": 9.0 - step, "pairs_per_second": 100.0 + step})
    lines.append({"step": 4, "val/retrieval/mean_recall": 0.4, "val/probe/auroc": 0.7})
    lines.append({"step": 8, "val/retrieval/mean_recall": 0.3, "val/probe/auroc": 0.6})
    folder = runs / name
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def begin_search(
    folder: Path,
    scores: Sequence[float] = (0.3, 0.5, 0.4),
    *,
    fingerprint: str = "sha256:ab",
    training: dict[str, Any] | None = None,
    end: bool = True,
    **space: Any,
) -> Path:
    """A search whose trials reached these scores at full length, but for a last one, pruned at its rung."""
    told = SearchSpace.model_validate(
        {
            "parameters": {KEY: {"uniform": [0.4, 0.9]}},
            "objectives": [{"metric": SCORE}],
            "budget": {"trials": len(scores) + 1},
        }
        | space
    )
    config = validate_tree(recipe(**(training or {})))
    journal = Journal(open_storage(folder))
    journal.append(
        "begin",
        space=told.resolved(),
        space_hash="5f2a",
        config=config.model_dump(mode="json"),
        full_steps=config.training.steps,
        first_target=4,
        data_fingerprint=fingerprint,
        provenance={"mpma": "0.1.0", "git_revision": "0123abc", "python": "3.11", "packages": {"ray": "2"}},
    )
    for number, score in enumerate([*scores, 0.9]):
        journal.append("suggest", trial=number, params={KEY: 0.4 + number / 10}, source="random")
        metrics = {SCORE: score, "peak_memory_bytes": 1e9 * (number + 1)}
        last = number == len(scores)
        step = 4 if last else config.training.steps
        journal.append("report", trial=number, step=step, metrics=metrics, seconds=2.0)
        if last:
            journal.append("prune", trial=number, reason="others were better")
    if end:
        journal.append("end")
    journal.close()
    return folder


def report(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.report", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=200,
    )
    return done.returncode, done.stdout + done.stderr
