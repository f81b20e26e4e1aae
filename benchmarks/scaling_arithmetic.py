"""Arithmetic, not a measurement: what 8 to 512 GPUs exchange in a step, and what of it can be hidden.

    python -m benchmarks.scaling_arithmetic [--config recipes/vit_b16.yaml] [--pairs-per-gpu 64,256]
        [--gpu-pairs-per-second 4700] [--node-bytes 450e9] [--network-bytes 50e9] [--markdown]

Counts are the model's own: it is built on the meta device, and the bytes of its collective calls follow from
mpma/training/parallel.py and mpma/model/alignment.py. Speeds are assumptions, and arguments:

- `--gpu-pairs-per-second`: what one GPU computes alone, 4,700: 57.8 GFLOP a pair (benchmarks/step.py) at 0.45
  of 600 TFLOP/s. Put the measured figure in its place;
- `--node-bytes`: what a GPU sends per second inside its node (NVLink 4: 900 GB/s for both ways, so 450 GB/s);
- `--network-bytes`: what a network card sends per second, one card a GPU (400 Gb/s: 50 GB/s). Each card has a
  ring of its own, so a node's cards share the bytes that leave it; `--node-gpus 1` is one card a ring;
- `--node-hop-seconds`, `--network-hop-seconds`: latency of a ring's hop inside a node and between nodes;
- `--backward-share`: of a step's compute; gradients hide behind it.

A ring over n GPUs makes 2 (n-1)/n of the bytes pass each GPU in an all-reduce, (n-1)/n of the result in an
all-gather or reduce-scatter; its slowest link decides: the node's as long as there is one node, the network
cards above. It goes round once for a gather and twice for an all-reduce. Trees have fewer hops.

- DDP: an all-reduce of the gradients (fp32), overlapped with the backward pass but for the last bucket.
- Features: an all-gather of [pairs, 2 x alignment width] fp32 and of two hashes of 8 bytes, a reduce-scatter
  of the features' gradients, an all-reduce of one count. They stand between forward and backward, unhidden. A
  GPU gives the same bytes whatever their number, and receives everybody's; the products of its own features
  with everybody's are counted as `contrast`.
- Local alignment: nothing, where a GPU's share is whole groups (alignment.group_size divides it).
- FSDP2: all-gather of the encoders' blocks before forward and again before backward (bf16), of the rest once
  (fp32), reduce-scatter of all gradients (fp32); overlapped but for the first gathers and the last scatters.
- Constant for any number of GPUs: the sample order and the draws (hashes of own positions), the log (three
  all-reduces of a few bytes every log_every_steps, counted with the gathers).

`efficiency` is compute / (compute + what is not hidden); `bare` is without any overlap.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FIGURES: Final = ()  # arithmetic, nothing measured
WORKERS: Final = (8, 16, 32, 64, 128, 256, 512)
BUCKET_BYTES: Final = 25 * 2**20
"""DDP's own default; the last bucket's reduction cannot be hidden."""
HASH_BYTES: Final = 2 * 8
FP32: Final = 4
BF16: Final = 2


@dataclass(frozen=True)
class Model:
    """Counts that follow from a recipe."""

    trained: int
    """Parameters with a gradient."""
    blocks: int
    """Of them, those of the encoders' blocks: what FSDP2 shards block by block."""
    largest_block: int
    alignment_width: int
    group_size: int
    log_every_steps: int


