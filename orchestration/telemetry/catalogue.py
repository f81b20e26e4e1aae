"""Every figure that goes out to Prometheus, in one list: what its name is, what it counts, in which unit.

Decisions: only what stands here goes out, as a number with the name of its run or search; no text,
identifier or pixel can pass. The documentation's table, the Grafana dashboard and the test that watches a
real Prometheus are made from this list, so a figure that is promised is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Metric:
    """One gauge, or one for each figure below a prefix."""

    source: str
    """The figure's name in metrics.jsonl, or its own; with `/` at the end all that begin so."""
    meaning: str
    unit: str
    of: Literal["run", "search"]
    tag: str | None = None
    """A further tag beside the run's or search's name."""
    needs_gpu: bool = False
    moves: bool = True
    """Whether its value must change during any run or search."""
    shown: str | None = None
    """Title of the panel of the dashboard that it stands in; None: in none."""

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for several figures."""
        return self.source.endswith("/")

    def matches(self, figure: str) -> bool:
        """Whether a figure is this metric's."""
        return figure.startswith(self.source) if self.is_prefix else figure == self.source


def gauge_name(figure: str) -> str:
    """Name of a figure as Ray's gauges have it: `loss/total` -> `mpma_loss_total`; Prometheus shows `ray_`
    before it."""
    return "mpma_" + re.sub(r"[^a-zA-Z0-9_]", "_", figure)


def _run(source: str, meaning: str, unit: str, shown: str | None = None, moves: bool = True) -> Metric:
    return Metric(source, meaning, unit, "run", shown=shown, moves=moves)


METRICS: Final[tuple[Metric, ...]] = (
    _run("step", "optimiser steps done", "steps", "Progress"),
    _run("progress", "steps done over the run's steps", "fraction", "Progress"),
    _run("epoch", "passes over the training pairs", "epochs"),
    _run("pairs_seen", "pairs trained on", "pairs"),
    _run("workers", "workers of the group", "workers", "Workers", moves=False),
    _run("loss/total", "weighted sum of the loss terms", "", "Losses"),
    _run("loss/image_reconstruction", "mean squared error of hidden patches", "", "Losses"),
    _run("loss/report_reconstruction", "cross-entropy of hidden words", "nats", "Losses"),
    _run("loss/global_alignment", "contrast of pairs", "nats", "Losses"),
    _run("loss/local_alignment", "contrast of words and patches", "nats", "Losses"),
    _run("learning_rate", "AdamW's rate", "", "Learning rate"),
    _run("gradient_norm", "global norm before clipping", "", "Gradient norm"),
    _run("pairs_per_second", "speed between two log lines", "pairs/s", "Speed"),
    _run(
        "data_wait_fraction",
        "share of the time that waits for data",
        "fraction",
        "Waiting for data",
        moves=False,
    ),
    _run("resident_bytes", "memory of the first worker's process", "bytes", "Memory"),
    Metric(
        "gpu_peak_bytes",
        "largest memory on the first worker's GPU",
        "bytes",
        "run",
        None,
        True,
        False,
        "Memory",
    ),
    _run("memory/", "use of the learned memory", "", None, moves=False),
    _run("alignment/", "temperature of the contrast", "", None, moves=False),
    _run(
        "trunk_gradient_norm/",
        "each term's gradient on the shared trunk, where it is measured",
        "",
        None,
        False,
    ),
    _run("val/", "validation on held-out patients (docs/validation.md)", "", None, moves=False),
    _run("val/retrieval/mean_recall", "mean recall of retrieval", "fraction", "Validation", moves=False),
    _run("val/probe/auroc", "linear probe", "AUROC", "Validation", moves=False),
    _run("val/representation_score", "what searches rank by", "", "Validation", moves=False),
    Metric("search/trials", "trials by state", "trials", "search", "state", shown="Trials"),
    Metric(
        "search/rung_trials", "trials that have reported at a rung", "trials", "search", "step", shown="Rungs"
    ),
    Metric(
        "search/best_value",
        "objective of the best trial so far",
        "",
        "search",
        "objective",
        shown="Best trial",
    ),
    Metric(
        "search/best_trial", "number of the best trial so far", "", "search", moves=False, shown="Best trial"
    ),
    Metric("search/retries", "segments handed out again", "", "search", moves=False, shown="Trials"),
    Metric("search/device_seconds", "time on devices so far", "seconds", "search", shown="Budget"),
    Metric("search/budget_left", "share of the budget that is left", "fraction", "search", shown="Budget"),
)


def metric_of(figure: str) -> Metric | None:
    """The metric that a figure is, the most particular one; None where it does not go out."""
    exact = next((metric for metric in METRICS if not metric.is_prefix and metric.matches(figure)), None)
    return exact or next((metric for metric in METRICS if metric.is_prefix and metric.matches(figure)), None)
