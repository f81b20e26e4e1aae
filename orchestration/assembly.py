"""Puts a run's parts together from its configuration and dataset; the same on every worker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from mpma.config import ExperimentConfig
from mpma.data.batches import Collator
from mpma.data.dataset import Dataset
from mpma.data.sample_order import SampleOrder
from mpma.errors import UserError
from mpma.model.pretraining import PretrainingModel, build_model
from mpma.training.pictures import PictureDrawer
from mpma.training.run_directory import PICTURES, RunDirectory
from mpma.training.schedule import image_mask_ratio
from mpma.training.validation import Validator
from orchestration.decode_placement import choose_decode, try_out
from orchestration.streams import BatchStream, open_stream


class Parts:
    """What a worker trains with. Raises `UserError` where the configuration does not fit the data."""

    def __init__(self, config: ExperimentConfig, dataset: Dataset) -> None:
        self.config = config
        self.dataset = dataset
        dataset.require_reports()
        self.target_scale, reason = choose_target_scale(config, dataset.info.images.short_side_median)
        self.reasons = [reason]
        self.tokenizer = dataset.tokenizer()
        self.order = SampleOrder(
            dataset.row_group_rows("train"),
            seed=config.training.seed,
            batch_size=config.training.batch_size,
            lanes=config.data.lanes,
            window_row_groups=config.data.window_row_groups,
        )
        train = dataset.info.splits["train"]
        if train.reports is not None and train.reports < train.pairs:
            self.reasons.append(
                f"reports: {train.pairs - train.reports} of {train.pairs} training pairs have none "
                "and are read as an empty text"
            )
        truncated = dataset.info.reports.tokens_p95
        if truncated > config.report.max_tokens:
            self.reasons.append(
                f"reports: 5 % or more are longer than report.max_tokens {config.report.max_tokens} "
                "and are cut"
            )

    def build_model(self) -> tuple[PretrainingModel, dict[str, Any]]:
        """The model with its initial weights, and what is needed to build it anew."""
        facts: dict[str, Any] = {
            "vocabulary_size": self.tokenizer.vocabulary_size,
            "pad_id": self.tokenizer.pad_id,
            "grey_mean": self.dataset.grey_mean,
            "grey_std": self.dataset.grey_std,
            "target_scale": self.target_scale,
        }
        model = build_model(self.config, **facts, seed=self.config.training.seed)
        if self.config.training.gradient_checkpointing:
            model.set_gradient_checkpointing(True)
        return model, facts

    def open_stream(
        self,
        step: int,
        rank: int,
        world: int,
        device: torch.device,
        until: int | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> BatchStream:
        """This worker's batches from a step on, to the run's end or to `until`.

        `note` is told where images are decoded, and why.
        """
        data = self.config.data
        collator = Collator(
            self.tokenizer,
            self.config.image,
            self.config.report,
            self.config.training.seed,
            self.target_scale,
            data.decode_threads,
        )
        trial = None
        if data.decode == "auto" and device.type == "cuda":
            shards = self.dataset.shards("train")
            trial = try_out(self.dataset.storage, shards, collator.cropper, data.decode_threads)
        decode, reason = choose_decode(data, device.type, trial, spare_cpus())
        note(reason)
        return open_stream(
            self.dataset,
            self.order,
            collator,
            rank=rank,
            world=world,
            start_step=step,
            stop_step=until or self.config.training.steps,
            data=data,
            mask_ratios=self.mask_ratios,
            decode=decode,
            pin_memory=device.type == "cuda",
        )

    def mask_ratios(self, step: int) -> tuple[float, float]:
        """Image and report mask ratio of a step."""
        return image_mask_ratio(step, self.config), self.config.report.mask_ratio

    def build_validator(self, device: torch.device, rank: int, world: int, precision: str) -> Validator:
        """Validation on this dataset's held-out patients."""
        return Validator(
            self.dataset,
            self.config,
            self.tokenizer,
            target_scale=self.target_scale,
            device=device,
            rank=rank,
            world_size=world,
            precision=precision,
        )

    def picture_drawer(
        self, run: RunDirectory, device: torch.device, precision: str
    ) -> Callable[[PretrainingModel, int], None] | None:
        """Draws pictures into the run directory; None where none are wanted."""
        synthetic = self.dataset.info.synthetic
        wanted = self.config.pictures.enabled
        if wanted is False or (wanted is None and not synthetic):
            return None
        if self.config.training.parallel == "fsdp2":
            # Drawing calls the model on one rank alone, which waits for ever where weights are sharded.
            return None
        return PictureDrawer(
            self.dataset,
            self.config,
            self.tokenizer,
            run.folder.child(PICTURES),
            target_scale=self.target_scale,
            device=device,
            synthetic=synthetic,
            precision=precision,
        )


def spare_cpus() -> float:
    """CPUs of the Ray that this process is connected to which nothing has reserved; 0 without Ray."""
    ray = sys.modules.get("ray")
    return float(ray.available_resources().get("CPU", 0)) if ray and ray.is_initialized() else 0.0


def choose_target_scale(config: ExperimentConfig, short_side_median: int) -> tuple[int, str]:
    """(scale of the reconstructed crop, the reason). Raises `UserError` where 2 has no detail to recover."""
    wanted, size = config.image.target_scale, config.image.size
    if wanted == "auto":
        # The crop keeps a part of the image; half of the images or more must hold the detail.
        scale = 2 if short_side_median >= 2 * size else 1
        return scale, (
            f"image.target_scale: {scale} (the images' median short side is {short_side_median} px, "
            f"2 needs {2 * size})"
        )
    if wanted == 2 and short_side_median < size:
        raise UserError(
            f"image.target_scale 2: the images' median short side is {short_side_median} px, "
            f"less than image.size {size}",
            "use image.target_scale=1 or auto",
        )
    return wanted, f"image.target_scale: {wanted} (as configured)"
