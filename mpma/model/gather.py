"""The few collectives that the losses need, all the identity with one worker.

Promise: concatenation in rank order is the global batch. Precondition: every worker holds the same
number of pairs. `gather_with_gradient` sums the gradients of all workers' losses for each worker's
own rows; together with the mean over workers that data parallelism takes, the result is the gradient
of the mean of the workers' losses ("local loss" with "gather with gradient" in open_clip's words).

With several workers these calls stay outside compiled graphs: a collective inside would have to be
traced per backend.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# A plain module variable: compiled code can guard on it, which it cannot on a context variable.
_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this worker counts as the only one: losses are those of its own pairs, without collectives."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank_and_world() -> tuple[int, int]:
    """This worker's rank and the number of workers; (0, 1) without a process group and inside `alone`."""
    if not _alone and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(values: Tensor) -> Tensor:
    """[B,...] of each worker -> [W*B,...] on every worker, in rank order, without gradient."""
    _, world = rank_and_world()
    if world == 1:
        return values.detach()
    return _gathered(values.detach(), world)


def gather_with_gradient(values: Tensor) -> Tensor:
    """As `gather`; in the backward pass each worker receives the sum of all workers' gradients."""
    _, world = rank_and_world()
    if world == 1:
        return values
    return _gathered_with_gradient(values)


def sum_over_workers(value: Tensor) -> Tensor:
    """Elementwise sum over workers, without gradient; the argument is left alone."""
    _, world = rank_and_world()
    if world == 1:
        return value.detach()
    return _summed(value.detach())


@torch.compiler.disable
def _summed(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total


@torch.compiler.disable
def _gathered_with_gradient(values: Tensor) -> Tensor:
    gathered: Tensor = _Gather.apply(values)
    return gathered


@torch.compiler.disable
def _gathered(values: Tensor, world: int) -> Tensor:
    gathered = values.new_empty(world * values.shape[0], *values.shape[1:])
    dist.all_gather_into_tensor(gathered, values.contiguous())
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rank, world = rank_and_world()
        ctx.rows = values.shape[0]
        return _gathered(values, world)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        if dist.get_backend() == "nccl":
            own = gradient.new_empty(ctx.rows, *gradient.shape[1:])
            dist.reduce_scatter_tensor(own, gradient)
            return own
        # Gloo has no reduce-scatter in every supported release; the whole sum costs more, not else.
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed.narrow(0, ctx.rank * ctx.rows, ctx.rows)
