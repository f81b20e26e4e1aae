"""How long an evaluation takes and what it leaves on disk, from a few measured steps of the real model.

Decisions: what is measured is what most of the time goes into (embedding pictures, and one training step of
the encoders under each task's batch), on this machine and with the job's threads; counts come from the data's
marker alone. Probes, beam search and resamples are not measured: for little data they are a good part, so
this is a forecast of the order of time. Frozen encoders make it an upper bound.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import torch
from rich.console import Console

from mpma.downstream.config import EvaluationConfig, FitConfig
from mpma.downstream.contract import task
from mpma.loading import LoadedModel, load_run

if TYPE_CHECKING:
    from mpma.data.dataset import Dataset
    from mpma.training.run_directory import RunDirectory
    from orchestration.evaluating import Request

_REPEATS: Final = 2
_START_SECONDS: Final = 15.0


def forecast_evaluation(
    run: RunDirectory,
    dataset: Dataset | None,
    config: EvaluationConfig,
    request: Request,
) -> None:
    """Print jobs, minutes and disk."""
    console = Console(highlight=False, soft_wrap=True)
    torch.set_num_threads(config.threads_per_job)
    loaded = load_run(run)
    if dataset is None:
        pairs = {"train": config.phantom.train_pairs, "test": config.phantom.test_pairs}
        pairs["val"] = config.phantom.val_pairs
    else:
        pairs = {name: split.pairs for name, split in dataset.info.splits.items()}
    models = 1 + config.untrained + len(request.baselines)
    embedding = _seconds(lambda: _embed(loaded, config.batch_size)) / config.batch_size
    seconds: dict[str, float] = {"features": embedding * sum(pairs.values())}
    judged = pairs.get("test") or pairs.get("val", 0)
    for name in config.tasks:
        jobs = task(name, config).jobs()
        fit = _fit_of(config, name)
        each = embedding * judged
        fitted = [job for job in jobs if fit is not None and job.method in ("", "fine_tune")]
        if fit is not None:
            step = _seconds(lambda fit=fit: _train_step(loaded, fit))  # type: ignore[misc]
            seconds[name] = len(fitted) * (step * fit.steps + each)
        else:
            seconds[name] = 0.0
    cores = request.cpus or os.cpu_count() or 1
    beside = max(1, cores // config.threads_per_job)
    for part, spent in seconds.items():
        console.print(f"{part}: {models * spent / 60:.1f} core minutes", markup=False)
    total = models * sum(seconds.values()) / beside + _START_SECONDS
    console.print(
        f"forecast: about {math.ceil(total / 60)} min with {beside} jobs at a time on this machine, "
        f"{models} models",
        markup=False,
    )
    width = loaded.model.image_encoder.width + 2 * loaded.config.alignment.width
    kept = models * sum(pairs.values()) * width * 4
    console.print(f"disk: about {kept / 1e6:.0f} MB of features in {request.features}", markup=False)


def _fit_of(config: EvaluationConfig, name: str) -> FitConfig | None:
    section = getattr(config, name)
    if name == "classification":
        return section.fine_tune if "fine_tune" in section.methods else None
    fit: FitConfig | None = getattr(section, "fit", None)
    return fit


def _seconds(work: Callable[[], Any]) -> float:
    work()
    begun = time.perf_counter()
    for _ in range(_REPEATS):
        work()
    return (time.perf_counter() - begun) / _REPEATS


def _pixels(loaded: LoadedModel, count: int) -> torch.Tensor:
    side = loaded.pixel_side
    return torch.zeros(count, 1, side, side, dtype=torch.uint8)


def _embed(loaded: LoadedModel, count: int) -> None:
    with torch.no_grad():
        loaded.model.embed_images(_pixels(loaded, count))


def _train_step(loaded: LoadedModel, fit: FitConfig) -> None:
    length = loaded.config.report.max_tokens
    ids = torch.full((fit.batch_size, length), loaded.tokenizer.unknown_id)
    attention = torch.ones_like(ids, dtype=torch.bool)
    words = torch.arange(length).expand(fit.batch_size, -1)
    fused = loaded.model.embed_pairs(_pixels(loaded, fit.batch_size), ids, attention, words)
    fused.sum().backward()
    loaded.model.zero_grad(set_to_none=True)
