"""Which metrics may rank trials that differ in a key, and which keys may differ between trials at all.

Minimising a loss while its weight, its masking ratio or its temperature is searched finds the easier
task, not the better model. So every key of the experiment tree stands in one of two lists: `NOT_SEARCHED`
with the reason, or `MOVES` with the loss terms whose meaning it changes (none: every metric may rank).
Even a loss at fixed reference masks favours the trial that trained nearest to them, so training and
validation losses are judged alike. Measures of the representation (retrieval, probe, visual gain) are
taken on full images and whole reports of fixed patients, and compare across every searched key, save
where a key changes the text that visual gain is counted on.
A test holds the lists complete: a new key of the tree, or a new metric, must be decided here. Torch-free.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

TERMS: Final = ("image_reconstruction", "report_reconstruction", "global_alignment", "local_alignment")
"""The loss terms; a test holds them equal to the model's."""

REPRESENTATION: Final = (
    "val/representation_score",
    "val/retrieval/mean_recall",
    "val/retrieval/rank_score",
    *(
        f"val/retrieval/{direction}/recall_at_{k}"
        for direction in ("image_to_report", "report_to_image")
        for k in (1, 5, 10)
    ),
    "val/probe/auroc",
)
VISUAL_GAIN: Final = "val/report_reconstruction/visual_gain"
LOSSES: Final = ("loss/total", *(f"{place}/{term}" for place in ("loss", "val/loss") for term in TERMS))
COSTS: Final = ("pairs_per_second", "peak_memory_bytes")

OBJECTIVES: Final = (*REPRESENTATION, VISUAL_GAIN, *LOSSES, *COSTS)
"""Metrics that can rank trials."""

DESCRIBES_THE_DATA: Final = (
    "val/retrieval/chance_mean_recall",
    "val/retrieval/prior_mean_recall",
    "val/retrieval/gallery_size",
    "val/probe/labels",
    "val/probe/pairs",
    "val/probe/fitted_pairs",
    "val/probe/minimum_per_class",
)
"""Figures that say how something was measured; they are the same for every trial."""

METRICS: Final = (*OBJECTIVES, *DESCRIBES_THE_DATA)

