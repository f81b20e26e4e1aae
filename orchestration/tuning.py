"""The work behind `orchestration.tune`: from a space file to a confirmed winner.

Decisions: everything that can be refused is refused before Ray starts; the journal says what is left to
do, so the same command continues from wherever the last one ended; the main thread keeps signals and the
screen while Ray Tune works in another; Ctrl-C lets every trial save and is never a loss.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from mpma.config import MAY_CHANGE_ON_CONTINUE, changed_keys, validate_tree
from mpma.data.dataset import Dataset
from mpma.data.storage import Storage, open_storage
from mpma.errors import UserError
from mpma.training.run_directory import STOP_FILE, check_name, hold, provenance
from orchestration import cluster
from orchestration.preflight.survey import Wanted, before_work
from orchestration.search import steering
from orchestration.search.decide import BUDGET_SPENT, over_budget
from orchestration.search.display import SearchDisplay, clock
from orchestration.search.engine import TRIAL_DRIVER, Place, prepare_environment, run_jobs
from orchestration.search.jobs import Job, JobSource
from orchestration.search.journal import JOURNAL_FILE, Journal, read_events
from orchestration.search.place import TrialLayout, plan_trials
from orchestration.search.records import SearchState
from orchestration.search.space import LoadedSpace, load_space
from orchestration.search.study import StudyMirror
from orchestration.search.warm_start import warm_start
from orchestration.telemetry.searching import SearchGauges
from orchestration.worker import StopSignal

SPACE_FILE = "space.yaml"
DEFAULT_SEARCHES = "searches"
_MAY_CHANGE = ("budget", "concurrency", "gpus_per_trial", "retries", "disk_budget_bytes", "proxies", "recipe")
"""Parts of a space that a continued search may be given anew."""


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    space: Path
    config: Path | None
    overrides: tuple[str, ...]
    data: str | None
    name: str
    searches: str
    address: str | None
    cpus: int | None
    dashboard: bool
    started: float
    """Wall-clock time of the program's start, in seconds since the epoch."""

    @property
    def command(self) -> str:
        """The command that continues this search, or repeats it under another name."""
        parts = ["python", "-m", "orchestration.tune", "--space", str(self.space)]
        for option, value in (("--config", self.config), ("--data", self.data)):
            parts += [option, str(value)] if value is not None else []
        for override in self.overrides:
            parts += ["--set", override]
        parts += ["--searches", self.searches] if self.searches != DEFAULT_SEARCHES else []
        return shlex.join([*parts, "--name", self.name])

    @property
    def folder(self) -> Storage:
        """The search directory."""
        root = self.searches if "://" in self.searches else os.path.abspath(self.searches)
        return open_storage(root).child(check_name(self.name))


def load(request: Request) -> LoadedSpace:
    """The space and the recipe it varies. Raises `UserError`."""
    return load_space(request.space, request.config, request.overrides, request.data)


def tune(request: Request) -> None:
    """Search, or continue, to the end. Raises `UserError` and `JobError`."""
    prepare_environment()
    loaded = load(request)
    folder = request.folder
    refuse_another_search(folder, loaded)
    if request.address is None:
        _layout(loaded, cluster.this_machine(request.cpus))
    if loaded.base.data.path is not None:
        Dataset.open(loaded.base.data.path).require_reports()
    with hold(folder, f"{request.name}: another program is working on this search"):
        journal = Journal(folder)
        if journal.state.ended and not _larger_budget(loaded, journal):
            from orchestration.search import conclude

            print(f"{request.name}: finished; nothing to do")
            print(f"report: {conclude.write_results(request, loaded, journal.state)}")
            print("a larger budget in the space file continues it, another --name starts anew")
            return
        try:
            with connected(request) as connection:
                Searching(request, loaded, journal, connection).run()
        finally:
            journal.close()


@contextlib.contextmanager
def connected(request: Request) -> Iterator[cluster.Connection]:
    """The Ray that a search works on."""
    with cluster.connected(
        request.address,
        request.cpus,
        request.dashboard,
        _import_model_code,
        custom_resources={TRIAL_DRIVER: 64.0},
        name=request.name,
    ) as connection:
        yield connection


def _import_model_code() -> None:
    """Some seconds of imports that need not wait for Ray."""
    from orchestration.search import suggest  # noqa: F401


