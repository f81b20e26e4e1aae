"""How tasks, models, figures and their variants are called on the page of an evaluation.

Decisions: names of labels, columns and baselines are the user's and stay as they are; only names that the
project itself gave are put into words. Words for charts are escaped by the charts, words for text by
`html`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mpma.metrics.retrieval import DIRECTIONS

TASK_NAMES: Final[Mapping[str, str]] = {
    "classification": "Classification",
    "segmentation": "Segmentation",
    "retrieval": "Retrieval",
    "zero_shot": "Zero-shot classification",
    "report_generation": "Report generation",
    "vqa": "Visual question answering",
}
"""What each task is called, in the order of the page."""

TASK_TOLD: Final[Mapping[str, str]] = {
    "classification": "Findings of an image, learned from a share of the labelled patients.",
    "segmentation": "A light decoder on the image encoder’s features draws the mask.",
    "retrieval": "Which report belongs to this image, and which image to this report. Any pair with the same "
    "normalised report is a hit.",
    "zero_shot": "Findings named by prompts in words; no label was used to train anything.",
    "report_generation": "The report branch, trained further as a decoder, writes the report of an image.",
    "vqa": "Questions about an image, answered from the fused representation; answers are classes.",
}
"""What is asked of the model."""

METHOD_NAMES: Final[Mapping[str, str]] = {
    "linear_probe": "linear probe",
    "knn": "nearest neighbours",
    "fine_tune": "fine-tuned",
}

_MEASURES: Final[Mapping[str, str]] = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "iou": "IoU",
    "dice": "Dice",
    "rouge_l": "ROUGE-L",
    "clinical_f1": "clinical F1",
    "clinical_f1_macro": "clinical F1, mean over findings",
    "open_accuracy": "accuracy, open questions",
    "closed_accuracy": "accuracy, closed questions",
    "label_f1": "F1 for the data’s labels",
}
_AT: Final = re.compile(r"(recall|precision)_at_(\d+)")
_BLEU: Final = re.compile(r"bleu_(\d)")
_LETTER: Final[Mapping[str, str]] = {"recall": "R", "precision": "P"}
_MODELS: Final[Mapping[str, str]] = {"pretrained": "pre-trained"}


def task_name(task: str) -> str:
    """A task in words."""
    return TASK_NAMES.get(task, task.replace("_", " "))


def model_name(model: str) -> str:
    """A model as tables call it; names of baselines are the user's."""
    return _MODELS.get(model, model)


def figure_name(name: str) -> str:
    """A figure without its variant: `image_to_report/recall_at_1` -> `R@1, image to report`."""
    first, _, rest = name.partition("/")
    if first in DIRECTIONS and rest:
        return f"{_measure(rest)}, {first.replace('_', ' ')}"
    return f"{_measure(first)}, {rest}" if rest else _measure(first)


def variant_name(variant: str, *, short: bool = False) -> str:
    """A method and its share of the labels: `linear_probe/10%` -> `linear probe, 10 % of labels`."""
    method, _, share = variant.partition("/")
    words = METHOD_NAMES.get(method, method.replace("_", " "))
    if not share:
        return words
    part = share.replace("%", " %" if short else " % of labels")
    return f"{words}, {part if short or share != '100%' else 'all labels'}"


def full_name(variant: str, name: str) -> str:
    """A figure with its variant, where there is one."""
    return f"{variant_name(variant)}: {figure_name(name)}" if variant else figure_name(name)


def _measure(word: str) -> str:
    if word in _MEASURES:
        return _MEASURES[word]
    if found := _AT.fullmatch(word):
        return f"{_LETTER[found[1]]}@{found[2]}"
    if found := _BLEU.fullmatch(word):
        return f"BLEU-{found[1]}"
    return word.replace("_", " ")


def listed(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
