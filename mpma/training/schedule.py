"""The schedules of a run: pure functions of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

import math

from mpma.config import ExperimentConfig


def peak_learning_rate(config: ExperimentConfig) -> float:
    """The linear scaling rule: rate per 256 pairs times batch / 256 (Goyal et al. 2017)."""
    return config.training.learning_rate_per_256 * config.training.batch_size / 256


def learning_rate(step: int, config: ExperimentConfig) -> float:
    """Rate of the 0-based `step`: linear warm-up, then a cosine to the final fraction of the peak."""
    training = config.training
    peak = peak_learning_rate(config)
    warmup = round(training.warmup_fraction * training.steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup + 1) / max(1, training.steps - warmup)
    floor = training.final_learning_rate_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def tail_start(config: ExperimentConfig) -> int:
    """First step that runs with the full image; equals `training.steps` where there is no tail.

    Without an alignment loss the tail would train nothing of the image, so there is none.
    """
    weights = config.loss_weights
    if not weights.global_alignment and not weights.local_alignment:
        return config.training.steps
    return config.training.steps - math.floor(config.alignment.unmasked_tail * config.training.steps)


def image_mask_ratio(step: int, config: ExperimentConfig) -> float:
    """Image mask ratio of a step: the configured one, 0 in the unmasked tail (after FLIP)."""
    return 0.0 if step >= tail_start(config) else config.image.mask_ratio
