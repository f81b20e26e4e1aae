"""What a search knows: the state that the journal's events add up to.

Decisions: the state is a fold over events and nothing else, so a restart that replays the journal stands
where the search stood; whether a trial is running is not in it, for that ends with the process. A trial
is `open` while a segment of training is owed, `waiting` at a rung until it is promoted or pruned, and
then `complete`, `pruned` or `failed` for good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

TrialState = Literal["open", "waiting", "complete", "pruned", "failed"]

FINAL: Final = frozenset({"complete", "pruned", "failed"})

Event = Mapping[str, Any]
"""A line of the journal: `event` names it, `time` is its wall-clock time in seconds since the epoch."""


def identity(params: Mapping[str, Any]) -> str:
    """Equal for equal configurations only: 1 and 1.0 are the same value, True is not 1."""
    plain = {
        key: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in params.items()
    }
    return json.dumps(plain, sort_keys=True)


@dataclass
class TrialRecord:
    """One configuration and how far it was trained."""

    number: int
    params: dict[str, Any]
    """Dotted keys of the experiment tree and their values, conditional ones only where they apply."""
    source: str
    """`default` (the recipe's own values), `point` (given in the file), `warm_start`, or the searcher."""
    target: int
    """Step to which the trial may train now."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """What the sampler wants to know of this trial later (Optuna's system attributes)."""
    reports: dict[int, dict[str, float | None]] = field(default_factory=dict)
    """Metrics by training step, at rungs."""
    seconds: float = 0.0
    """Time on its devices so far, in seconds."""
    state: TrialState = "open"
    reason: str = ""
    """Why it was pruned or failed."""
    retries: int = 0

    @property
    def step(self) -> int:
        """The last reported step; 0 before the first."""
        return max(tuple(self.reports), default=0)  # a copy: the screen's thread asks while reports come

    @property
    def final(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in FINAL


@dataclass
class ConfirmationRun:
    """One retraining of a candidate at full length with a new seed."""

    candidate: str
    seed: int
    metrics: dict[str, float | None] | None = None
    seconds: float = 0.0
    failed: str = ""


@dataclass
class SearchState:
    """All that happened. Built by `apply`, never changed otherwise."""

    full_steps: int = 0
    """Steps of a full-length trial."""
    first_target: int = 0
    """Step of the first rung."""
    trials: list[TrialRecord] = field(default_factory=list)
    study_attrs: dict[str, Any] = field(default_factory=dict)
    """What the sampler wants to know of the study (Optuna's system attributes)."""
    begun: Event | None = None
    search_ended: str = ""
    """Why no further trial is begun or promoted; empty while the search goes on."""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """Of the confirmation: `name`, `trial` (number or None), `params`."""
    confirmations: dict[tuple[str, int], ConfirmationRun] = field(default_factory=dict)
    comparison: dict[str, Any] | None = None
    looks: int = 0
    """Comparisons made on the test patients so far."""
    ended: bool = False
    wall_seconds: float = 0.0
    """Time that programs worked on this search, over all sessions."""
    device_seconds: float = 0.0
    """Time on devices of all trials, the confirmation left out."""
    open: set[int] = field(default_factory=set)
    """Numbers of the trials that are open."""
    tried: set[str] = field(default_factory=set)
    """`identity` of every trial's params."""
    touches: list[int] = field(default_factory=list, repr=False)
    """The trial of every event that was about one, in order: whoever follows the search remembers how far
    it has read here, and looks at nothing else again."""
    followers: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False, compare=False)
    """What others make of the state and bring up to date (standings.py); nothing of the state itself."""
    _last: float = 0.0

    def apply(self, event: Event) -> None:
        """Take one event of the journal. Raises KeyError or ValueError where it is not one."""
        kind = str(event["event"])
        handler = getattr(self, f"_on_{kind}", None)
        if handler is None:
            raise ValueError(f"unknown event {kind}")
        moment = float(event["time"])
        if kind not in ("begin", "session"):
            self.wall_seconds += max(0.0, moment - self._last)
        self._last = moment
        handler(event)
        if "trial" in event:
            number = int(event["trial"])
            self.touches.append(number)
            (self.open.add if self.trials[number].state == "open" else self.open.discard)(number)

    def _on_begin(self, event: Event) -> None:
        self.begun = event
        self.full_steps = int(event["full_steps"])
        self.first_target = int(event["first_target"])

    def _on_session(self, event: Event) -> None:
        """A program began to work on the search; the time before it is not counted."""

    def _on_suggest(self, event: Event) -> None:
        number = int(event["trial"])
        if number != len(self.trials):
            raise ValueError(f"trial {number} suggested where {len(self.trials)} is next")
        self.study_attrs.update(event.get("study_attrs", {}))
        self.tried.add(identity(event["params"]))
        self.trials.append(
            TrialRecord(
                number,
                dict(event["params"]),
                str(event["source"]),
                int(event.get("target", self.first_target)),
                dict(event.get("attrs", {})),
            )
        )

    def _on_promote(self, event: Event) -> None:
        trial = self.trials[int(event["trial"])]
        trial.target, trial.state = int(event["target"]), "open"

    def _on_report(self, event: Event) -> None:
        trial = self.trials[int(event["trial"])]
        step = int(event["step"])
        trial.reports[step] = dict(event["metrics"])
        self._spend(trial, float(event["seconds"]))
        trial.state = "complete" if step >= self.full_steps else "waiting"

    def _on_retry(self, event: Event) -> None:
        self.trials[int(event["trial"])].retries += 1

    def _on_fail(self, event: Event) -> None:
        trial = self.trials[int(event["trial"])]
        trial.state, trial.reason = "failed", str(event["reason"])
        self._spend(trial, float(event.get("seconds", 0.0)))

    def _on_prune(self, event: Event) -> None:
        trial = self.trials[int(event["trial"])]
        trial.state, trial.reason = "pruned", str(event["reason"])

    def _spend(self, trial: TrialRecord, seconds: float) -> None:
        trial.seconds += seconds
        self.device_seconds += seconds

    def _on_search_end(self, event: Event) -> None:
        self.search_ended = str(event["reason"])

    def _on_extend(self, event: Event) -> None:
        """A larger budget was given: the search goes on."""
        self.search_ended, self.ended, self.comparison = "", False, None
        self.candidates, self.confirmations = [], {}

    def _on_confirm(self, event: Event) -> None:
        self.candidates = [dict(candidate) for candidate in event["candidates"]]
        self.confirmations = {
            (candidate["name"], int(seed)): ConfirmationRun(candidate["name"], int(seed))
            for candidate in self.candidates
            for seed in event["seeds"]
        }

    def _on_confirm_report(self, event: Event) -> None:
        run = self.confirmations[str(event["candidate"]), int(event["seed"])]
        run.metrics, run.seconds = dict(event["metrics"]), float(event["seconds"])

    def _on_confirm_fail(self, event: Event) -> None:
        self.confirmations[str(event["candidate"]), int(event["seed"])].failed = str(event["reason"])

    def _on_compare(self, event: Event) -> None:
        self.comparison = dict(event["result"])
        self.looks += bool(self.comparison.get("patients"))

    def _on_end(self, event: Event) -> None:
        self.ended = True
