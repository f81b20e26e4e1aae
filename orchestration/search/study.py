"""study.db: the search as Optuna's tools see it, for optuna-dashboard and for notebooks.

Decisions: the journal is the truth and this file follows it, in place, so that a dashboard that looks on
sees the same study grow; only what changed is written. The states are what happened: complete with its
values, pruned with all its intermediate values, failed with its reason. What trains now is RUNNING, what
waits for a promotion or for the search to go on is WAITING, so no row is left RUNNING by a search that
was stopped, and a row that a kill left behind is put right by the next session. Where a row contradicts
the journal (Optuna never changes a finished one) the study is written anew. A database that is locked is
tried again at the next update: the search does not wait for who looks at it.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna
import sqlalchemy
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestration.search.parameters import Parameter, among
from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.samplers import SWITCH, distribution, name_of

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from orchestration.search.space import SearchSpace

STUDY_NAME: Final = "search"

BUSY_SECONDS: Final = 1
"""How long a write waits for a reader of the database."""

Row = tuple[TrialState, tuple[int, ...], int]
"""What of a trial may change: its state, the steps it reported at, its retries."""


class StudyMirror:
    """Keeps a `study.db` equal to the search's state."""

    def __init__(self, path: Path, space: SearchSpace) -> None:
        self._path, self._space = path, space
        self._storage: RDBStorage | None = None
        self._study_id = 0
        self._written: list[tuple[int, Row]] = []
        """Per trial: Optuna's id of its row, and what it holds."""
        self._seen = 0
        """Events (`SearchState.touches`) whose trials are written."""

    def update(self, state: SearchState, live: Set[int] | None = None) -> None:
        """Bring the file to the state; `live` are the trials that train now (None: whichever are open)."""
        with contextlib.suppress(optuna.exceptions.StorageInternalError), _quiet():
            # Who trains is written with what happened to a trial; told otherwise, everyone is looked at.
            everyone = live is not None or self._storage is None
            touched = range(len(state.trials)) if everyone else dict.fromkeys(state.touches[self._seen :])
            live = state.open if live is None else live
            storage = self._storage or self._open(state, live)
            for number in sorted(touched):
                trial = state.trials[number]
                row = _row(self._space, trial, live)
                if number >= len(self._written):
                    self._create(storage, state, trial, row)
                elif self._written[number][1] != row:
                    self._change(storage, state, trial, row)
            self._seen = len(state.touches)

    def close(self, state: SearchState) -> None:
        """Write the last state, in which nothing runs, and let go of the file."""
        self.update(state, frozenset())
        if self._storage is not None:
            self._storage.remove_session()
            self._storage.engine.dispose()
        self._storage = None

    def _open(self, state: SearchState, live: Set[int]) -> RDBStorage:
        try:
            storage = self._connect()
            agrees = self._read(storage, state, live)
        except optuna.exceptions.StorageInternalError:
            raise  # locked: the next update tries again
        except Exception:
            # Not a database, or another version's: nothing in it is not in the journal as well.
            self._path.unlink(missing_ok=True)
            storage = self._connect()
            agrees = self._read(storage, state, live)
        if not agrees:
            storage.delete_study(self._study_id)
            self._read(storage, state, live)
        self._storage = storage
        return storage

    def _connect(self) -> RDBStorage:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        self._path.chmod(0o600)
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{self._path}", engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}}
        )
        # Not synced to the disk: the journal is, and a file that a power cut breaks is written anew.
        sqlalchemy.event.listen(
            storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF")
        )
        storage.engine.dispose()  # connections from before the pragma
        return storage

    def _read(self, storage: RDBStorage, state: SearchState, live: Set[int]) -> bool:
        """Take stock of the rows; return whether the state can be reached from them."""
        directions = [
            StudyDirection.MAXIMIZE if one.direction == "maximise" else StudyDirection.MINIMIZE
            for one in self._space.objectives
        ]
        self._written = []
        try:
            self._study_id = storage.get_study_id_from_name(STUDY_NAME)
        except KeyError:
            self._study_id = storage.create_new_study(directions, STUDY_NAME)
            names = [one.metric for one in self._space.objectives]
            storage.set_study_system_attr(self._study_id, "study:metric_names", names)
        rows = storage.get_all_trials(self._study_id, deepcopy=False)
        agrees = storage.get_study_directions(self._study_id) == directions and len(rows) <= len(state.trials)
        for row, trial in zip(rows, state.trials, strict=False):
            steps = tuple(sorted(int(step) for step in row.user_attrs.get("reports", {})))
            held = (row.state, steps, int(row.user_attrs.get("retries", 0)))
            wanted = self._frozen(state, trial, _row(self._space, trial, live))
            agrees = (
                agrees
                and row.params == wanted.params
                and row.distributions == wanted.distributions
                and (not row.state.is_finished() or (held == _row(self._space, trial, live)))
                and _shown(row) <= _shown(wanted)
            )
            self._written.append((row._trial_id, held))
        return agrees

    def _create(self, storage: RDBStorage, state: SearchState, trial: TrialRecord, row: Row) -> None:
        identifier = storage.create_new_trial(self._study_id, self._frozen(state, trial, row))
        self._written.append((identifier, row))

    def _change(self, storage: RDBStorage, state: SearchState, trial: TrialRecord, row: Row) -> None:
        identifier, (held, _, _) = self._written[trial.number]
        wanted = self._frozen(state, trial, row)
        if held.is_finished():  # the search was extended, or the file is ahead of a torn journal
            storage.delete_study(self._study_id)
            self._read(storage, state, frozenset())
            for other in state.trials[: trial.number + 1]:
                self._create(storage, state, other, _row(self._space, other, frozenset()))
            return
        present = storage.get_trial(identifier)
        for step, value in wanted.intermediate_values.items():
            if step not in present.intermediate_values:
                storage.set_trial_intermediate_value(identifier, step, value)
        for key, value in wanted.user_attrs.items():
            if present.user_attrs.get(key) != value:
                storage.set_trial_user_attr(identifier, key, value)
        for key, value in wanted.system_attrs.items():
            if present.system_attrs.get(key) != value:
                storage.set_trial_system_attr(identifier, key, value)
        if present.state != wanted.state:
            storage.set_trial_state_values(identifier, wanted.state, wanted.values)
        self._written[trial.number] = (identifier, row)

    def _frozen(self, state: SearchState, trial: TrialRecord, row: Row) -> FrozenTrial:
        """The trial as Optuna holds it."""
        params, distributions = _parameters(self._space, state, trial)
        objectives = self._space.objectives
        reports = {
            step: [objective.value(metrics) for objective in objectives]
            for step, metrics in sorted(trial.reports.items())
        }
        user_attrs: dict[str, Any] = {
            "source": trial.source,
            "seconds": round(trial.seconds, 3),
            "reports": {str(step): values for step, values in reports.items()},
            "retries": trial.retries,
        }
        if trial.reason:
            user_attrs["reason"] = trial.reason
        system_attrs = {}
        if self._space.constraints and trial.reports:
            violations = self._space.violations(trial.reports[trial.step])
            # JSON has no infinity; where a constraint's metric is missing the trial is infeasible.
            system_attrs["constraints"] = [min(amount, 1e300) for amount in violations]
        values: list[float] | None = None
        if row[0] == TrialState.COMPLETE:
            values = [value for value in reports[trial.step] if value is not None]
        elif row[0] == TrialState.PRUNED and len(objectives) == 1 and reports:
            values = [value for value in reports[trial.step] if value is not None] or None
        return optuna.trial.create_trial(
            state=row[0],
            params=params,
            distributions=distributions,
            values=values,
            # One series a trial: with several objectives that of the first, all of them in `reports`.
            intermediate_values={
                step: math.nan if found[0] is None else found[0] for step, found in reports.items()
            },
            user_attrs=user_attrs,
            system_attrs=system_attrs,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _shown(trial: FrozenTrial) -> set[tuple[int, str]]:
    """Its intermediate values, comparable where one is not a number."""
    return {(step, repr(value)) for step, value in trial.intermediate_values.items()}


def _row(space: SearchSpace, trial: TrialRecord, live: Set[int]) -> Row:
    known = trial.reports and all(
        objective.value(trial.reports[trial.step]) is not None for objective in space.objectives
    )
    if trial.state == "complete":
        state = TrialState.COMPLETE if known else TrialState.FAIL
    elif trial.final:
        state = TrialState.PRUNED if trial.state == "pruned" else TrialState.FAIL
    else:
        state = TrialState.RUNNING if trial.number in live else TrialState.WAITING
    return state, tuple(sorted(trial.reports)), trial.retries


def _parameters(
    space: SearchSpace, state: SearchState, trial: TrialRecord
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """A trial's searched params by Optuna's names. A value that the space would not sample, as the
    recipe's own may be, is shown as it is: its range is widened, or its choice added.
    """
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for key in space.parameters:
        parameter = space.active(trial.params, key)
        if parameter is None or not parameter.searched or key not in trial.params:
            continue
        value, name = trial.params[key], name_of(space, key, parameter)
        if parameter.is_range and (isinstance(value, bool) or not isinstance(value, (int, float))):
            continue  # has no place on a range
        if parameter.or_zero:
            params[name + SWITCH] = value != 0
            distributions[name + SWITCH] = CategoricalDistribution([True, False])
            if value == 0:
                continue
        params[name] = parameter.normalised(value) if parameter.contains(value) else value
        distributions[name] = _holding(space, state, key, parameter, value)
    return params, distributions


def _holding(
    space: SearchSpace, state: SearchState, key: str, parameter: Parameter, value: Any
) -> BaseDistribution:
    """The parameter's distribution, widened where it does not hold the value."""
    one = distribution(parameter)
    if isinstance(one, CategoricalDistribution):
        # The same for every trial, as Optuna asks.
        foreign: list[Any] = []
        for trial in state.trials:
            other = trial.params.get(key)
            applies = key in trial.params and space.active(trial.params, key) == parameter
            if applies and not among(other, [*parameter.choices, *foreign]):
                foreign.append(other)
        return CategoricalDistribution([*parameter.choices, *foreign]) if foreign else one
    if parameter.contains(value):
        return one
    low, high = min(float(parameter.low), value), max(float(parameter.high), value)
    if isinstance(one, IntDistribution) and float(value).is_integer():
        return IntDistribution(int(low), int(high), log=one.log and low > 0)
    return FloatDistribution(low, high, log=parameter.log and low > 0)
