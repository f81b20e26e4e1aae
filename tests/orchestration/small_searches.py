"""Searches of tiny real trials as programs of their own; imported by several test modules."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import yaml
from small_runs import Command, recipe

from mpma.data.storage import open_storage
from orchestration.search.journal import read_events
from orchestration.search.records import SearchState

SPACE: dict[str, Any] = {
    "recipe": "recipe.yaml",
    "parameters": {
        "image.mask_ratio": {"uniform": [0.40, 0.90]},
        "report.mask_ratio": {"uniform": [0.15, 0.75]},
    },
    "budget": {"trials": 6},
    "fidelity": {"steps": 12, "first_rung": 4, "reduction": 3},
    "searcher": {"name": "tpe", "startup_trials": 4},
    "confirmation": {"candidates": 0},
}


def write_space(folder: Path, name: str = "space.yaml", **parts: Any) -> Path:
    """A space file with some of its parts replaced, beside a recipe of a tiny model."""
    tree = recipe(threads_per_worker=1, checkpoint_every_steps=3)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    (folder / name).write_text(yaml.safe_dump({**SPACE, **parts}))
    return folder / name


class Search(Command):
    """`python -m orchestration.tune` on a dataset."""

    def __init__(self, space: Path, data: Path, searches: Path, name: str, *arguments: str) -> None:
        super().__init__(
            searches.parent / f"{name}-{time.monotonic_ns()}.log",
            *("orchestration.tune", "--space", str(space), "--data", str(data)),
            *("--searches", str(searches), "--name", name, "--no-dashboard", *arguments),
        )


def state_of(search: Path | str) -> SearchState:
    """What a search's journal adds up to now."""
    state = SearchState()
    for event in read_events(open_storage(search))[1]:
        state.apply(event)
    return state


def events_of(search: Path | str) -> list[dict[str, Any]]:
    """The journal's events so far."""
    return read_events(open_storage(search))[1]


def course(state: SearchState) -> list[Any]:
    """What may not depend on kills: trials, their figures and how they ended."""
    clocked = ("pairs_per_second", "data_wait_fraction", "peak_memory_bytes")
    return [
        json.loads(
            json.dumps(
                [
                    trial.number,
                    trial.params,
                    trial.source,
                    trial.state,
                    {
                        step: {name: value for name, value in metrics.items() if name not in clocked}
                        for step, metrics in trial.reports.items()
                    },
                ]
            )
        )
        for trial in state.trials
    ]
