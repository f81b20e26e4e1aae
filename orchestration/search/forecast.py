"""What a search would cost here, from a few measured steps of the recipe's own model.

Decisions: trials are taken at the recipe's sizes (a searched size changes the cost, and the forecast says
so); halving is counted as if each rung promotes one trial in `reduction`; trials at a time are those of
this machine or cluster as it is now.
"""

from __future__ import annotations

from itertools import pairwise

from rich.console import Console
from rich.table import Table

from orchestration.forecasting import hours, measure
from orchestration.search.place import TrialLayout
from orchestration.search.space import LoadedSpace, SearchSpace

COSTLY = ("image.size", "image.width", "image.layers", "report.layers", "report.width", "training.batch_size",
          "fusion.layers", "memory.slots", "image.mask_ratio")  # fmt: skip
"""Searched keys that change a step's time."""


def trials_at_rungs(space: SearchSpace, full_steps: int, trials: int) -> dict[int, int]:
    """How many trials train to each rung."""
    rungs = space.fidelity.rungs(full_steps)
    if space.scheduler.name == "none":
        return {full_steps: trials}
    found, left = {}, trials
    for rung in rungs:
        found[rung] = left
        # The median rule lets about half go on.
        left = max(1, left // (space.fidelity.reduction if space.scheduler.name == "halving" else 2))
    return found


def steps_of_search(space: SearchSpace, full_steps: int, trials: int) -> int:
    """Training steps of all trials together, the confirmation left out."""
    counts = trials_at_rungs(space, full_steps, trials)
    total, before = 0, 0
    for rung, count in counts.items():
        total += count * (rung - before)
        before = rung
    return total


def forecast_search(loaded: LoadedSpace, layout: TrialLayout, console: Console) -> None:
    """Measure some steps and print trials, steps, hours and disk."""
    space, base, full = loaded.space, loaded.base, loaded.full_steps
    found = measure(base, layout.device, layout.threads)
    per_step = found.training_seconds(base) / base.training.steps
    trials = space.budget.trials
    if trials is None:
        trials = _trials_within(space, full, per_step, found.validation_seconds, layout)
    counts = trials_at_rungs(space, full, trials)
    steps = steps_of_search(space, full, trials)
    devices = layout.gpus * layout.workers if layout.device == "cuda" and layout.gpus else layout.workers
    searching = steps * per_step + sum(counts.values()) * found.validation_seconds
    retrained = (
        (space.confirmation.candidates + 1) * space.confirmation.seeds if space.confirmation.candidates else 0
    )
    confirming = retrained * ((space.confirmation.steps or full) * per_step + found.validation_seconds)
    waiting = sum(count - after for count, after in pairwise([*counts.values(), 0]))
    table = Table(title=f"forecast for this machine, {layout.device} ({found.where})", title_justify="left")
    table.add_column("figure")
    table.add_column("forecast", justify="right")
    most = space.budget.trials is None
    for name, value in (
        ("trials", f"{'about ' if most else ''}{trials}"),
        ("trials trained to step", ", ".join(f"{rung}: {count}" for rung, count in counts.items())),
        ("steps of all trials", f"{steps} ({100 * steps / (trials * full):.0f} % of full-length trials)"),
        ("one step", f"{per_step:.3f} s"),
        ("trials at a time", str(layout.concurrency)),
        ("device hours of the search", f"{searching * devices / 3600:.2f}"),
        ("time of the search", hours(searching / layout.concurrency)),
        (f"time of the confirmation ({retrained} full runs)", hours(confirming / layout.concurrency)),
        ("memory of a trial, at least", f"{found.peak_bytes / 2**30:.1f} GiB"),
        (
            "disk for checkpoints, at most",
            f"{(waiting + 2 * retrained) * found.checkpoint_bytes / 2**20:.0f} MiB",
        ),
    ):
        table.add_row(name, value)
    console.print(table)
    costly = [key for key in space.searched_keys() if key in COSTLY]
    if costly:
        console.print(f"at the recipe's own values; {', '.join(costly)} change a step's time", markup=False)
    if layout.concurrency > 1 and layout.device == "cpu":
        console.print("measured on an idle machine, whose cores the trials would share", markup=False)


def _trials_within(
    space: SearchSpace, full: int, per_step: float, validation: float, layout: TrialLayout
) -> int:
    """Trials that a budget of hours admits."""
    budget = space.budget
    seconds = min(
        (budget.gpu_hours or float("inf")) * 3600,
        (budget.wall_clock_hours or float("inf")) * 3600 * layout.concurrency,
    )
    trials = 1
    while trials < 100_000:
        counts = trials_at_rungs(space, full, trials + 1)
        cost = steps_of_search(space, full, trials + 1) * per_step + sum(counts.values()) * validation
        if cost > seconds:
            break
        trials += 1
    return trials
