"""Jobs of an evaluation over a cluster: features first, then every fit, then the summaries.

Decisions: features are made part by part before the jobs, so that no two jobs make the same ones; the jobs
of all models go into one queue, long ones first, so that the cluster is full until the end; at most as
many wait in Ray as can run, since a stopped evaluation should leave nothing behind; results go from the
worker to the run's folder, only a line comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from mpma.data.dataset import Dataset
from mpma.data.storage import open_storage
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Job, task
from mpma.downstream.features import PART_ROWS
from mpma.errors import JobError, UserError
from orchestration.defects import told
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
        examples: int = 0,
    ) -> None:
        """`examples`: how many the shown job of each task keeps; 0: none, and none are left from before."""
        self._plan, self._models, self._config, self._display = plan, list(models), config, display
        self._examples = examples
        self._gpus, self._logs = gpus, logs
        self._described: list[dict[str, Any]] = []

    @property
    def synthetic(self) -> bool:
        """Whether no patient is shown."""
        return Dataset.open(self._plan.data).info.synthetic

    def describe(self) -> list[dict[str, Any]]:
        """Name, origin and weights' hash of every model, loaded where it will run. Raises `UserError`."""
        self._described = list(self._each(work.describe_model, [(model,) for model in self._models]))
        # From here on all jobs load this checkpoint, although the run may write newer ones.
        step = self._described[0]["step"]
        self._models = [replace(model, step=step) for model in self._models]
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
            self._extract({job.task for _, job, _, _ in waiting}, {model.name for model, _, _, _ in waiting})
        broken = self._carry_out(waiting, sum(len(found) for found in names.values()))
        tables = [
            (self._plan, name, [model.name for model in self._models], jobs[name], names[name], broken)
            for name in self._config.tasks
        ]
        self._display.note("drawing resamples of patients")
        sections: dict[str, dict[str, Any]] = {}
        for place, section in self._unordered(work.summarise, tables):
            name = self._config.tasks[place]
            if isinstance(section, Exception):
                section = work.failed_section([model.name for model in self._models], _defect(section))
            sections[name] = section
        return {name: sections[name] for name in self._config.tasks}

    # -- what there is to do -----------------------------------------------------------------------

    @cached_property
    def _fingerprint(self) -> str:
        return Dataset.open(self._plan.data).fingerprint

    def _result_names(self, jobs: Mapping[Any, list[Job]]) -> dict[str, dict[tuple[str, str], str]]:
        weights = {one["name"]: one["weights"] for one in self._described}
        return {
            name: {
                (model.name, job.key): result_name(
                    self._config, job, model, weights[model.name], self._fingerprint
                )
                for model in self._models
                for job in found
            }
            for name, found in jobs.items()
        }

    def _waiting(
        self, jobs: Mapping[Any, list[Job]], names: Mapping[str, Mapping[tuple[str, str], str]]
    ) -> list[tuple[ModelPlan, Job, str, int]]:
        """Jobs without a whole result, in the order in which they are best started, and their examples."""
        store = ResultStore(open_storage(self._plan.results))
        if not self._examples:
            store.forget_examples()
        there = set(store.folder.names())
        waiting = []
        order = [job for name in _longest_first(self._config.tasks) for job in jobs[name]]
        for job in order:
            for model in self._models:
                name = names[job.task][model.name, job.key]
                shown = model.kind == "run" and job == shown_job(jobs[job.task])
                examples = self._examples if shown else 0
                whole = name + OUTCOMES in there and store.outcomes(name) is not None
                if name + IMPOSSIBLE in there or (whole and (not examples or name + EXAMPLES in there)):
                    continue
                waiting.append((model, job, name, examples))
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
            # A part that cannot be made fails the jobs that need it, each by itself.
            for _ in self._unordered(work.extract_part, parts):
                advance()

    def _carry_out(
        self, waiting: Sequence[tuple[ModelPlan, Job, str, int]], total: int
    ) -> dict[tuple[str, str], str]:
        """Run the jobs; return what broke, by model and job key."""
        broken: dict[tuple[str, str], str] = {}
        if total > len(waiting):
            self._display.note(f"{total - len(waiting)} of {total} jobs are done already")
        calls = [(self._plan, *one) for one in waiting]
        with self._display.counting("jobs", len(calls)) as advance:
            for place, done in self._unordered(work.run_job, calls):
                model, job, _, _ = waiting[place]
                advance()
                if isinstance(done, Exception):
                    done = work.Done(0.0, "failed", f"its process ended ({type(done).__name__})")
                if done.state == "failed":
                    broken[model.name, job.key] = done.reason
                self._display.job(model.name, job, done)
        return broken

    def _each(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Results in order. A mistake of the user is raised as such, a lost process as `JobError`."""
        found: dict[int, Any] = {}
        for place, result in self._unordered(function, list(calls)):
            if isinstance(result, Exception):
                if isinstance(cause := getattr(result, "cause", None), UserError):
                    raise cause
                raise JobError(
                    f"{function.__name__}: {_defect(result)}",
                    f"Ray's logs are in {self._logs}; the same command continues",
                )
            found[place] = result
        return [found[place] for place in sorted(found)]

    def _unordered(
        self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        """(place, result or exception) as they come; hardly more tasks wait in Ray than can run."""
        import ray

        remote = ray.remote(max_retries=_RETRIES)(function).options(
            num_cpus=1 if self._gpus else self._plan.threads, num_gpus=1 if self._gpus else 0
        )
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted, each = ("GPU", 1) if self._gpus else ("CPU", self._plan.threads)
        # A job sits on one node: what is left over on each is of no use.
        room = sum(int(node.get(wanted, 0) // each) for node in nodes)
        if room < 1:
            most = max((node.get(wanted, 0) for node in nodes), default=0)
            raise UserError(
                f"threads_per_job {each}: no machine has that many CPUs; the largest has {most:g}",
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


def shown_job(jobs: Sequence[Job]) -> Job:
    """The job whose examples speak for a task: the largest share of the labels, the first seed and method."""
    return min(jobs, key=lambda job: (-job.fraction, job.seed, job.method))


def _defect(error: BaseException) -> str:
    """Kind and place of what a task raised; its message may hold report text."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, UserError):
        return cause.message
    return told(error)


def _longest_first(tasks: Sequence[str]) -> list[str]:
    order = ("report_generation", "vqa", "segmentation", "classification", "zero_shot", "retrieval")
    return [name for name in order if name in tasks]
