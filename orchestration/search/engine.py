"""Jobs on Ray Tune: every segment of a run is one Tune trial in a reused actor.

Decisions
- Tune places, reuses and restarts actors; what is trained next, what is promoted and what the sampler is
  told stands in our own journal. Tune's schedulers, its restore and its searchers' states are not used:
  restored experiments lose them, and early stops would be told as completed trials.
- A segment whose process dies is handed out again, as a new Tune trial, and continues from the run's own
  checkpoint. Tune's own retries are off: it gives a trial up when its actor dies before it has started.
  Should Tune itself stumble, a new Tune experiment takes up what the journal leaves open.
- How many segments run at a time is computed from what the cluster has now, so a search grows with it; where
  an autoscaler adds machines, from what it may add, since it adds them only for segments that wait.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from mpma.data.storage import open_storage
from mpma.errors import JobError
from orchestration.cluster import all_resources
from orchestration.search.jobs import Finished, Job, JobSource, Outcome

FRUITLESS_EXPERIMENTS: Final = 3
"""Tune experiments in a row that may end without a single outcome."""


@dataclass(frozen=True)
class Place:
    """What one segment occupies, and where it finds its data; equal for all jobs of a search."""

    data: str
    fingerprint: str
    search: str
    """The search directory; its `stop_requested` stops all segments."""
    device: str
    precision: str
    threads: int
    workers: int
    cpus_per_worker: float
    gpus: float
    """Share of a GPU of a single-worker segment."""
    retries: int
    concurrency: int | None
    """Most segments at a time; None: as many as fit."""
    cpus_for_data: float = 1.0

    @property
    def devices(self) -> float:
        """Devices that a segment's time is counted for."""
        if self.device == "cuda":
            return self.gpus if self.workers == 1 else float(self.workers)
        return float(self.workers)

    def fit(self, cpus: float, gpus: float) -> int:
        """How many segments such a cluster holds, one CPU being left to Ray Data."""
        by_cpu = (cpus - self.cpus_for_data) / (self.cpus_per_worker * self.workers)
        most = math.floor(by_cpu + 1e-6)
        if self.device == "cuda":
            need = self.gpus if self.workers == 1 else float(self.workers)
            most = min(most, math.floor(gpus / need + 1e-6))
        return most if self.concurrency is None else min(most, self.concurrency)


def run_jobs(source: JobSource, place: Place, stop: threading.Event) -> None:
    """Carry out a source's jobs to the end, or until `stop` is set. Raises `JobError`.

    Called in a thread that is not the main one where the caller wants to keep Ctrl-C for itself.
    """
    fruitless = 0
    deaths: Counter[str] = Counter()
    while True:
        feed = _Feed(source, place, stop, deaths)
        _one_experiment(feed, place)
        if feed.error is not None:
            raise feed.error
        if feed.ended or stop.is_set():
            return
        fruitless = 0 if feed.outcomes else fruitless + 1
        if fruitless >= FRUITLESS_EXPERIMENTS:
            raise JobError("Ray Tune ended early several times without any trial's report")


