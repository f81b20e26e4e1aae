"""A full training step at MRM's sizes against the machine's matrix-product rate, and against MRM's own code.

    python -m benchmarks.step [--batch 8] [--threads 2] [--steps 7] [--precisions fp32,bf16] [--compile]

What is timed is `mpma.training.step.training_step` as a run calls it: forward and backward pass with all
four losses, clipping, AdamW, on one synthetic batch: ViT-B/16, crops of 448 pixels encoded at 224, a quarter
of the patches visible, decoder of 4 blocks, BERT of 6 layers of 384, 100 tokens, half of the words hidden, a
vocabulary of 30,000, a shared memory of 2,048 slots. Every report fills its 100 tokens, and the process keeps
freed memory as a worker does (mpma/training/allocator.py).

Decisions:
- steps and square matrix products alternate in one process, so that both meet the same machine;
- the floor of a step is the time that its counted operations (2 per multiply-add of its matrix products,
  torch.utils.flop_counter; tests/model/test_step_operations.py holds the count against hand arithmetic)
  would take at that rate; `share_of_floor` is floor / measured, turn by turn;
- `over_public_mrm` is our pairs per second over those of the published MRM code at equal sizes, each divided
  by the rate of the machine that it was measured on. Ours has all four losses, MRM's its two;
- where bf16 has no instructions of its own it is emulated, a hundred times slower than fp32. One step of one
  pair is then timed, cold, `hardware_bf16` is false, and there is no share. (Runs on a CPU choose fp32.)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import figures
from mpma.config import ExperimentConfig, load_config
from mpma.data.batches import Batch
from mpma.data.stand_in import stand_in_batch
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.training.allocator import keep_freed_memory
from mpma.training.optimizer import build_optimizer
from mpma.training.step import training_step

FIGURES: Final = (
    "step/share_of_floor/*",
    "step/pairs_per_second/*",
    "step/seconds/*",
    "step/matmul_gflop_per_second/*",
    "step/over_public_mrm/*",
)
DURATION: Final = "1 minute"

VOCABULARY: Final = 30_000
SIZES: Final = ("report.max_tokens=100",)
"""MRM's sizes where this model's own defaults are others."""
PUBLIC_MRM: Final = {"fp32": (1.43, 162.0), "bf16": (2.18, 400.0)}
"""(pairs per second, GFLOP/s of matrix products) of the published MRM code with its two losses, batch 8, two
threads, on another machine: measured once, with its own data loading left out."""
_KINDS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
_OWN_INSTRUCTIONS_FROM: Final = 0.2
"""bf16's rate over fp32's; with instructions for bf16 it is 0.5 to 10, emulated a hundredth."""


@dataclass
class Products:
    """Square matrix products of a kind, whose rate is the machine's."""

    left: Tensor
    right: Tensor

    @classmethod
    def of(cls, kind: torch.dtype, device: torch.device, side: int) -> Products:
        """Products of random matrices, warmed up."""
        found = cls(*(torch.randn(side, side, device=device).to(kind) for _ in range(2)))
        found.flop_per_second(1)
        return found

    def flop_per_second(self, count: int) -> float:
        """Floating point operations per second of so many products, measured now."""

        def work() -> None:
            for _ in range(count):
                torch.mm(self.left, self.right)

        return count * 2 * self.left.shape[0] ** 3 / seconds_of(work, self.left.device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass
class Step:
    """A model, an optimiser and a batch, and the step that a run would take with them."""

    config: ExperimentConfig
    model: PretrainingModel
    called: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batch: Batch
    device: torch.device
    precision: str

    def __call__(self) -> object:
        return training_step(
            self.called,
            self.model,
            self.optimizer,
            self.batch,
            self.config,
            step=0,
            rank=0,
            device=self.device,
            precision=self.precision,
        )

    def operations(self) -> int:
        """Floating point operations of its matrix products, forward and backward, as counted by torch."""
        with FlopCounterMode(display=False) as counter:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                total = self.model(self.batch).total
            total.backward()
        return int(counter.get_total_flops())


def build_step(
    batch: int,
    precision: str,
    device: torch.device,
    *,
    compiled: bool = False,
    overrides: tuple[str, ...] = (),
) -> Step:
    """The step at MRM's sizes with this many pairs; `overrides` as after `--set`."""
    config = load_config(None, (*SIZES, f"training.batch_size={max(2, batch)}", *overrides)).config
    model = build_model(
        config, vocabulary_size=VOCABULARY, pad_id=0, grey_mean=0.5, grey_std=0.25, target_scale=2, seed=0
    ).to(device)
    # Between log lines the memory's use is not watched.
    model.watch_memory = False
    called = torch.compile(model) if compiled else model
    optimizer = build_optimizer(model.named_parameters(), model.no_weight_decay_names(), config.training)
    pairs = stand_in_batch(
        batch,
        config.image,
        config.report,
        vocabulary_size=VOCABULARY,
        target_scale=2,
        image_mask_ratio=config.image.mask_ratio,
    )
    return Step(config, model, called, optimizer, pairs.to(device), device, precision)


def measure(
    arguments: argparse.Namespace,
    precision: str,
    device: torch.device,
    tell: Callable[[figures.Figure], None],
) -> None:
    """Alternate and tell the figures of a precision."""
    fp32, kind = (
        Products.of(of, device, 256).flop_per_second(4) for of in (torch.float32, _KINDS[precision])
    )
    own = kind >= _OWN_INSTRUCTIONS_FROM * fp32
    batch, turns = (arguments.batch, 2 if arguments.quick else arguments.steps) if own else (1, 1)
    side = (8192 if device.type == "cuda" else 2048) if own else 256
    products = Products.of(_KINDS[precision], device, side)
    count = max(1, round(products.flop_per_second(1) / (2 * side**3)))  # about a second of them

    step = build_step(batch, precision, device, compiled=arguments.compile)
    operations = step.operations()
    for _ in range(2 if own else 0):
        step()
    rates, seconds = [], []
    for _ in range(turns):
        rates.append(products.flop_per_second(count))
        seconds.append(seconds_of(step, device))
    settings: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": batch,
        "compiled": arguments.compile,
        "gflop_per_pair": round(operations / batch / 1e9, 2),
    }
    if precision == "bf16":
        settings["hardware_bf16"] = own
    variant = precision + ("_compiled" if arguments.compile else "")
    pairs = [batch / taken for taken in seconds]
    floors = [operations / now for now in rates]
    if own:
        tell(figures.ratio(f"step/share_of_floor/{variant}", floors, seconds, settings))
    else:
        why = "bf16 is emulated here, and in some layouts far slower than in others: no rate is a floor"
        tell(figures.blank(f"step/share_of_floor/{variant}", figures.RATIO, why, settings))
    tell(figures.of(f"step/seconds/{variant}", seconds, figures.SECONDS, settings))
    tell(figures.of(f"step/pairs_per_second/{variant}", pairs, "pairs/s", settings))
    tell(
        figures.of(
            f"step/matmul_gflop_per_second/{variant}", [now / 1e9 for now in rates], "GFLOP/s", settings
        )
    )
    if batch == 8 and device.type == "cpu":
        theirs, their_rate = PUBLIC_MRM[precision]
        scaled = [theirs * now / 1e9 / their_rate for now in rates]
        known = {"public_pairs_per_second": theirs, "public_matmul_gflop_per_second": their_rate}
        tell(figures.ratio(f"step/over_public_mrm/{variant}", pairs, scaled, settings | known))
    elif device.type == "cpu":
        why = "bf16 is emulated here" if not own else f"MRM's code was measured with 8 pairs, not {batch}"
        tell(figures.blank(f"step/over_public_mrm/{variant}", figures.RATIO, why, settings))


def main() -> None:
    """Measure every precision that is asked for."""
    parser = figures.options(__doc__)
    parser.add_argument("--steps", type=int, default=7, help="measured steps")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--precisions", default="fp32,bf16", help="comma-separated: fp32, bf16")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    with figures.report("step", arguments) as tell:
        for precision in arguments.precisions.split(","):
            measure(arguments, precision, device, tell)


if __name__ == "__main__":
    main()
