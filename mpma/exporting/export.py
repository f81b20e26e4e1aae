"""Export of a run: a folder that loads here, in timm and in transformers, with a card that says what it is.

Decisions: parts are written first and the marker `config.json` last, each under a temporary name and renamed
(mpma.data.storage), so a folder with a marker is whole; the marker's hashes are compared when the folder is
loaded. With --overwrite the old marker goes first and only files of ours are touched. What is loaded equals
the run's model bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from transformers import BertConfig, BertForMaskedLM

from mpma.data.dataset import Dataset
from mpma.data.storage import Storage
from mpma.data.tokenizer import ReportTokenizer
from mpma.embedding import untrained_kinds
from mpma.errors import UserError
from mpma.exporting.card import CardFacts, model_card
from mpma.exporting.card_figures import evaluations_of, validation_of
from mpma.exporting.encoders import (
    bert_description,
    image_encoder_files,
    report_encoder_files,
    timm_arguments,
)
from mpma.exporting.layout import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    FORMAT_VERSION,
    IMAGE_ENCODER,
    MODEL_FILE,
    OWN_FILES,
    REPORT_ENCODER,
    TOKENIZER_FILE,
    UNFINISHED,
    ExportDescription,
    ModelFacts,
    check_free,
    is_export,
    parse_description,
    started_from,
    without_starting_weights,
)
from mpma.exporting.search_record import search_record
from mpma.loading import LoadedModel, load_run
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.model.report import VocabularyHead
from mpma.training.checkpoint import load_model_tensors
from mpma.training.run_directory import PROVENANCE_FILE, RunDirectory, config_hash, provenance

__all__ = ["Exported", "export_run", "is_export", "load_export", "verify_export"]


@dataclass(frozen=True)
class Exported:
    """What was written."""

    description: ExportDescription
    bytes: int
    """Of all files."""
    left_out: tuple[str, ...]
    """Evaluations in the run's folder that are not of these weights."""


def export_run(
    run: RunDirectory,
    out: Storage,
    *,
    step: int | None = None,
    overwrite: bool = False,
    dataset: Dataset | None = None,
    searches: Storage | None = None,
) -> Exported:
    """Export a checkpoint of a run: that of `step`, else the newest whole one.

    `dataset`: what the run was trained on, for the card; another dataset is not taken. `searches`: folder of
    searches, in which the run's origin is looked for. Raises `UserError` where there is nothing to export or
    the place is taken, `JobError` where it cannot be written.
    """
    check_free(out, overwrite=overwrite)
    loaded = load_run(run, name=run.name, step=step)
    description = describe(run, loaded)
    files = {
        MODEL_FILE: safetensors.torch.save(_tensors(loaded.model)),
        TOKENIZER_FILE: loaded.tokenizer.to_bytes(),
        **image_encoder_files(loaded),
        **report_encoder_files(loaded),
    }
    evaluations, left_out = evaluations_of(run, loaded.weights_hash)
    known = dataset is not None and dataset.fingerprint == loaded.data_fingerprint
    card = model_card(
        CardFacts(
            description=description,
            timm_arguments=timm_arguments(loaded),
            finished=run.finished_steps() == description.step,
            planned_steps=loaded.config.training.steps,
            provenance=_provenance_of(run),
            data=dataset.info if dataset is not None and known else None,
            validation=validation_of(run, description.step),
            evaluations=evaluations,
            left_out=left_out,
            search=search_record(run, searches),
            untrained=untrained_kinds(loaded),
        )
    )
    return Exported(*_write(out, description, files, card), tuple(left_out))


def describe(run: RunDirectory, loaded: LoadedModel) -> ExportDescription:
    """The marker's content, without hashes."""
    config = without_starting_weights(loaded.config)
    assert loaded.step is not None
    return ExportDescription(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=run.name,
        step=loaded.step,
        weights_hash=loaded.weights_hash,
        config_hash=config_hash(loaded.config),
        data_fingerprint=loaded.data_fingerprint or "",
        seed=config.training.seed,
        image=config.image,
        report=config.report,
        memory=config.memory,
        fusion=config.fusion,
        alignment=config.alignment,
        loss_weights=config.loss_weights,
        facts=ModelFacts(**loaded.facts),
        bert=bert_description(loaded),
        started_from=started_from(loaded.config),
        software=_software(),
        files={},
    )


