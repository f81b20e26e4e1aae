"""Attention of short sequences: the numbers and gradients of torch's own; the GPU's kernels, interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from model_samples import small_model
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional

import mpma
from mpma.model import attention as short
from mpma.model.attention import (
    SelfAttention,
    attention,
    cross_attention,
    self_attention,
    with_short_attention,
)

B, H, T, C, F = 2, 3, 5, 7, 4


def _inputs() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    # As a projection gives them: views of one tensor, heads inside of positions.
    shapes = ((B, T, H, F), (B, C, H, F), (B, C, H, F))
    drawn = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return [each.transpose(1, 2).requires_grad_(True) for each in drawn]


@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_are_those_of_torchs_attention(masked: bool) -> None:
    ours, theirs = _inputs(), _inputs()
    real = torch.arange(C)[None] < torch.tensor([[C], [3]])
    mask = real[:, None, None, :] if masked else None
    weight = torch.randn(B, H, T, F, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    read = attention(*ours, mask)
    expected = functional.scaled_dot_product_attention(*theirs, attn_mask=mask)
    torch.testing.assert_close(read, expected, rtol=1e-12, atol=1e-12)
    (read * weight).sum().backward()
    (expected * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)
    if masked:
        assert ours[1].grad is not None
        assert not ours[1].grad[1, :, 3:].any(), "padding gets no gradient"


def test_bf16_under_autocast_is_computed_in_fp32_and_rounded_once() -> None:
    wide = [each.detach().bfloat16() for each in _inputs()]
    ours = [each.clone().requires_grad_(True) for each in wide]
    theirs = [each.float().requires_grad_(True) for each in wide]
    with torch.autocast("cpu", torch.bfloat16):
        read = attention(*ours)
    expected = functional.scaled_dot_product_attention(*theirs)
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read.float(), expected, rtol=2**-8, atol=1e-6)
    (read.float() ** 2).sum().backward()
    (expected**2).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == torch.bfloat16
        # What comes back is rounded once on its way in and once on its way out.
        torch.testing.assert_close(mine.grad.float(), other.grad, rtol=2**-6, atol=2**-7)


def test_long_sequences_go_to_torchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def spied(*arguments: Tensor | None) -> Tensor:
        used.append(1)
        queries = arguments[0]
        assert queries is not None
        return queries

    monkeypatch.setattr(short._ShortAttention, "apply", spied)
    attention(*_inputs())
    assert used == [1]
    monkeypatch.setattr(short, "_LONGEST", C - 1)
    attention(*_inputs())
    assert used == [1]


def test_a_block_of_timm_keeps_its_parameters_and_its_numbers() -> None:
    source = Attention(12, num_heads=3, qkv_bias=True).double()
    tokens = torch.randn(B, T, 12, dtype=torch.float64)
    expected = source(tokens)
    holder = torch.nn.ModuleDict({"attn": source})
    with_short_attention(holder)
    assert isinstance(holder["attn"], SelfAttention)
    assert holder["attn"].state_dict().keys() == source.state_dict().keys()
    torch.testing.assert_close(holder["attn"](tokens), expected, rtol=1e-12, atol=1e-12)


def test_attention_with_dropout_or_norms_of_queries_stays_timms() -> None:
    for unusual in (
        Attention(12, num_heads=3, attn_drop=0.1),
        Attention(12, num_heads=3, qk_norm=True, norm_layer=torch.nn.LayerNorm),
    ):
        holder = torch.nn.ModuleDict({"attn": unusual})
        with_short_attention(holder)
        assert holder["attn"] is unusual


def test_the_model_holds_no_other_self_attention_of_timm() -> None:
    assert not [name for name, module in small_model().named_modules() if isinstance(module, Attention)]


def test_packed_attention_is_attention_of_its_parts() -> None:
    draw = torch.Generator().manual_seed(0)
    qkv, kv = torch.randn(B, T, 3, H, F, generator=draw), torch.randn(B, C, 2, H, F, generator=draw)
    mask = torch.arange(T)[None] < torch.tensor([[T], [2]])
    queries, keys, values = (part.transpose(1, 2) for part in qkv.unbind(2))
    expected = attention(queries, keys, values, mask[:, None, None, :]).transpose(1, 2).flatten(2)
    assert torch.equal(self_attention(qkv, mask), expected)
    keys, values = (part.transpose(1, 2) for part in kv.unbind(2))
    expected = attention(queries, keys, values).transpose(1, 2).flatten(2)
    assert torch.equal(cross_attention(qkv[:, :, 0], kv), expected)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_of_the_gpu_are_exact_attention_forward_and_backward() -> None:
    script = Path(__file__).with_name("interpreted_attention.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(mpma.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines.pop() == {"traced": True}
    assert len(lines) == 14
    for line in lines:
        dtype = line["case"][0]
        tolerance = {"torch.float32": 2e-6, "torch.float16": 1e-3}[dtype]
        assert max(line["errors"]) < tolerance, line
        assert line["finite"], line
        assert set(line["dtypes"]) == {dtype}, line
