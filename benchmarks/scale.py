"""Scale by simulation: 10 million pairs, 512 workers, 5,000 trials, on the cores of one small machine.

    python -m benchmarks.scale [--quick] [--out FILE]

What is run is the project's own code, without devices: the sample order of all workers' shares, and a
search's decisions and journal with 512 slots, trials in virtual time (benchmarks/scale_order.py,
scale_fleet.py). Checked on the way, exactly: an epoch gives every pair once, the shares of 1, 8, 64 and 512
workers make the same batches, and a fresh order goes on anywhere as the unbroken one would.

Growth is the power p in cost ~ size^p, fitted by least squares to the logarithms: 1 is linear, 0 constant;
what grows with the logarithm shows as less than 0.2 here. A decision is what a driver does when a slot is
free or a segment has ended, up to the line for the terminal; the suggestion is a random one, and the
journal's own time (a line is synced to the disk before it counts) is told apart.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks import figures
from benchmarks.scale_fleet import Course, search, written_space
from benchmarks.scale_order import (
    an_order,
    resumes,
    seconds_per_position,
    shares_make_the_batch,
    walk_an_epoch,
)
from mpma.data.storage import open_storage
from orchestration.search.journal import JOURNAL_FILE, Journal
from orchestration.search.promote import promotable
from orchestration.search.space import LoadedSpace

DURATION: Final = "2 min on two cores"
FIGURES: Final = ("scale/*",)
PAIRS: Final = 10_000_000
WORKERS: Final = 512
TRIALS: Final = 5_000
REPEATS: Final = 3
POSITIONS: Final = 20_000
GIB: Final = 2**30


def growth(costs: Mapping[int, float]) -> float:
    """The power p of the size in cost ~ size^p, by least squares on logarithms."""
    return float(np.polyfit(np.log(list(costs)), np.log(list(costs.values())), 1)[0])


def check_order(pairs: int, workers: int) -> list[float]:
    """The exact checks of the sample order; seconds to a first step after going on, of some workers."""
    order = an_order(pairs, workers)
    found = walk_an_epoch(order, pairs)
    if found.missing or found.repeated:
        raise AssertionError(f"an epoch misses {found.missing} pairs and repeats {found.repeated}")
    worlds = [world for world in (1, 8, 64, 512) if world <= workers]
    shares_make_the_batch(order, [0, found.steps // 2, found.steps - 1, found.steps, 5 * found.steps], worlds)
    draw = np.random.default_rng(0)
    count = 32
    ranks, steps = draw.integers(workers, size=count), draw.integers(20 * found.steps, size=count)
    return list(resumes(pairs, workers, ranks.tolist(), steps.tolist()))


def replay_seconds(folder: Path, loaded: LoadedSpace) -> float:
    """To open a search's journal and stand where it stood, ready to decide."""
    begun = time.perf_counter()
    journal = Journal(open_storage(folder))
    promotable(loaded.space, journal.state)
    seconds = time.perf_counter() - begun
    journal.close()
    return seconds


def courses(
    folder: Path, sizes: Iterable[tuple[int, int]], repeats: int
) -> dict[tuple[int, int], list[Course]]:
    """Searches of so many trials on so many slots."""
    found: dict[tuple[int, int], list[Course]] = {}
    for turn in range(repeats):
        for trials, slots in sizes:
            place = folder / f"{trials}-{slots}-{turn}"
            found.setdefault((trials, slots), []).append(search(place, written_space(place, trials), slots))
    return found


def positions(sizes: Sequence[tuple[int, int]], repeats: int) -> dict[tuple[int, int], list[float]]:
    """Seconds per position, by pairs and workers."""
    return {size: [seconds_per_position(*size, POSITIONS) for _ in range(repeats)] for size in sizes}


def main() -> None:
    parser = figures.options(__doc__)
    parser.add_argument("--whole", action="store_true", help="the full size alone, not its growth")
    arguments = parser.parse_args()
    quick = arguments.quick
    pairs, workers, trials = (100_000, 64, 200) if quick else (PAIRS, WORKERS, TRIALS)
    repeats = 1 if quick else REPEATS
    scale = {"pairs": pairs, "workers": workers, "trials": trials}
    with (
        tempfile.TemporaryDirectory(prefix="mpma-scale-") as place,
        figures.report("scale", arguments) as tell,
    ):
        folder = Path(place)
        begun = time.perf_counter()
        resumed = check_order(pairs, workers)
        loaded = written_space(folder / "whole", trials)
        whole = search(folder / "whole", loaded, workers)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tell(figures.of("scale/seconds", [seconds], figures.SECONDS, scale))
        tell(figures.of("scale/peak_memory", [peak / GIB], "GiB", scale))
        tell(figures.of("scale/search_seconds", [whole.seconds], figures.SECONDS, scale))
        tell(figures.of("scale/order/resume_seconds", resumed, figures.SECONDS, scale))
        decisions = {"trials": trials, "slots": workers, "decisions": len(whole.deciding)}
        tell(
            figures.of("scale/decision/late_over_early", [whole.late_over_early()], figures.RATIO, decisions)
        )
        lines = {"lines": len(whole.syncing)}
        tell(figures.of("scale/journal/line_seconds", [statistics.mean(whole.syncing)], "s", lines))
        size = (folder / "whole" / JOURNAL_FILE).stat().st_size
        tell(figures.of("scale/journal/megabytes", [size / 1e6], "MB", lines))
        replays = [replay_seconds(folder / "whole", loaded) for _ in range(repeats)]
        tell(figures.of("scale/journal/replay_seconds", replays, figures.SECONDS, lines))

        if arguments.whole:
            return
        by_pairs = [(count, 64) for count in (10_000, 100_000, 1_000_000, PAIRS) if count <= pairs]
        by_workers = [(pairs, count) for count in (8, 64, 512) if count <= workers]
        by_trials = [(count, 64) for count in (50, 500, TRIALS) if count <= max(trials, 500)]
        by_slots = [(500 if quick else 1_000, count) for count in (1, 8, 64, 512) if count <= workers]
        ordered = positions(list(dict.fromkeys(by_pairs + by_workers)), repeats)
        courses(folder / "warm", [(50, 8)], 1)
        searched = courses(folder / "sizes", dict.fromkeys(by_trials + by_slots), repeats)
        for (count, world), samples in ordered.items():
            settings = {"pairs": count, "workers": world}
            name = f"scale/order/position_seconds/{count}_pairs_{world}_workers"
            tell(figures.of(name, samples, figures.SECONDS, settings))
        for (count, slots), runs in searched.items():
            name = f"scale/decision/seconds/{count}_trials_{slots}_slots"
            samples = [run.decision_seconds for run in runs]
            tell(figures.of(name, samples, figures.SECONDS, {"trials": count, "slots": slots}))
        for name, which, by in (
            ("scale/order/growth_with_pairs", by_pairs, 0),
            ("scale/order/growth_with_workers", by_workers, 1),
        ):
            powers = [growth({size[by]: ordered[size][turn] for size in which}) for turn in range(repeats)]
            tell(figures.of(name, powers, "power", {"sizes": [size[by] for size in which]}))
        for name, which, by in (
            ("scale/decision/growth_with_trials", by_trials, 0),
            ("scale/decision/growth_with_workers", by_slots, 1),
        ):
            powers = [
                growth({size[by]: searched[size][turn].decision_seconds for size in which})
                for turn in range(repeats)
            ]
            tell(figures.of(name, powers, "power", {"sizes": [size[by] for size in which]}))


if __name__ == "__main__":
    main()