def _one_experiment(feed: _Feed, place: Place) -> None:
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from orchestration.search.trial import SegmentTrainable

    class KeepActors(FIFOScheduler):
        """First come, first served, with as many idle actors kept as ever worked at a time.

        Tune keeps an actor only while another trial already waits for it; ours are suggested when one
        has ended, so that they know its result.
        """

        _kept = 0

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            wanted = feed.concurrency()
            cache = getattr(tune_controller, "_actor_cache", None)
            if cache is not None and wanted > self._kept:
                cache.increase_max(trial.placement_group_factory, by=wanted - self._kept)
                KeepActors._kept = self._kept = wanted
            super().on_trial_add(tune_controller, trial)

    if place.workers == 1:
        resources = tune.PlacementGroupFactory(
            [{"CPU": place.cpus_per_worker, **({"GPU": place.gpus} if place.gpus else {})}]
        )
    else:
        # The driver of a worker group holds none of the CPUs that its workers wait for.
        resources = tune.PlacementGroupFactory([{"CPU": 0, TRIAL_DRIVER: 1}])
    # Through the storage: an address may end in settings, behind which a folder would be one of them.
    folder = open_storage(place.search).child(".tune").location
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        type(
            # Seen in the process list and on the dashboard.
            "SegmentTrainable",
            (SegmentTrainable,),
            {"default_resource_request": classmethod(lambda cls, config: resources)},
        ),
        tune_config=tune.TuneConfig(
            search_alg=feed.searcher(), scheduler=KeepActors(), num_samples=-1, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=f"experiment-{uuid.uuid4().hex[:8]}",
            storage_path=folder,
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        # The journal knows what is open; a new experiment takes it up.
        feed.stumbled(error)
    finally:
        _forget_experiment(folder)


TRIAL_DRIVER: Final = "trial_driver"
"""Custom resource of the nodes on which drivers of several-worker trials may sit."""


def _forget_experiment(folder: str) -> None:
    with contextlib.suppress(OSError):
        open_storage(folder).remove("")


class _Feed:
    """Between Tune's searcher interface and a source of jobs."""

    def __init__(self, source: JobSource, place: Place, stop: threading.Event, deaths: Counter[str]) -> None:
        self._source, self._place, self._stop = source, place, stop
        self._deaths = deaths
        """Per job: processes lost since it last reported."""
        self._lock = threading.RLock()
        self._live: dict[str, Job] = {}
        self._keys: set[str] = set()
        """Of the live jobs."""
        self._measured = (0.0, 1)
        self.ended = False
        self.outcomes = 0
        self.error: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its searcher, scheduler and callbacks for a restore that is not used.
        return (_nothing, ())

    def searcher(self) -> Any:
        """A Tune searcher on this feed."""
        from ray.tune.search import Searcher

        feed = self

        class Feeder(Searcher):
            """Suggests the next segment when there is room for it."""

            def suggest(self, trial_id: str) -> Any:
                found = feed.suggest(trial_id)
                return Searcher.FINISHED if found is Finished else found

            def on_trial_complete(
                self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
            ) -> None:
                feed.complete(trial_id, result, error)

            def save(self, checkpoint_path: str) -> None:
                """Nothing: the journal is the state."""

            def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
                """Nothing: the journal is the state."""

            def restore(self, checkpoint_path: str) -> None:
                """Nothing: the journal is the state."""

        return Feeder(metric=None, mode=None)

    def concurrency(self) -> int:
        """Segments that there is or can be room for; asked of the cluster every few seconds."""
        now = time.monotonic()
        if now - self._measured[0] > 5 or not self._measured[0]:
            have = all_resources(private=False)
            self._measured = (now, max(1, self._place.fit(have.get("CPU", 0.0), have.get("GPU", 0.0))))
        return self._measured[1]

    def suggest(self, trial_id: str) -> Any:
        """Configuration of the next Tune trial; None: not now; `Finished`: never more."""
        with self._lock:
            if self.error is not None or self._stop.is_set():
                return None if self._live else Finished
            if len(self._live) >= self.concurrency():
                return None
            try:
                job = self._source.next(self._keys)
            except Exception as error:
                self.error = error
                self._request_stop()
                return None if self._live else Finished
            if isinstance(job, Finished):
                self.ended = True
                return Finished
            if job is None:
                return None
            self._live[trial_id] = job
            self._keys.add(job.key)
            return self._settings(job)

    def _settings(self, job: Job) -> dict[str, Any]:
        place = self._place
        return {
            "config": job.config.model_dump(mode="json"),
            "runs": job.runs,
            "name": job.name,
            "until": job.until,
            "data": place.data,
            "fingerprint": place.fingerprint,
            "search": place.search,
            "device": place.device,
            "precision": place.precision,
            "threads": place.threads,
            "workers": place.workers,
            "cpus_per_worker": place.cpus_per_worker,
            "devices": place.devices,
            "retries": place.retries,
            "suggested_at": time.time(),
        }

    def complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        """Tell the source how a segment ended."""
        with self._lock:
            job = self._live.pop(trial_id, None)
            if job is None:
                return
            self._keys.discard(job.key)
            outcome = _outcome(result)
            try:
                if outcome is not None and outcome.status == "stopped":
                    return
                self.outcomes += 1
                if outcome is not None and outcome.status == "reached":
                    self._deaths.pop(job.key, None)
                    self._source.reached(job, outcome)
                elif outcome is not None and not error:
                    self._source.failed(job, outcome)
                else:
                    self._died(job)
            except Exception as problem:
                self.error = problem
                self._request_stop()

    def _died(self, job: Job) -> None:
        """A segment's process is gone: the source hands it out again, or records the failure."""
        self._deaths[job.key] += 1
        times = self._deaths[job.key]
        if times <= self._place.retries:
            self._source.retried(job, "its process died")
        else:
            reason = f"its process died {times} times" if times > 1 else "its process died"
            self._source.failed(job, Outcome("failed", reason=reason))

    def stumbled(self, error: Exception) -> None:
        """Tune ended with an error of its own; live segments are taken up again."""
        with self._lock:
            self._live.clear()
            self._keys.clear()

    def _request_stop(self) -> None:
        from mpma.data.storage import open_storage
        from mpma.training.run_directory import STOP_FILE

        with contextlib.suppress(OSError):
            open_storage(self._place.search).write(STOP_FILE, b"")


def _nothing() -> None:
    """What a pickled feed becomes."""


def _outcome(result: dict[str, Any] | None) -> Outcome | None:
    """The outcome in a Tune result, whose nested keys are joined by slashes."""
    if not result or "outcome/status" not in result:
        return None
    plain = {
        key.removeprefix("outcome/"): value for key, value in result.items() if key.startswith("outcome/")
    }
    metrics = {
        key.removeprefix("metrics/"): value for key, value in plain.items() if key.startswith("metrics/")
    }
    own = {key: value for key, value in plain.items() if not key.startswith("metrics/") and key != "metrics"}
    return Outcome(metrics=metrics, **own)


def prepare_environment() -> None:
    """Settings that Tune reads when it is imported; a user's own values win."""
    for name, value in {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        # The journal is the state; Tune's own copy of it would only cost time.
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    }.items():
        os.environ.setdefault(name, value)
