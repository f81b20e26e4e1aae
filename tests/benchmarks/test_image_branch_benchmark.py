"""What the two image branches that are compared have in common."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig

from benchmarks.image_branch import OurBranch, TheirBranch, our_image

SIZES = {
    "image_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "num_channels": 1,
    "norm_pix_loss": True,
}


def _operations(module: torch.nn.Module, pixels: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(pixels)
    return int(counter.get_total_flops())


def test_parameters_are_equal_and_operations_differ_by_what_theirs_throws_away() -> None:
    config = ViTMAEConfig(**SIZES)
    ours, theirs = OurBranch(our_image(config)), TheirBranch(config)
    trained = [sum(p.numel() for p in one.parameters() if p.requires_grad) for one in (ours, theirs)]
    assert trained[0] == trained[1]
    pixels = torch.randn(2, 1, 64, 64)
    hidden, visible = 12, 4
    # They embed the hidden patches too, and predict the visible ones and the class token.
    thrown_away = 2 * 2 * (hidden * 256 * 32 + (visible + 1) * 16 * 256)
    assert _operations(theirs, pixels) - _operations(ours, pixels) == thrown_away
