"""What the contract suite runs on: a tiny synthetic dataset, tiny models, and one entry per task.

A new task adds a `TaskSample` to `SAMPLES`: settings that make it quick, its exact chance, and where its
perfect score is not 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mpma.config import ExperimentConfig
from mpma.data.dataset import Dataset
from mpma.data.dataset_writing import write_dataset
from mpma.data.ingest_plan import IngestOptions
from mpma.data.pair_rows import make_row
from mpma.data.sources.contract import Rejection
from mpma.data.sources.phantom import PhantomSource
from mpma.data.tokenizer import ReportTokenizer
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.labelled import LabelledData
from mpma.downstream.labeller import labeller
from mpma.loading import LoadedModel
from mpma.metrics.retrieval import DIRECTIONS, chance_recall
from mpma.model.pretraining import build_model

Row = dict[str, Any]

PIXELS = 64


def phantom_rows(
    train: int, val: int, test: int, *, size: int = PIXELS, seed: int = 0
) -> dict[str, list[Row]]:
    """Rows of a synthetic dataset by split, to be changed before they are written."""
    source = PhantomSource(train, val, test, size, seed)
    options = IngestOptions(short_side_pixels=None)
    rows: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for item in source.items():
        made = make_row(item, source, options, source.extra_schema())
        assert not isinstance(made, Rejection)
        rows[str(item.split)].append(dict(made[0]))
    return rows


def written(path: Path, rows: Mapping[str, Iterable[Row]]) -> LabelledData:
    """The rows as a dataset directory, opened for evaluation."""
    extra = PhantomSource(1, 0, 0, PIXELS, 0).extra_schema()
    write_dataset(path, rows, extra=list(extra), vocabulary_size=400)
    return LabelledData(Dataset.open(path))


def tiny_config(**changes: Mapping[str, Any]) -> ExperimentConfig:
    """A model of a few thousand weights for the tiny dataset's images."""
    parts: dict[str, dict[str, Any]] = {
        "image": {
            "backbone": "vit_tiny_patch16_224",
            "size": PIXELS,
            "patch_size": 16,
            "width": 32,
            "layers": 1,
            "heads": 2,
            "target_scale": 1,
            "decoder_width": 32,
            "decoder_layers": 1,
            "decoder_heads": 2,
        },
        "report": {"max_tokens": 48, "layers": 1, "width": 24, "heads": 2},
        "memory": {"slots": 16, "top_k": 4, "heads": 2},
        "fusion": {"layers": 1, "heads": 2},
        "alignment": {"width": 16, "group_size": 4},
        "data": {"decode_threads": 1},
    }
    for name, values in changes.items():
        parts[name] = {**parts.get(name, {}), **values}
    return ExperimentConfig.model_validate(parts)


def tiny_model(
    tokenizer: ReportTokenizer, *, seed: int = 0, step: int | None = None, **changes: Mapping[str, Any]
) -> LoadedModel:
    """An untrained model; `step` above 0 passes it off as trained."""
    config = tiny_config(**changes)
    facts = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "pad_id": tokenizer.pad_id,
        "grey_mean": 0.45,
        "grey_std": 0.25,
        "target_scale": 1,
    }
    model = build_model(config, **facts, seed=seed)
    return LoadedModel(f"seed {seed}", model, config, tokenizer, facts, f"untrained, seed {seed}", step=step)


@dataclass(frozen=True)
class TaskSample:
    """How the contract suite runs one task."""

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the evaluation's configuration that make it quick."""
    chance: Callable[[Any], Mapping[str, float]] = lambda prepared: {}
    """Of what was prepared: exact score of the constant predictor, by figure."""
    ceiling: Callable[[Any], Mapping[str, float]] = lambda prepared: {}
    """Perfect score of the figures whose perfect score is not 1."""

    @property
    def config(self) -> EvaluationConfig:
        return EvaluationConfig.model_validate({"seeds": 2, "batch_size": 32, **self.settings})


def chance_of_labels(prepared: Any) -> dict[str, float]:
    """AUROC a half; average precision the prevalence p; F1 of all positive 2p / (1 + p)."""
    share = prepared.judged_truth.mean(axis=0)
    return {
        "auroc": 0.5,
        "auprc": float(share.mean()),
        "f1": float((2 * share / (1 + share)).mean()),
        **{f"auroc/{name}": 0.5 for name in prepared.judged_names},
    }


