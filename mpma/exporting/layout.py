"""What an exported folder holds, and `config.json`, the marker that makes it readable.

Decisions: the marker is written last and names every file's SHA-256 but the card's, which people edit; it
holds the architecture and what is needed to build it, and no path: starting weights are named by kind, the
data by their fingerprint. Another format version is refused before anything else is looked at.
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from pydantic import ValidationError

from mpma.config import ExperimentConfig
from mpma.data.storage import TEMPORARY_SUFFIX, Storage
from mpma.errors import UserError
from mpma.model.config import (
    AlignmentConfig,
    FusionConfig,
    ImageConfig,
    LossWeights,
    MemoryConfig,
    ReportConfig,
)
from mpma.strict import StrictConfig
from mpma.training.config import TrainingConfig

FORMAT: Final = "mpma-export"
FORMAT_VERSION: Final = 1

CONFIG_FILE: Final = "config.json"
MODEL_FILE: Final = "model.safetensors"
TOKENIZER_FILE: Final = "tokenizer.json"
CARD_FILE: Final = "README.md"
UNFINISHED: Final = "unfinished.json"
IMAGE_ENCODER: Final = "image_encoder"
REPORT_ENCODER: Final = "report_encoder"

TIMM_FILES: Final = (f"{IMAGE_ENCODER}/config.json", f"{IMAGE_ENCODER}/model.safetensors")
BERT_FILES: Final = tuple(
    f"{REPORT_ENCODER}/{name}"
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
)
OWN_FILES: Final = (CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, CARD_FILE, UNFINISHED, *TIMM_FILES, *BERT_FILES)

_AGAIN: Final = "export the run again, with --overwrite"


class ModelFacts(StrictConfig):
    """Arguments of the model beside its configuration."""

    vocabulary_size: int
    """K, entries of the tokeniser."""
    pad_id: int
    """Number of the padding token."""
    grey_mean: float
    """Mean that pixels are normalised by, scaled 0..1."""
    grey_std: float
    """Standard deviation that they are normalised by."""
    target_scale: int
    """Side of the crop over that of the encoder's input."""


class StartedFrom(StrictConfig):
    """What the training began with."""

    image: Literal["random", "timm", "file"]
    """`image.pretrained`: none, timm's weights of the backbone, or a weight file."""
    report: Literal["random", "bert"]
    """`report.pretrained`: none, or a Hugging Face BERT."""
    other_run: bool
    """Whether another run's checkpoint was given (`training.initial_checkpoint`)."""


class ExportDescription(StrictConfig):
    """Content of `config.json`."""

    format: Literal["mpma-export"]
    """Tells it from other models' files of this name."""
    format_version: int
    """Version of this file."""
    name: str
    """Name of the run."""
    step: int
    """Optimiser steps behind the weights."""
    weights_hash: str
    """Names architecture and values, as evaluations and embeddings do."""
    config_hash: str
    """Of the run's whole configuration."""
    data_fingerprint: str
    """Data that it was trained on."""
    seed: int
    """training.seed."""
    image: ImageConfig
    """Image branch; `pretrained` is always null here, since the weights are in the file."""
    report: ReportConfig
    """Report branch; likewise."""
    memory: MemoryConfig
    """Memory of the fusion."""
    fusion: FusionConfig
    """Cross-modal fusion."""
    alignment: AlignmentConfig
    """Alignment."""
    loss_weights: LossWeights
    """What was trained: a part whose losses have no weight kept its initial values."""
    facts: ModelFacts
    """What the configuration does not say."""
    bert: dict[str, Any]
    """transformers' configuration of the report encoder."""
    started_from: StartedFrom
    """Starting weights, by kind."""
    software: dict[str, str]
    """Versions that wrote it."""
    files: dict[str, str]
    """SHA-256 of every other file but the card."""

    def experiment(self) -> ExperimentConfig:
        """The model's parts as a configuration; everything else has its default."""
        parts = {
            name: getattr(self, name)
            for name in ("image", "report", "memory", "fusion", "alignment", "loss_weights")
        }
        return ExperimentConfig(**parts, training=TrainingConfig(seed=self.seed))

    def to_json(self) -> bytes:
        """Content of the file."""
        return (json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n").encode()


def without_starting_weights(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with `image.pretrained` and `report.pretrained` taken out."""
    return config.model_copy(
        update={
            "image": config.image.model_copy(update={"pretrained": None}),
            "report": config.report.model_copy(update={"pretrained": None}),
        }
    )


def started_from(config: ExperimentConfig) -> StartedFrom:
    """Kinds of the weights that a training began with; never their place."""
    image = config.image.pretrained
    return StartedFrom(
        image="random" if image is None else "timm" if image == "timm" else "file",
        report="random" if config.report.pretrained is None else "bert",
        other_run=config.training.initial_checkpoint is not None,
    )


def parse_description(data: bytes, name: str) -> ExportDescription:
    """The marker's content. Raises `UserError` naming `name` where it is damaged or of another version."""
    raw = _object(data)
    if raw is None or raw.get("format") != FORMAT:
        raise UserError(f"{name} is not the marker of an exported model", _AGAIN)
    if raw.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{name}: export of another format version ({raw.get('format_version')}; this software reads "
            f"{FORMAT_VERSION})",
            "use the version of the software that wrote it, or " + _AGAIN,
        )
    try:
        return ExportDescription.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} is damaged: {where}: {first['msg']}", _AGAIN) from error


def is_export(folder: Storage) -> bool:
    """Whether a finished or begun export is in the folder."""
    return _is_own(folder, CONFIG_FILE) or _is_own(folder, UNFINISHED)


def check_free(folder: Storage, *, overwrite: bool) -> None:
    """Raises `UserError` where a model may not be exported to the folder: before the work, not after.

    An export that was interrupted is in nobody's way. With `overwrite` an earlier export is replaced and
    foreign files stay, unless one has the name of a file that would be written.
    """
    names = {name for name in folder.sizes() if not name.endswith(TEMPORARY_SUFFIX)}
    own = names & set(OWN_FILES)
    foreign = sorted(names - own)
    ours = is_export(folder)
    if overwrite:
        if own and not ours:
            raise UserError(
                f"{folder.location}: {min(own)} there is not of an exported model and is not overwritten",
                "choose a directory that is empty or does not exist",
            )
        return
    if ours and CONFIG_FILE in own:
        raise UserError(
            f"{folder.location} holds an exported model already",
            "choose another --out, or replace it with --overwrite",
        )
    if foreign or (own and not ours):
        raise UserError(
            f"{folder.location} is not empty: {(foreign or sorted(own))[0]} is there",
            "choose a directory that is empty or does not exist; with --overwrite foreign files stay there",
        )


def _is_own(folder: Storage, name: str) -> bool:
    try:
        raw = _object(folder.read(name))
    except OSError:
        return False
    return raw is not None and raw.get("format") == FORMAT


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        raw = json.loads(data)
    except ValueError:
        return None
    return raw if isinstance(raw, dict) else None
