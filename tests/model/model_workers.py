"""What each of two worker processes computes; imported by name in the spawned processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from model_samples import small_batch, small_model
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mpma.data.batches import Batch
from mpma.model.alignment import AlignmentFeatures, global_alignment_loss, words_to_patches_loss
from mpma.model.gradient_norms import trunk_gradient_norms
from mpma.model.outputs import Losses
from mpma.training.feature_cache import accumulate_backward

PAIRS = 8

MODEL_CASES: dict[str, tuple[dict[str, Any], int, int | None]] = {
    # name: (changes to the small configuration, visible patches, micro-batch)
    "whole groups per worker": ({}, 4, None),
    "a group over all workers": ({"alignment": {"group_size": 8}}, 4, None),
    "groups that straddle workers": ({"alignment": {"group_size": 3}}, 4, None),
    "micro-batches": ({"alignment": {"group_size": 3}}, 4, 2),
    "full image view, within pairs": (
        {"alignment": {"image_view": "full", "local": "within_pair"}, "memory": {"kind": "key_value"}},
        4,
        None,
    ),
    "masked text, mean added": (
        {"alignment": {"text_view": "masked", "group_size": 6}, "fusion": {"kind": "mean_add"}},
        4,
        None,
    ),
    "nothing hidden, micro-batches": ({}, 16, 2),
    "weights and a skipped branch": (
        {"loss_weights": {"image_reconstruction": 0.5, "report_reconstruction": 3.0, "local_alignment": 0.0}},
        4,
        None,
    ),
}


def whole_batch(visible: int) -> Batch:
    """The global batch: equal reports and one study spread over both workers' halves."""
    batch = small_batch(PAIRS, visible=visible, seed=7)
    batch.report_hash[[1, 2, 6]] = 1
    batch.study_hash[[0, 5]] = 2
    return batch


def unit_features(pairs: int, seed: int) -> AlignmentFeatures:
    draw = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return functional.normalize(torch.randn(*shape, generator=draw), dim=-1)

    return AlignmentFeatures(
        image=unit(pairs, 6),
        report=unit(pairs, 6),
        patches=unit(pairs, 4, 6),
        words=unit(pairs, 5, 6),
        word_mask=torch.rand(pairs, 5, generator=draw) < 0.8,
        word_ids=None,
        report_hash=torch.arange(pairs) % (pairs - 2),
        study_hash=torch.arange(pairs),
    )


def feature_losses(features: AlignmentFeatures) -> dict[str, Tensor]:
    """The losses alone, and every gradient they give."""
    leaves = features.differentiable()
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    temperature = torch.tensor(0.1, requires_grad=True)
    assert features.image is not None
    assert features.report is not None
    contrast = global_alignment_loss(
        features.image, features.report, features.report_hash, features.study_hash, temperature
    )
    local = words_to_patches_loss(features, 3)
    (contrast + local).backward()
    found = {f"d {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"global": contrast.detach(), "local": local.detach(), "d temperature": temperature.grad, **found}


def model_case(name: str, rank: int | None) -> dict[str, Tensor]:
    """Gradients and losses of one case: on the whole batch (rank None), or on a worker's half through DDP."""
    changes, visible, micro_batch_size = MODEL_CASES[name]
    model = small_model(**changes)
    batch = whole_batch(visible)
    if rank is None:
        losses = accumulate_backward(model, batch)
        norms = trunk_gradient_norms(model, model(batch))
    else:
        half = PAIRS // 2
        batch = batch.slice(rank * half, (rank + 1) * half)
        parallel = DistributedDataParallel(model)
        losses = accumulate_backward(parallel, batch, micro_batch_size=micro_batch_size)
        norms = trunk_gradient_norms(model, model(batch))
    return {**_gradients(model), **_terms(losses), **{f"norm {key}": value for key, value in norms.items()}}


def _gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: torch.zeros(0) if p.grad is None else p.grad.clone() for name, p in trained}


def _terms(losses: Losses) -> dict[str, Tensor]:
    return {f"loss {name}": term for name, term in {**losses.terms(), "total": losses.total}.items()}


def run_worker(rank: int, folder: str) -> None:
    """Join the group of two, compute every case, write what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        features = unit_features(8, seed=0)
        half = AlignmentFeatures(
            **{
                name: None if value is None else value[4 * rank : 4 * rank + 4].clone()
                for name, value in vars(features).items()
            }
        )
        results = {"features": feature_losses(half)}
        for name in MODEL_CASES:
            results[name] = model_case(name, rank)
        torch.save(results, Path(folder) / f"worker_{rank}.pt")
    finally:
        dist.destroy_process_group()