def _layout(loaded: LoadedSpace, resources: cluster.Resources) -> TrialLayout:
    space = loaded.space
    return plan_trials(
        loaded.base.training,
        resources,
        None if space.concurrency == "auto" else space.concurrency,
        None if space.gpus_per_trial == "auto" else float(space.gpus_per_trial),
    )


def refuse_another_search(folder: Storage, loaded: LoadedSpace) -> None:
    """Raise `UserError` where the directory holds a search of another space, recipe or directory."""
    _, events = read_events(folder)
    if not events:
        if folder.exists(steering.TRIALS):
            raise UserError(
                f"{folder.described()}: holds trials but no {JOURNAL_FILE}; it is not continued",
                "take another --name",
            )
        return
    begun = events[0]
    if begun.get("event") != "begin":
        raise UserError(f"{folder.described(JOURNAL_FILE)}, line 1: a search begins with `begin`")
    before, now = begun["space"], loaded.space.resolved()
    parts = [
        part for part in {**before, **now} if part not in _MAY_CHANGE and before.get(part) != now.get(part)
    ]
    if parts:
        raise UserError(
            f"{folder.name}: this search was begun with another space; these parts differ: "
            + ", ".join(sorted(parts)),
            "take another --name, or leave the space as it was (its budget may grow)",
        )
    differing = [
        key for key in changed_keys(validate_tree(begun["config"]), loaded.base) if key not in _FREE_KEYS
    ]
    if differing:
        raise UserError(
            f"{folder.name}: this search was begun with another recipe; these keys differ: "
            + ", ".join(sorted(differing)[:8]),
            "take another --name, or leave the recipe as it was",
        )


_FREE_KEYS = MAY_CHANGE_ON_CONTINUE - {"training.steps"}
"""Keys of the recipe that a continued search may be given anew; its rungs depend on the steps."""


def _larger_budget(loaded: LoadedSpace, journal: Journal) -> bool:
    assert journal.state.begun is not None
    state, most = journal.state, loaded.space.budget.trials
    if over_budget(loaded.space, state):
        return False
    if most is None:
        return state.search_ended.startswith(BUDGET_SPENT)
    return most > len(state.trials)


def refuse_without_drivers(layout: TrialLayout, connection: cluster.Connection) -> None:
    """Raise `UserError` where trials of several workers have no node for their drivers.

    Ray Tune would wait for the resource for ever.
    """
    if layout.workers > 1 and not connection.custom.get(TRIAL_DRIVER):
        raise UserError(
            f"trials of {layout.workers} workers need the custom resource {TRIAL_DRIVER} on a node",
            f"start nodes with ray start --resources='{{\"{TRIAL_DRIVER}\": 64}}', or use training.workers=1",
        )


