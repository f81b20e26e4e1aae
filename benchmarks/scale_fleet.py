"""A search on a fleet in virtual time: real decisions and journal, a formula in the place of training.

Decisions: everything that a driver does when a slot is free or a trial reports is the project's own code
(`TrialPhase`, `Journal`, the line printed for each event); only the trials are made up. Their scores and
durations are drawn from the trial's number, so two runs with the same settings decide the same, whatever
the time on the clock. The random searcher suggests: what a sampler costs is not what is measured here.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console

from mpma.data.storage import open_storage
from orchestration.search.display import SearchDisplay
from orchestration.search.jobs import Finished, Job, Outcome
from orchestration.search.journal import JOURNAL_FILE, Journal
from orchestration.search.records import SearchState
from orchestration.search.space import LoadedSpace, load_space
from orchestration.search.steering import TrialPhase

SCORE: Final = "val/representation_score"
PROBE: Final = "val/probe/auroc"
RUNGS: Final = (10, 30, 90, 270, 810)
FAILING: Final = 0.01
"""Share of segments that fail, and as many that lose their process once."""


@dataclass
class Course:
    """What a simulated search took; seconds of this machine."""

    deciding: list[float] = field(default_factory=list)
    """Of each decision: a slot is free, or a segment ended; with the journal's lines, synced."""
    syncing: list[float] = field(default_factory=list)
    """Of each line of the journal, from its making to the disk."""
    seconds: float = 0.0
    segments: int = 0
    states: dict[str, int] = field(default_factory=dict)

    @property
    def decision_seconds(self) -> float:
        """Mean of a decision, the journal's share taken out."""
        return (sum(self.deciding) - sum(self.syncing)) / len(self.deciding)

    def late_over_early(self, share: float = 0.1) -> float:
        """Mean decision of the last share of the search over that of the first, journal included."""
        count = max(1, int(share * len(self.deciding)))
        return sum(self.deciding[-count:]) / sum(self.deciding[:count])


class _TimedJournal(Journal):
    """A journal that says how long each line took."""

    def __init__(self, folder: Any, taken: list[float]) -> None:
        super().__init__(folder)
        self._taken = taken

    def append(self, kind: str, **values: Any) -> Any:
        begun = time.perf_counter()
        try:
            return super().append(kind, **values)
        finally:
            self._taken.append(time.perf_counter() - begun)


def written_space(folder: Path, trials: int, objectives: int = 1, **parts: Any) -> LoadedSpace:
    """A space file of two ratios with the rungs above, beside a recipe of defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(f"training: {{steps: {RUNGS[-1]}, batch_size: 64}}\n")
    named = [{"metric": SCORE}, {"metric": PROBE}]
    space = {
        "recipe": "recipe.yaml",
        "parameters": {
            "image.mask_ratio": {"uniform": [0.40, 0.90]},
            "report.mask_ratio": {"uniform": [0.15, 0.75]},
        },
        "objectives": named[:objectives],
        "budget": {"trials": trials},
        "fidelity": {"steps": RUNGS[-1], "first_rung": RUNGS[0], "reduction": 3},
        "searcher": {"name": "random"},
        **parts,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    return load_space(folder / "space.yaml")


def outcome_of(job: Job, params: dict[str, Any], begin: int, retried: bool) -> tuple[Outcome, float]:
    """What a segment gives, and its seconds on its slot; a pure function of the trial and the segment."""
    draw = random.Random(f"{job.key} {begin} {retried}")
    seconds = (job.until - begin) * draw.uniform(0.8, 1.6)
    if draw.random() < FAILING:
        return Outcome("failed", seconds=seconds, reason="a loss is not finite"), seconds
    distance = (params["image.mask_ratio"] - 0.6) ** 2 + (params["report.mask_ratio"] - 0.4) ** 2
    progress = 1 - 0.5 * (RUNGS[0] / job.until) ** 0.5
    metrics = {
        SCORE: (1 - 2 * distance) * progress + draw.gauss(0.0, 0.02),
        PROBE: 0.4 + 0.2 * params["image.mask_ratio"] * progress + draw.gauss(0.0, 0.02),
    }
    return Outcome("reached", job.until, metrics, seconds=seconds), seconds


@contextlib.contextmanager
def timed(taken: list[float]) -> Iterator[None]:
    """Add the seconds of what happens inside."""
    begun = time.perf_counter()
    yield
    taken.append(time.perf_counter() - begun)


Watch = Callable[[list[float]], contextlib.AbstractContextManager[None]]


def search(folder: Path, loaded: LoadedSpace, slots: int, watch: Watch = timed) -> Course:
    """Search to the end with `slots` segments at a time, journalled in `folder`.

    `watch` surrounds every decision and adds what it cost to the list that it is given.
    """
    course = Course()
    storage = open_storage(folder)
    journal = _TimedJournal(storage, course.syncing)
    if journal.state.begun is None:
        journal.begin(loaded, data_fingerprint="none", provenance={}, warm={})
    course.syncing.clear()
    state = journal.state
    display = SearchDisplay(loaded.space, state, dict, "scale")
    with (folder / "output.txt").open("w") as said:
        display.console = Console(file=said, highlight=False, soft_wrap=True)
        phase = TrialPhase(loaded.space, loaded.base, journal, storage, display.changed)
        started = time.perf_counter()
        for _ in _decisions(phase, course, state, slots, watch):
            course.segments += 1
        course.seconds = time.perf_counter() - started
    journal.close()
    for trial in state.trials:
        course.states[trial.state] = course.states.get(trial.state, 0) + 1
    return course


def _decisions(
    phase: TrialPhase, course: Course, state: SearchState, slots: int, watch: Watch
) -> Iterator[Job]:
    """Hand out segments and end them, the earliest first; yields each that ended."""
    running: list[tuple[float, int, Job, Outcome | None]] = []
    clock, order = 0.0, 0
    died: set[tuple[str, int]] = set()
    live: dict[str, Job] = {}
    while True:
        while len(live) < slots:
            with watch(course.deciding):
                job = phase.next(live.keys())
            if isinstance(job, Finished):
                return
            if job is None:
                break
            trial = state.trials[int(job.key)]
            segment = (job.key, trial.step)
            outcome: Outcome | None
            outcome, seconds = outcome_of(job, trial.params, trial.step, segment in died)
            if segment not in died and random.Random(f"death {segment}").random() < FAILING:
                died.add(segment)
                outcome = None
            heapq.heappush(running, (clock + seconds, order, job, outcome))
            live[job.key] = job
            order += 1
        if not running:
            raise AssertionError("the search waits for nothing")
        clock, _, job, outcome = heapq.heappop(running)
        del live[job.key]
        with watch(course.deciding):
            if outcome is None:
                phase.retried(job, "its process died")
            else:
                (phase.reached if outcome.status == "reached" else phase.failed)(job, outcome)
        yield job


def decided(folder: Path) -> list[dict[str, Any]]:
    """The journal's lines without the clock: equal for equal decisions."""
    lines = (folder / JOURNAL_FILE).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]