INSTEAD: Final = "val/representation_score, or val/retrieval/mean_recall and val/probe/auroc"
"""What ranks trials whatever is searched."""


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss or a cost."""
    return metric in LOSSES or metric == "peak_memory_bytes"


def nearest_metric(unknown: str) -> str:
    """The known metric closest to an unknown one, by whole name and by last part."""
    names = {name: name for name in METRICS} | {name.rsplit("/", 1)[-1]: name for name in OBJECTIVES[::-1]}
    found = difflib.get_close_matches(unknown, names, n=1, cutoff=0.5)
    if not found:
        found = difflib.get_close_matches(unknown.rsplit("/", 1)[-1], names, n=1, cutoff=0.5)
    return names[found[0]] if found else "val/representation_score"


_STREAM = "it decides how pairs are read, and the model does not depend on it"
_HARDWARE = "it belongs to the machine and leaves the method as it is"
_KEEPING = "it decides what is written down, and the model does not depend on it"
_YARDSTICK = "it is the yardstick: trials measured with different ones do not compare"
_OTHER_PAIRS = "trials on different pairs do not compare"

NOT_SEARCHED: Final[dict[str, str]] = {
    "data.path": _OTHER_PAIRS,
    "data.phantom.train_pairs": _OTHER_PAIRS,
    "data.phantom.val_pairs": _OTHER_PAIRS,
    "data.phantom.test_pairs": _OTHER_PAIRS,
    "data.phantom.size": _OTHER_PAIRS,
    "data.phantom.seed": _OTHER_PAIRS,
    "data.phantom.kind": _OTHER_PAIRS,
    "data.phantom.cells": _OTHER_PAIRS,
    "data.phantom.copies": _OTHER_PAIRS,
    "data.phantom.cues": _OTHER_PAIRS,
    "data.lanes": "it decides the order of the samples alone; the best order is the best luck",
    "data.window_row_groups": "it decides the order of the samples alone; the best order is the best luck",
    "data.decode": _STREAM,
    "data.decode_threads": _STREAM,
    "data.prefetch_batches": _STREAM,
    "data.cache_bytes": _STREAM,
    "training.steps": "the length of training is the search's own: see fidelity.steps",
    "training.micro_batch_size": _HARDWARE,
    "training.seed": "the best seed is the best luck; confirmation retrains with new ones",
    "training.workers": _HARDWARE,
    "training.device": _HARDWARE,
    "training.precision": _HARDWARE,
    "training.threads_per_worker": _HARDWARE,
    "training.parallel": _HARDWARE,
    "training.compile": _HARDWARE,
    "training.gradient_checkpointing": _HARDWARE,
    "training.checkpoint_every_steps": _KEEPING,
    "training.keep_checkpoints": _KEEPING,
    "training.log_every_steps": _KEEPING,
    "training.gradient_norms_every_steps": _KEEPING,
    "training.initial_checkpoint": "trials that start from different training have had unequal budgets",
    "training.max_failures": _HARDWARE,
    "tracking.mlflow_uri": _KEEPING,
    "tracking.mlflow_experiment": _KEEPING,
    "validation.every_steps": _KEEPING,
    "validation.gallery_size": _YARDSTICK,
    "validation.loss_pairs": _YARDSTICK,
    "validation.reference_image_mask_ratio": _YARDSTICK,
    "validation.reference_report_mask_ratio": _YARDSTICK,
    "validation.probe_train_pairs": _YARDSTICK,
    "validation.visual_gain_pairs": _YARDSTICK,
    "validation.batch_size": _HARDWARE,
    "validation.cache_bytes": _HARDWARE,
    "validation.seed": _YARDSTICK,
    "pictures.enabled": _KEEPING,
    "pictures.pairs": _KEEPING,
}
"""Keys that no trial may differ in, and why."""


@dataclass(frozen=True)
class Move:
    """What changes its meaning when a key is searched: loss terms, and metrics beside them."""

    terms: tuple[str, ...] = ()
    because: str = ""
    metrics: tuple[str, ...] = ()


_IMAGE, _REPORT, _GLOBAL, _LOCAL = ((term,) for term in TERMS)
_CONTRAST = (*_GLOBAL, *_LOCAL)

_NOTHING = Move()
_MASKING = Move(TERMS, "less masking is the easier task, and at fixed masks the trial trained there is ahead")
_WEIGHT = Move(TERMS, "a weight moves training between the terms: the other weights would go to 0")
_CROP = Move(TERMS, "it changes the pictures that every term is counted on")
_PIXELS = Move((*_IMAGE, *_LOCAL), "it changes the patches that are reconstructed and contrasted")
_TARGET = Move(_IMAGE, "it changes the target and the scale of the image reconstruction")
_VIEW = Move(_CONTRAST, "it changes what the contrast is shown")
_OTHER_CONTRAST = Move(_LOCAL, "it changes which contrast the local loss is, and over how many")

MOVES: Final[dict[str, Move]] = {
    "image.backbone": _PIXELS,  # a name can bring other sizes
    "image.size": _PIXELS,
    "image.patch_size": _PIXELS,
    "image.width": _NOTHING,
    "image.layers": _NOTHING,
    "image.heads": _NOTHING,
    "image.pretrained": _NOTHING,
    "image.mask_ratio": _MASKING,
    "image.target_scale": _TARGET,
    "image.target_normalisation": _TARGET,
    "image.crop_scale_min": _CROP,
    "image.crop_scale_max": _CROP,
    "image.crop_aspect_max": _CROP,
    "image.horizontal_flip": _CROP,
    "image.decoder_width": _NOTHING,
    "image.decoder_layers": _NOTHING,
    "image.decoder_heads": _NOTHING,
    "report.max_tokens": Move(
        (*_REPORT, *_CONTRAST), "it changes the words that are hidden and contrasted", (VISUAL_GAIN,)
    ),
    "report.mask_ratio": _MASKING,
    "report.mask_draw": _MASKING,
    "report.layers": _NOTHING,
    "report.width": _NOTHING,
    "report.heads": _NOTHING,
    "report.feed_forward_factor": _NOTHING,
    "report.pretrained": Move(
        (*_REPORT, *_LOCAL),
        "it can bring its own tokeniser, and losses over different vocabularies do not compare",
        (VISUAL_GAIN,),
    ),
    "memory.kind": _NOTHING,
    "memory.slots": _NOTHING,
    "memory.top_k": _NOTHING,
    "memory.heads": _NOTHING,
    "memory.dropout": _NOTHING,
    "fusion.kind": _NOTHING,
    "fusion.layers": _NOTHING,
    "fusion.heads": _NOTHING,
    "alignment.width": _NOTHING,
    "alignment.image_pooling": _NOTHING,
    "alignment.text_view": _VIEW,
    "alignment.image_view": _VIEW,
    "alignment.unmasked_tail": Move(TERMS, "it decides how long training has the full image, an easier task"),
    "alignment.temperature": Move(_GLOBAL, "the temperature is the scale of the contrast"),
    "alignment.local": _OTHER_CONTRAST,
    "alignment.group_size": _OTHER_CONTRAST,
    "alignment.within_pair_temperature": Move(_LOCAL, "the temperature is the scale of the contrast"),
    "loss_weights.image_reconstruction": _WEIGHT,
    "loss_weights.report_reconstruction": _WEIGHT,
    "loss_weights.global_alignment": _WEIGHT,
    "loss_weights.local_alignment": _WEIGHT,
    "training.batch_size": Move(_CONTRAST, "a contrast over fewer pairs is the easier task"),
    "training.learning_rate_per_256": _NOTHING,
    "training.warmup_fraction": _NOTHING,
    "training.final_learning_rate_fraction": _NOTHING,
    "training.weight_decay": _NOTHING,
    "training.beta1": _NOTHING,
    "training.beta2": _NOTHING,
    "training.gradient_clip": _NOTHING,
}
"""Searchable keys, and what each makes incomparable."""


@dataclass(frozen=True)
class Objection:
    """Why a metric cannot rank trials that differ in a key, and what can."""

    metric: str
    key: str
    reason: str
    instead: str

    def __str__(self) -> str:
        return f"{self.metric} cannot rank trials that differ in {self.key}: {self.reason}"


def objection(metric: str, key: str) -> Objection | None:
    """The verdict on one metric and one searchable key; None where it compares.

    Raises KeyError for a key or metric that is in no list.
    """
    move = MOVES[key]
    if metric not in METRICS:
        raise KeyError(metric)
    if metric in DESCRIBES_THE_DATA:
        return Objection(metric, key, "it describes the validation set, not the model", INSTEAD)
    moved = {"loss/total"} if move.terms else set()
    moved |= {f"{place}/{term}" for term in move.terms for place in ("loss", "val/loss")}
    if metric in moved or metric in move.metrics:
        reason = move.because
        if metric == "loss/total" and key.startswith("loss_weights."):
            reason = "the total shrinks with its weights"
        return Objection(metric, key, reason, INSTEAD)
    return None


def objections(metric: str, searched_keys: Iterable[str]) -> list[Objection]:
    """Every reason against ranking trials by a metric while these keys are searched; empty: it compares."""
    return [found for key in searched_keys if (found := objection(metric, key)) is not None]
