"""Jobs of an evaluation over a cluster: features first, then every fit, then the summaries.

Decisions: features are made part by part before the jobs, so that no two jobs make the same ones; the jobs
of all models go into one queue, long ones first, so that the cluster is full until the end; at most as
many wait in Ray as can run, since a stopped evaluation should leave nothing behind; results go from the
worker to the run's folder, only a line comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from mpma.data.dataset import Dataset
from mpma.data.storage import open_storage
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Job, task
from mpma.downstream.features import PART_ROWS
from mpma.errors import JobError, UserError
from orchestration.evaluation import work
from orchestration.evaluation.display import Display
from orchestration.evaluation.plan import ModelPlan, WorkPlan, open_data, result_name
from orchestration.evaluation.store import EXAMPLES, IMPOSSIBLE, OUTCOMES, ResultStore

FROZEN_FEATURES: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    # Features that a task reads of every model: (kind, "all" splits or the "judged" one).
    "classification": (("image", "all"),),
    "zero_shot": (("image", "judged"),),
    "retrieval": (("image", "judged"), ("report", "judged")),
}
_RETRIES: Final = 2


class Engine:
    """Carries out one evaluation in the Ray that is connected."""

    def __init__(
        self,
        plan: WorkPlan,
        models: Sequence[ModelPlan],
        config: EvaluationConfig,
        display: Display,
        *,
        gpus: bool,
        logs: str,
    ) -> None:
        self._plan, self._models, self._config, self._display = plan, models, config, display
        self._gpus, self._logs = gpus, logs
        self._described: list[dict[str, Any]] = []

    @property
    def synthetic(self) -> bool:
        """Whether no patient is shown."""
        return Dataset.open(self._plan.data).info.synthetic

    def describe(self) -> list[dict[str, Any]]:
        """Name, origin and weights' hash of every model, loaded where it will run. Raises `UserError`."""
        self._described = list(self._each(work.describe_model, [(model,) for model in self._models]))
        return self._described

    def describe_data(self) -> dict[str, Any]:
        """The labelled data in numbers."""
        return work.describe_data(self._plan)

    def run(self) -> dict[str, dict[str, Any]]:
        """All tasks; their sections of `evaluation.json`."""
        jobs = {name: task(name, self._config).jobs() for name in self._config.tasks}
        names = self._result_names(jobs)
        waiting = self._waiting(jobs, names)
        if waiting:
            self._extract({job.task for _, job, _ in waiting}, {model.name for model, _, _ in waiting})
        broken = self._carry_out(waiting, sum(len(found) for found in names.values()))
        tables = [
            (self._plan, name, [model.name for model in self._models], jobs[name], names[name], broken)
            for name in self._config.tasks
        ]
        self._display.note("drawing resamples of patients")
        return dict(zip(self._config.tasks, self._each(work.summarise, tables), strict=True))

    # -- what there is to do -----------------------------------------------------------------------

    @cached_property
    def _fingerprint(self) -> str:
        return Dataset.open(self._plan.data).fingerprint

    def _result_names(self, jobs: Mapping[Any, list[Job]]) -> dict[str, dict[tuple[str, str], str]]:
        weights = {one["name"]: one["weights"] for one in self._described}
        return {
            name: {
                (model.name, job.key): result_name(
                    self._config,
                    job,
                    model.name,
                    f"{weights[model.name]} {model.precision}",
                    self._fingerprint,
                )
                for model in self._models
                for job in found
            }
            for name, found in jobs.items()
        }

    def _waiting(
        self, jobs: Mapping[Any, list[Job]], names: Mapping[str, Mapping[tuple[str, str], str]]
    ) -> list[tuple[ModelPlan, Job, str]]:
        """Jobs without a result, in the order in which they are best started."""
        store = ResultStore(open_storage(self._plan.results))
        there = set(store.folder.names())
        waiting = []
        order = [job for name in _longest_first(self._config.tasks) for job in jobs[name]]
        for job in order:
            for model in self._models:
                name = names[job.task][model.name, job.key]
                shown = not self._plan.examples or name + EXAMPLES in there
                if name + IMPOSSIBLE in there or (name + OUTCOMES in there and shown):
                    continue
                waiting.append((model, job, name))
        return waiting

    # -- the work ----------------------------------------------------------------------------------

    def _extract(self, tasks: set[str], models: set[str]) -> None:
        data = open_data(self._plan)
        wanted: dict[tuple[str, str], None] = {}
        for name in sorted(tasks):
            for kind, scope in FROZEN_FEATURES.get(name, ()):
                splits = ("train", "val", data.judged_split) if scope == "all" else (data.judged_split,)
                for split in dict.fromkeys(splits):
                    wanted[kind, split] = None
        parts = [
            (self._plan, model, kind, split, part)
            for model in self._models
            if model.name in models
            for kind, split in wanted
            for part in range(-(-data.rows(split) // PART_ROWS))
        ]
        with self._display.counting("features", len(parts)) as advance:
            for _ in self._each(work.extract_part, parts, advance):
                pass

    def _carry_out(
        self, waiting: Sequence[tuple[ModelPlan, Job, str]], total: int
    ) -> dict[tuple[str, str], str]:
        """Run the jobs; return what broke, by model and job key."""
        broken: dict[tuple[str, str], str] = {}
        if total > len(waiting):
            self._display.note(f"{total - len(waiting)} of {total} jobs are done already")
        calls = [(self._plan, model, job, name) for model, job, name in waiting]
        with self._display.counting("jobs", len(calls)) as advance:
            for place, done in self._unordered(work.run_job, calls):
                model, job, _ = waiting[place]
                advance()
                if isinstance(done, Exception):
                    done = work.Done(0.0, "failed", f"its process ended ({type(done).__name__})")
                if done.state == "failed":
                    broken[model.name, job.key] = done.reason
                self._display.job(model.name, job, done)
        return broken

    def _each(
        self,
        function: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        advance: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Results in order. A mistake of the user is raised as such, a lost process as `JobError`."""
        found: dict[int, Any] = {}
        for place, result in self._unordered(function, list(calls)):
            if isinstance(result, Exception):
                cause = getattr(result, "cause", None)
                if isinstance(cause, UserError):
                    raise cause
                defect = cause or result
                raise JobError(
                    f"{function.__name__}: {type(defect).__name__} in {work.innermost_place(defect)}",
                    f"Ray's logs are in {self._logs}; the same command continues",
                )
            found[place] = result
            if advance is not None:
                advance()
        return [found[place] for place in sorted(found)]

    def _unordered(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        """(place, result or exception) as they come; hardly more tasks wait in Ray than can run."""
        import ray

        remote = ray.remote(max_retries=_RETRIES)(function).options(
            num_cpus=1 if self._gpus else self._plan.threads, num_gpus=1 if self._gpus else 0
        )
        resources = ray.cluster_resources()
        room = (
            int(resources.get("GPU", 0)) if self._gpus else int(resources.get("CPU", 1) // self._plan.threads)
        )
        if room < 1:
            raise UserError(
                f"threads_per_job {self._plan.threads}: the cluster has {resources.get('CPU', 0):g} CPUs",
                "use fewer threads_per_job",
            )
        pending: dict[Any, int] = {}
        queue = iter(enumerate(calls))
        try:
            while True:
                for place, arguments in queue:
                    pending[remote.remote(*arguments)] = place
                    if len(pending) > room:
                        break
                if not pending:
                    return
                ready, _ = ray.wait(list(pending), num_returns=1)
                for reference in ready:
                    place = pending.pop(reference)
                    try:
                        yield place, ray.get(reference)
                    except ray.exceptions.RayError as error:
                        yield place, error
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _longest_first(tasks: Sequence[str]) -> list[str]:
    order = ("report_generation", "vqa", "segmentation", "classification", "zero_shot", "retrieval")
    return [name for name in order if name in tasks]