def load_export(
    folder: Storage,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    name: str = "pretrained",
) -> LoadedModel:
    """The model of an exported folder, its files compared with the marker's hashes.

    Raises `UserError` naming the file that is missing, damaged or of another format version.
    """
    description = read_description(folder)
    content = {file: _verified(folder, description, file) for file in (MODEL_FILE, TOKENIZER_FILE)}
    tokenizer = ReportTokenizer(content[TOKENIZER_FILE], folder.described(TOKENIZER_FILE))
    facts = description.facts.model_dump()
    if tokenizer.vocabulary_size != facts["vocabulary_size"]:
        raise UserError(
            f"{folder.described(TOKENIZER_FILE)} has {tokenizer.vocabulary_size} entries, "
            f"{CONFIG_FILE} says {facts['vocabulary_size']}"
        )
    config = description.experiment()
    model = build_model(config, **facts, seed=description.seed)
    _take_bert(model, description, folder)
    try:
        tensors = safetensors.torch.load(content[MODEL_FILE])
    except safetensors.SafetensorError:
        raise UserError(f"{folder.described(MODEL_FILE)} is no safetensors file") from None
    load_model_tensors(model, tensors, folder.described(MODEL_FILE))
    return LoadedModel(
        name=name,
        model=model,
        config=config,
        tokenizer=tokenizer,
        facts=facts,
        origin=f"export of {description.name}, step {description.step}",
        step=description.step,
        data_fingerprint=description.data_fingerprint or None,
        device=torch.device(device),
        precision=precision,
    )


def read_description(folder: Storage) -> ExportDescription:
    """The marker of an exported folder. Raises `UserError` where there is none, or a damaged one."""
    try:
        data = folder.read(CONFIG_FILE)
    except OSError:
        begun = folder.exists(UNFINISHED)
        raise UserError(
            f"{folder.location}: {'its export was interrupted' if begun else 'no exported model there'}",
            "run the export once more" if begun else "make one: python -m orchestration.export",
        ) from None
    return parse_description(data, folder.described(CONFIG_FILE))


def verify_export(folder: Storage) -> ExportDescription:
    """Compare every file but the card with its hash. Raises `UserError` naming the first that differs."""
    description = read_description(folder)
    for file in description.files:
        _verified(folder, description, file)
    return description


def _verified(folder: Storage, description: ExportDescription, file: str) -> bytes:
    again = "copy the folder once more from where it is whole, or export again with --overwrite"
    try:
        data = folder.read(file)
    except OSError:
        raise UserError(f"{folder.described(file)} is missing", again) from None
    if hashlib.sha256(data).hexdigest() != description.files.get(file):
        raise UserError(f"{folder.described(file)} is damaged: its hash is not that of {CONFIG_FILE}", again)
    return data


def _take_bert(model: PretrainingModel, description: ExportDescription, folder: Storage) -> None:
    """A BERT that the training began with may differ from ours in more than its sizes."""
    try:
        config = BertConfig.from_dict(description.bert)
    except Exception as error:  # The library raises many kinds for one mistake.
        raise UserError(f"{folder.described(CONFIG_FILE)} is damaged: bert: {type(error).__name__}") from None
    config._attn_implementation = "sdpa"
    source = BertForMaskedLM(config)
    model.report_encoder.bert = source.bert
    model.report_encoder.head = VocabularyHead(source)
    for module in (model.report_encoder.bert, model.report_encoder.head):
        module.requires_grad_(True)
    model.freeze_what_no_loss_reaches()


def _tensors(model: PretrainingModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}


def _write(
    out: Storage, description: ExportDescription, files: Mapping[str, bytes], card: bytes
) -> tuple[ExportDescription, int]:
    # Said first, so that a kill leaves a folder that is known as ours; then nothing is readable in it.
    out.make_directory()
    out.write(UNFINISHED, json.dumps({"format": FORMAT}).encode())
    for name in OWN_FILES:
        if name != UNFINISHED:
            out.remove(name)
    for folder in (IMAGE_ENCODER, REPORT_ENCODER):
        out.make_directory(folder)
    written = {name: out.write(name, data) for name, data in files.items()}
    size = sum(file.bytes for file in written.values()) + out.write(CARD_FILE, card).bytes
    whole = description.model_copy(update={"files": {name: file.sha256 for name, file in written.items()}})
    size += out.write(CONFIG_FILE, whole.to_json()).bytes
    out.remove(UNFINISHED)
    return whole, size


def _provenance_of(run: RunDirectory) -> dict[str, Any]:
    try:
        found = json.loads(run.folder.read(PROVENANCE_FILE))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _software() -> dict[str, str]:
    now = provenance("")
    return {"mpma": str(now["mpma"]), "python": str(now["python"]), **now["packages"]}
