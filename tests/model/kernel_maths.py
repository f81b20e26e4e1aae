"""Runs the GPU's kernels in Triton's interpreter, on CPU tensors, beside plain torch; a program of its own.

The interpreter is chosen when Triton is imported, so a test starts this in a new process. Ends with an
AssertionError where a kernel and torch differ.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor
from torch.nn import functional

from mpma.model import top_k_kernels, vocabulary_kernels


def plain_weights(scores: Tensor, scale: float, top_k: int) -> Tensor:
    best, slots = (scores * scale).topk(top_k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, slots, best.softmax(dim=-1))


def check_top_k_weights() -> None:
    for heads, rows, slots, top_k in ((2, 5, 64, 8), (3, 4, 100, 32), (1, 2, 2048, 32), (1, 2, 70, 1)):
        scores = torch.randn(heads, rows, slots) * 3
        scores[0, 0] -= 100.0  # a row of negative scores alone
        whole = torch.full((heads, rows + 4, slots), 9.0)
        weights = whole[:, 2 : 2 + rows]
        top_k_kernels.top_k_weights(scores, weights, 0.125, top_k)
        torch.testing.assert_close(weights, plain_weights(scores, 0.125, top_k))
        assert (whole[:, :2] == 9).all(), "rows before the part were written"
        assert (whole[:, 2 + rows :] == 9).all(), "rows behind the part were written"

        free, gradients = scores.clone().requires_grad_(), torch.randn(heads, rows, slots)
        (plain_weights(free, 0.125, top_k) * gradients).sum().backward()
        found = gradients.clone()
        top_k_kernels.scores_gradient(weights.contiguous(), found, 0.125)
        torch.testing.assert_close(found, free.grad)


def check_ties_take_part_together() -> None:
    scores = torch.zeros(1, 3, 128)
    scores[0, 1, ::2] = 1.0
    scores[0, 2] = -torch.arange(128.0)
    weights = torch.empty(1, 3, 128)
    top_k_kernels.top_k_weights(scores, weights, 1.0, 16)
    assert (weights > 0).sum(dim=-1).tolist() == [[128, 64, 16]]
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 3))


def check_whole_attention() -> None:
    queries, keys, values = torch.randn(2, 9, 16), torch.randn(2, 40, 16), torch.randn(2, 40, 16)
    free = [value.clone().requires_grad_() for value in (queries, keys, values)]
    expected = plain_weights(free[0] @ free[1].transpose(1, 2), 0.25, 8) @ free[2]
    gradient = torch.randn_like(expected)
    top_k_kernels._CHUNK_ELEMENTS = 2 * 40 * 4  # three chunks of rows
    read, weights = top_k_kernels._attend._init_fn(queries, keys, values, 8)
    torch.testing.assert_close(read, expected)
    found = top_k_kernels._attend_backward._init_fn(gradient, queries, keys, values, weights)
    for mine, theirs in zip(found, torch.autograd.grad(expected, free, gradient), strict=True):
        torch.testing.assert_close(mine, theirs)


def check_vocabulary_loss() -> None:
    states, embedding, bias = torch.randn(7, 16), torch.randn(300, 16), torch.randn(300)
    targets = torch.randint(0, 300, (7,))
    targets[2] = targets[5] = -100
    free = [value.clone().requires_grad_() for value in (states, embedding, bias)]
    expected = functional.cross_entropy(functional.linear(*free), targets, reduction="sum")
    vocabulary_kernels._CHUNK_LOGITS = 900  # three chunks of rows
    loss, *found = vocabulary_kernels._loss._init_fn(states, targets, embedding, bias)
    torch.testing.assert_close(loss, expected)
    for mine, theirs in zip(found, torch.autograd.grad(expected, free), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    torch.manual_seed(0)
    check_top_k_weights()
    check_ties_take_part_together()
    check_whole_attention()
    check_vocabulary_loss()
