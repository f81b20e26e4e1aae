"""Arithmetic, not a measurement: a whole run over an archive on so many GPUs.

    python -m benchmarks.archive_arithmetic [--pairs 377110] [--epochs 100] [--gpus 8,64]
        [--pairs-per-gpu 256]

The step is that of benchmarks/scaling_arithmetic.py, with its assumptions. The rest are arguments as well:

- `--pairs`: MIMIC-CXR-JPG has 377,110 images (Johnson et al., arXiv 1901.07042), each paired with its report;
- `--bytes-per-pair`: a grey JPEG of 512 pixels a side and its report, 98 kB of it the image that
  benchmarks/decoding.py uses;
- `--decode-seconds`: one core to decode and resize one (1.04 + 0.32 ms there);
- `--storage-bytes`: what one node writes to or reads from the storage per second.

`cores` is what keeps the GPUs fed; `read` is what all nodes read together where no node keeps its share.
A checkpoint is the trained weights and AdamW's two moments in fp32, written by one worker; `checkpoints` is
the share of the run that its writing would take if training waited for it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from benchmarks.scaling_arithmetic import Machine, count, step
from mpma.config import load_config

FIGURES: Final = ()  # arithmetic, nothing measured
HEADINGS: Final = (
    "GPUs",
    "batch",
    "steps",
    "pairs/s",
    "hours",
    "GPU hours",
    "decoding, cores",
    "read, GB/s",
    "checkpoints",
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("recipes/vit_b16.yaml"))
    parser.add_argument("--pairs", type=int, default=377_110)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--gpus", default="8,64", help="comma-separated")
    parser.add_argument("--pairs-per-gpu", type=int, default=256)
    parser.add_argument(
        "--gpu-pairs-per-second",
        type=float,
        default=Machine.gpu_pairs_per_second,
        help="assumption: one alone",
    )
    parser.add_argument("--bytes-per-pair", type=float, default=100e3, help="assumption")
    parser.add_argument("--decode-seconds", type=float, default=1.4e-3, help="assumption: of a core, a pair")
    parser.add_argument("--storage-bytes", type=float, default=1e9, help="assumption: B/s of one node")
    options = parser.parse_args()
    config = load_config(options.config).config
    model = count(config, 30_000)
    machine = Machine(gpu_pairs_per_second=options.gpu_pairs_per_second)
    checkpoint = 3 * 4 * model.trained
    stored = options.pairs * options.bytes_per_pair
    print(
        f"{options.pairs:,} pairs, {options.epochs} epochs: {stored / 1e9:.0f} GB of pairs, "
        f"checkpoints of {checkpoint / 1e9:.1f} GB\n"
    )
    print("| " + " | ".join(HEADINGS) + " |\n|" + " ---: |" * len(HEADINGS))
    for gpus in map(int, options.gpus.split(",")):
        batch = gpus * options.pairs_per_gpu
        rate = (
            gpus * options.gpu_pairs_per_second * step(model, machine, gpus, options.pairs_per_gpu).efficiency
        )
        steps = options.epochs * options.pairs // batch
        seconds = options.epochs * options.pairs / rate
        saved = steps / config.training.checkpoint_every_steps * checkpoint / options.storage_bytes
        cells = [
            str(gpus),
            f"{batch:,}",
            f"{steps:,}",
            f"{rate:,.0f}",
            f"{seconds / 3600:.2f}",
            f"{gpus * seconds / 3600:.1f}",
            f"{rate * options.decode_seconds:.0f}",
            f"{rate * options.bytes_per_pair / 1e9:.1f}",
            f"{saved / seconds:.1%}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
