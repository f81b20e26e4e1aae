"""What a run would cost here: time, memory and disk from a few measured steps.

Decisions: the steps are the real ones (this model, this data where it is at hand, else pairs of the same
shape), run in this process without Ray; a validation is timed as its embeddings at the measured
forward rate; figures are for this machine and say so.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mpma.config import ExperimentConfig
from mpma.data.stand_in import stand_in_batch
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.training.allocator import keep_freed_memory
from mpma.training.optimizer import build_optimizer, optimizer_tensors
from mpma.training.parallel import model_tensors
from mpma.training.schedule import tail_start
from mpma.training.step import training_step
from orchestration.cluster import Layout, choose_precision

WARM_STEPS = 2
MEASURED_STEPS = 3
STAND_IN_VOCABULARY = 800
"""Vocabulary where no dataset is at hand: about that of the phantom, which is then trained on."""


@dataclass(frozen=True)
class Measured:
    """What a few steps on this machine tell."""

    masked_step_seconds: float
    full_step_seconds: float
    """Of the unmasked tail."""
    validation_seconds: float
    parameters: int
    checkpoint_bytes: int
    peak_bytes: int
    where: str
    """What the steps were taken on."""

    def training_seconds(self, config: ExperimentConfig) -> float:
        """A run's steps without its validations."""
        tail = config.training.steps - tail_start(config)
        return (config.training.steps - tail) * self.masked_step_seconds + tail * self.full_step_seconds


def measure(config: ExperimentConfig, device_name: str, threads: int) -> Measured:
    """Take a few steps of one worker's share and look at the clock; leaves nothing behind."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    if device.type == "cpu":
        # As the run will.
        keep_freed_memory()
    precision, _ = choose_precision(config.training, device_name)
    model, scale, vocabulary, where = _model(config)
    model.to(device)
    optimizer = build_optimizer(model.named_parameters(), model.no_weight_decay_names(), config.training)
    share = config.training.batch_size // config.training.most_workers
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
    embedded = config.validation.gallery_size + config.validation.probe_train_pairs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    return Measured(
        masked_step_seconds=times[config.image.mask_ratio],
        full_step_seconds=times[0.0],
        # A forward pass over the full image is about a third of a full training step's work.
        validation_seconds=embedded / share * times[0.0] / 3,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        checkpoint_bytes=_bytes(model_tensors(model))
        + _bytes(optimizer_tensors(optimizer, model.named_parameters())),
        peak_bytes=peak,
        where=where,
    )


def forecast_run(config: ExperimentConfig, layout: Layout, console: Console) -> None:
    """Measure and print. Takes some steps' time; leaves nothing behind."""
    found = measure(config, layout.device, layout.threads_per_worker)
    precision, _ = choose_precision(config.training, layout.device)
    share = config.training.batch_size // config.training.most_workers
    validations = 2 + config.training.steps // config.validation.every_steps

    table = Table(
        title=f"forecast for this machine, {layout.device}, {precision} ({found.where})", title_justify="left"
    )
    table.add_column("figure")
    table.add_column("forecast", justify="right")
    for name, value in (
        ("parameters", f"{found.parameters / 1e6:.1f} million"),
        (
            "one step of a worker",
            f"{found.masked_step_seconds:.2f} s ({share / found.masked_step_seconds:.0f} pairs/s)",
        ),
        ("one step of the unmasked tail", f"{found.full_step_seconds:.2f} s"),
        (f"{config.training.steps} steps", hours(found.training_seconds(config))),
        (f"{validations} validations, about", hours(validations * found.validation_seconds)),
        ("memory of a worker, at least", f"{found.peak_bytes / 2**30:.1f} GiB"),
        ("one checkpoint", f"{found.checkpoint_bytes / 2**20:.0f} MiB"),
        (
            f"disk for {config.training.keep_checkpoints} + 1 checkpoints",
            f"{(config.training.keep_checkpoints + 1) * found.checkpoint_bytes / 2**20:.0f} MiB",
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
    return model, scale, STAND_IN_VOCABULARY, f"stand-in pairs, vocabulary of {STAND_IN_VOCABULARY}"


def _bytes(tensors: dict[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def hours(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
