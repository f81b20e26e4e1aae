"""Every figure that is promised to Prometheus: its name, unit, meaning, and the panel that shows it.

Decisions: one truth, from which the gauges, the Grafana dashboard, the table in docs/watching.md and the
test with a real Prometheus take the names; what does not stand here does not go out. A figure of a run has
the name that metrics.jsonl gives it, where it stands there. Imports neither Ray nor torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from mpma.comparability import TERMS

Unit = Literal["", "fraction", "seconds", "bytes", "pairs", "pairs per second", "steps", "trials", "nats"]


@dataclass(frozen=True)
class Figure:
    """One figure. Its gauge is `ray_` and `gauge` in Prometheus, where Ray adds its own labels."""

    name: str
    """As metrics.jsonl has it, or `search/...`, which are not written there."""
    panel: str
    """Title of the panel that shows it; figures of one panel have one unit."""
    unit: Unit
    meaning: str
    tags: tuple[str, ...] = ("run",)
    moves: bool = False
    """Whether its value must change while a run trains, or a search goes on."""
    gpu: bool = False
    """Whether it is there on a GPU alone."""
    only: str = ""
    """What it takes for it to be there; empty: always."""

    @property
    def gauge(self) -> str:
        """The name that Ray is given: `loss/total` -> `mpma_loss_total`."""
        return "mpma_" + re.sub(r"[^a-zA-Z0-9_]", "_", self.name)

    @property
    def prometheus(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.gauge}"


_SAID = {
    "image_reconstruction": "reconstruction of hidden image patches",
    "report_reconstruction": "reconstruction of hidden words",
    "global_alignment": "alignment of whole images with whole reports",
    "local_alignment": "alignment of words with patches",
}
_WEIGHTED = "its weight is above 0"
_LABELS = "pairs have labels"
_DIRECTIONS = {
    "image_to_report": "images whose report is",
    "report_to_image": "reports whose image is",
}
_RANKED: tuple[str, ...] = ("run", "rank")

RUN: Final[tuple[Figure, ...]] = (
    Figure("progress_fraction", "Progress", "fraction", "steps done of all steps of the run", moves=True),
    Figure("step", "Step", "steps", "optimiser steps done", moves=True),
    Figure("epoch", "Epochs", "", "passes over the training pairs", moves=True),
    Figure("pairs_seen", "Pairs", "pairs", "pairs trained on, repeats included", moves=True),
    Figure("loss/total", "Training loss", "", "weighted sum of the terms", moves=True),
    *(
        Figure(f"loss/{term}", "Training loss", "", f"{_SAID[term]}, unweighted", moves=True, only=_WEIGHTED)
        for term in TERMS
    ),
    Figure(
        "pairs_per_second", "Speed", "pairs per second", "over all workers, since the last line", moves=True
    ),
    Figure(
        "data_wait_fraction",
        "Waiting for data",
        "fraction",
        "share of the time that the loop waited for batches",
    ),
    Figure("workers", "Workers", "", "workers that train now"),
    Figure("gradient_norm", "Gradient norm", "", "global norm before clipping", moves=True),
    Figure("learning_rate", "Learning rate", "", "of the step before", moves=True),
    *(
        Figure(
            f"trunk_gradient_norm/{term}",
            "Gradient norm on the shared trunk",
            "",
            f"of the term alone: {_SAID[term]}",
            moves=True,
            only="training.gradient_norms_every_steps is above 0",
        )
        for term in TERMS
    ),
    Figure("image_mask_ratio", "Hidden patches", "fraction", "share of the image patches that is hidden"),
    Figure(
        "alignment/temperature",
        "Temperature",
        "",
        "of the global alignment",
        only="the global alignment has weight",
    ),
    Figure(
        "memory/usage_perplexity",
        "Learned memory: slots in use",
        "",
        "as many slots used evenly would be as spread",
        moves=True,
        only="memory.kind is not none",
    ),
    Figure(
        "memory/dead_slot_fraction",
        "Learned memory: dead slots",
        "fraction",
        "slots that nothing of the batch read",
        only="memory.kind is not none",
    ),
    Figure(
        "process_resident_bytes",
        "Memory of the workers",
        "bytes",
        "resident size of the worker's process",
        _RANKED,
        moves=True,
    ),
    Figure("gpu_allocated_bytes", "Memory of the GPUs", "bytes", "in use by tensors", _RANKED, gpu=True),
    Figure("gpu_reserved_bytes", "Memory of the GPUs", "bytes", "kept by the allocator", _RANKED, gpu=True),
    Figure(
        "gpu_peak_bytes",
        "Memory of the GPUs",
        "bytes",
        "most in use by tensors since the process began",
        _RANKED,
        gpu=True,
    ),
    Figure(
        "checkpoint_step",
        "Last checkpoint",
        "steps",
        "step of the last checkpoint that was written whole",
        moves=True,
    ),
    Figure("checkpoint_seconds", "Time of a checkpoint", "seconds", "that writing it took", moves=True),
    Figure(
        "val/representation_score",
        "Representation score",
        "",
        "what searches rank by; see docs/validation.md",
        moves=True,
    ),
    Figure(
        "val/retrieval/mean_recall", "Retrieval", "fraction", "mean recall at 1, 5 and 10 in both directions"
    ),
    Figure("val/retrieval/chance_mean_recall", "Retrieval", "fraction", "mean recall of a random order"),
    Figure(
        "val/retrieval/prior_mean_recall",
        "Retrieval",
        "fraction",
        "mean recall of the best order that ignores the query",
    ),
    *(
        Figure(
            f"val/retrieval/{direction}/recall_at_{k}", "Recall", "fraction", f"{said} among the first {k}"
        )
        for direction, said in _DIRECTIONS.items()
        for k in (1, 5, 10)
    ),
    Figure(
        "val/retrieval/rank_score",
        "Rank score",
        "fraction",
        "1 where every rank is 1, 0 where every rank is the last",
        moves=True,
    ),
    Figure("val/retrieval/gallery_size", "What validation counted", "", "pairs in the gallery"),
    Figure(
        "val/probe/auroc",
        "Linear probe",
        "fraction",
        "mean area under the ROC curve",
        moves=True,
        only=_LABELS,
    ),
    Figure("val/probe/labels", "What validation counted", "", "labels that the probe scored", only=_LABELS),
    Figure("val/probe/pairs", "What validation counted", "", "pairs that the probe scored", only=_LABELS),
    Figure(
        "val/probe/fitted_pairs",
        "What validation counted",
        "",
        "pairs that the probe was fitted on",
        only=_LABELS,
    ),
    Figure(
        "val/probe/minimum_per_class",
        "What validation counted",
        "",
        "positives and negatives that each label has",
        only=_LABELS,
    ),
    Figure(
        "val/report_reconstruction/visual_gain",
        "Visual gain",
        "nats",
        "that a pair's own image saves per hidden word",
        moves=True,
        only="the report loss has weight",
    ),
    *(
        Figure(
            f"val/loss/{term}",
            "Validation loss",
            "",
            f"{_SAID[term]}, at the reference masks",
            moves=True,
            only=_WEIGHTED,
        )
        for term in TERMS
    ),
)
"""Figures of a run."""

_OF_SEARCH: tuple[str, ...] = ("search",)

SEARCH: Final[tuple[Figure, ...]] = (
    Figure(
        "search/trials",
        "Trials",
        "trials",
        "trials by `state`: open (training, or about to), waiting at a rung, complete, pruned, failed",
        (*_OF_SEARCH, "state"),
        moves=True,
    ),
    Figure(
        "search/best_value",
        "Best value",
        "",
        "`objective` of the best trial so far, at the highest step that it reached",
        (*_OF_SEARCH, "objective"),
        moves=True,
    ),
    Figure("search/best_trial", "Best trial", "", "its number", _OF_SEARCH),
    Figure(
        "search/rung_trials",
        "Trials by rung",
        "trials",
        "trials that came to the rung of `step`, by `state`: running towards it, waiting at it, promoted "
        "from it, stopped (pruned or failed), complete",
        (*_OF_SEARCH, "step", "state"),
        moves=True,
    ),
    Figure("search/failed_trials", "Failures", "trials", "trials that failed for good", _OF_SEARCH),
    Figure("search/retries", "Failures", "trials", "segments of training that were tried again", _OF_SEARCH),
    Figure(
        "search/device_seconds",
        "Device time spent",
        "seconds",
        "time on devices of all trials",
        _OF_SEARCH,
        moves=True,
    ),
    Figure(
        "search/trials_left",
        "Trials left",
        "trials",
        "that the budget still admits",
        _OF_SEARCH,
        moves=True,
        only="budget.trials is set",
    ),
    Figure(
        "search/device_seconds_left",
        "Device time left",
        "seconds",
        "of the budget",
        _OF_SEARCH,
        moves=True,
        only="budget.gpu_hours is set",
    ),
    Figure(
        "search/wall_seconds_left",
        "Clock time left",
        "seconds",
        "of the budget",
        _OF_SEARCH,
        moves=True,
        only="budget.wall_clock_hours is set",
    ),
)
"""Figures of a search, set by the program that leads it."""

FIGURES: Final = (*RUN, *SEARCH)
BY_NAME: Final = {figure.name: figure for figure in FIGURES}