class Searching:
    """One session of a search on a connected Ray."""

    def __init__(
        self, request: Request, loaded: LoadedSpace, journal: Journal, connection: cluster.Connection
    ) -> None:
        self.request, self.loaded, self.journal = request, loaded, journal
        self.space, self.base = loaded.space, loaded.base
        self.folder = request.folder
        self.connection = connection
        self.layout = _layout(loaded, connection.resources)
        refuse_without_drivers(self.layout, connection)
        self.precision, self._precision_reason = cluster.choose_precision(
            self.base.training, self.layout.device
        )
        self.mirror: StudyMirror | None = None
        self.gauges: SearchGauges | None = None
        self._unshown = False
        self._live: Mapping[str, int] = {}
        self.display = SearchDisplay(self.space, journal.state, lambda: self._live, request.name)
        self.stop = threading.Event()

    def run(self) -> None:
        """Trials, confirmation, comparison, report; each from where it stands."""
        from orchestration.search import conclude

        display, state = self.display, self.journal.state
        if self.connection.dashboard_url:
            display.note(f"Ray dashboard: {self.connection.dashboard_url}")
        for line in (*self.layout.reasons, self._precision_reason):
            display.note(line)
        self.dataset = self.open_dataset()
        self.place = self.plan_place()
        self.folder.remove(STOP_FILE)
        self._begin()
        if self.folder.is_local:
            self.mirror = StudyMirror(Path(self.folder.root) / "study.db", self.space)
            display.note(f"watch: optuna-dashboard sqlite:///{self.folder.root}/study.db")
        self.gauges = SearchGauges(self.request.name, self.space)
        with display, contextlib.closing(self.gauges):
            self.gauges.show(state)
            if not state.search_ended:
                self._trials()
            if not self.stop.is_set():
                conclude.confirm(self)
        if self.mirror is not None:
            self.mirror.close(state)
        if self.stop.is_set():
            conclude.write_report(self.request, self.space, state)
            display.note(f"stopped and saved; the same command with --name {self.request.name} continues")
            return
        conclude.conclude(self)
        minutes = clock(time.time() - self.request.started)
        display.note(f"{self.request.name}: finished in {minutes} (this session)")

    def _begin(self) -> None:
        state, loaded = self.journal.state, self.loaded
        if state.begun is None:
            self.folder.make_directory()
            self.folder.write(SPACE_FILE, yaml.safe_dump(self.space.resolved(), sort_keys=False).encode())
            self.journal.begin(
                loaded,
                warm=self._warm_start(),
                data_fingerprint=self.dataset.fingerprint,
                provenance=provenance(self.dataset.fingerprint),
            )
        else:
            before = state.begun["data_fingerprint"]
            if before != self.dataset.fingerprint:
                raise UserError(
                    f"{self.request.name}: this search was begun on data {before}; "
                    f"these are {self.dataset.fingerprint}",
                    "take another --name to search on other data",
                )
            self.display.note(
                f"continuing: {len(state.trials)} trials, "
                f"{sum(1 for trial in state.trials if trial.final)} of them ended"
            )
            self.journal.append("session")
            if state.search_ended and _larger_budget(self.loaded, self.journal):
                self.journal.append("extend")

    def _warm_start(self) -> dict[str, Any]:
        earlier = []
        for place in self.space.first.searches:
            folder = open_storage(_absolute(place))
            _, events = read_events(folder)
            if not events:
                raise UserError(f"first.searches: {place}: no search there (no {JOURNAL_FILE})")
            state = SearchState()
            for event in events:
                state.apply(event)
            earlier.append(state)
        return warm_start(self.space, self.base, self.loaded.full_steps, self.dataset.fingerprint, earlier)

    def open_dataset(self) -> Dataset:
        """The pairs, made first where they are phantom pairs.

        Raises `UserError` where a node of a cluster does not see them or the search's folder.
        """
        if self.base.data.path is not None:
            found = Dataset.open(_absolute(self.base.data.path))
        else:
            from orchestration.phantom_data import CLUSTER_PAIRS, DEFAULT_ROOT, ensure_phantom

            root = DEFAULT_ROOT
            if self.request.address is not None:
                root = open_storage(_absolute(self.request.searches)).child(CLUSTER_PAIRS).location
            found = Dataset.open(ensure_phantom(self.base.data.phantom, root))
            self.display.note(f"data: synthetic phantom pairs at {found.path}")
        places = (self.folder.location, found.path)
        before_work(Wanted(places=places), self.connection, self.display.note)
        return found

    def plan_place(self) -> Place:
        """What a segment occupies on this Ray."""
        layout, space = self.layout, self.space
        local = self.connection.resources.local
        return Place(
            data=_absolute(self.dataset.path),
            fingerprint=self.dataset.fingerprint,
            search=self.folder.location,
            device=layout.device,
            precision=self.precision,
            threads=layout.threads,
            workers=layout.workers,
            cpus_per_worker=layout.cpus_per_worker,
            gpus=layout.gpus,
            retries=space.retries,
            concurrency=layout.concurrency if local or space.concurrency != "auto" else None,
        )

    # -- running jobs ------------------------------------------------------------------------------

    def _trials(self) -> None:
        phase = steering.TrialPhase(self.space, self.base, self.journal, self.folder, self.changed)
        self.carry_out(phase)
        if phase.broken is not None:
            raise phase.broken

    def changed(self) -> None:
        """The state has changed: mirror and screen follow at once, metrics within half a second."""
        if self.mirror is not None:
            self.mirror.update(self.journal.state)
        self._unshown = True
        self.display.changed()

    def _show_metrics(self) -> None:
        """Counting all trials for every event would take longer than deciding."""
        if self._unshown and self.gauges is not None:
            self._unshown = False
            self.gauges.show(self.journal.state)

    def carry_out(self, source: JobSource) -> None:
        """Run a source's jobs in a thread, this one keeping signals and screen. Raises what stops it."""
        failure: list[BaseException] = []
        watched = _Watched(source)

        def work() -> None:
            try:
                run_jobs(watched, self.place, self.stop)
            except BaseException as error:
                failure.append(error)

        def ask() -> None:
            self.stop.set()
            self.folder.write(STOP_FILE, b"")
            self.display.note("stopping: every trial saves at its next step; once more ends at once")

        thread = threading.Thread(target=work, name="ray-tune", daemon=True)
        with StopSignal().listening(ask):
            thread.start()
            while thread.is_alive():
                thread.join(timeout=0.5)
                self._show_metrics()
                if self.display.console.is_terminal:
                    self._live = {key: self._step_of(run) for key, run in list(watched.working.items())}
        self._show_metrics()
        if failure:
            raise failure[0]

    def _step_of(self, run: tuple[str, str]) -> int:
        """Last step in a run's metrics.jsonl; read from the end."""
        from mpma.training.metrics_log import METRICS_FILE

        path = Path(run[0]) / run[1] / METRICS_FILE
        with contextlib.suppress(OSError, ValueError), path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            lines = stream.read().split(b"\n")
            for line in reversed(lines[:-1]):
                return int(json.loads(line)["step"])
        return 0


