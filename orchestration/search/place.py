"""Where trials run: a pure function of the recipe, the space and what the cluster has.

Decisions: trials with one worker share a machine's cores between them, one thread each unless the recipe
says otherwise, since two trials at a time beat one with two threads; one CPU is always left to Ray Data,
which would wait for ever without one; what cannot fit is refused with what would.
"""

from __future__ import annotations

from dataclasses import dataclass

from mpma.errors import UserError
from mpma.training.config import TrainingConfig
from orchestration.cluster import SMALLEST_CPU_SHARE, Resources


@dataclass(frozen=True)
class TrialLayout:
    """How trials are placed."""

    device: str
    """`cpu` or `cuda`."""
    workers: int
    threads: int
    cpus_per_worker: float
    gpus: float
    """Share of a GPU of a trial with one worker."""
    concurrency: int
    """Trials at a time on the cluster as it is now."""
    reasons: tuple[str, ...]


def plan_trials(
    training: TrainingConfig,
    resources: Resources,
    concurrency: int | None,
    gpus_per_trial: float | None,
) -> TrialLayout:
    """Place the trials. Raises `UserError` where not even one fits.

    `concurrency` None: as many as fit. `gpus_per_trial` None: one GPU, where there are any.
    """
    # A trial is over too soon for a group to shrink and grow: of a range the most are taken.
    workers, device, reasons = training.most_workers, training.device, []
    if device == "auto":
        device = (
            "cuda"
            if resources.gpus >= (workers if workers > 1 else min(1.0, gpus_per_trial or 1.0))
            else "cpu"
        )
        reasons.append(f"device: {device} ({resources.gpus:g} GPUs)")
    share = (gpus_per_trial or 1.0) if device == "cuda" and workers == 1 else 0.0
    need = share if workers == 1 else float(workers)
    by_gpu = int(resources.gpus / need + 1e-6) if device == "cuda" else None
    if by_gpu == 0:
        raise UserError(
            "this cluster is too small for one trial: "
            f"it needs {need:g} GPUs and there are {resources.gpus:g}",
            "use fewer training.workers, a smaller gpus_per_trial, or training.device=cpu",
        )
    threads = training.threads_per_worker or (1 if resources.local else None)
    spare = resources.cpus - 1
    if resources.local:
        by_cpu = int(resources.cpus // ((threads or 1) * workers)) if by_gpu is None else by_gpu
        at_a_time = max(1, min(by_cpu, by_gpu or by_cpu, concurrency or by_cpu))
        if concurrency is not None:
            at_a_time = min(concurrency, by_gpu or concurrency)
        cpu = min(1.0, spare / (at_a_time * workers))
        if cpu < SMALLEST_CPU_SHARE:
            at_a_time = int(spare / (SMALLEST_CPU_SHARE * workers))
            cpu = SMALLEST_CPU_SHARE
    else:
        cpu = float(threads or 1)
        at_a_time = int(spare / (cpu * workers) + 1e-6)
        at_a_time = min(at_a_time, by_gpu or at_a_time, concurrency or at_a_time)
    if at_a_time < 1:
        raise UserError(
            f"this cluster is too small for one trial: {workers} worker{'s' * (workers > 1)} and one CPU for "
            f"Ray Data need {workers + 1} CPUs, and there {'is' if resources.cpus == 1 else 'are'} "
            f"{resources.cpus:g}",
            "use fewer training.workers, or declare more CPUs with --cpus"
            if resources.local
            else "use fewer training.workers, or a larger cluster",
        )
    if workers == 1:
        reasons.append(
            f"trials at a time: {at_a_time}, each in one reused process ({threads or 1} "
            f"thread{'s' * ((threads or 1) > 1)}{f', {share:g} GPU' if share else ''})"
        )
    else:
        reasons.append(f"trials at a time: {at_a_time}, each a group of {workers} workers")
    return TrialLayout(device, workers, threads or 1, cpu, share, at_a_time, tuple(reasons))
