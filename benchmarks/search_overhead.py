"""What a search costs beside its training: ours against nested trainers with Ray Tune's stock parts.

    python -m benchmarks.search_overhead [--quick] [--trials 24] [--repeats 1] [--out FILE]

The same short trials (a tiny model, 12 steps, rungs at 4 and 12, validation at each) are run twice in one
session of Ray: as this project runs them, and as Ray's documentation nests them, a function trainable that
builds a TorchTrainer with one worker, suggested by OptunaSearch and stopped by ASHAScheduler. Both get the
same concurrency and train with the same code (orchestration.worker.run_worker). Figures:
seconds of each search and their ratio, and from a trial's suggestion to the end of its first training step
after each actor's first trial.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import figures

DURATION: Final = "5 min on two cores"
FIGURES: Final = (
    "search_overhead/seconds/*",
    "search_overhead/first_step_seconds",
    "search_overhead/times_shorter",
)

SPACE = """
recipe: recipe.yaml
parameters:
  image.mask_ratio: {uniform: [0.40, 0.90]}
  report.mask_ratio: {uniform: [0.15, 0.75]}
budget: {trials: %d}
fidelity: {steps: 12, first_rung: 4, reduction: 3}
searcher: {name: tpe, startup_trials: 8}
confirmation: {candidates: 0}
"""
RECIPE = """
data: {phantom: {train_pairs: 256, val_pairs: 64, test_pairs: 64, size: 64}}
image: {size: 64, width: 32, layers: 1, heads: 2, decoder_width: 16, decoder_layers: 1, decoder_heads: 2}
report: {max_tokens: 64, layers: 1, width: 32, heads: 2}
memory: {slots: 32, top_k: 8, heads: 2}
fusion: {layers: 1, heads: 2}
alignment: {width: 16, group_size: 8}
training: {steps: 12, batch_size: 16, threads_per_worker: 1, log_every_steps: 4, device: cpu}
validation: {gallery_size: 32, probe_train_pairs: 64, loss_pairs: 16, visual_gain_pairs: 32}
"""
RUNGS = (4, 12)


def ours(folder: Path, trials: int, name: str) -> dict[str, Any]:
    """Seconds of our search, and the delay of each trial's first step."""
    from orchestration import tuning
    from orchestration.search.journal import Journal, read_events

    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "space.yaml").write_text(SPACE % trials)
    request = tuning.Request(
        space=folder / "space.yaml",
        config=None,
        overrides=(),
        data=None,
        name=name,
        searches=str(folder / "searches"),
        address=None,
        cpus=None,
        dashboard=True,
        started=time.time(),
    )
    loaded = tuning.load(request)
    journal = Journal(request.folder)
    begun = time.perf_counter()
    with tuning.connected(request) as connection:
        tuning.Searching(request, loaded, journal, connection).run()
    seconds = time.perf_counter() - begun
    journal.close()
    reports = [event for event in read_events(request.folder)[1] if event["event"] == "report"]
    delays = [event["start_seconds"] for event in reports if event.get("start_seconds") is not None]
    # The first segments of the two actors wait for their processes.
    return {"seconds": seconds, "delays": sorted(delays)[:-2], "steps": sum(_new_steps(reports))}


def _new_steps(reports: list[dict[str, Any]]) -> list[int]:
    reached: dict[int, int] = {}
    found = []
    for report in reports:
        found.append(report["step"] - reached.get(report["trial"], 0))
        reached[report["trial"]] = report["step"]
    return found


def nested_loop(settings: dict[str, Any]) -> None:
    """One worker of a nested trainer: the same training, a report at every rung."""
    import ray.train

    from mpma.data.storage import open_storage
    from mpma.training.loop import Silent
    from mpma.training.metrics_log import read_lines
    from orchestration.worker import WorkerPlan, run_worker

    for rung in RUNGS:
        plan = WorkerPlan(**{**settings, "until": rung, "validate_untrained": False})
        run_worker(plan, 0, 1, 0, Silent(), lambda: False)
        lines = read_lines(open_storage(plan.runs).child(plan.name))
        scores = [line for line in lines if line["step"] == rung and "val/representation_score" in line]
        ray.train.report({"score": scores[-1]["val/representation_score"], "training_iteration": rung})


