"""Every searchable key has a verdict for every metric, and the verdicts are those of the method."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpma.comparability import (
    COSTS,
    DESCRIBES_THE_DATA,
    LOSSES,
    METRICS,
    MOVES,
    NOT_SEARCHED,
    OBJECTIVES,
    REPRESENTATION,
    TERMS,
    VISUAL_GAIN,
    lower_is_better,
    nearest_metric,
    objection,
    objections,
)
from mpma.config import all_keys

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = [f"loss_weights.{term}" for term in TERMS]


def test_every_key_of_the_tree_is_either_searchable_or_refused_with_a_reason() -> None:
    undecided = [key for key in all_keys() if (key in MOVES) == (key in NOT_SEARCHED)]
    assert undecided == [], "decide these in mpma/comparability.py"
    assert [key for key in (*MOVES, *NOT_SEARCHED) if key not in all_keys()] == []
    assert all(reason for reason in NOT_SEARCHED.values())


def test_every_searchable_key_has_a_verdict_for_every_metric() -> None:
    for metric, key in itertools.product(METRICS, MOVES):
        found = objection(metric, key)
        assert found is None or (
            found.reason and found.instead and key in str(found) and metric in str(found)
        )


def test_a_key_that_is_not_decided_has_no_verdict() -> None:
    with pytest.raises(KeyError):
        objection("val/representation_score", "image.mask_raito")
    with pytest.raises(KeyError):
        objection("val/representation", "image.mask_ratio")


def test_the_terms_are_those_of_the_model() -> None:
    from mpma.model.outputs import TERMS as OF_THE_MODEL

    assert TERMS == OF_THE_MODEL


def test_the_metrics_are_those_that_validation_reports() -> None:
    import numpy as np
    import torch

    from mpma.metrics.retrieval import retrieval_metrics

    vectors = torch.nn.functional.normalize(torch.randn(12, 4), dim=1)
    retrieval = {f"val/retrieval/{name}" for name in retrieval_metrics(vectors, vectors, np.arange(12))}
    source = "".join(path.read_text() for path in sorted((ROOT / "mpma" / "training").glob("*.py")))
    written = {name for name in re.findall(r'"(val/[a-z_/]+)"', source) if not name.endswith("/")}
    losses = {f"val/loss/{term}" for term in TERMS}
    assert 'f"val/loss/{name}"' in source
    assert {name for name in METRICS if name.startswith("val/")} == retrieval | written | losses


@pytest.mark.parametrize("key", MOVES)
def test_measures_of_the_representation_compare_whatever_is_searched(key: str) -> None:
    for metric in (*REPRESENTATION, *COSTS):
        assert objection(metric, key) is None


@pytest.mark.parametrize("key", ["image.mask_ratio", "report.mask_ratio", *WEIGHTS])
@pytest.mark.parametrize("metric", LOSSES)
def test_no_loss_ranks_trials_while_masking_or_a_weight_is_searched(metric: str, key: str) -> None:
    assert objection(metric, key) is not None


@pytest.mark.parametrize(
    ("metric", "key"),
    [
        ("loss/global_alignment", "training.batch_size"),
        ("val/loss/global_alignment", "alignment.temperature"),
        ("val/loss/local_alignment", "training.batch_size"),
        ("val/loss/local_alignment", "alignment.group_size"),
        ("val/loss/local_alignment", "alignment.local"),
        ("loss/local_alignment", "alignment.within_pair_temperature"),
        ("val/loss/report_reconstruction", "report.pretrained"),
        ("val/loss/report_reconstruction", "report.max_tokens"),
        ("val/loss/image_reconstruction", "image.target_normalisation"),
        ("loss/image_reconstruction", "image.target_scale"),
        ("val/loss/image_reconstruction", "image.size"),
        ("loss/total", "alignment.temperature"),
        (VISUAL_GAIN, "report.max_tokens"),
        *((metric, "memory.kind") for metric in DESCRIBES_THE_DATA),
    ],
)
def test_a_metric_that_depends_on_what_is_searched_is_refused(metric: str, key: str) -> None:
    assert objection(metric, key) is not None


@pytest.mark.parametrize(
    ("metric", "key"),
    [
        ("val/loss/report_reconstruction", "memory.kind"),
        ("val/loss/report_reconstruction", "fusion.layers"),
        ("val/loss/image_reconstruction", "alignment.temperature"),
        ("val/loss/global_alignment", "alignment.local"),
        ("loss/total", "training.learning_rate_per_256"),
        (VISUAL_GAIN, "image.mask_ratio"),
        (VISUAL_GAIN, "report.mask_ratio"),
        (VISUAL_GAIN, "memory.slots"),
    ],
)
def test_a_metric_that_means_the_same_in_every_trial_is_accepted(metric: str, key: str) -> None:
    assert objection(metric, key) is None


def test_each_searched_key_that_objects_is_named() -> None:
    found = objections("loss/total", ["memory.kind", "image.mask_ratio", "loss_weights.local_alignment"])
    assert [one.key for one in found] == ["image.mask_ratio", "loss_weights.local_alignment"]
    assert "weights" in found[1].reason
    assert all("val/representation_score" in one.instead for one in found)


def test_a_misspelt_metric_finds_its_neighbour() -> None:
    assert nearest_metric("val/retrieval/mean_recal") == "val/retrieval/mean_recall"
    assert nearest_metric("auroc") == "val/probe/auroc"
    assert nearest_metric("visual_gain") == VISUAL_GAIN


def test_losses_and_memory_are_to_be_minimised() -> None:
    assert {metric for metric in OBJECTIVES if lower_is_better(metric)} == {*LOSSES, "peak_memory_bytes"}


def test_the_verdicts_load_without_torch() -> None:
    code = "import sys, mpma.comparability; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
