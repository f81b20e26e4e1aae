"""What a run would cost here: time, memory and disk from a few measured steps.

Decisions: the steps are the real ones (this model, this data where it is at hand, else pairs of the same
shape), run in this process without Ray; a validation is timed as its embeddings at the measured
forward rate; figures are for this machine and say so.
"""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mpma.config import ExperimentConfig
from mpma.data.stand_in import stand_in_batch
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.training.optimizer import build_optimizer, optimizer_tensors
from mpma.training.parallel import model_tensors
from mpma.training.schedule import tail_start
from mpma.training.step import training_step
from orchestration.cluster import Layout, choose_precision

WARM_STEPS = 2
MEASURED_STEPS = 3
STAND_IN_VOCABULARY = 8000
"""Vocabulary where no dataset is at hand; a phantom's is smaller, an archive's larger."""


def forecast_run(config: ExperimentConfig, layout: Layout, console: Console) -> None:
    """Measure and print. Takes some steps' time; leaves nothing behind."""
    torch.set_num_threads(layout.threads_per_worker)
    device = torch.device(layout.device)
    precision, _ = choose_precision(config.training, layout.device)
    model, scale, vocabulary, where = _model(config)
    model.to(device)
    optimizer = build_optimizer(model.named_parameters(), model.no_weight_decay_names(), config.training)
    share = config.training.batch_size // config.training.workers
    times: dict[float, float] = {}
    for ratio in dict.fromkeys((config.image.mask_ratio, 0.0)):
        batch = stand_in_batch(
            share,
            config.image,
            config.report,
            vocabulary_size=vocabulary,
            target_scale=scale,
            image_mask_ratio=ratio,
        )
        for number in range(WARM_STEPS + MEASURED_STEPS):
            if number == WARM_STEPS:
                _wait(device)
                begun = time.perf_counter()
            training_step(
                model, model, optimizer, batch, config, step=0, rank=0, device=device, precision=precision
            )
        _wait(device)
        times[ratio] = (time.perf_counter() - begun) / MEASURED_STEPS
    masked, full = times[config.image.mask_ratio], times[0.0]
    tail = config.training.steps - tail_start(config)
    seconds = (config.training.steps - tail) * masked + tail * full
    validations = 2 + config.training.steps // config.validation.every_steps
    embedded = config.validation.gallery_size + config.validation.probe_train_pairs
    # A forward pass over the full image is about a third of a full training step's work.
    validating = validations * embedded / share * full / 3
    weights = _bytes(model_tensors(model))
    moments = _bytes(optimizer_tensors(optimizer, model.named_parameters()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)

    table = Table(
        title=f"forecast for this machine, {layout.device}, {precision} ({where})", title_justify="left"
    )
    table.add_column("figure")
    table.add_column("forecast", justify="right")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for name, value in (
        ("parameters", f"{parameters / 1e6:.1f} million"),
        ("one step of a worker", f"{masked:.2f} s ({share / masked:.0f} pairs/s)"),
        ("one step of the unmasked tail", f"{full:.2f} s"),
        (f"{config.training.steps} steps", _hours(seconds)),
        (f"{validations} validations, about", _hours(validating)),
        ("memory of a worker, at least", f"{peak / 2**30:.1f} GiB"),
        ("one checkpoint", f"{(weights + moments) / 2**20:.0f} MiB"),
        (
            f"disk for {config.training.keep_checkpoints} + 1 checkpoints",
            f"{(config.training.keep_checkpoints + 1) * (weights + moments) / 2**20:.0f} MiB",
        ),
    ):
        table.add_row(name, value)
    console.print(table)
    if layout.workers > 1:
        console.print(
            f"measured with one worker's share on an idle machine, which {layout.workers} workers would share"
        )


def _model(config: ExperimentConfig) -> tuple[PretrainingModel, int, int, str]:
    if config.data.path is not None:
        from mpma.data.dataset import Dataset
        from orchestration.assembly import Parts

        parts = Parts(config, Dataset.open(config.data.path))
        model, _ = parts.build_model()
        return (
            model,
            parts.target_scale,
            parts.tokenizer.vocabulary_size,
            "the dataset's sizes, random content",
        )
    scale = 2 if config.image.target_scale == 2 else 1
    model = build_model(
        config,
        vocabulary_size=STAND_IN_VOCABULARY,
        pad_id=0,
        grey_mean=0.5,
        grey_std=0.25,
        target_scale=scale,
        seed=config.training.seed,
    )
    return model, scale, STAND_IN_VOCABULARY, f"no dataset at hand: vocabulary of {STAND_IN_VOCABULARY}"


def _bytes(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _hours(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
