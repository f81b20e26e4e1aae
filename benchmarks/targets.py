"""What each figure has to reach, by its name; a `*` at the end stands for any variant.

Decisions: bounds are shares and ratios where that can be, since seconds belong to a machine; the seconds
here are for two cores. Fractions are in parts of one (0.01 is 1 %). A figure that is shown for what it
explains has no target.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal


@dataclass(frozen=True)
class Target:
    """A bound that a figure's value is held to."""

    relation: Literal[">=", "<="]
    bound: float
    words: str

    def met_by(self, value: float) -> bool:
        """Whether a value keeps the bound, the bound itself included."""
        return value >= self.bound if self.relation == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


def _at_least(bound: float, words: str) -> Target:
    return Target(">=", bound, words)


def _at_most(bound: float, words: str) -> Target:
    return Target("<=", bound, words)


TARGETS: Final[dict[str, Target]] = {
    "step/share_of_floor/fp32": _at_least(
        0.75, "of the matrix-product rate in the same process: a full step, batch 8, CPU, MRM's sizes"
    ),
    "step/share_of_floor/bf16": _at_least(0.50, "of the matrix-product rate, the same in bf16"),
    "step/over_public_mrm/fp32": _at_least(1.25, "times the published MRM's step at equal sizes"),
    "step/over_public_mrm/bf16": _at_least(1.25, "times the published MRM's step, the same in bf16"),
    "image_branch/over_vit_mae/equal_maths": _at_least(
        1.0, "times transformers' ViTMAEForPreTraining at equal maths"
    ),
    "image_branch/over_vit_mae/grey": _at_least(1.1, "times the same, with the grey patch embedding"),
    "gpu/share_of_floor/compiled": _at_least(0.45, "of the GPU's matrix-product rate, compiled"),
    "gpu/loss_error/bf16": _at_most(0.01, "of a loss term beside fp32 on the CPU: a few units of bf16"),
    "gpu/loss_error/fp32": _at_most(1e-5, "of a loss term beside the CPU, both in fp32"),
    "ray_loop/over_plain": _at_least(0.98, "times the same loop in plain PyTorch, through a worker group"),
    "ray_loop/over_plain/here": _at_least(0.98, "times the same loop, one worker in the program's process"),
    "ray_loop/data_wait_fraction": _at_most(0.03, "of a training run's time waits for data"),
    "streams/over/data_loader": _at_least(1.0, "times torch's DataLoader, exact resume on"),
    "streams/over/fastest_peer": _at_least(
        0.9, "times the fastest of DataLoader, MosaicML Streaming, LitData and WebDataset"
    ),
    "streams/first_batch_seconds": _at_most(2.0, "seconds to the first batch of a warm start"),
    "streams/memory_growth_per_epoch": _at_most(0.01, "of the memory is added by an epoch, over 10"),
    "start/first_step/one_worker": _at_most(12.0, "seconds from the command to the first step"),
    "start/first_step/two_workers": _at_most(30.0, "seconds, the same with two workers"),
    "start/help/*": _at_most(0.5, "seconds for a program's --help"),
    "ingest/over_bare_loop/jpeg/*": _at_least(0.9, "times a bare loop with the same libraries and no checks"),
    "ingest/over_bare_loop/png/*": _at_least(0.9, "times the same loop, PNG"),
    "ingest/over_plain_loop/jpeg/*": _at_least(1.5, "times a loop that decodes every JPEG whole"),
    "ingest/memory_growth": _at_most(1.1, "times the memory of the smallest archive, of the largest"),
    "listing/seconds/*": _at_most(5.0, "seconds to list 1,000 runs of a local folder"),
    "scale/seconds": _at_most(120.0, "seconds: 10 million pairs, 512 workers and 5,000 trials, simulated"),
    "scale/peak_memory": _at_most(2.0, "GiB of the process that simulates them"),
    "scale/order/growth_with_pairs": _at_most(0.2, "is the power of the pairs that a position costs"),
    "scale/order/growth_with_workers": _at_most(0.2, "is the power of the workers that a position costs"),
    "scale/decision/growth_with_trials": _at_most(0.2, "is the power of the trials that a decision costs"),
    "scale/decision/growth_with_workers": _at_most(0.2, "is the power of the workers that a decision costs"),
    "search_overhead/first_step_seconds": _at_most(1.0, "seconds from a suggestion to its first step"),
    "search_overhead/times_shorter": _at_least(3.0, "times shorter than nested trainers, stock parts"),
}


def target_of(figure: str) -> Target | None:
    """The target of a figure, or None."""
    found = TARGETS.get(figure)
    if found is not None:
        return found
    return next((target for name, target in TARGETS.items() if fnmatchcase(figure, name)), None)
