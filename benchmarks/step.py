"""Pairs per second of a full training step at MRM's sizes, beside the machine's matrix-product rate.

    python benchmarks/step.py [--steps 5] [--batch 8] [--threads 2] [--precisions fp32,bf16] [--compile]

A step is forward, backward and AdamW with all four losses, on one synthetic batch: ViT-B/16, crops of
448 pixels encoded at 224, a quarter of the patches visible, decoder of 4 blocks, BERT of 6 layers of 384,
100 tokens, half of the words hidden, a vocabulary of 30,000, shared memory of 2,048 slots.

Steps and square matrix products alternate in one process, so that both meet the same machine; medians
are reported. The floor is the time that the counted floating point operations (2 per multiply-add,
torch.utils.flop_counter) would take at that rate; `share_of_floor` is floor / measured. One JSON object
per line. On a GPU the clock waits for the device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mpma.data.stand_in import stand_in_batch
from mpma.model.config import (
    AlignmentConfig,
    FusionConfig,
    ImageConfig,
    LossWeights,
    MemoryConfig,
    ReportConfig,
)
from mpma.model.pretraining import build_model
from mpma.training.feature_cache import accumulate_backward

VOCABULARY = 30_000
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Sizes:
    """MRM's sizes, with this model's own defaults for the rest."""

    image: ImageConfig = field(default_factory=ImageConfig)
    report: ReportConfig = field(default_factory=lambda: ReportConfig(max_tokens=100))
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    loss_weights: LossWeights = field(default_factory=LossWeights)


def seconds_of(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, the device's queue empty before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, precision: str, device: str) -> dict[str, object]:
    """One figure: medians over alternating steps and matrix products."""
    sizes = Sizes()
    model = build_model(
        sizes, vocabulary_size=VOCABULARY, pad_id=0, grey_mean=0.5, grey_std=0.25, target_scale=2, seed=0
    ).to(device)
    batch = stand_in_batch(
        arguments.batch,
        sizes.image,
        sizes.report,
        vocabulary_size=VOCABULARY,
        target_scale=2,
        image_mask_ratio=sizes.image.mask_ratio,
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
    trained = torch.compile(model) if arguments.compile else model
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    if precision == "bf16":
        autocast = partial(torch.autocast, device, dtype=torch.bfloat16)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        losses = accumulate_backward(trained, batch, autocast=autocast)
        optimizer.step()
        return losses.total

    side = MATRIX_SIDE[device]
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    products = max(1, round(3e11 / (2 * side**3)))

    def multiply() -> None:
        for _ in range(products):
            torch.mm(left, right)

    with FlopCounterMode(display=False) as counter, autocast():
        model(batch).total.backward()
    operations = counter.get_total_flops()
    step()
    multiply()
    step_seconds, product_seconds = [], []
    for _ in range(arguments.steps):
        product_seconds.append(seconds_of(multiply, device))
        step_seconds.append(seconds_of(step, device))
    seconds = statistics.median(step_seconds)
    rate = products * 2 * side**3 / statistics.median(product_seconds)
    return {
        "benchmark": "step",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "precision": precision,
        "compiled": arguments.compile,
        "threads": torch.get_num_threads(),
        "batch": arguments.batch,
        "steps": arguments.steps,
        "pairs_per_second": round(arguments.batch / seconds, 3),
        "step_seconds": round(seconds, 4),
        "gflop_per_pair": round(operations / arguments.batch / 1e9, 2),
        "achieved_gflop_per_second": round(operations / seconds / 1e9, 1),
        "matmul_gflop_per_second": round(rate / 1e9, 1),
        "share_of_floor": round(operations / seconds / rate, 3),
        "torch": torch.__version__,
    }


def main() -> None:
    """Print one JSON line per precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="measured steps (median)")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--precisions", default="fp32,bf16", help="comma-separated: fp32, bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for precision in arguments.precisions.split(","):
        print(json.dumps(measure(arguments, precision, device)), flush=True)


if __name__ == "__main__":
    main()
