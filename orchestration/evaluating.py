"""The work behind `orchestration.evaluate`: from a run to figures with intervals.

Decisions: all that can be refused is refused before Ray starts; the models are described and the patients
compared before the first job; a job that fails is told and the rest goes on; the same command continues
an evaluation that was interrupted, and runs anew only what changed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from mpma.config_tree import load_tree, to_yaml
from mpma.data.storage import Storage, open_storage
from mpma.downstream.config import TASKS, EvaluationConfig
from mpma.errors import JobError, UserError
from orchestration import cluster
from orchestration.preflight.survey import Wanted, before_work

if TYPE_CHECKING:
    from mpma.config import ExperimentConfig
    from mpma.training.run_directory import RunDirectory
    from orchestration.evaluation.plan import ModelPlan, WorkPlan

DEMO_SETTINGS: Final = Path(__file__).resolve().parents[1] / "recipes" / "evaluate_demo.yaml"
RESULTS: Final = "evaluations"
DEFAULT_NAME: Final = "evaluation"
EXAMPLES: Final = 8
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    run: str | None
    data: str | None
    config: Path | None
    overrides: tuple[str, ...]
    tasks: tuple[str, ...]
    baselines: tuple[str, ...]
    name: str | None
    with_examples: bool
    allow_overlap: bool
    features: str
    address: str | None
    cpus: int | None
    device: str
    precision: str
    dashboard: bool
    started: float

    @property
    def evaluation_name(self) -> str:
        """`evaluation`, or the name of the labelled data's folder."""
        name = self.name or (DEFAULT_NAME if self.data is None else Path(self.data.rstrip("/")).name)
        if not _NAME.match(name):
            raise UserError(
                f"--name {name}: letters, digits, dot, dash and underscore are expected, at most 60"
            )
        return name


def report_name(evaluation: str, ending: str) -> str:
    """File in the run's folder: `evaluation.json`, or `evaluation-NAME.json` for other data."""
    return f"evaluation{ending}" if evaluation == DEFAULT_NAME else f"evaluation-{evaluation}{ending}"


def evaluate(request: Request) -> None:
    """Evaluate to the end. Raises `UserError` and `JobError`."""
    from mpma.training.run_directory import hold
    from orchestration.evaluation.display import Display
    from orchestration.evaluation.engine import Engine

    run, experiment, config = _resolved(request)
    _own_or_named_data(request, experiment)
    display = Display()
    results = run.folder.child(RESULTS).child(request.evaluation_name)
    with (
        hold(results, f"{run.name}: another program works on this evaluation"),
        cluster.connected(request.address, request.cpus, request.dashboard, _import_model_code) as connection,
    ):
        if connection.dashboard_url:
            display.note(f"Ray dashboard: {connection.dashboard_url}")
        before_work(Wanted(places=(results.location,)), connection, display.note)
        device, precision, reasons = _placement(request, connection.resources)
        for line in reasons:
            display.note(line)
        pretraining, labelled = _data(request, run, experiment, config, display)
        plan = _work_plan(request, config, labelled, results)
        models = _model_plans(request, config, run, device, precision)
        engine = Engine(
            plan,
            models,
            config,
            display,
            gpus=device == "cuda",
            logs=connection.logs,
            examples=EXAMPLES if request.with_examples else 0,
        )
        described = engine.describe()
        for one in described:
            display.note(f"model {one['name']}: {one['origin']}, weights {one['weights']}")
        data = engine.describe_data()
        display.note(
            f"data: {data['fingerprint']}, judged on {data['patients'][data['split']]} patients "
            f"of {data['split']}"
        )
        overlap = _overlap(request, pretraining, labelled, data["split"], display)
        try:
            sections = engine.run()
        except KeyboardInterrupt:
            display.note("stopped; what is done is kept, and the same command goes on from there")
            raise
        summary = {
            "schema_version": 1,
            "run": run.name,
            "name": request.evaluation_name,
            "written": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "complete": not any(
                section["state"] == "failed" or any(one["possible"] for one in section["failures"])
                for section in sections.values()
            ),
            "synthetic": engine.synthetic,
            "seconds": round(time.time() - request.started, 1),
            "models": described,
            "data": data,
            "overlap": overlap,
            "settings": config.model_dump(),
            "provenance": _provenance(data["fingerprint"]),
            **sections,
        }
        _write(request, run.folder, results, summary)
    display.table(summary)
    place = run.folder.location.rstrip("/")
    display.note(f"figures: {place}/{report_name(request.evaluation_name, '.json')}")
    display.note(f"report:  {place}/{report_name(request.evaluation_name, '.html')}")
    if not summary["complete"]:
        raise JobError(
            f"{run.name}: some jobs failed; the others stand in the report",
            "the same command tries them again",
        )


