"""A trained model with all that is needed to use it: weights, sizes, tokeniser, and where they come from.

Decisions: everything that uses a model after training (evaluation, embeddings, export) takes a
`LoadedModel`, whatever it was loaded from: a run's checkpoint, an exported folder, or no training at all.
`load` takes the folder of either and is what a notebook calls.
The same encoder untrained is the model that its run began with, by the same seed. Weights are named by a
hash of their values, so that what was computed with them can be kept and found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpma.config import ExperimentConfig
from mpma.data.dataset import Dataset
from mpma.data.decoding import Cropper
from mpma.data.pairs import model_text
from mpma.data.storage import Storage, open_storage
from mpma.data.tokenizer import ReportTokenizer
from mpma.embedding import BATCH_SIZE, Vectors, embed_all
from mpma.errors import UserError
from mpma.given_images import GivenImage, encoded_grey
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.training import checkpoint as checkpoints
from mpma.training.run_directory import CONFIG_FILE, TOKENIZER_FILE, RunDirectory


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
        # Some sizes, such as heads, change what is computed and not a single tensor.
        built = self.config.model_dump(include={"image", "report", "memory", "fusion", "alignment"})
        for section in ("image", "report"):
            built[section].pop("pretrained")  # Where weights came from; the values themselves follow.
        described = json.dumps([built, dict(self.facts)], sort_keys=True)
        digest = hashlib.sha256((self.tokenizer_hash + described).encode())
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

    def embed_images(self, images: Sequence[GivenImage], batch_size: int = BATCH_SIZE) -> Vectors:
        """Aligned image vectors, float32 [n, A] of unit norm, of whole images (their central square).

        Takes bytes of image files, uint8 arrays [H,W] (0 is black) and Pillow images. Raises `UserError`
        naming the place in the list of what cannot be read.
        """
        return embed_all(self, encoded_grey(images), None, "image", batch_size)

    def embed_texts(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> Vectors:
        """Aligned text vectors, float32 [n, A] of unit norm: their dot product with an image's is the cosine.

        Texts are reports or sentences; what is longer than the model's limit is cut. Raises `UserError`
        naming the place in the list of an empty one.
        """
        return embed_all(self, None, _written(texts), "text", batch_size)

    def embed_pairs(
        self, images: Sequence[GivenImage], texts: Sequence[str], batch_size: int = BATCH_SIZE
    ) -> Vectors:
        """Fused representation of pairs, float32 [n, E+D]: mean of the fused words, mean patch token.

        Raises `UserError` as the two above, and where there are not as many texts as images.
        """
        if len(images) != len(texts):
            raise UserError(f"{len(images)} images and {len(texts)} texts: a pair needs one of each")
        return embed_all(self, encoded_grey(images), _written(texts), "fused", batch_size)


def load(place: str | Path, *, device: torch.device | str = "cpu", precision: str = "fp32") -> LoadedModel:
    """A model from an exported folder or the folder of a run, a path or URI; ready to embed.

    `precision`: `fp32` or `bf16`. Raises `UserError` where there is neither, or what is there is damaged.

    Example:
        >>> model = mpma.load("exports/demo")
        >>> model.embed_images([open("radiograph.png", "rb").read()])
    """
    from mpma.exporting.export import is_export, load_export

    folder = open_storage(place)
    if precision not in ("fp32", "bf16"):
        raise UserError(f"precision {precision!r} is unknown", "fp32 or bf16")
    if is_export(folder):
        return load_export(folder, device=device, precision=precision)
    if not folder.exists(CONFIG_FILE):
        raise UserError(
            f"{folder.location}: neither an exported model nor a run",
            "export one first: python -m orchestration.export --run runs/NAME --out DIR",
        )
    run = RunDirectory(folder)
    return load_run(run, device=device, precision=precision)


def trained_on(run: RunDirectory, step: int | None = None) -> str:
    """Fingerprint of the data of a run's checkpoint, from its marker. Raises `UserError` as `load_run`."""
    if step is not None:
        return checkpoints.read_state(_checkpoint_folder(run, step)).data_fingerprint
    for name in reversed(checkpoints.list_checkpoints(run.checkpoints)):
        try:
            return checkpoints.read_state(run.checkpoints.child(name)).data_fingerprint
        except UserError:
            continue
    raise _no_checkpoint(run)


