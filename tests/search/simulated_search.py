"""A search whose trials are a formula: real decisions, journal and suggestions, no Ray and no training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mpma.data.storage import open_storage
from orchestration.search.jobs import Finished, Job, Outcome
from orchestration.search.journal import Journal
from orchestration.search.records import SearchState
from orchestration.search.space import LoadedSpace, load_space
from orchestration.search.steering import TrialPhase

SCORE = "val/representation_score"

SPACE: dict[str, Any] = {
    "recipe": "recipe.yaml",
    "parameters": {
        "image.mask_ratio": {"uniform": [0.40, 0.90], "step": 0.05},
        "report.mask_ratio": {"uniform": [0.15, 0.75], "step": 0.05},
    },
    "budget": {"trials": 9},
    "fidelity": {"steps": 90, "first_rung": 10, "reduction": 3},
    "searcher": {"name": "tpe", "startup_trials": 4},
    "concurrency": 1,
}


def written_space(folder: Path, **parts: Any) -> LoadedSpace:
    """A small space with some of its parts replaced, beside a recipe of defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("training: {steps: 90, batch_size: 64}\n")
    (folder / "space.yaml").write_text(yaml.safe_dump({**SPACE, **parts}))
    return load_space(folder / "space.yaml")


def score(params: dict[str, Any], step: int) -> float:
    """A curve that rises with the steps and is best at image 0.6, report 0.4."""
    distance = (params["image.mask_ratio"] - 0.6) ** 2 + (params["report.mask_ratio"] - 0.4) ** 2
    return (1 - 2 * distance) * (1 - 0.5 * (10 / step) ** 0.5)


def begun_journal(folder: Path, loaded: LoadedSpace) -> Journal:
    """The search's journal, begun where it is new."""
    journal = Journal(open_storage(folder))
    if journal.state.begun is None:
        journal.begin(loaded, data_fingerprint="none", provenance={}, warm={})
    return journal


class KilledError(Exception):
    """The simulated driver was killed."""


def run_search(
    folder: Path,
    loaded: LoadedSpace,
    *,
    at_a_time: int = 1,
    outcome: Callable[[dict[str, Any], Job], Outcome] | None = None,
    events: int | None = None,
) -> SearchState:
    """Search, or continue, to the end; the oldest segment ends first. `events`: killed after so many."""

    def give(params: dict[str, Any], job: Job) -> Outcome:
        return Outcome("reached", job.until, {SCORE: score(params, job.until)}, seconds=1.0)

    journal = begun_journal(folder, loaded)
    phase = TrialPhase(loaded.space, loaded.base, journal, open_storage(folder))
    live: list[Job] = []
    try:
        while True:
            if events is not None and journal.count >= events:
                raise KilledError
            job = phase.next(frozenset(one.key for one in live)) if len(live) < at_a_time else None
            if isinstance(job, Finished):
                break
            if job is not None:
                live.append(job)
                continue
            assert live, "a search waits for nothing"
            ended = live.pop(0)
            found = (outcome or give)(journal.state.trials[int(ended.key)].params, ended)
            (phase.reached if found.status == "reached" else phase.failed)(ended, found)
        if phase.broken is not None:
            raise phase.broken
        return journal.state
    finally:
        journal.close()
