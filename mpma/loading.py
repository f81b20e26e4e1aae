"""A trained model with all that is needed to use it: weights, sizes, tokeniser, and where they come from.

Decisions: everything that uses a model after training (evaluation, embeddings, export) takes a
`LoadedModel`, whatever it was loaded from: a run's checkpoint, an exported folder, or no training at all.
The same encoder untrained is the model that its run began with, by the same seed. Weights are named by a
hash of their values, so that what was computed with them can be kept and found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpma.config import ExperimentConfig
from mpma.data.decoding import Cropper
from mpma.data.tokenizer import ReportTokenizer
from mpma.errors import UserError
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.training import checkpoint as checkpoints
from mpma.training.run_directory import TOKENIZER_FILE, RunDirectory


@dataclass
class LoadedModel:
    """A model in eval mode on one device, and how texts and images reach it."""

    name: str
    """What tables call it: `pretrained`, `untrained`, or a baseline's name."""
    model: PretrainingModel
    config: ExperimentConfig
    tokenizer: ReportTokenizer
    facts: Mapping[str, Any]
    """Arguments of `build_model` beside the configuration: vocabulary, grey figures, target scale."""
    origin: str
    """Where the weights come from, in words."""
    step: int | None = None
    """Optimiser steps behind the weights, where known."""
    data_fingerprint: str | None = None
    """Data that the weights were trained on; None where they were not, or it is unknown."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"

    def __post_init__(self) -> None:
        self.model.to(self.device).eval()

    @cached_property
    def weights_hash(self) -> str:
        """16 hex letters that name architecture and values."""
        digest = hashlib.sha256(self.tokenizer_hash.encode())
        for name, value in sorted(self.model.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"{name} {tuple(array.shape)} {array.dtype}".encode())
            digest.update(
                array.view(torch.uint8).numpy().tobytes() if array.ndim else array.numpy().tobytes()
            )
        return digest.hexdigest()[:16]

    @property
    def tokenizer_hash(self) -> str:
        """Names the tokeniser and the length that texts are cut to."""
        content = self.tokenizer.to_bytes()
        return hashlib.sha256(content + str(self.config.report.max_tokens).encode()).hexdigest()[:16]

    @property
    def pixel_side(self) -> int:
        """S, side in pixels of the crops that the model takes."""
        return int(self.config.image.size * self.facts["target_scale"])

    def cropper(self, seed: int = 0) -> Cropper:
        """Centre views (augment=False) or random crops as in pre-training, of the model's size."""
        image = self.config.image
        return Cropper(
            size=self.pixel_side,
            scale_min=image.crop_scale_min,
            scale_max=image.crop_scale_max,
            aspect_max=image.crop_aspect_max,
            flip=image.horizontal_flip,
            seed=seed,
        )

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Texts -> ids int64 [B,T], attention bool [B,T], word index int64 [B,T], on the device."""
        found = self.tokenizer.encode(list(texts), self.config.report.max_tokens)
        arrays = (found.ids, found.attention, found.word_index)
        ids, attention, words = (torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in arrays)
        return ids, attention, words


def load_run(
    run: RunDirectory,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    name: str = "pretrained",
    fallback_tokenizer: ReportTokenizer | None = None,
) -> LoadedModel:
    """The newest whole checkpoint of a run.

    `fallback_tokenizer` serves runs that keep none of their own. Raises `UserError` where there is no run,
    no whole checkpoint, no tokeniser, or weights that do not fit the run's configuration.
    """
    if not run.exists():
        raise UserError(
            f"{run.folder.location}: no run there", "give --run the folder of a run, such as runs/demo"
        )
    config = run.stored_config()
    found = _newest(run)
    model = build_model(config, **found.state.model, seed=config.training.seed)
    checkpoints.load_model_tensors(model, found.model, f"{run.name}, {found.name}")
    return LoadedModel(
        name=name,
        model=model,
        config=config,
        tokenizer=_run_tokenizer(run, fallback_tokenizer, int(found.state.model["vocabulary_size"])),
        facts=dict(found.state.model),
        origin=f"run {run.name}, step {found.state.step}",
        step=found.state.step,
        data_fingerprint=found.state.data_fingerprint,
        device=torch.device(device),
        precision=precision,
    )


def untrained(like: LoadedModel, name: str = "untrained") -> LoadedModel:
    """The same model with the weights that its training began with (pretrained parts as configured)."""
    model = build_model(like.config, **like.facts, seed=like.config.training.seed)
    return LoadedModel(
        name=name,
        model=model,
        config=like.config,
        tokenizer=like.tokenizer,
        facts=like.facts,
        origin=f"untrained, seed {like.config.training.seed}",
        step=0,
        data_fingerprint=None,
        device=like.device,
        precision=like.precision,
    )


def _newest(run: RunDirectory) -> checkpoints.Checkpoint:
    refused: list[str] = []
    for name in reversed(checkpoints.list_checkpoints(run.checkpoints)):
        try:
            return checkpoints.read_checkpoint(run.checkpoints.child(name), parts=(checkpoints.MODEL_FILE,))
        except UserError as error:
            refused.append(error.message)
    raise UserError(
        f"{run.name}: there is no whole checkpoint" + (f" ({refused[0]})" if refused else ""),
        "train it first: python -m orchestration.pretrain",
    )


def _run_tokenizer(
    run: RunDirectory, fallback: ReportTokenizer | None, vocabulary_size: int
) -> ReportTokenizer:
    if run.folder.exists(TOKENIZER_FILE):
        tokenizer = ReportTokenizer(run.folder.read(TOKENIZER_FILE), run.folder.described(TOKENIZER_FILE))
    elif fallback is not None:
        tokenizer = fallback
    else:
        raise UserError(
            f"{run.name}: keeps no {TOKENIZER_FILE}, and its dataset is not at hand",
            "run it once more with the same command, which adds the file",
        )
    if tokenizer.vocabulary_size != vocabulary_size:
        raise UserError(
            f"{run.name}: the tokeniser has {tokenizer.vocabulary_size} entries, "
            f"the checkpoint {vocabulary_size}"
        )
    return tokenizer


def facts_to_json(facts: Mapping[str, Any]) -> str:
    """The facts as a file holds them."""
    return json.dumps(dict(facts), indent=1, sort_keys=True)