def load_run(
    run: RunDirectory,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    name: str = "pretrained",
    step: int | None = None,
) -> LoadedModel:
    """A checkpoint of a run: that of `step`, else the newest that is whole.

    Raises `UserError` where there is no run, no such whole checkpoint, no tokeniser (neither kept by the run
    nor in its dataset), or weights that do not fit the run's configuration.
    """
    config = run.stored_config()
    found = _newest(run) if step is None else _of_step(run, step)
    # The checkpoint holds all weights, so those that the training began with need not be at hand.
    image = config.image.model_copy(update={"pretrained": None})
    settings = config.model_copy(update={"image": image})
    model = build_model(settings, **found.state.model, seed=config.training.seed)
    checkpoints.load_model_tensors(model, found.model, f"{run.name}, {found.name}")
    return LoadedModel(
        name=name,
        model=model,
        config=config,
        tokenizer=_run_tokenizer(run, int(found.state.model["vocabulary_size"])),
        facts=dict(found.state.model),
        origin=f"run {run.name}, step {found.state.step}",
        step=found.state.step,
        data_fingerprint=found.state.data_fingerprint,
        device=torch.device(device),
        precision=precision,
    )


def untrained(
    like: LoadedModel, name: str = "untrained", config: ExperimentConfig | None = None
) -> LoadedModel:
    """The same model with the weights that its training began with (pretrained parts as configured).

    `config` in place of the model's own says other pretrained parts; its sizes must be the same.
    """
    config = config or like.config
    model = build_model(config, **like.facts, seed=config.training.seed)
    return LoadedModel(
        name=name,
        model=model,
        config=config,
        tokenizer=like.tokenizer,
        facts=like.facts,
        origin=f"untrained, seed {config.training.seed}",
        step=0,
        data_fingerprint=None,
        device=like.device,
        precision=like.precision,
    )


def _written(texts: Sequence[str]) -> list[str]:
    """Texts as the model reads them."""
    if isinstance(texts, str):
        raise UserError("one text was given where a list of texts is expected", "embed_texts([text])")
    read = [model_text(text, "", "") for text in texts]
    for place, text in enumerate(read):
        if not text:
            raise UserError(f"text {place} of {len(read)} is empty", "leave it out: it has no vector")
    return read


def _of_step(run: RunDirectory, step: int) -> checkpoints.Checkpoint:
    return checkpoints.read_checkpoint(_checkpoint_folder(run, step), parts=(checkpoints.MODEL_FILE,))


def _checkpoint_folder(run: RunDirectory, step: int) -> Storage:
    names = checkpoints.list_checkpoints(run.checkpoints)
    wanted = checkpoints.checkpoint_name(step)
    if wanted in names:
        return run.checkpoints.child(wanted)
    if not names:
        raise _no_checkpoint(run)
    known = ", ".join(str(int(name.removeprefix("step_"))) for name in names)
    raise UserError(f"{run.name}: there is no checkpoint of step {step}", f"those kept are of step {known}")


def _newest(run: RunDirectory) -> checkpoints.Checkpoint:
    refused: list[str] = []
    for name in reversed(checkpoints.list_checkpoints(run.checkpoints)):
        try:
            return checkpoints.read_checkpoint(run.checkpoints.child(name), parts=(checkpoints.MODEL_FILE,))
        except UserError as error:
            refused.append(error.message)
    raise _no_checkpoint(run, f" ({refused[0]})" if refused else "")


def _no_checkpoint(run: RunDirectory, why: str = "") -> UserError:
    return UserError(
        f"{run.name}: there is no whole checkpoint{why}", "train it first: python -m orchestration.pretrain"
    )


def _run_tokenizer(run: RunDirectory, vocabulary_size: int) -> ReportTokenizer:
    if run.folder.exists(TOKENIZER_FILE):
        tokenizer = ReportTokenizer(run.folder.read(TOKENIZER_FILE), run.folder.described(TOKENIZER_FILE))
    else:
        # Runs begun by earlier versions keep none; their dataset may still have it.
        path = run.stored_config().data.path
        try:
            if path is None:
                raise UserError("phantom pairs")
            tokenizer = Dataset.open(path).tokenizer()
        except UserError:
            raise UserError(
                f"{run.name}: keeps no {TOKENIZER_FILE}, and its dataset is not at hand",
                "continue it with a larger training.steps, which adds the file",
            ) from None
    if tokenizer.vocabulary_size != vocabulary_size:
        raise UserError(
            f"{run.name}: the tokeniser has {tokenizer.vocabulary_size} entries, "
            f"the checkpoint {vocabulary_size}"
        )
    return tokenizer
