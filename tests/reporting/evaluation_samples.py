"""Evaluations with plausible figures, computed from made-up scores: what the page is tested on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Example, Job, Related
from mpma.downstream.summary import Failure, summarise_task
from mpma.metrics.outcomes import Figure, Outcomes

PATIENTS = 240
RESAMPLES = 100
MODELS = ("pretrained", "untrained", "imagenet")
LABELS = ("effusion", "opacity", "cardiomegaly", "pneumothorax")
SKILL = {"pretrained": 1.6, "untrained": 0.7, "imagenet": 1.1}
"""How far apart the scores of the two classes lie, in deviations, with all labels."""
TYPES = ("plane", "organ", "abnormality")
SEEDS = (0, 1)
REPORT = "Heart size is normal. There is a small effusion on the left."

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Sample:
    """A summary, and the outcomes that it was made of."""

    summary: dict[str, Any]
    outcomes: Mapping[tuple[str, str], Outcomes]

    def of(self, model: str, key: str) -> Outcomes | None:
        """Stored outcomes."""
        return self.outcomes.get((model, key))


def sample(
    *,
    skipped: Sequence[str] = (),
    failed: Sequence[str] = (),
    no_better: Sequence[str] = (),
    label: str = LABELS[0],
    **entries: Any,
) -> Sample:
    """All six tasks. `no_better`: tasks in which the untrained model does as well; `label`: of the first."""
    outcomes: dict[tuple[str, str], Outcomes] = {}
    sections: dict[str, Any] = {}
    for task, (jobs, made) in _tasks().items():
        models = ("untrained",) * 2 + MODELS[2:] if task in no_better else MODELS
        found: dict[tuple[str, str], Outcomes] = {}
        failures = []
        for model, like in zip(MODELS, models, strict=True):
            for job in jobs:
                if task in failed or task in skipped:
                    reason = "the loss is not finite" if task in failed else "no pair of test has a mask"
                    failures.append(Failure(model, job.key, reason, task in failed))
                elif (task, model, job.seed) == ("vqa", "imagenet", 0):
                    failures.append(Failure(model, job.key, "no answer could be learned", True))
                else:
                    found[model, job.key] = made(like, job, label)
        chance = made("chance", jobs[0], label) if found else None
        told = found or {}
        sections[task] = summarise_task(
            MODELS, jobs, told, chance, failures, resamples=RESAMPLES, breakdown_least_patients=20
        )
        outcomes |= found
    return Sample(_frame() | sections | entries, outcomes)


@functools.cache
def whole() -> Sample:
    """Segmentation skipped and report generation failed; the others are there."""
    return sample(skipped=("segmentation",), failed=("report_generation",), no_better=("zero_shot",))


def examples() -> dict[str, list[Example]]:
    """One or two of each kind of picture."""
    dice = np.random.default_rng(5)
    side = 64
    slope = np.linspace(30, 200, side)[:, None] + np.linspace(0, 40, side)[None]
    image = (slope + dice.normal(0, 6, (side, side))).clip(0, 255).astype(np.uint8)
    true, predicted = (np.zeros((side, side), np.float32) for _ in range(2))
    true[12:40, 10:28] = 1.0
    predicted[15:44, 12:30] = 1.0
    look = np.zeros((14, 14), np.float32)
    look[9:12, 3:6] = (0.02, 0.04, 0.02)
    words = {"effusion": look, "left": look[:, ::-1].copy()}
    found = [Related(0.9 - 0.1 * place, place == 1, text=f"{REPORT} Finding {place}.") for place in range(5)]
    pictures = [Related(0.8 - 0.1 * place, place == 0, image=image[::-1]) for place in range(5)]
    return {
        "retrieval": [
            Example("image to report", image, {"report": REPORT}, words, found),
            Example("report to image", None, {"report": REPORT}, {}, pictures),
        ],
        "segmentation": [
            Example("segmentation", image, {}, {"true mask": true, "predicted mask": predicted})
        ],
        "report_generation": [
            Example("report generation", image, {"report": REPORT, "generated": "Heart size is large."})
        ],
        "vqa": [
            Example("question", image, {"question": "Which side?", "answer": "left", "given": "Left"}),
            Example("question", image, {"question": "Which plane?", "answer": "PA", "given": "lateral"}),
        ],
        "classification": [
            Example("linear probe", image, {"labels": "effusion", "given": "effusion, opacity"})
        ],
    }


def _frame() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "run": "demo",
        "name": "evaluation",
        "written": "2026-11-25T07:00:00Z",
        "complete": True,
        "synthetic": True,
        "seconds": 812.4,
        "models": [
            {
                "name": "pretrained",
                "origin": "run demo, step 680",
                "weights": "0123456789abcdef",
                "step": 680,
            },
            {"name": "untrained", "origin": "as run demo, seed 0", "weights": "fedcba9876543210", "step": 0},
            {"name": "imagenet", "origin": "timm vit_tiny", "weights": "00ff00ff00ff00ff", "step": None},
        ],
        "data": {
            "fingerprint": "aa11bb22",
            "split": "test",
            "pairs": {"train": 5120, "val": 256, "test": 300},
            "patients": {"train": 5120, "val": 256, "test": PATIENTS},
            "labels": list(LABELS),
            "sources": {"phantom": 5676},
            "licenses": {"phantom": "CC0"},
        },
        "overlap": {
            "checked": True,
            "allowed": False,
            "patients": 0,
            "images": 0,
            "fitting_patients": 0,
            "line": "no test patient was pre-trained on (by id or image)",
        },
        "settings": EvaluationConfig(resamples=RESAMPLES).model_dump(),
        "provenance": {
            "mpma": "0.1.0",
            "git_revision": "0123abc",
            "python": "3.11.9",
            "packages": {"torch": "2.8.0", "ray": "2.60.0"},
            "hardware": {"cpu": "a processor", "cores": 2, "gpus": []},
        },
    }


# --- outcomes ----------------------------------------------------------------------------------------

_PATIENT = np.concatenate([np.arange(PATIENTS), np.arange(60)])
_VIEW = ["PA" if patient % 3 else "AP" for patient in _PATIENT]


def _generator(*parts: Any) -> np.random.Generator:
    return np.random.default_rng([sum(map(ord, str(part))) for part in parts])


def _made(task: str, arrays: Arrays, figures: dict[str, Figure], first: int, **entries: Any) -> Outcomes:
    return Outcomes(
        patient=_PATIENT,
        arrays=arrays,
        figures=figures,
        headline=tuple(figures)[:first],
        identity=task,
        groups={"view": _VIEW},
        **entries,
    )


def _labelled(model: str, job: Job, label: str) -> Outcomes:
    labels = (_generator("truth").random((len(_PATIENT), len(LABELS))) < 0.3).astype(np.float64)
    dice = _generator(model, job.method, job.fraction, job.seed)
    skill = 0.0 if model == "chance" else SKILL[model] * (1 + 0.25 * np.log10(job.fraction))
    noise = np.zeros(labels.shape) if model == "chance" else dice.normal(size=labels.shape)
    scores = skill * labels + noise
    arrays: Arrays = {"scores": scores, "labels": labels, "decisions": scores > 0.5 * skill - 1e-9}
    scored = {"scores": "scores", "labels": "labels"}
    figures = {
        "auroc": Figure("macro_auroc", scored),
        "auprc": Figure("macro_auprc", scored),
        "f1": Figure("macro_f1", {"decisions": "decisions", "labels": "labels"}),
    }
    names = [label, *LABELS[1:]]
    for column, name in enumerate(names):
        figures[f"auroc/{name}"] = Figure("macro_auroc", scored, {"columns": [column]})
    problems = {"labels without a positive in the test split, left out: hernia": 1}
    return _made(job.task, arrays, figures, 3, names={"scores": names, "labels": names}, problems=problems)


def _measured(names: Mapping[str, tuple[float, float]], first: int, binary: bool) -> Callable[..., Outcomes]:
    """Means of values drawn around (chance, level of the pre-trained model)."""

    def made(model: str, job: Job, label: str) -> Outcomes:
        arrays: Arrays = {}
        for name, (chance, level) in names.items():
            share = 0.0 if model == "chance" else (SKILL[model] / SKILL["pretrained"]) ** 2
            height = chance + (level - chance) * share
            drawn = _generator(model, job.seed, name).random(len(_PATIENT))
            value = (drawn < height).astype(float) if binary else (height + 0.3 * (drawn - 0.5)).clip(0, 1)
            arrays[name] = np.full(len(_PATIENT), chance) if model == "chance" else value
        figures = {name: Figure("mean", {"value": name}) for name in arrays}
        return _made(job.task, arrays, figures, first)

    return made


def _retrieval() -> dict[str, tuple[float, float]]:
    found = {"mean_recall": (0.02, 0.35), "rank_score": (0.1, 0.7)}
    for direction in ("image_to_report", "report_to_image"):
        for k in (1, 5, 10):
            found[f"{direction}/recall_at_{k}"] = (k / 240, 0.15 * k**0.6)
        found[f"{direction}/precision_at_5"] = (0.2, 0.5)
    return found


def _answers() -> dict[str, tuple[float, float]]:
    found = {"accuracy": (0.3, 0.62), "open_accuracy": (0.2, 0.5), "closed_accuracy": (0.5, 0.7)}
    return found | {f"accuracy/{kind}": (0.3, 0.5 + 0.07 * at) for at, kind in enumerate(TYPES)}


_GENERATED = {"bleu_4": (0.05, 0.21), "rouge_l": (0.2, 0.44), "clinical_f1": (0.1, 0.5), "bleu_1": (0.3, 0.5)}


def _tasks() -> dict[str, tuple[list[Job], Callable[..., Outcomes]]]:
    def jobs(task: str) -> list[Job]:
        return [Job(task, seed=seed) for seed in SEEDS]

    probes = [
        Job("classification", method, fraction, seed)
        for method in ("linear_probe", "fine_tune")
        for fraction in (0.01, 0.1, 1.0)
        for seed in SEEDS
    ]
    return {
        "classification": (probes, _labelled),
        "segmentation": (
            jobs("segmentation"),
            _measured({"dice": (0.2, 0.82), "iou": (0.15, 0.7)}, 2, False),
        ),
        "retrieval": ([Job("retrieval")], _measured(_retrieval(), 2, True)),
        "zero_shot": ([Job("zero_shot")], _labelled),
        "report_generation": (jobs("report_generation"), _measured(_GENERATED, 3, False)),
        "vqa": (jobs("vqa"), _measured(_answers(), 3, True)),
    }
