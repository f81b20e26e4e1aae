"""One step's gradients with a whole contrastive batch, a few pairs in memory at a time.

The contrast needs every pair's features at once, the rest of the step does not. So: (1) without
gradients, micro-batch by micro-batch, the features of all pairs; (2) the alignment losses on them,
over all workers and groups as ever, and their gradients on the features; (3) each micro-batch again
with gradients, where the features' share of the loss is their product with those gradients
(Gao et al. 2021, GradCache). Crops and masks are in the batch, so both passes see the same.

Promise: the gradients are those of the whole batch, to rounding. Precondition: a deterministic
forward pass (dropout acts on the reconstruction only, which is computed once).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mpma.data.batches import Batch
from mpma.model.alignment import AlignmentFeatures
from mpma.model.outputs import Losses, Replay
from mpma.model.pretraining import PretrainingModel, masked_token_total


def unwrapped(model: nn.Module) -> PretrainingModel:
    """The model inside data parallelism and compilation, in either order."""
    while not isinstance(model, PretrainingModel):
        # Not `or`: the compiler's shell has a length of its own, and none for this model.
        inner = getattr(model, "module", None)
        if inner is None:
            inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            raise TypeError(f"{type(model).__name__} holds no PretrainingModel")
        model = inner
    return model


def accumulate_backward(
    model: nn.Module,
    batch: Batch,
    *,
    micro_batch_size: int | None = None,
    device: torch.device | str | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Losses:
    """Add the gradients of `batch`'s total loss to the parameters; the losses come back detached.

    `model` is a PretrainingModel or one inside DistributedDataParallel or torch.compile; its forward
    pass goes through the wrapper, so gradients are averaged over workers once, with the last
    micro-batch. `batch` stays on the host until its slices move to `device` (None: stays).
    `autocast` makes the context of each forward pass; backward passes run outside of it.
    Raises ValueError where `micro_batch_size` does not divide the batch.
    """
    pairs = len(batch)
    if micro_batch_size is None or micro_batch_size >= pairs:
        with autocast():
            losses: Losses = model(_moved(batch, device))
        losses.total.backward()
        return _detached(losses)
    if pairs % micro_batch_size:
        raise ValueError(f"micro-batches of {micro_batch_size} do not divide {pairs} pairs")

    inner = unwrapped(model)
    starts = range(0, pairs, micro_batch_size)
    masked_tokens = masked_token_total(_count_holder(batch, device)) if inner.wants_report else None
    aligned, temperature_gradient = None, None
    gradients: dict[str, Tensor] = {}
    if inner.wants_alignment:
        cached = []
        for start in starts:
            with torch.no_grad(), autocast():
                cached.append(inner.align_features(_slice(batch, start, micro_batch_size, device)))
        features = _joined(cached)
        leaves = features.differentiable()
        for leaf in leaves.values():
            leaf.requires_grad_(True)
        aligned = inner.alignment_losses(features)
        gradients, temperature_gradient = _gradients(aligned.total, leaves, inner)

    total = Losses(total=torch.zeros((), device=next(inner.parameters()).device))
    for start in starts:
        last = start == starts[-1]
        stop = start + micro_batch_size
        replay = Replay(
            gradients={name: gradient[start:stop] for name, gradient in gradients.items()},
            share=micro_batch_size / pairs,
            temperature_gradient=temperature_gradient if last else None,
        )
        waits = isinstance(model, DistributedDataParallel) and not last
        with cast(DistributedDataParallel, model).no_sync() if waits else nullcontext():
            with autocast():
                losses = model(_slice(batch, start, micro_batch_size, device), masked_tokens, replay)
            losses.total.backward()
        _add_reconstructions(total, losses, inner)
    if aligned is not None:
        total.global_alignment = aligned.global_alignment
        total.local_alignment = aligned.local_alignment
        total.total = total.total + aligned.total.detach()
        total.diagnostics |= aligned.diagnostics
    return _detached(total)


def _gradients(
    loss: Tensor, leaves: dict[str, Tensor], inner: PretrainingModel
) -> tuple[dict[str, Tensor], Tensor | None]:
    inputs = list(leaves.values())
    if inner.wants_global:
        inputs.append(inner.temperature.logarithm)
    found = torch.autograd.grad(loss, inputs)
    by_name = dict(zip(leaves, found, strict=False))
    return by_name, found[-1] if inner.wants_global else None


def _joined(parts: list[AlignmentFeatures]) -> AlignmentFeatures:
    joined: dict[str, Any] = {}
    for field in fields(AlignmentFeatures):
        values = [getattr(part, field.name) for part in parts]
        joined[field.name] = None if values[0] is None else torch.cat(values)
    return AlignmentFeatures(**joined)


def _add_reconstructions(total: Losses, losses: Losses, inner: PretrainingModel) -> None:
    for name, term in losses.terms().items():
        before = getattr(total, name)
        setattr(total, name, term.detach() if before is None else before + term.detach())
        total.total = total.total + inner.weights[name] * term.detach()
    total.diagnostics |= losses.diagnostics


def _slice(batch: Batch, start: int, size: int, device: torch.device | str | None) -> Batch:
    return _moved(batch.slice(start, start + size), device)


def _moved(batch: Batch, device: torch.device | str | None) -> Batch:
    return batch if device is None else batch.to(device, non_blocking=True)


def _count_holder(batch: Batch, device: torch.device | str | None) -> Batch:
    """The batch with nothing but its targets on the device: only they are counted."""
    if device is None:
        return batch
    return replace(batch, masked_targets=batch.masked_targets.to(device, non_blocking=True))


def _detached(losses: Losses) -> Losses:
    terms = {name: term.detach() for name, term in losses.terms().items()}
    return Losses(total=losses.total.detach(), diagnostics=losses.diagnostics, **terms)