@dataclass(frozen=True)
class Machine:
    """Assumed speeds."""

    gpu_pairs_per_second: float = 4_700.0
    gpu_flops: float = 50e12
    """fp32 operations per second of the contrast's products."""
    node_gpus: int = 8
    node_bytes: float = 450e9
    network_bytes: float = 50e9
    node_hop_seconds: float = 1e-6
    network_hop_seconds: float = 5e-6
    backward_share: float = 2 / 3

    def link(self, workers: int) -> float:
        """Bytes per second of the ring's slowest link."""
        out = self.node_gpus * self.network_bytes
        return self.node_bytes if workers <= self.node_gpus else min(self.node_bytes, out)

    def round_trip(self, workers: int) -> float:
        """Seconds of latency once round the ring: every node is left once, where there are several."""
        nodes = -(-workers // self.node_gpus)
        out = nodes if nodes > 1 else 0
        return out * self.network_hop_seconds + (workers - 1 - out) * self.node_hop_seconds

    def all_reduce(self, size: float, workers: int) -> float:
        """Seconds."""
        share = (workers - 1) / workers
        return 2 * share * size / self.link(workers) + 2 * self.round_trip(workers)

    def all_gather(self, size: float, workers: int) -> float:
        """Seconds until each has all `size` bytes; a reduce-scatter takes the same."""
        share = (workers - 1) / workers
        return share * size / self.link(workers) + self.round_trip(workers)


@dataclass(frozen=True)
class Step:
    """A step of one GPU among `workers`."""

    workers: int
    gradient_bytes: float
    """That pass a GPU in the all-reduce."""
    own_feature_bytes: float
    """That a GPU gives; the same for any number of workers."""
    feature_bytes: float
    """That a GPU receives in the gathers, and again in the reduce-scatter's gradient."""
    sharded_bytes: float
    """That pass a GPU with FSDP2."""
    compute: float
    """Seconds of all below."""
    gradients: float
    features: float
    contrast: float
    log: float
    sharded: float
    exposed: float
    """Of `gradients`, what the backward pass cannot hide."""
    sharded_exposed: float

    @property
    def efficiency(self) -> float:
        """With DDP, overlapped."""
        return self.compute / (self.compute + self.exposed + self.features + self.contrast + self.log)

    @property
    def bare_efficiency(self) -> float:
        """With DDP, nothing overlapped."""
        return self.compute / (self.compute + self.gradients + self.features + self.contrast + self.log)

    @property
    def sharded_efficiency(self) -> float:
        """With FSDP2, overlapped."""
        waits = self.sharded_exposed + self.features + self.contrast + self.log
        return self.compute / (self.compute + waits)


def step(model: Model, machine: Machine, workers: int, pairs: int) -> Step:
    """The arithmetic of the module's docstring."""
    ring = (workers - 1) / workers
    compute = pairs / machine.gpu_pairs_per_second
    backward = compute * machine.backward_share
    gradient = model.trained * FP32
    gradients = machine.all_reduce(gradient, workers)
    last = machine.all_reduce(min(BUCKET_BYTES, gradient), workers)
    row = 2 * model.alignment_width * FP32
    gathered = workers * pairs * (row + HASH_BYTES)
    features = (
        machine.all_gather(workers * pairs * row, workers) * 2
        + machine.all_gather(workers * pairs * HASH_BYTES, workers)
        + machine.all_reduce(8, workers)
    )
    # Own images with all reports and own reports with all images, forward and twice in backward; the work of
    # one GPU alone is in its pairs per second already.
    others = pairs * (workers - 1)
    contrast = 2 * 3 * 2 * pairs * others * model.alignment_width / machine.gpu_flops
    log = 3 * machine.all_reduce(32, workers) / model.log_every_steps
    blocks, rest = model.blocks, model.trained - model.blocks
    weights = 2 * blocks * BF16 + rest * FP32
    sharded = (
        2 * machine.all_gather(blocks * BF16, workers)
        + machine.all_gather(rest * FP32, workers)
        + machine.all_gather(gradient, workers)
    )
    # The first block's weights (with the root's) before anything is computed, the last gradients after all.
    edges = machine.all_gather((rest * FP32 + model.largest_block * BF16), workers) + machine.all_gather(
        rest * FP32 + model.largest_block * FP32, workers
    )
    return Step(
        workers=workers,
        gradient_bytes=2 * ring * gradient,
        own_feature_bytes=pairs * (row + HASH_BYTES),
        feature_bytes=ring * gathered,
        sharded_bytes=ring * (weights + gradient),
        compute=compute,
        gradients=gradients,
        features=features,
        contrast=contrast,
        log=log,
        sharded=sharded,
        exposed=max(last, gradients - backward),
        sharded_exposed=max(edges, sharded - compute),
    )


def count(config: Any, vocabulary_size: int) -> Model:
    """The counts of a recipe's model, built without memory."""
    import torch

    from mpma.model.pretraining import build_model

    image = config.image.model_copy(update={"pretrained": None})
    bare = config.model_copy(update={"image": image})
    scale = 2 if config.image.target_scale == "auto" else config.image.target_scale
    with torch.device("meta"):
        model = build_model(
            bare,
            vocabulary_size=vocabulary_size,
            pad_id=0,
            grey_mean=0.5,
            grey_std=0.25,
            target_scale=scale,
        )

    def trained(module: Any) -> int:
        return sum(value.numel() for value in module.parameters() if value.requires_grad)

    blocks = [*model.image_encoder.vit.blocks, *model.report_encoder.bert.encoder.layer]
    return Model(
        trained=trained(model),
        blocks=sum(map(trained, blocks)),
        largest_block=max(map(trained, blocks)),
        alignment_width=config.alignment.width,
        group_size=config.alignment.group_size,
        log_every_steps=config.training.log_every_steps,
    )


HEADINGS: Final = (
    "GPUs",
    "gradients, MB",
    "gathers, MB",
    "FSDP2, MB",
    "compute, ms",
    "all-reduce, ms",
    "not hidden, ms",
    "gathers, ms",
    "contrast, ms",
    "efficiency",
    "bare",
    "FSDP2",
)


def rows(steps: Iterable[Step]) -> list[list[str]]:
    """The table's cells."""
    return [
        [
            str(one.workers),
            *(f"{size / 1e6:.1f}" for size in (one.gradient_bytes, one.feature_bytes, one.sharded_bytes)),
            *(f"{1e3 * time:.1f}" for time in (one.compute, one.gradients, one.exposed, one.features)),
            f"{1e3 * one.contrast:.2f}",
            *(f"{value:.3f}" for value in (one.efficiency, one.bare_efficiency, one.sharded_efficiency)),
        ]
        for one in steps
    ]


def table(steps: Iterable[Step], markdown: bool) -> str:
    """The table as text."""
    lines = rows(steps)
    if markdown:
        bar = ["---:"] * len(HEADINGS)
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (list(HEADINGS), bar, *lines))
    widths = [max(len(heading), 7) for heading in HEADINGS]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in (list(HEADINGS), *lines)
    )