def nested_trial(config: dict[str, Any], folder: str, data: str) -> None:
    """A trial as Ray's documentation nests it."""
    import ray.train
    from ray import tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from mpma.config import load_config
    from orchestration.worker import WorkerPlan

    name = f"nested-{tune.get_context().get_trial_id()}"
    overrides = [f"{key}={value}" for key, value in config.items()]
    overrides += [f"data.path={data}", "pictures.enabled=false"]
    resolved = load_config(Path(folder) / "recipe.yaml", overrides)
    plan = WorkerPlan(
        config=resolved.config.model_dump(),
        data=data,
        runs=f"{folder}/runs",
        name=name,
        device="cpu",
        precision="fp32",
        threads=1,
    )
    TorchTrainer(
        nested_loop,
        train_loop_config=plan.__dict__,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(
            name=name, storage_path=f"{folder}/ray", callbacks=[TuneReportCallback()]
        ),
    ).fit()


def stock(folder: Path, trials: int) -> float:
    """Seconds of the same search with nested trainers and Ray Tune's stock searcher and scheduler."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from mpma.config import load_config
    from orchestration import cluster
    from orchestration.phantom_data import ensure_phantom

    data = os.path.abspath(ensure_phantom(load_config(folder / "recipe.yaml").config.data.phantom))
    begun = time.perf_counter()
    with cluster.connected(None, None, True, custom_resources={"trial_driver": 64.0}):
        trainable = tune.with_parameters(nested_trial, folder=str(folder), data=data)
        tune.Tuner(
            tune.with_resources(trainable, {"CPU": 0, "trial_driver": 1}),
            param_space={
                "image.mask_ratio": tune.uniform(0.40, 0.90),
                "report.mask_ratio": tune.uniform(0.15, 0.75),
            },
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=OptunaSearch(seed=0),
                scheduler=ASHAScheduler(max_t=RUNGS[-1], grace_period=RUNGS[0], reduction_factor=3),
                num_samples=trials,
                max_concurrent_trials=2,
            ),
            run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
        ).fit()
    return time.perf_counter() - begun


def main() -> None:
    """Run both in turn and tell each figure."""
    parser = figures.options(__doc__)
    parser.add_argument("--trials", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    from orchestration.search.engine import prepare_environment

    prepare_environment()
    trials = arguments.trials or (8 if arguments.quick else 24)
    settings = {"trials": trials}
    own: list[dict[str, Any]] = []
    others: list[float] = []
    with figures.report("search_overhead", arguments) as tell:
        for repeat in range(arguments.repeats):
            folder = Path(tempfile.mkdtemp(prefix="search-overhead-"))
            try:
                with _ToStandardError():
                    own.append(ours(folder, trials, f"ours-{repeat}"))
                    others.append(stock(folder, trials))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        seconds = [one["seconds"] for one in own]
        delays = [delay for one in own for delay in one["delays"]]
        stepped = settings | {"steps": own[0]["steps"]}
        tell(figures.of("search_overhead/seconds/ours", seconds, "s", stepped))
        tell(figures.of("search_overhead/seconds/nested_stock", others, "s", settings))
        tell(figures.of("search_overhead/first_step_seconds", delays, "s", settings))
        tell(figures.ratio("search_overhead/times_shorter", others, seconds, settings))


class _ToStandardError:
    """What the searches print goes to standard error, so that standard output holds the figures."""

    def __enter__(self) -> None:
        sys.stdout.flush()
        self._saved = os.dup(1)
        os.dup2(2, 1)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self._saved, 1)
        os.close(self._saved)


if __name__ == "__main__":
    main()
