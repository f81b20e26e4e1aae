"""What a GPU makes of a step: pairs per second, share of its own bf16 rate, memory, largest batch. No Ray.

    python -m benchmarks.gpu [--batch 1024] [--steps 10] [--out benchmarks/results/gpu.jsonl]

The model is that of recipes/vit_b16.yaml (448 px reconstructed, 224 encoded), all four losses, bf16
autocast, fused AdamW, on one synthetic batch whose reports fill all tokens; the vocabulary has
30,000 entries. Needs torch, timm, transformers, pyarrow, pydantic. Without a GPU every figure
is left blank.

- The floor: the floating point operations of a step, counted on the model's plain form without any
  recomputation, at the rate of a square bf16 matrix product of 8,192 that is measured before and after
  each series in the same process; `share_of_floor` is floor / measured.
- `eager` and `compiled` run one after the other, steps in a row between two waits for the device.
- `loss_error` and `gradient_error`: the same 8 pairs through the model on the CPU in fp32 and on the GPU in
  bf16; |difference| / |reference| of the worst of the four terms, and of all gradients as one vector.
- `largest_batch`: the largest multiple of 64 whose eager step fits, whole and with activations recomputed.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import figures
from mpma.config import load_config
from mpma.data.batches import Batch, concatenate
from mpma.data.stand_in import stand_in_batch
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.training.compiled import CompiledModel
from mpma.training.feature_cache import accumulate_backward

FIGURES: Final = (
    "gpu/matmul_tflop_per_second",
    "gpu/copy_gigabytes_per_second",
    "gpu/loss_error/bf16",
    "gpu/gradient_error/bf16",
    "gpu/loss_error/fp32",
    "gpu/gradient_error/fp32",
    "gpu/pairs_per_second/*",
    "gpu/share_of_floor/*",
    "gpu/peak_memory_gib/*",
    "gpu/compile_seconds",
    "gpu/largest_batch/*",
)
RECIPE: Final = Path("recipes/vit_b16.yaml")
VOCABULARY: Final = 30_000
COUNTED_PAIRS: Final = 8
COMPARED_PAIRS: Final = 8
_MATRIX_SIDE: Final = 8192
_BATCH_UNIT: Final = 64


@dataclass(frozen=True)
class Setting:
    """The model's configuration and where it runs."""

    config: Any
    device: str
    vocabulary: int = VOCABULARY

    def model(self, device: str | None = None) -> PretrainingModel:
        """The model, the same on every device."""
        made = build_model(
            self.config,
            vocabulary_size=self.vocabulary,
            pad_id=0,
            grey_mean=0.5,
            grey_std=0.25,
            target_scale=2,
            seed=0,
        )
        # Between log lines the memory is not watched, nor is it here.
        made.watch_memory = False
        return made.to(device or self.device)

    def batch(self, pairs: int, device: str | None = None) -> Batch:
        """Synthetic pairs, the same on every device."""
        made = stand_in_batch(
            pairs,
            self.config.image,
            self.config.report,
            vocabulary_size=self.vocabulary,
            target_scale=2,
            image_mask_ratio=self.config.image.mask_ratio,
        )
        return made.to(device or self.device)

    def autocast(self) -> Callable[[], AbstractContextManager[object]]:
        """bf16 products."""
        return partial(torch.autocast, self.device, torch.bfloat16)


def operations_per_pair(setting: Setting) -> float:
    """Floating point operations of a pair's forward and backward pass, 2 per multiply-add.

    Counted on the CPU, on few enough pairs that nothing is computed twice; the local alignment's share
    grows with its group up to alignment.group_size, so this is a little too low.
    """
    model, batch = setting.model("cpu"), setting.batch(COUNTED_PAIRS, "cpu")
    # The plain form of attention: the counter does not know every device's fused one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(batch).total.backward()
    return counter.get_total_flops() / COUNTED_PAIRS