def main() -> None:
    from mpma.config import load_config

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("recipes/vit_b16.yaml"))
    parser.add_argument("--vocabulary-size", type=int, default=30_000)
    parser.add_argument("--pairs-per-gpu", default="64,256", help="of one step, comma-separated")
    parser.add_argument(
        "--gpu-pairs-per-second",
        type=float,
        default=Machine.gpu_pairs_per_second,
        help="assumption: one alone",
    )
    parser.add_argument(
        "--gpu-flops", type=float, default=Machine.gpu_flops, help="assumption: fp32 of the contrast"
    )
    parser.add_argument("--node-gpus", type=int, default=Machine.node_gpus)
    parser.add_argument(
        "--node-bytes", type=float, default=Machine.node_bytes, help="assumption: B/s in a node"
    )
    parser.add_argument(
        "--network-bytes", type=float, default=Machine.network_bytes, help="assumption: B/s between nodes"
    )
    parser.add_argument("--node-hop-seconds", type=float, default=Machine.node_hop_seconds, help="assumption")
    parser.add_argument(
        "--network-hop-seconds", type=float, default=Machine.network_hop_seconds, help="assumption"
    )
    parser.add_argument(
        "--backward-share", type=float, default=Machine.backward_share, help="of a step's compute"
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    config = load_config(options.config).config
    model = count(config, options.vocabulary_size)
    machine = Machine(
        options.gpu_pairs_per_second,
        options.gpu_flops,
        options.node_gpus,
        options.node_bytes,
        options.network_bytes,
        options.node_hop_seconds,
        options.network_hop_seconds,
        options.backward_share,
    )
    print(
        f"Arithmetic for {options.config}: {model.trained / 1e6:.1f} M trained parameters, "
        f"{model.blocks / 1e6:.1f} M of them in the encoders' blocks."
    )
    for pairs in map(int, options.pairs_per_gpu.split(",")):
        given = pairs * (2 * model.alignment_width * FP32 + HASH_BYTES)
        local = "sends nothing" if pairs % model.group_size == 0 else "straddles GPUs, which is not counted"
        print(
            f"\n{pairs} pairs a GPU at {machine.gpu_pairs_per_second:g} pairs/s; a GPU gives "
            f"{given / 1e3:.0f} kB of features; the local alignment {local}.\n"
        )
        print(table((step(model, machine, workers, pairs) for workers in WORKERS), options.markdown))


if __name__ == "__main__":
    main()
