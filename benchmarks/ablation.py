"""Which parts of the method earn their cost: four arms, three seeds, judged downstream.

    python -m benchmarks.ablation [--work runs] [--steps 240] [--train-only]

Each arm adds one part to the one before it: reconstruction only, + global alignment, + local alignment,
+ memory. Every run is a run directory that `orchestration.evaluate` judges, so the command may be
broken off and taken up again. The figures go to benchmarks/results/ablation.json and, as a table, into
docs/ablation.md.

Decisions: arms are compared at equal pairs seen, on the same test patients, as means over the training seeds,
under the same resamples; the spread between seeds stands beside it, since the intervals are over patients
alone. Settings are those of the masking search's winner, and were chosen before an arm was run.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.recording import KeptStream
from mpma.config import load_config
from mpma.data.dataset import Dataset
from mpma.data.rows import COLLATED_COLUMNS
from mpma.data.storage import open_storage
from mpma.downstream.config import TASKS
from mpma.downstream.summary import paired_differences
from mpma.metrics.outcomes import Outcomes
from mpma.training.loop import Silent, Task, TrainingLoop
from mpma.training.run_directory import RunDirectory
from orchestration.assembly import Parts
from orchestration.evaluation.store import ResultStore
from orchestration.phantom_data import ensure_phantom

FIGURES: Final = ()  # it writes a table of its own
LONG: Final = True
RESULT: Final = Path("benchmarks/results/ablation.json")
PAGE: Final = Path("docs/ablation.md")
RECIPE: Final = Path("recipes/search.yaml")
SETTINGS: Final = Path("benchmarks/ablation.yaml")
BEGIN, END = "<!-- figures: python -m benchmarks.ablation -->", "<!-- end of figures -->"
SEEDS: Final = (0, 1, 2)
RESAMPLES: Final = 500

WITHOUT_MEMORY: Final = ("memory.kind=none",)
ARMS: Final[Mapping[str, tuple[str, ...]]] = {
    "reconstruction": (*WITHOUT_MEMORY, "loss_weights.global_alignment=0", "loss_weights.local_alignment=0"),
    "+ global": (*WITHOUT_MEMORY, "loss_weights.local_alignment=0"),
    "+ local": WITHOUT_MEMORY,
    "+ memory": (),
}
"""What each arm changes in recipes/search.yaml; the last one is the whole method."""

COMMON: Final = (
    "image.mask_ratio=0.5",
    "report.mask_ratio=0.75",
    # The runs are judged downstream; their own validation is kept short.
    "validation.gallery_size=64",
    "validation.probe_train_pairs=100",
    "validation.visual_gain_pairs=32",
)

SHOWN: Final = {
    "classification": ("linear_probe/1%/auroc", "linear_probe/10%/auroc", "linear_probe/100%/auroc"),
    "retrieval": ("mean_recall",),
    "zero_shot": ("auroc",),
    "segmentation": ("dice",),
    "vqa": ("accuracy", "open_accuracy"),
}
"""Figures of the table."""


def run_name(arm: str, seed: int, steps: int) -> str:
    """Folder of one run."""
    return f"ablation-{arm.replace('+ ', 'plus-')}-{seed}-{steps}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", default="runs", help="folder of the runs")
    parser.add_argument("--steps", type=int, default=240, help="training steps of every run")
    parser.add_argument("--train-only", action="store_true", help="train the runs and end")
    parser.add_argument("--beside", type=int, default=2, help="trainings at a time, one thread each")
    options = parser.parse_args()
    runs = [(arm, seed) for seed in SEEDS for arm in ARMS]
    waiting = [
        (arm, seed)
        for arm, seed in runs
        if RunDirectory.at(options.work, run_name(arm, seed, options.steps)).finished_steps() is None
    ]
    # A process for each run, since the threads of a training are a setting of its process.
    with ProcessPoolExecutor(
        options.beside, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for done in [pool.submit(train, *run, options.work, options.steps) for run in waiting]:
            done.result()
    if options.train_only:
        return
    # The first makes the judged patients, the others find them.
    judge(*runs[0], options.work, options.steps)
    with ThreadPoolExecutor(options.beside) as threads:
        for judged in [threads.submit(judge, *run, options.work, options.steps) for run in runs[1:]]:
            judged.result()
    result = collected(options.work, options.steps)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    write_page(result)
    print(table(result))


def train(arm: str, seed: int, work: str, steps: int) -> None:
    """One run to its end, in this process and on one thread, or nothing where it is finished."""
    import torch

    torch.set_num_threads(1)
    begun = time.process_time()
    keys = [*COMMON, *ARMS[arm], f"training.seed={seed}", f"training.steps={steps}"]
    keys += [f"training.checkpoint_every_steps={steps}"]
    config = load_config(RECIPE, keys).config
    run = RunDirectory.at(work, run_name(arm, seed, steps))
    if run.finished_steps() == steps:
        return
    dataset = Dataset.open(ensure_phantom(config.data.phantom))
    run.begin_or_continue(config, dataset.fingerprint)
    parts = Parts(config, dataset)
    run.keep_tokenizer(parts.tokenizer.to_bytes())
    rows = dataset.read_rows("train", np.arange(dataset.rows("train")), COLLATED_COLUMNS).combine_chunks()
    task = Task(
        config=config,
        run=run,
        data_fingerprint=dataset.fingerprint,
        train_pairs=dataset.rows("train"),
        device=torch.device("cpu"),
        rank=0,
        world=1,
        precision="fp32",
        build_model=parts.build_model,
        build_validator=lambda: parts.build_validator(torch.device("cpu"), 0, 1, "fp32"),
        open_stream=lambda step: KeptStream(parts, rows, step),
    )
    TrainingLoop(task, Silent()).run()
    print(f"trained {run.name}: {time.process_time() - begun:.0f} processor s", flush=True)


def judge(arm: str, seed: int, work: str, steps: int) -> None:
    """Evaluate one run; the untrained model only beside the whole method, since it is the same for all."""
    untrained = arm == list(ARMS)[-1]
    _run(
        "orchestration.evaluate",
        *("--run", f"{work}/{run_name(arm, seed, steps)}", "--config", str(SETTINGS), "--no-dashboard"),
        *("--set", f"untrained={str(untrained).lower()}"),
    )


def collected(work: str, steps: int) -> dict[str, Any]:
    """Figures of every arm with intervals, and differences between neighbours."""
    arms = list(ARMS)
    outcomes: dict[tuple[str, str], dict[str, list[Outcomes]]] = {}
    summaries: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        for seed in SEEDS:
            place = f"{work}/{run_name(arm, seed, steps)}"
            summary = json.loads((Path(place) / "evaluation.json").read_text())
            summaries.setdefault(arm, []).append(summary)
            store = ResultStore(open_storage(place).child("evaluations").child("evaluation"))
            for task in TASKS:
                section = summary.get(task)
                if section is None:
                    continue
                for model in ("pretrained", "untrained"):
                    owner = arm if model == "pretrained" else "untrained"
                    for variant, keys in section["jobs"].items():
                        for key in keys:
                            name = section["files"].get(model, {}).get(key)
                            found = None if name is None else store.outcomes(name)
                            if found is not None:
                                found = _shown_alone(found, task)
                                outcomes.setdefault((owner, task), {}).setdefault(variant, []).append(found)
    rows: dict[str, dict[str, Any]] = {}
    for place_, arm in enumerate(["untrained", *arms]):
        before = None if arm == "untrained" else ["untrained", *arms][place_ - 1]
        rows[arm] = {}
        for task, figures in SHOWN.items():
            ours = outcomes.get((arm, task))
            if ours is None:
                continue
            step = {} if before is None else paired_differences(ours, outcomes[before, task], RESAMPLES)
            for figure in figures:
                seeds = (
                    []
                    if arm == "untrained"
                    else [one[task]["pretrained"][figure]["value"] for one in summaries[arm]]
                )
                rows[arm][f"{task}/{figure}"] = {
                    "value": _mean(ours, figure),
                    "seed_deviation": statistics.stdev(seeds) if len(seeds) > 1 else None,
                    "over_the_one_before": step[figure]["difference"] if step else None,
                }
    last = summaries[arms[-1]][0]
    return {
        "steps": steps,
        "seeds": list(SEEDS),
        "test_patients": last["data"]["patients"][last["data"]["split"]],
        "labelled_pairs": last["data"]["pairs"]["train"],
        "chance": {
            f"{task}/{figure}": last[task]["chance"].get(figure)
            for task, figures in SHOWN.items()
            for figure in figures
        },
        "arms": rows,
    }


def _shown_alone(found: Outcomes, task: str) -> Outcomes:
    """Outcomes with the shown figures alone: resamples of the others would take minutes."""
    shown = {figure.rsplit("/", 1)[-1] for figure in SHOWN.get(task, ())}
    return replace(found, figures={name: one for name, one in found.figures.items() if name in shown})


def _mean(outcomes: Mapping[str, list[Outcomes]], figure: str) -> float:
    """A figure's mean over training and subset seeds."""
    variant, _, name = figure.rpartition("/")
    return statistics.fmean(one.values()[name] for one in outcomes[variant])