Outcome = tuple[dict[str, float], Tensor]
"""Loss terms by name, and all gradients in one fp32 vector on the CPU."""


def outcome(setting: Setting, device: str, autocast: Callable[[], AbstractContextManager[object]]) -> Outcome:
    """What a step over the compared pairs gives on a device."""
    model = setting.model(device)
    losses = accumulate_backward(model, setting.batch(COMPARED_PAIRS, device), autocast=autocast)
    trained = (value.grad for value in model.parameters() if value.grad is not None)
    gradients = torch.cat([gradient.float().cpu().flatten() for gradient in trained])
    return {name: float(term) for name, term in losses.terms().items()}, gradients


def errors(found: Outcome, reference: Outcome) -> tuple[float, float]:
    """(worst relative error of a loss term, relative error of all gradients)."""
    (terms, gradients), (expected, exact) = found, reference
    worst = max(abs(terms[name] - value) / abs(value) for name, value in expected.items())
    return worst, float((gradients - exact).norm() / exact.norm())


class Stepper:
    """A model, its optimiser and a batch."""

    def __init__(
        self, setting: Setting, pairs: int, *, compiled: bool = False, recompute: bool = False
    ) -> None:
        self.setting = setting
        self.model = setting.model()
        self.model.set_gradient_checkpointing(recompute)
        self.batch = setting.batch(pairs)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
        self.called: nn.Module = CompiledModel(self.model) if compiled else self.model

    def step(self) -> Tensor:
        """One step, not waited for."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = accumulate_backward(self.called, self.batch, autocast=self.setting.autocast())
        self.optimizer.step()
        return losses.total

    def seconds(self, steps: int) -> float:
        """Seconds of a step, over `steps` in a row."""
        waited(self.setting.device)
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        waited(self.setting.device)
        return (time.perf_counter() - began) / steps


def waited(device: str) -> None:
    """Return once the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def freed() -> None:
    """Give back what no variable holds."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def matmul_rate(repeats: int = 20) -> float:
    """Operations per second of a square bf16 product of random matrices."""
    left, right = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, device="cuda", dtype=torch.bfloat16) for _ in "lr")
    for _ in range(3):
        torch.mm(left, right)
    waited("cuda")
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    waited("cuda")
    return repeats * 2 * _MATRIX_SIDE**3 / (time.perf_counter() - began)


def copy_rate(size: int = 2**32, repeats: int = 10) -> float:
    """Bytes read and written per second of a copy within the device's memory."""
    source = torch.empty(size, device="cuda", dtype=torch.uint8).random_(0, 256)
    target = torch.empty_like(source)
    target.copy_(source)
    waited("cuda")
    began = time.perf_counter()
    for _ in range(repeats):
        target.copy_(source)
    waited("cuda")
    return 2 * size * repeats / (time.perf_counter() - began)


