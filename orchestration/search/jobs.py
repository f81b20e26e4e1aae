"""Jobs: what a search asks of the machines, and what comes back; plain values that cross processes.

A job is one segment of one run: train the run directory `runs/name` from its newest checkpoint to step
`until`, validate there, save, and report. Doing a job twice does no harm: what was reached is reported
from the run's own record.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mpma.config import ExperimentConfig


@dataclass(frozen=True)
class Job:
    """One segment."""

    key: str
    """Unique among the jobs that run at a time."""
    config: ExperimentConfig
    runs: str
    """Folder of the run directory."""
    name: str
    until: int
    pictures: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a segment ended."""

    status: Literal["reached", "stopped", "failed"]
    step: int = 0
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    """Time of the segment on its devices (wall time times devices)."""
    start_seconds: float | None = None
    """From the job being handed out to the end of its first training step."""
    reason: str = ""
    hint: str = ""
    mendable: bool = False
    """A mistake in the configuration or the data, which every other run would meet as well."""


class Finished:
    """What a source says when no further job will come."""


class JobSource(Protocol):
    """Hands out jobs and is told how they ended. Called from one thread at a time."""

    def next(self, live: Set[str]) -> Job | Finished | None:
        """The next job; None: not before one of the live jobs ends."""

    def reached(self, job: Job, outcome: Outcome) -> None:
        """A segment came to its step."""

    def failed(self, job: Job, outcome: Outcome) -> None:
        """A segment cannot be done, or not any more."""

    def retried(self, job: Job, reason: str) -> None:
        """A segment is tried again from its checkpoint."""
