"""The GPU's attention kernels in Triton's interpreter on the CPU: their errors, one JSON line a case.

    TRITON_INTERPRET=1 python interpreted_attention.py

In fp32 and in fp16, which rounds where bf16 does (the interpreter multiplies no bf16).
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from mpma.model import attention_kernels

# Pairs, queries, keys (None: self-attention), heads, width, whether keys are masked.
CASES = (
    (2, 50, None, 2, 64, False),
    (1, 197, None, 1, 64, False),
    (2, 100, None, 2, 64, True),
    (2, 17, None, 1, 32, True),
    (1, 65, None, 1, 128, True),
    (2, 100, 50, 1, 64, False),
    (1, 1, 131, 1, 32, False),
)


def _exact(inputs: list[Tensor], mask: Tensor | None) -> Tensor:
    """Softmax attention in float64; zeros where no key may be read."""
    q, k, v = inputs[0].unbind(2) if len(inputs) == 1 else (inputs[0], *inputs[1].unbind(2))
    scores = torch.einsum("bthf,bchf->bhtc", q, k) * q.shape[-1] ** -0.5
    if mask is None:
        return torch.einsum("bhtc,bchf->bthf", scores.softmax(-1), v).flatten(2)
    alive = mask.any(dim=1)
    scores = scores.masked_fill(~(mask | ~alive[:, None])[:, None, None, :], -torch.inf)
    read = torch.einsum("bhtc,bchf->bthf", scores.softmax(-1), v).flatten(2)
    return read * alive[:, None, None]


def _error(found: Tensor, exact: Tensor) -> float:
    return float(((found.double() - exact).norm() / exact.norm().clamp_min(1e-3)).detach())


def _case(
    dtype: torch.dtype, pairs: int, queries: int, keys: int | None, heads: int, width: int, masked: bool
) -> dict[str, object]:
    shapes: list[tuple[int, ...]] = [(pairs, queries + 1, 3, heads, width)]
    if keys is not None:
        shapes = [(pairs, queries + 1, heads, width), (pairs, keys + 1, 2, heads, width)]
    # One row more than is used: pairs do not lie side by side.
    inputs = [torch.randn(shape).to(dtype)[:, :-1].requires_grad_() for shape in shapes]
    mask = None
    if masked:
        mask = torch.rand(pairs, queries) < 0.6
        mask[0, 0], mask[1:] = True, False
    if keys is None:
        read = attention_kernels.self_attention_on_gpu(inputs[0], mask)
    else:
        read = attention_kernels.cross_attention_on_gpu(*inputs)
    gradient = torch.randn(read.shape).to(dtype)
    gradients = torch.autograd.grad(read, inputs, gradient)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = _exact(exact_inputs, mask)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, gradient.double())
    return {
        "case": [str(dtype), pairs, queries, keys, heads, width, masked],
        "errors": [_error(a, b) for a, b in zip((read, *gradients), (exact, *exact_gradients), strict=True)],
        "finite": all(bool(tensor.isfinite().all()) for tensor in (read, *gradients)),
        "dtypes": [str(tensor.dtype) for tensor in (read, *gradients)],
    }


def main() -> None:
    """All cases in both dtypes, and what the compiler's tracing makes of the operators."""
    for name in ("self_attention", "self_attention_backward", "cross_attention", "cross_attention_backward"):
        operator = getattr(attention_kernels, f"_{name}")
        operator.register_kernel("cpu")(operator._init_fn)
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16):
        for case in CASES:
            print(json.dumps(_case(dtype, *case)), flush=True)
    qkv = torch.randn(2, 9, 3, 1, 32, requires_grad=True)
    mask = torch.ones(2, 9, dtype=torch.bool)
    kv = torch.randn(2, 5, 2, 1, 32, requires_grad=True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(attention_kernels._self_attention, (qkv, mask), test_utils=checks)
    torch.library.opcheck(attention_kernels._self_attention, (qkv, None), test_utils=checks)
    torch.library.opcheck(attention_kernels._cross_attention, (qkv[:, :, 0], kv), test_utils=checks)
    print(json.dumps({"traced": True}))


if __name__ == "__main__":
    main()
