"""The local alignment's kernels in Triton's interpreter, and the operator around them on fake tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mpma.model.alignment import group_scores

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

_SCRIPT = """
import torch
from torch.nn import functional
from mpma.model import alignment
from mpma.model.alignment_kernels import similarities, similarity_gradients

SHARPNESS, SMALLEST = alignment.ATTENTION_SHARPNESS, alignment._SMALLEST_NORM_SQUARED
draw = torch.Generator().manual_seed(0)
cases = ((2, 3, 3, 49, 29, 32), (2, 2, 2, 7, 5, 16), (1, 2, 5, 100, 15, 16))
for groups, images, reports, count, slots, width in cases:
    common = torch.randn(groups, 1, 1, width, generator=draw)
    patches = functional.normalize(
        torch.randn(groups, images, count, width, generator=draw) + 0.5 * common, dim=-1
    )
    words = functional.normalize(torch.randn(groups, reports, slots, width, generator=draw) + common, dim=-1)
    mask = torch.rand(groups, reports, slots, generator=draw) < 0.8
    mask[0, 1] = False
    weight = torch.randn(groups, images, reports, generator=draw)

    leaves = [patches.clone().requires_grad_(), words.clone().requires_grad_()]
    expected = alignment.group_scores(*leaves, mask)
    theirs = torch.autograd.grad((expected * weight).sum(), leaves)

    flat = (patches, words.flatten(1, 2), mask.flatten(1, 2))
    similarity, kept = similarities(*flat, SHARPNESS, SMALLEST)
    similarity.requires_grad_()
    scores = alignment._pooled(similarity.unflatten(2, (reports, slots)), mask)
    torch.testing.assert_close(scores.detach(), expected.detach(), atol=5e-6, rtol=5e-6)
    (toward,) = torch.autograd.grad((scores * weight).sum(), similarity)
    ours = similarity_gradients(toward, *flat, kept, SHARPNESS)
    for mine, other in zip(ours, theirs, strict=True):
        error = (mine.view_as(other) - other).norm() / other.norm()
        assert error < 1e-5, (count, float(error))
    assert not ours[1][~flat[2]].any()
"""


def test_the_kernels_give_the_scores_and_gradients_of_the_matrices() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_on_a_gpu_all_groups_go_through_one_operator_whose_shapes_the_compiler_knows() -> None:
    with FakeTensorMode():
        patches = torch.randn(3, 4, 49, 32, device="cuda", requires_grad=True)
        words = torch.randn(3, 5, 7, 32, device="cuda", requires_grad=True)
        mask = torch.ones(3, 5, 7, dtype=torch.bool, device="cuda")
        scores = group_scores(patches, words, mask)
        assert scores.shape == (3, 4, 5)
        assert scores.requires_grad
        flat = (patches, words.flatten(1, 2), mask.flatten(1, 2))
        similarity, kept = torch.ops.mpma.word_patch_similarity(*flat, 10.0, 1e-8)
        gradients = torch.ops.mpma.word_patch_similarity_backward(similarity, *flat, kept, 10.0)
        assert [each.shape for each in gradients] == [each.shape for each in flat[:2]]
