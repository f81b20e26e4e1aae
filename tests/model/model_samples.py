"""Small models and batches for the tests of the model; imported by worker processes too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpma.data.batches import Batch, padded_rows
from mpma.model.config import (
    AlignmentConfig,
    FusionConfig,
    ImageConfig,
    LossWeights,
    MemoryConfig,
    ReportConfig,
)
from mpma.model.pretraining import PretrainingModel, build_model

PAD, CLASS, END, MASK, FIRST_WORD = 0, 2, 3, 4, 5
VOCABULARY = 60
SIZE, PATCH = 32, 8
PATCHES = (SIZE // PATCH) ** 2
LENGTH = 16

SMALL: dict[str, dict[str, Any]] = {
    "image": {
        "backbone": "vit_tiny_patch16_224",
        "size": SIZE,
        "patch_size": PATCH,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "decoder_width": 32,
        "decoder_layers": 1,
        "decoder_heads": 2,
    },
    "report": {"max_tokens": LENGTH, "layers": 1, "width": 24, "heads": 2},
    "memory": {"slots": 16, "top_k": 4, "heads": 2},
    "fusion": {"layers": 1, "heads": 2},
    "alignment": {"width": 16, "group_size": 4},
    "loss_weights": {},
}


@dataclass(frozen=True)
class ModelParts:
    """The parts of a configuration that make a model, without the tree's own checks."""

    image: ImageConfig
    report: ReportConfig
    memory: MemoryConfig
    fusion: FusionConfig
    alignment: AlignmentConfig
    loss_weights: LossWeights


def small_config(**changes: dict[str, Any]) -> ModelParts:
    """The small configuration with keys of its parts replaced: small_config(memory={"kind": "none"})."""
    parts = {name: {**values, **changes.get(name, {})} for name, values in SMALL.items()}
    if parts["memory"].get("kind") in ("key_value", "none"):
        parts["memory"].pop("top_k", None)
    return ModelParts(
        image=ImageConfig.model_validate(parts["image"]),
        report=ReportConfig.model_validate(parts["report"]),
        memory=MemoryConfig.model_validate(parts["memory"]),
        fusion=FusionConfig.model_validate(parts["fusion"]),
        alignment=AlignmentConfig.model_validate(parts["alignment"]),
        loss_weights=LossWeights.model_validate(parts["loss_weights"]),
    )


def small_model(target_scale: int = 1, seed: int = 0, **changes: dict[str, Any]) -> PretrainingModel:
    return build_model(
        small_config(**changes),
        vocabulary_size=VOCABULARY,
        pad_id=PAD,
        grey_mean=0.47,
        grey_std=0.23,
        target_scale=target_scale,
        seed=seed,
    )


def small_batch(pairs: int = 8, *, visible: int = 4, target_scale: int = 1, seed: int = 0) -> Batch:
    """Random pairs: reports of 1-2 piece words, about half of them hidden, the first always."""
    draw = torch.Generator().manual_seed(seed)
    side = SIZE * target_scale
    position = torch.arange(LENGTH)[None]
    length = torch.randint(LENGTH // 2, LENGTH + 1, (pairs, 1), generator=draw)
    attention = position < length
    body = (position > 0) & (position < length - 1)
    ids = torch.randint(FIRST_WORD, VOCABULARY, (pairs, LENGTH), generator=draw)
    ids = torch.where(body, ids, torch.where(position == 0, CLASS, END)) * attention
    starts = (torch.rand(pairs, LENGTH, generator=draw) < 0.7) | (position == 1)
    word_index = torch.where(body, (starts & body).long().cumsum(1) - 1, -1)
    hidden_words = torch.rand(pairs, LENGTH, generator=draw) < 0.5
    hidden_words[:, 0] = True
    hidden = hidden_words.gather(1, word_index.clamp_min(0)) & body
    rows = hidden.flatten().nonzero().squeeze(1)
    masked_rows, masked_targets = padded_rows(rows, ids.flatten()[rows], pairs, LENGTH)
    return Batch(
        pixels=torch.randint(0, 256, (pairs, 1, side, side), dtype=torch.uint8, generator=draw),
        patch_order=torch.rand(pairs, PATCHES, generator=draw).argsort(1),
        visible=visible,
        token_ids=ids,
        attention=attention,
        word_index=word_index,
        masked_token_ids=torch.where(hidden, MASK, ids),
        masked_rows=masked_rows,
        masked_targets=masked_targets,
        masked_count=len(rows),
        report_hash=torch.arange(pairs) + 1000,
        study_hash=torch.arange(pairs) + 2000,
        position=torch.arange(pairs),
        epoch=torch.zeros(pairs, dtype=torch.int64),
    )


def gradients(model: PretrainingModel) -> dict[str, Tensor]:
    """A copy of every trained parameter's gradient; fails where one is missing."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            found[name] = parameter.grad.clone()
    return found


def assert_same_gradients(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5
) -> None:
    """Equal within `tolerance` of the gradient's largest entry, or of 1 where that is larger.

    fp32 keeps seven digits, and a sum over all tokens is far above 1.
    """
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        difference = (gradient - theirs[name]).abs().max().item()
        assert difference <= tolerance * max(1.0, theirs[name].abs().max().item()), f"{name}: {difference}"
