"""The GPU's kernels compute what torch computes; run without a GPU in Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_equal_plain_torch_in_the_interpreter() -> None:
    script = Path(__file__).with_name("kernel_maths.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU at hand")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_to_the_best_slots_on_a_gpu_equals_that_of_float64(precision: torch.dtype) -> None:
    from mpma.model.memory import top_k_attention

    free = [torch.randn(6, rows, 64, device="cuda", dtype=precision) for rows in (300, 2048, 2048)]
    reference = [value.double().cpu() for value in free]
    read = top_k_attention(*free, 32).double().cpu()
    scores = reference[0] @ reference[1].transpose(1, 2) / 8
    best, slots = scores.topk(32, dim=-1)
    expected = torch.zeros_like(scores).scatter(-1, slots, best.softmax(dim=-1)) @ reference[2]
    assert (read - expected).norm() / expected.norm() < 0.01
