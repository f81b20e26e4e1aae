"""`tune --rank-correlation`: run configurations at full and at cheaper settings, and say how ranks agree.

Decisions: the runs stand in `rank_correlation/` of the search directory and are continued by the same
command, each from its own checkpoint; the figures are kept in `rank_correlation.json`.
"""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from mpma.errors import UserError
from mpma.training.run_directory import STOP_FILE
from orchestration.search.jobs import Finished, Job, Outcome
from orchestration.search.rank_correlation import (
    FULL,
    Measured,
    Measurement,
    evaluate,
    measurements,
    plan_points,
    table,
)
from orchestration.search.steering import run_config

if TYPE_CHECKING:
    from orchestration.tuning import Searching

FOLDER: Final = "rank_correlation"
RESULT_FILE: Final = "rank_correlation.json"


class MeasurementPhase:
    """Source of the jobs that train every configuration at every setting."""

    def __init__(self, planned: list[Measurement], runs: str, say: Any) -> None:
        self._planned, self._runs, self._say = {one.name: one for one in planned}, runs, say
        self._left = {one.name: list(one.rungs) for one in planned}
        self._curves: dict[str, dict[int, dict[str, float | None]]] = {name: {} for name in self._planned}
        self._seconds = dict.fromkeys(self._planned, 0.0)
        self._failed: dict[str, Outcome] = {}

    def next(self, live: Set[str]) -> Job | Finished | None:
        """The next segment of a run that is not finished."""
        for name, left in self._left.items():
            if left and name not in live and name not in self._failed:
                one = self._planned[name]
                return Job(name, run_config(one.config), self._runs, name, left[0])
        return None if live else Finished()

    def reached(self, job: Job, outcome: Outcome) -> None:
        """Keep the figures of a rung."""
        self._curves[job.name][outcome.step] = outcome.metrics
        self._seconds[job.name] += outcome.seconds
        self._left[job.name].pop(0)
        if not self._left[job.name]:
            done = sum(not left for left in self._left.values())
            self._say(f"{job.name} is done ({done} of {len(self._left)} runs)")

    def failed(self, job: Job, outcome: Outcome) -> None:
        """A run without figures; a mistake that all would meet ends everything."""
        if outcome.mendable:
            raise UserError(outcome.reason, outcome.hint or None)
        self._failed[job.name] = outcome
        self._say(f"{job.name} failed: {outcome.reason}")

    def retried(self, job: Job, reason: str) -> None:
        """Nothing to record."""

    @property
    def results(self) -> dict[tuple[int, str], Measured]:
        """Figures by configuration and setting, of the runs that came to their end."""
        return {
            (one.point, one.setting): Measured(self._curves[name], self._seconds[name])
            for name, one in self._planned.items()
            if not self._left[name]
        }


def measure_rank_correlation(search: Searching, points: int) -> None:
    """Train, compare, print and keep the figures. Raises `UserError` where the space names no proxy."""
    space, display = search.space, search.display
    if not space.proxies and len(space.fidelity.rungs(search.loaded.full_steps)) == 1:
        raise UserError(
            "--rank-correlation: the space has neither proxies nor rungs to compare with full length",
            "give `proxies`, for example {fewer_steps: {training.steps: 100}}",
        )
    params = plan_points(space, search.base, points)
    planned = measurements(space, search.base, params)
    fulls = sum(one.setting == FULL for one in planned)
    display.note(f"{fulls} configurations at full length and {len(planned) - fulls} cheaper runs")
    search.dataset = search.open_dataset()
    search.place = search.plan_place()
    search.folder.make_directory()
    search.folder.remove(STOP_FILE)
    phase = MeasurementPhase(planned, search.folder.child(FOLDER).location, display.note)
    search.carry_out(phase)
    if search.stop.is_set():
        display.note("stopped and saved; the same command continues")
        return
    found = evaluate(space, phase.results)
    search.folder.write(RESULT_FILE, json.dumps([asdict(one) for one in found], indent=1).encode())
    display.console.print(table(found), markup=False)
    display.note(f"figures: {search.folder.described(RESULT_FILE)}")
