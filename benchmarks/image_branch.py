"""Our image branch against the masked autoencoder of transformers, each in its own process, in turns.

    python -m benchmarks.image_branch [--batch 8] [--threads 2] [--steps 9] [--kept-memory-for-all]

Both train a ViT-B/16 at 224 pixels with three quarters of the patches hidden and a decoder of 8 blocks of
512 with 16 heads, from one batch of normalised fp32 pixels: draw which patches are hidden, encode the visible
ones, decode all, mean squared error over the hidden ones, backward pass, fused AdamW. Sizes, masking,
optimiser, dtype and threads are the same. One process computes while the others wait. Ours keeps the memory
that its steps free, as every program of ours does (mpma/training/allocator.py); theirs runs as torch does,
unless `--kept-memory-for-all` shows what is left of the difference then.

- `equal_maths`: ViTMAEForPreTraining with one channel and standardised target patches. Parameters are equal
  one for one; the operations differ by what it computes and throws away (patch embedding of hidden patches,
  predictions for visible ones), which its settings show as GFLOP per pair.
- `grey`: ViTMAEForPreTraining as its configuration comes, for RGB: three times the pixels in and out, targets
  not standardised. Ours is the same as above, one channel with standardised targets.

A ratio is their seconds over ours, so above 1 ours is faster.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from benchmarks import figures
from benchmarks.step import seconds_of
from mpma.model.config import ImageConfig
from mpma.model.image import (
    ImageDecoder,
    ImageEncoder,
    patchify,
    reconstruction_loss,
    standardised_patches,
)
from mpma.model.masking import take_patches
from mpma.training.allocator import keep_freed_memory

FIGURES: Final = ("image_branch/over_vit_mae/*", "image_branch/seconds/*")
DURATION: Final = "2 minutes"

_EPS: Final = 1e-6
"""Under the root of a target patch's variance, as ViTMAE has it."""


class OurBranch(nn.Module):
    """Encoder, decoder and loss as the whole model composes them, from pixels to a scalar."""

    def __init__(self, image: ImageConfig) -> None:
        super().__init__()
        self.encoder = ImageEncoder(image)
        self.decoder = ImageDecoder(image, encoder_width=self.encoder.width, target_side=image.patch_size)
        self.image = image
        self.visible = round(image.patches * (1 - image.mask_ratio))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised fp32 [B,1,S,S] -> the reconstruction loss."""
        order = torch.rand(pixels.shape[0], self.image.patches, device=pixels.device).argsort(1)
        tokens = self.encoder(pixels, order[:, : self.visible])
        target = take_patches(patchify(pixels, self.image.patch_size), order[:, self.visible :])
        return reconstruction_loss(self.decoder(tokens, order), standardised_patches(target, _EPS))


class TheirBranch(nn.Module):
    """ViTMAEForPreTraining, its loss alone."""

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__()
        self.model = ViTMAEForPreTraining(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised fp32 [B,C,S,S] -> the reconstruction loss."""
        loss: Tensor = self.model(pixels).loss
        return loss


def our_image(their: ViTMAEConfig) -> ImageConfig:
    """The sizes of a ViTMAE configuration in ours."""
    return ImageConfig(
        size=their.image_size,
        patch_size=their.patch_size,
        width=their.hidden_size,
        layers=their.num_hidden_layers,
        heads=their.num_attention_heads,
        mask_ratio=their.mask_ratio,
        decoder_width=their.decoder_hidden_size,
        decoder_layers=their.decoder_num_hidden_layers,
        decoder_heads=their.decoder_num_attention_heads,
    )


@dataclass
class Trained:
    """A branch with its optimiser and its batch."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    pixels: Tensor

    @classmethod
    def of(cls, module: nn.Module, pixels: Tensor) -> Trained:
        """With AdamW over what is trained."""
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return cls(module, torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.95), fused=True), pixels)

    def step(self) -> None:
        """Forward, backward, AdamW."""
        self.optimizer.zero_grad(set_to_none=True)
        self.module(self.pixels).backward()
        self.optimizer.step()

    def facts(self) -> dict[str, Any]:
        """Trained parameters, and counted operations of the matrix products per pair."""
        with FlopCounterMode(display=False) as counter:
            self.module(self.pixels).backward()
        parameters = sum(each.numel() for each in self.module.parameters() if each.requires_grad)
        per_pair = counter.get_total_flops() / self.pixels.shape[0] / 1e9
        return {"parameters": parameters, "gflop_per_pair": round(per_pair, 3)}


NAMES: Final = ("ours", "vit_mae_one_channel", "vit_mae_rgb")


def branch_of(name: str, batch: int) -> Trained:
    """One of `NAMES` with a batch of noise."""
    grey, colour = ViTMAEConfig(num_channels=1, norm_pix_loss=True), ViTMAEConfig()
    side = grey.image_size
    if name == "vit_mae_rgb":
        return Trained.of(TheirBranch(colour).train(), torch.randn(batch, 3, side, side))
    pixels = torch.randn(batch, 1, side, side)
    module = OurBranch(our_image(grey)) if name == "ours" else TheirBranch(grey)
    return Trained.of(module.train(), pixels)


def take_turns(connection: Connection, name: str, batch: int, threads: int, kept: bool) -> None:
    """A process: sends its facts, then the seconds of one step for every word it gets, until it gets None."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if kept:
        keep_freed_memory()
    branch = branch_of(name, batch)
    connection.send(branch.facts())
    while connection.recv() is not None:
        connection.send(seconds_of(branch.step, torch.device("cpu")))


def measure(arguments: argparse.Namespace, tell: Any) -> None:
    """Alternate the three and tell their figures."""
    turns = 2 if arguments.quick else arguments.steps
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    context = torch.multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        connections, facts = {}, {}
        for name in NAMES:
            here, there = context.Pipe()
            kept = name == "ours" or arguments.kept_memory_for_all
            given = (there, name, arguments.batch, arguments.threads, kept)
            process = context.Process(target=take_turns, args=given, daemon=True)
            process.start()
            there.close()
            stack.callback(process.join)
            stack.callback(here.send, None)
            connections[name], facts[name] = here, here.recv()
        for turn in range(turns + 1):
            for name, connection in connections.items():
                connection.send(turn)
                taken = connection.recv()
                if turn:  # the first one is for the caches
                    seconds[name].append(taken)
    common = {
        "batch": arguments.batch,
        "threads": arguments.threads,
        "precision": "fp32",
        "kept_memory": "all" if arguments.kept_memory_for_all else "ours",
    }
    for name in NAMES:
        tell(figures.of(f"image_branch/seconds/{name}", seconds[name], figures.SECONDS, common | facts[name]))
    for variant, peer in (("equal_maths", "vit_mae_one_channel"), ("grey", "vit_mae_rgb")):
        settings = common | {"ours": facts["ours"], "vit_mae": facts[peer]}
        name = f"image_branch/over_vit_mae/{variant}"
        tell(figures.ratio(name, seconds[peer], seconds["ours"], settings))


def main() -> None:
    """Measure on the CPU."""
    parser = figures.options(__doc__)
    parser.add_argument("--steps", type=int, default=9, help="measured turns")
    parser.add_argument("--batch", type=int, default=8, help="images of a step")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--kept-memory-for-all", action="store_true", help="theirs keeps freed memory too")
    arguments = parser.parse_args()
    with figures.report("image_branch", arguments) as tell:
        measure(arguments, tell)


if __name__ == "__main__":
    main()