def precision_relevance(prepared: Any) -> dict[str, np.ndarray]:
    """Relevant items bool [N, N] of every pair of labelled pairs, written out one by one."""
    sets = [frozenset(np.flatnonzero(row)) for row in prepared.labels]
    return {
        "precision_at": np.array([[bool(a & b) or a == b for b in sets] for a in sets]),
        "exact_precision_at": np.array([[a == b for b in sets] for a in sets]),
    }


def chance_of_retrieval(prepared: Any) -> dict[str, float]:
    recalls = {k: chance_recall(prepared.classes, k) for k in (1, 5, 10)}
    found = {"mean_recall": float(np.mean(list(recalls.values())))}
    for direction in DIRECTIONS:
        found |= {f"{direction}/recall_at_{k}": value for k, value in recalls.items()}
        for name, relevant in precision_relevance(prepared).items():
            found |= {f"{direction}/{name}_{k}": float(relevant.mean()) for k in (5, 10)}
    return found


def ceiling_of_retrieval(prepared: Any) -> dict[str, float]:
    """A query with r relevant items gets at most min(k, r) / k."""
    relevance = precision_relevance(prepared)
    return {
        f"{direction}/{name}_{k}": float(np.minimum(relevant.sum(axis=1) / k, 1.0).mean())
        for direction in DIRECTIONS
        for name, relevant in relevance.items()
        for k in (5, 10)
    }


def chance_of_reports(prepared: Any) -> dict[str, float]:
    """F1 of one report for everybody: c findings, m patients, h of all t true findings among them."""
    said = labeller("phantom").positives([prepared.constant])[0]
    hits = prepared.findings[:, said].sum()
    return {"clinical_f1": float(2 * hits / (len(prepared.rows) * said.sum() + prepared.findings.sum()))}


def chance_of_masks(prepared: Any) -> dict[str, float]:
    """Dice and intersection over union of the usual mask, written out."""
    usual = prepared.usual[1::2, 1::2]
    true = np.stack([mask.mask() for mask in prepared.true])
    both, total = (usual & true).sum(axis=(1, 2)), usual.sum() + true.sum(axis=(1, 2))
    return {"dice": float((2 * both / total).mean()), "iou": float((both / (total - both)).mean())}


def chance_of_questions(prepared: Any) -> dict[str, float]:
    """Share of the questions that the most frequent training answer to the same words gets right."""
    right = []
    for text, accepted in zip(prepared.judged.texts, prepared.judged.accepted, strict=True):
        answers = [
            a[0] for t, a in zip(prepared.train.texts, prepared.train.accepted, strict=True) if t == text
        ]
        assert answers, "every question of the sample is asked in training"
        right.append(min(set(answers), key=lambda answer: (-answers.count(answer), answer)) in accepted)
    return {"accuracy": float(np.mean(right))}


QUICK_FIT = {"steps": 3, "batch_size": 8}

SAMPLES: tuple[TaskSample, ...] = (
    TaskSample(
        "classification",
        {
            "classification": {
                "label_fractions": [0.25, 1.0],
                "fine_tune_fractions": [0.5],
                "neighbours": 5,
                "fine_tune": QUICK_FIT,
            }
        },
        chance=chance_of_labels,
    ),
    TaskSample("zero_shot", chance=chance_of_labels),
    TaskSample(
        "report_generation",
        {"report_generation": {"test_patients": 12, "max_tokens": 24, "fit": QUICK_FIT}},
        chance=chance_of_reports,
    ),
    TaskSample(
        "segmentation", {"segmentation": {"decoder_width": 16, "fit": QUICK_FIT}}, chance=chance_of_masks
    ),
    TaskSample("vqa", {"vqa": {"fit": QUICK_FIT}}, chance=chance_of_questions),
    TaskSample("retrieval", chance=chance_of_retrieval, ceiling=ceiling_of_retrieval),
)


def all_rows(rows: Mapping[str, Iterable[Row]]) -> Iterable[Row]:
    """Rows of all splits."""
    return chain.from_iterable(rows.values())