def table(result: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    arms = list(result["arms"])
    lines = ["| figure | chance | " + " | ".join(arms) + " |", "|---|---|" + "---|" * len(arms)]
    for task, figures in SHOWN.items():
        for figure in figures:
            name = f"{task}/{figure}"
            chance = result["chance"].get(name)
            cells = [_cell(result["arms"][arm].get(name)) for arm in arms]
            shown = "" if chance is None else f"{chance:.3f}"
            lines.append(f"| {task.replace('_', ' ')}, {figure} | {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_page(result: Mapping[str, Any]) -> None:
    """Put the table between the marks of docs/ablation.md."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN, 1)
    _, foot = rest.split(END, 1)
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(result)}\n\n{END}{foot}")


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    parts = [f"{entry['value']:.3f}"]
    if entry["seed_deviation"] is not None:
        parts[0] += f" ± {entry['seed_deviation']:.3f}"
    step = entry["over_the_one_before"]
    if step is not None:
        mark = "**" if step["low"] > 0 or step["high"] < 0 else ""
        parts.append(f"{mark}{step['value']:+.3f}{mark} [{step['low']:+.3f}, {step['high']:+.3f}]")
    return "<br>".join(parts)


def _run(module: str, *arguments: str) -> None:
    begun = time.time()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL)
    print(f"{module} {arguments[3]}: {time.time() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