def fits(stepper: Stepper, unit: Batch, pairs: int) -> bool:
    """Whether two steps of that many pairs (so many copies of `unit`) find memory."""
    try:
        stepper.batch = concatenate([unit] * (pairs // len(unit)))
        stepper.seconds(2)
    except torch.OutOfMemoryError:
        return False
    finally:
        stepper.batch = unit
        stepper.optimizer.zero_grad(set_to_none=True)
        freed()
    return True


def largest_batch(fitting: Callable[[int], bool], unit: int = _BATCH_UNIT, most: int = 2**14) -> int:
    """The largest multiple of `unit` up to `most` that fits, to an eighth; 0 where one unit does not."""
    size = unit
    if not fitting(size):
        return 0
    while size < most and fitting(2 * size):
        size *= 2
    step = max(unit, size // 4)
    while step >= max(unit, size // 8):
        if size + step <= most and fitting(size + step):
            size += step
        step //= 2
    return size


def measure_way(
    setting: Setting,
    way: str,
    pairs: int,
    operations: float,
    arguments: argparse.Namespace,
    tell: Callable[[figures.Figure], None],
) -> list[float]:
    """The figures of one way of running a step; returns the rates of products before and after."""
    freed()
    stepper = Stepper(setting, pairs, compiled=way == "compiled")
    began = time.perf_counter()
    stepper.seconds(3)
    warm_up = time.perf_counter() - began
    torch.cuda.reset_peak_memory_stats()
    rates = [matmul_rate()]
    seconds = [stepper.seconds(arguments.steps) for _ in range(arguments.repeats)]
    rates.append(matmul_rate())
    peak = torch.cuda.max_memory_allocated() / 2**30
    used = {"batch": pairs, "tokens": setting.config.report.max_tokens, "precision": "bf16"}
    counted = used | {"gflop_per_pair": round(operations / 1e9, 2)}
    floor = operations * pairs / (sum(rates) / len(rates))
    shares = [floor / one for one in seconds]
    tell(figures.of(f"gpu/pairs_per_second/{way}", [pairs / one for one in seconds], "pairs/s", used))
    tell(figures.of(f"gpu/share_of_floor/{way}", shares, figures.RATIO, counted))
    tell(figures.of(f"gpu/peak_memory_gib/{way}", [peak], "GiB", used))
    if way == "compiled":
        tell(figures.of("gpu/compile_seconds", [warm_up], "s", used | {"steps": 3}))
    return rates


def measure(setting: Setting, arguments: argparse.Namespace, tell: Callable[[figures.Figure], None]) -> None:
    """All figures of a GPU."""
    operations = operations_per_pair(setting)
    rates = [matmul_rate()]
    tell(figures.of("gpu/copy_gigabytes_per_second", [copy_rate() / 1e9], "GB/s"))
    freed()
    reference = outcome(setting, "cpu", nullcontext)
    for precision, autocast in (("bf16", setting.autocast()), ("fp32", nullcontext)):
        loss_error, gradient_error = errors(outcome(setting, setting.device, autocast), reference)
        few = {"pairs": COMPARED_PAIRS, "reference": "fp32 on the CPU"}
        tell(figures.of(f"gpu/loss_error/{precision}", [loss_error], figures.FRACTION, few))
        tell(figures.of(f"gpu/gradient_error/{precision}", [gradient_error], figures.FRACTION, few))
    for way in ("eager", "compiled"):
        pairs = arguments.batch
        while pairs >= _BATCH_UNIT:
            try:
                rates += measure_way(setting, way, pairs, operations, arguments, tell)
                break
            except torch.OutOfMemoryError:
                pairs //= 2
            freed()
    tell(figures.of("gpu/matmul_tflop_per_second", [rate / 1e12 for rate in rates], "TFLOP/s"))
    torch.compiler.reset()
    freed()
    stepper = Stepper(setting, _BATCH_UNIT)
    unit = stepper.batch
    for name, recompute in (("whole", False), ("recomputed", True)):
        stepper.model.set_gradient_checkpointing(recompute)
        most = largest_batch(partial(fits, stepper, unit))
        tell(figures.of(f"gpu/largest_batch/{name}", [most], "pairs", {"way": "eager", "unit": _BATCH_UNIT}))


def main() -> None:
    """Measure, or say that there is nothing to measure on."""
    parser = figures.options(__doc__)
    parser.add_argument("--batch", type=int, default=1024, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=5, help="steps in a row")
    parser.add_argument("--repeats", type=int, default=4, help="how often")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.steps, arguments.repeats = 128, 2, 2
    with figures.report("gpu", arguments) as tell:
        if not torch.cuda.is_available():
            for name in FIGURES:
                for variant in ("eager", "compiled") if name.endswith("*") else ("",):
                    if "largest" not in name or variant == "eager":
                        tell(figures.blank(name.replace("*", variant), "", "no GPU at hand"))
            return
        config = load_config(RECIPE, ["image.pretrained=null"]).config
        measure(Setting(config, "cuda"), arguments, tell)


if __name__ == "__main__":
    main()
