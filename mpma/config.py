"""The experiment tree: one strict, typed description of a run.

Decisions: each Config class stands beside its owner and this module only assembles them; how files and
`--set` become a tree is the same for every configuration (`mpma.config_tree`). Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from mpma import config_tree
from mpma.config_tree import flatten, parse_override, parse_value, read_yaml, to_yaml
from mpma.data.config import DataConfig
from mpma.errors import UserError
from mpma.model.config import (
    AlignmentConfig,
    FusionConfig,
    ImageConfig,
    LossWeights,
    MemoryConfig,
    ReportConfig,
)
from mpma.strict import StrictConfig, dotted_keys
from mpma.training.config import PicturesConfig, TrackingConfig, TrainingConfig, ValidationConfig

__all__ = [
    "MAY_CHANGE_ON_CONTINUE",
    "ExperimentConfig",
    "ResolvedConfig",
    "all_keys",
    "changed_keys",
    "describe_validation_error",
    "flatten",
    "json_schema",
    "load_config",
    "nearest_key",
    "parse_override",
    "parse_value",
    "read_yaml",
    "to_yaml",
    "validate_tree",
]


class ExperimentConfig(StrictConfig):
    """Everything that decides a run."""

    data: DataConfig = DataConfig()
    """Where the pairs are and how they are streamed."""
    image: ImageConfig = ImageConfig()
    """Image branch."""
    report: ReportConfig = ReportConfig()
    """Report branch."""
    memory: MemoryConfig = MemoryConfig()
    """Learned memory of the fusion."""
    fusion: FusionConfig = FusionConfig()
    """Cross-modal fusion."""
    alignment: AlignmentConfig = AlignmentConfig()
    """Global and local alignment."""
    loss_weights: LossWeights = LossWeights()
    """Weights of the four terms."""
    training: TrainingConfig = TrainingConfig()
    """Optimisation, hardware and what is kept."""
    validation: ValidationConfig = ValidationConfig()
    """Validation on held-out patients."""
    pictures: PicturesConfig = PicturesConfig()
    """Pictures of reconstructions."""
    tracking: TrackingConfig = TrackingConfig()
    """Where figures are sent beside the run's own record."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ExperimentConfig:
        batch, lanes = self.training.batch_size, self.resolved_lanes
        if batch % lanes:
            raise ValueError(f"data.lanes {lanes} does not divide training.batch_size {batch}")
        for key, workers in self.training.worker_bounds.items():
            if lanes % workers:
                raise ValueError(
                    f"{key} {workers} does not divide the {lanes} lanes of the sample order; "
                    f"use a divisor of {lanes}"
                )
        for key, heads in (("memory.heads", self.memory.heads), ("fusion.heads", self.fusion.heads)):
            if self.report.width % heads:
                raise ValueError(f"report.width {self.report.width} is not a multiple of {key} {heads}")
        if self.memory.kind == "key_value" and self.fusion.kind == "mean_add":
            raise ValueError(
                "memory.kind key_value lies in the cross-attention, which fusion.kind mean_add "
                "does not have; use memory.kind shared or none"
            )
        weights = self.loss_weights
        if not any(value for _, value in weights):
            raise ValueError("loss_weights: at least one weight must be above 0")
        if (
            weights.image_reconstruction
            and not self.image.mask_ratio
            and not (weights.report_reconstruction or weights.global_alignment or weights.local_alignment)
        ):
            raise ValueError("image.mask_ratio 0 leaves the only weighted loss without work")
        return self

    @property
    def resolved_lanes(self) -> int:
        """L: data.lanes, or the greatest common divisor of 64 and the global batch."""
        return self.data.lanes or math.gcd(64, self.training.batch_size)

    @property
    def worker_counts(self) -> tuple[int, ...]:
        """Numbers of workers that the run can train with, ascending: divisors of the lanes within the
        bounds."""
        bounds = range(self.training.fewest_workers, self.training.most_workers + 1)
        return tuple(count for count in bounds if self.resolved_lanes % count == 0)


MAY_CHANGE_ON_CONTINUE = frozenset(
    {
        "data.path",  # the fingerprint decides, not the place
        "data.decode",
        "data.decode_threads",
        "data.prefetch_batches",
        "training.workers",
        "training.workers.min",
        "training.workers.max",
        "training.parallel",
        "training.device",
        "training.threads_per_worker",
        "training.log_every_steps",
        "training.checkpoint_every_steps",
        "training.keep_checkpoints",
        "training.max_failures",
        "training.steps",
        "pictures.enabled",
        "pictures.pairs",
        "tracking.mlflow_uri",
        "tracking.mlflow_experiment",
    }
)
"""Keys that a continued run may give anew; `training.steps` may only grow."""


@dataclass(frozen=True)
class ResolvedConfig:
    """A validated tree and where each of its values came from."""

    config: ExperimentConfig
    origins: Mapping[str, str]


def all_keys() -> list[str]:
    """Every dotted key of the tree, leaves only."""
    return dotted_keys(ExperimentConfig)


def nearest_key(unknown: str) -> str | None:
    """The known dotted key closest to an unknown one, by whole path and by last name."""
    return config_tree.nearest_key(ExperimentConfig, unknown)


def describe_validation_error(error: ValidationError, origins: Mapping[str, str]) -> UserError:
    """One line for the first problem of a tree, with its origin and the nearest known key."""
    return config_tree.describe_validation_error(ExperimentConfig, error, origins)


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> ResolvedConfig:
    """The tree from defaults, a file with its bases, and `--set` overrides.

    Raises `UserError` naming the file and key, what was wrong, and the nearest known key.
    """
    return ResolvedConfig(*config_tree.load_tree(ExperimentConfig, path, overrides))


def validate_tree(tree: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> ExperimentConfig:
    """A tree of plain values as a config. Raises `UserError`."""
    return config_tree.validate(ExperimentConfig, tree, origins)


def changed_keys(before: ExperimentConfig, after: ExperimentConfig) -> list[str]:
    """Dotted keys whose values differ."""
    old, new = dict(flatten(before.model_dump())), dict(flatten(after.model_dump()))
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the tree, for editors."""
    return ExperimentConfig.model_json_schema()
