"""The course of a search: from decisions to jobs, and from outcomes back to the journal.

Decisions: whatever happens is journalled before it is acted upon; a mistake that every trial would meet
ends the search at the first one, naming it; checkpoints of trials that have no future are deleted at once.
The phases (trials, confirmation) hand out jobs in the same way, so the engine knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, Final

from mpma.config import ExperimentConfig
from mpma.data.storage import Storage
from mpma.errors import JobError, UserError
from mpma.training.run_directory import CHECKPOINTS
from orchestration.search.decide import Begin, End, Promote, Train, Wait, next_action
from orchestration.search.jobs import Finished, Job, Outcome
from orchestration.search.journal import Journal
from orchestration.search.promote import hopeless, over_disk_budget, stops
from orchestration.search.space import SearchSpace, apply_params
from orchestration.search.suggest import Exhausted, suggest

TRIALS: Final = "trials"
CONFIRMATION: Final = "confirmation"

FAILURES_BEFORE_GIVING_UP: Final = 5
"""Trials that may fail at the beginning, without any that reports, before the search ends."""


def trial_name(number: int) -> str:
    """Name of a trial's run directory."""
    return f"{number:05d}"


class TrialPhase:
    """Source of the jobs of the search itself."""

    def __init__(
        self,
        space: SearchSpace,
        base: ExperimentConfig,
        journal: Journal,
        folder: Storage,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._space, self._base, self._journal, self._folder = space, base, journal, folder
        self._on_change = on_change
        self._exhausted = ""
        self._training: set[int] = set()
        """Trials that were handed out and have not ended."""
        self._checkpoint_bytes: dict[int, int] = {}
        """Size on disk of every waiting trial's checkpoints, where a budget asks for it."""
        self._weighed = 0
        """Events (`SearchState.touches`) whose trials were weighed."""
        self.broken: UserError | None = None
        """Why the search cannot go on, if it cannot."""

    def next(self, live: Set[str]) -> Job | Finished | None:
        """The next segment of a trial."""
        state = self._journal.state
        if len(self._training) != len(live):  # one ended without a word, as all do when Ray Tune stumbles
            self._training = {int(key) for key in live}
        while True:
            if self.broken is not None:
                return None if live else Finished()
            action = next_action(self._space, state, self._training, self._exhausted)
            if isinstance(action, Train):
                self._training.add(action.trial)
                return self._job(action.trial)
            if isinstance(action, Wait):
                return None
            if isinstance(action, End):
                return self._end(action.reason)
            if isinstance(action, Promote):
                self._journal.append("promote", trial=action.trial, target=action.target)
            elif isinstance(action, Begin):
                self._begin()
            self._on_change()

    def _begin(self) -> None:
        state = self._journal.state
        try:
            suggestion = suggest(self._space, self._base, state, len(state.trials))
        except Exhausted as exhausted:
            self._exhausted = str(exhausted)
            return
        self._journal.append(
            "suggest",
            trial=len(state.trials),
            params=suggestion.params,
            source=suggestion.source,
            target=state.first_target,
            attrs=suggestion.attrs,
            study_attrs=suggestion.study_attrs,
        )

    def _job(self, number: int) -> Job:
        state = self._journal.state
        trial = state.trials[number]
        return Job(
            key=str(number),
            config=trial_config(self._space, self._base, trial.params, state.full_steps),
            runs=self._folder.child(TRIALS).location,
            name=trial_name(number),
            until=trial.target,
        )

    def _end(self, reason: str) -> Finished:
        state = self._journal.state
        if not state.search_ended:
            for trial in state.trials:
                if not trial.final:
                    self._prune(trial.number, "not promoted before the search ended")
            self._journal.append("search_end", reason=reason)
            self._on_change()
        return Finished()

    def reached(self, job: Job, outcome: Outcome) -> None:
        """Record the report, and let go of trials that it leaves without a future."""
        number = int(job.key)
        self._training.discard(number)
        self._journal.append(
            "report",
            trial=number,
            step=outcome.step,
            metrics=outcome.metrics,
            seconds=round(outcome.seconds, 3),
            start_seconds=None if outcome.start_seconds is None else round(outcome.start_seconds, 3),
        )
        state = self._journal.state
        missing = [o.metric for o in self._space.objectives if o.value(outcome.metrics) is None]
        if missing:
            given = missing[0] in outcome.metrics
            self._fail(number, f"{missing[0]} {'is not finite' if given else 'was not reported'}", 0.0)
            if not given and not any(t.reports for t in state.trials if t.number != number):
                self.broken = JobError(
                    f"objectives: no trial reported {missing[0]}",
                    "this dataset or recipe does not give that metric; see docs/validation.md",
                )
        elif state.trials[number].state == "complete":
            self._drop_checkpoints(number)
        else:
            reason = stops(self._space, state, number)
            if reason:
                self._prune(number, reason)
        for other, reason in hopeless(self._space, state):
            self._prune(other, reason)
        if self._space.disk_budget_bytes is not None:
            self._weigh_checkpoints()
            for other, reason in over_disk_budget(self._space, state, self._checkpoint_bytes):
                self._prune(other, reason)
        self._on_change()

    def _weigh_checkpoints(self) -> None:
        """Those of the trials that something happened to: a checkpoint that waits does not change."""
        state = self._journal.state
        for number in dict.fromkeys(state.touches[self._weighed :]):
            self._checkpoint_bytes.pop(number, None)
            if state.trials[number].state == "waiting":
                folder = self._folder.child(TRIALS).child(trial_name(number)).child(CHECKPOINTS)
                self._checkpoint_bytes[number] = sum(folder.sizes().values())
        self._weighed = len(state.touches)

    def failed(self, job: Job, outcome: Outcome) -> None:
        """Record a failure; end the search where every trial fails."""
        number = int(job.key)
        self._training.discard(number)
        self._fail(number, outcome.reason or "unknown", outcome.seconds)
        trials = self._journal.state.trials
        if not any(trial.reports for trial in trials):
            failures = [trial for trial in trials if trial.state == "failed"]
            if outcome.mendable or len(failures) >= FAILURES_BEFORE_GIVING_UP:
                kinds = sorted({trial.reason for trial in failures})
                self.broken = JobError(
                    f"every trial so far failed ({len(failures)}): {kinds[0]}",
                    outcome.hint or f"look into {self._folder.described(TRIALS)}",
                )
        self._on_change()

    def retried(self, job: Job, reason: str) -> None:
        """Record that a segment is tried again."""
        self._training.discard(int(job.key))
        self._journal.append("retry", trial=int(job.key), reason=reason)
        self._on_change()

    def _fail(self, number: int, reason: str, seconds: float) -> None:
        self._journal.append("fail", trial=number, reason=reason, seconds=round(seconds, 3))
        self._drop_checkpoints(number)

    def _prune(self, number: int, reason: str) -> None:
        self._journal.append("prune", trial=number, reason=reason)
        self._drop_checkpoints(number)

    def _drop_checkpoints(self, number: int) -> None:
        """What no later step needs; the run's record of figures stays."""
        self._folder.child(TRIALS).child(trial_name(number)).remove(CHECKPOINTS)


class ConfirmationPhase:
    """Source of the jobs that retrain candidates at full length with new seeds."""

    def __init__(
        self,
        space: SearchSpace,
        base: ExperimentConfig,
        journal: Journal,
        folder: Storage,
        steps: int,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._space, self._base, self._journal, self._folder = space, base, journal, folder
        self._steps, self._on_change = steps, on_change

    def next(self, live: Set[str]) -> Job | Finished | None:
        """The next retraining."""
        state = self._journal.state
        params = {candidate["name"]: candidate["params"] for candidate in state.candidates}
        for run in state.confirmations.values():
            key = confirmation_name(run.candidate, run.seed)
            if run.metrics is None and not run.failed and key not in live:
                return Job(
                    key=key,
                    config=confirmation_config(
                        self._space, self._base, params[run.candidate], self._steps, run.seed
                    ),
                    runs=self._folder.child(CONFIRMATION).location,
                    name=key,
                    until=self._steps,
                    pictures=True,
                )
        return None if live else Finished()

    def reached(self, job: Job, outcome: Outcome) -> None:
        """Record a retraining's validation."""
        candidate, seed = _candidate_and_seed(job.key)
        self._journal.append(
            "confirm_report",
            candidate=candidate,
            seed=seed,
            metrics=outcome.metrics,
            seconds=round(outcome.seconds, 3),
        )
        self._on_change()

    def failed(self, job: Job, outcome: Outcome) -> None:
        """Record that a retraining failed."""
        candidate, seed = _candidate_and_seed(job.key)
        self._journal.append("confirm_fail", candidate=candidate, seed=seed, reason=outcome.reason)
        self._on_change()

    def retried(self, job: Job, reason: str) -> None:
        """A retraining is tried again; nothing to record."""


def confirmation_name(candidate: str, seed: int) -> str:
    """Name of a confirmation's run directory."""
    return f"{candidate}-seed{seed}"


def _candidate_and_seed(name: str) -> tuple[str, int]:
    candidate, _, seed = name.rpartition("-seed")
    return candidate, int(seed)


def trial_config(
    space: SearchSpace, base: ExperimentConfig, params: dict[str, Any], steps: int
) -> ExperimentConfig:
    """Configuration of a trial's run."""
    return run_config(apply_params(base, params, steps=steps))


def run_config(config: ExperimentConfig) -> ExperimentConfig:
    """A configuration for segments: validated where they end only, one checkpoint, no pictures."""
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"keep_checkpoints": 1}),
            "validation": config.validation.model_copy(update={"every_steps": config.training.steps + 1}),
            "pictures": config.pictures.model_copy(update={"enabled": False}),
        }
    )


def confirmation_config(
    space: SearchSpace, base: ExperimentConfig, params: dict[str, Any], steps: int, seed: int
) -> ExperimentConfig:
    """Configuration of a retraining: as a trial, with a seed of its own and the recipe's pictures."""
    config = trial_config(space, base, params, steps)
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"seed": seed}),
            "pictures": base.pictures,
        }
    )