class _Watched:
    """A job source whose running jobs the screen can see."""

    def __init__(self, source: JobSource) -> None:
        self._source = source
        self.working: dict[str, tuple[str, str]] = {}
        self.failed, self.retried = self._ending(source.failed), source.retried
        self.reached = self._ending(source.reached)

    def next(self, live: Set[str]) -> Any:
        """The next job, remembered while it runs."""
        job = self._source.next(live)
        if isinstance(job, Job):
            self.working[job.key] = (job.runs, job.name)
        return job

    def _ending(self, tell: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def told(job: Any, outcome: Any) -> None:
            self.working.pop(job.key, None)
            tell(job, outcome)

        return told


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(place)


def check(request: Request) -> None:
    """Say whether the search could start, without a cluster."""
    console = Console(highlight=False, soft_wrap=True)
    loaded = load(request)
    refuse_another_search(request.folder, loaded)
    if request.address is None:
        for line in _layout(loaded, cluster.this_machine(request.cpus)).reasons:
            console.print(line, markup=False)
    for line in describe(loaded):
        console.print(line, markup=False)
    if loaded.base.data.path is not None:
        dataset = Dataset.open(_absolute(loaded.base.data.path))
        dataset.require_reports()
        splits = ", ".join(f"{name} {split.pairs}" for name, split in dataset.info.splits.items())
        console.print(f"data: {dataset.fingerprint}, pairs: {splits}", markup=False)
    begun = bool(read_events(request.folder)[1])
    console.print(f"search: {request.name} would be {'continued' if begun else 'started'}", markup=False)
    console.print("check: all is well", markup=False)


def describe(loaded: LoadedSpace) -> list[str]:
    """What a space asks for, in a few lines."""
    space = loaded.space
    rungs = space.fidelity.rungs(loaded.full_steps)
    budget = [f"{space.budget.trials} trials"] if space.budget.trials else []
    if space.budget.gpu_hours:
        budget.append(f"{space.budget.gpu_hours:g} device hours")
    if space.budget.wall_clock_hours:
        budget.append(f"{space.budget.wall_clock_hours:g} hours")
    return [
        f"searched: {', '.join(space.parameters)}",
        "objective: " + ", ".join(f"{o.direction} {o.metric}" for o in space.objectives),
        f"budget: {', '.join(budget)}; steps at rungs {', '.join(map(str, rungs))} ({space.scheduler.name})",
        f"searcher: {space.searcher.name}; confirmation: the best {space.confirmation.candidates} and the "
        f"recipe's own values, {space.confirmation.seeds} new seeds each",
    ]


def forecast(request: Request) -> None:
    """Print trials, steps, hours and disk from a short measured step."""
    from orchestration.search.forecast import forecast_search

    loaded = load(request)
    layout = _layout(loaded, cluster.this_machine(request.cpus))
    forecast_search(loaded, layout, Console(highlight=False, soft_wrap=True))


def rank(request: Request, points: int) -> None:
    """Run configurations at full and at cheaper settings, and print how well the ranks agree."""
    from orchestration.search.ranking import measure_rank_correlation

    prepare_environment()
    loaded = load(request)
    folder = request.folder
    if request.address is None:
        _layout(loaded, cluster.this_machine(request.cpus))
    with hold(folder, f"{request.name}: another program is working on this search"):
        journal = Journal(folder)
        try:
            with connected(request) as connection:
                measure_rank_correlation(Searching(request, loaded, journal, connection), points)
        finally:
            journal.close()
