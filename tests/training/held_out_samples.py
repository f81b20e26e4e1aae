"""A small dataset in memory and a small model for the tests of validation; imported by workers too."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mpma.config import ExperimentConfig
from mpma.data.pairs import PAIR_SCHEMA, model_text
from mpma.data.tokenizer import ReportTokenizer, train_tokenizer
from mpma.model.pretraining import PretrainingModel, build_model

SIDES = ("left", "right", "upper", "lower", "hilar")
SIGNS = ("effusion", "nodule", "fracture", "cardiomegaly", "atelectasis", "pneumothorax")


@dataclass
class MemoryShard:
    row_group_rows: list[int]


@dataclass
class MemoryDataset:
    """Rows of splits in memory; remembers what was read of it."""

    rows: dict[str, list[dict[str, Any]]]
    row_group: int = 8
    label_names: list[str] = field(default_factory=lambda: ["effusion", "nodule"])
    reads: list[tuple[str, tuple[int, ...], tuple[str, ...]]] = field(default_factory=list)

    def shards(self, split: str) -> list[MemoryShard]:
        count = len(self.rows.get(split, []))
        whole, rest = divmod(count, self.row_group)
        return (
            [MemoryShard([self.row_group] * whole), MemoryShard([rest])]
            if rest
            else [MemoryShard([self.row_group] * whole)]
        )

    def read_rows(
        self, split: str, row_indices: Sequence[int] | np.ndarray, columns: Sequence[str]
    ) -> pa.Table:
        wanted = tuple(int(row) for row in row_indices)
        self.reads.append((split, wanted, tuple(columns)))
        schema = pa.schema([PAIR_SCHEMA.field(name) for name in columns])
        picked = [{name: self.rows[split][row][name] for name in columns} for row in wanted]
        return pa.Table.from_pylist(picked, schema=schema)


def made_pair(
    number: int, *, patient: str | None = None, report: str | None = None, labels: Any = (), size: int = 40
) -> dict[str, Any]:
    """A pair whose picture is smooth noise, a function of its number."""
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (5, 5), dtype=np.uint8))
    content = io.BytesIO()
    coarse.resize((size, size), Image.Resampling.BICUBIC).save(content, "PNG")
    words = [SIDES[number % 5], SIGNS[number // 5 % 6], f"grade {number}"]
    return {
        "pair_id": f"pair{number}",
        "patient_id": patient or f"patient{number}",
        "study_id": f"study{number}",
        "image": content.getvalue(),
        "width": size,
        "height": size,
        "view": "PA",
        "report": report or " ".join(["there is a", *words, "and nothing else to report."][: 3 + number % 4]),
        "findings": "",
        "impression": "",
        "labels": None if labels is None else list(labels),
        "source": "made",
        "license": "",
    }


def made_dataset(train: int = 96, val: int = 60, labelled: bool = True) -> MemoryDataset:
    """Pairs of single patients; the labels follow the picture's mean grey, so a probe finds something."""

    def pair(number: int) -> dict[str, Any]:
        row = made_pair(number, labels=None)
        if labelled and number % 7:
            grey = np.asarray(Image.open(io.BytesIO(row["image"]))).mean()
            row["labels"] = [name for name, bar in (("effusion", 128), ("nodule", 135)) if grey > bar]
        return row

    numbers = iter(range(train + val))
    return MemoryDataset(
        {
            "train": [pair(next(numbers)) for _ in range(train)],
            "val": [pair(next(numbers)) for _ in range(val)],
        }
    )


def made_tokenizer(dataset: MemoryDataset) -> ReportTokenizer:
    rows = [row for split in dataset.rows.values() for row in split]
    return ReportTokenizer(
        train_tokenizer(
            (row["patient_id"], model_text(row["report"], row["findings"], row["impression"])) for row in rows
        )
    )


def made_config(**validation: Any) -> ExperimentConfig:
    """A small experiment; the keywords are keys of `validation`."""
    return ExperimentConfig.model_validate(
        {
            "image": {
                "backbone": "vit_tiny_patch16_224",
                "size": 32,
                "patch_size": 8,
                "width": 32,
                "layers": 1,
                "heads": 2,
                "decoder_width": 32,
                "decoder_layers": 1,
                "decoder_heads": 2,
            },
            "report": {"max_tokens": 16, "layers": 1, "width": 24, "heads": 2},
            "memory": {"slots": 16, "top_k": 4, "heads": 2},
            "fusion": {"layers": 1, "heads": 2},
            "alignment": {"width": 16, "group_size": 4},
            "data": {"decode_threads": 1},
            "validation": {"gallery_size": 50, "loss_pairs": 10, "batch_size": 8, **validation},
        }
    )


def made_model(config: ExperimentConfig, tokenizer: ReportTokenizer, seed: int = 0) -> PretrainingModel:
    return build_model(
        config,
        vocabulary_size=tokenizer.vocabulary_size,
        pad_id=tokenizer.pad_id,
        grey_mean=0.5,
        grey_std=0.25,
        target_scale=1,
        seed=seed,
    )