def printed_config(request: Request) -> str:
    """The settings as YAML, each with its origin."""
    from mpma.training.run_directory import RunDirectory

    experiment = None if request.run is None else RunDirectory.opened(request.run).stored_config()
    settings, origins = _settings(request, experiment)
    return to_yaml(settings, origins)


def check(request: Request) -> None:
    """Say whether the evaluation could start, without a cluster."""
    from mpma.baselines import baseline
    from mpma.downstream.contract import NotPossible, task
    from mpma.downstream.labelled import LabelledData
    from mpma.loading import load_run

    console = Console(highlight=False, soft_wrap=True)
    run, experiment, config = _resolved(request)
    dataset = _own_or_named_data(request, experiment)
    loaded = load_run(run)
    for model in (loaded, *(baseline(spec, loaded) for spec in request.baselines)):
        console.print(f"model: {model.origin}, weights {model.weights_hash}", markup=False)
    if dataset is None:
        console.print("data: synthetic patients, which would be made", markup=False)
    else:
        data = LabelledData(dataset, config.split)
        console.print(f"data: {data.fingerprint}, judged on {data.judged_split}", markup=False)
        for name in config.tasks:
            try:
                judged = task(name, config).prepare(data)
                console.print(f"{name}: {len(judged.rows)} examples would be judged", markup=False)
            except NotPossible as error:
                console.print(f"{name}: skipped, {error.message}", markup=False)
    jobs = sum(len(task(name, config).jobs()) for name in config.tasks)
    console.print(f"jobs: {jobs * (1 + config.untrained + len(request.baselines))}", markup=False)
    console.print("check: all is well", markup=False)


def forecast(request: Request) -> None:
    """Print time and disk from a few measured steps on this machine."""
    from orchestration.evaluation.forecasting import forecast_evaluation

    run, experiment, config = _resolved(request)
    forecast_evaluation(run, _own_or_named_data(request, experiment), config, request)


# --- before the work -------------------------------------------------------------------------------


def _resolved(request: Request) -> tuple[RunDirectory, ExperimentConfig, EvaluationConfig]:
    from mpma.training.run_directory import RunDirectory

    run = RunDirectory.opened(request.run)
    _check_options(request)
    experiment = run.stored_config()
    config, _ = _settings(request, experiment)
    return run, experiment, config


def _settings(
    request: Request, experiment: ExperimentConfig | None
) -> tuple[EvaluationConfig, Mapping[str, str]]:
    path = request.config
    phantom = request.data is None and (experiment is None or experiment.data.path is None)
    if path is None and phantom and DEMO_SETTINGS.exists():
        path = DEMO_SETTINGS
    config, origins = load_tree(EvaluationConfig, path, request.overrides)
    if request.tasks:
        unknown = [name for name in request.tasks if name not in TASKS]
        if unknown:
            raise UserError(f"--task {unknown[0]}: no such task", f"one of {', '.join(TASKS)}")
        config = config.model_copy(update={"tasks": [name for name in TASKS if name in request.tasks]})
    if config.zero_shot.prompts is not None:
        config = _with_prompts(config, config.zero_shot.prompts)
    return config, origins


def _with_prompts(config: EvaluationConfig, place: str) -> EvaluationConfig:
    """The settings with prompts that every process finds. Raises `UserError` where they cannot be read."""
    from mpma.downstream.prompting import read_prompts

    read_prompts(Path(place))
    section = config.zero_shot.model_copy(update={"prompts": _absolute(place)})
    return config.model_copy(update={"zero_shot": section})


def _check_options(request: Request) -> None:
    """Raises `UserError` for a name, a baseline, a device or a precision that cannot be meant."""
    from mpma.baselines import check_spec

    _ = request.evaluation_name
    names = [check_spec(spec) for spec in request.baselines]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"--baseline {twice[0]}: the name is given twice", "give each baseline its own")
    if request.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {request.device}: unknown", "auto, cpu or cuda")
    if request.precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"--precision {request.precision}: unknown", "auto, fp32 or bf16")


def _placement(request: Request, resources: cluster.Resources) -> tuple[str, str, list[str]]:
    device = request.device
    if device == "auto":
        device = "cuda" if resources.gpus >= 1 else "cpu"
    if device == "cuda" and resources.gpus < 1:
        raise UserError("--device cuda: there is no GPU", "use --device cpu")
    precision = "fp32" if request.precision == "auto" else request.precision
    return device, precision, [f"device: {device} ({resources.gpus:g} GPUs), {precision}"]


def _own_or_named_data(request: Request, experiment: ExperimentConfig) -> Any:
    """The labelled dataset, or None where it is the phantom's."""
    from mpma.data.dataset import Dataset

    place = request.data or experiment.data.path
    return None if place is None else Dataset.open(_absolute(place))


def _data(
    request: Request,
    run: RunDirectory,
    experiment: ExperimentConfig,
    config: EvaluationConfig,
    display: Any,
) -> tuple[str, str]:
    """(place of the pre-training data, or empty where it is not at hand; place of the labelled data)."""
    from mpma.data.config import PhantomConfig
    from mpma.data.dataset import Dataset
    from mpma.loading import trained_on
    from orchestration.own_data import find_own_data
    from orchestration.phantom_data import ensure_phantom

    fingerprint = trained_on(run)
    known = find_own_data(run, fingerprint)
    if known is None and experiment.data.path is None:
        made = Dataset.open(ensure_phantom(experiment.data.phantom))
        known = made if made.fingerprint == fingerprint else None
    pretraining = "" if known is None else _absolute(known.path)
    if known is None:
        display.note("data of pre-training: not found where the run had them")
    if request.data is not None or experiment.data.path is not None:
        return pretraining, _own_or_named_data(request, experiment).path
    wanted = experiment.data.phantom.model_copy(
        update={
            "train_pairs": config.phantom.train_pairs,
            "val_pairs": config.phantom.val_pairs,
            "test_pairs": config.phantom.test_pairs,
            "seed": experiment.data.phantom.seed + config.phantom.seed_offset,
        }
    )
    begun = time.time()
    place = ensure_phantom(PhantomConfig.model_validate(wanted.model_dump()))
    took = time.time() - begun
    told = f", made in {took:.0f} s (kept)" if took > 1 else ""
    display.note(f"labelled data: synthetic patients that the run never saw, at {place}{told}")
    return pretraining, _absolute(place)


def _work_plan(request: Request, config: EvaluationConfig, labelled: str, results: Storage) -> WorkPlan:
    from orchestration.evaluation.plan import WorkPlan

    return WorkPlan(
        data=_absolute(labelled),
        config=config.model_dump_json(),
        results=_absolute(results.location),
        features=_absolute(request.features),
        threads=config.threads_per_job,
    )


def _model_plans(
    request: Request,
    config: EvaluationConfig,
    run: RunDirectory,
    device: str,
    precision: str,
) -> list[ModelPlan]:
    from mpma.baselines import check_spec
    from orchestration.evaluation.plan import ModelPlan

    place = _absolute(run.folder.location)

    def plan(name: str, kind: str, spec: str = "") -> ModelPlan:
        return ModelPlan(name, kind, place, spec, device, precision)

    models = [plan("pretrained", "run")]
    if config.untrained:
        models.append(plan("untrained", "untrained"))
    models += [plan(check_spec(spec), "baseline", _absolute_spec(spec)) for spec in request.baselines]
    return models


def _absolute_spec(spec: str) -> str:
    """A baseline whose place every process finds, wherever it works; hub names stay names."""
    head, colon, place = spec.partition(":")
    return f"{head}:{_absolute(place)}" if colon and Path(place).exists() else spec


def _overlap(request: Request, pretraining: str, labelled: str, split: str, display: Any) -> dict[str, Any]:
    from mpma.data.dataset import Dataset
    from mpma.downstream.overlap import check as check_overlap
    from orchestration.evaluation.overlap import find_overlap

    known = Dataset.open(pretraining) if pretraining else None
    cache = open_storage(_absolute(request.features)).child("image-hashes")
    found = find_overlap(known, Dataset.open(labelled), cache, split)
    display.note(f"overlap: {found.line}")
    check_overlap(found, request.allow_overlap)
    return {**found.as_dict(), "allowed": request.allow_overlap}


def _write(request: Request, folder: Storage, results: Storage, summary: Mapping[str, Any]) -> None:
    from orchestration.evaluation.conclude import written_report

    name = request.evaluation_name
    folder.write(report_name(name, ".json"), (json.dumps(summary, indent=1) + "\n").encode())
    html = written_report(summary, results, with_examples=request.with_examples)
    folder.write(report_name(name, ".html"), html.encode())


def _provenance(fingerprint: str) -> dict[str, Any]:
    from mpma.training.run_directory import provenance

    return provenance(fingerprint)


def _import_model_code() -> None:
    """Some seconds of imports that need not wait for Ray."""
    from orchestration.evaluation import work  # noqa: F401


def _absolute(place: str) -> str:
    return place if "://" in place else os.path.abspath(place)
