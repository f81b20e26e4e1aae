"""How good the configuration is that a search ends with, beside four other ways to spend the same steps.

    python -m benchmarks.search_quality [--seeds 100] [--budget 8] [--workers 4]

Problems: the recorded learning curves of two whole grids of real runs (benchmarks/record.py: masking
ratios and learning rates of the masking search's own recipe, and a denser grid on planted codes), and
three published functions with a fidelity. The functions have rungs at 10, 30 and 90 steps, the runs at a
third of their length and at its end; the budget is in full lengths, the same for all. Regret is that of
the configuration that a method would hand over, judged at full length: 0 the best there is, 1 what a
random configuration is worth. Differences are paired by seed; their 95 % intervals are percentiles of
10,000 bootstrap means over seeds.

Writes benchmarks/results/search_quality.jsonl, one figure a line, and docs/pictures/search_quality.svg.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_simulation import (
    METHODS,
    Problem,
    augmented_branin,
    augmented_hartmann,
    currin_exponential,
    quietly,
    recorded_curves,
)

FIGURES: Final = ()  # its lines are regrets by problem and method, of a shape of their own
LONG: Final = True
RUNGS: Final = (10, 30, 90)
POINTS: Final = 48
"""Budgets at which the curves of the picture are drawn."""
MUST_BEAT: Final = ("random", "stock_ray_tune")
ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks/results"


def problems() -> list[Problem]:
    """The recorded curves and the published functions."""
    return [
        recorded_curves(RESULTS / "curves_masking.json", "val/representation_score", (120, 360)),
        recorded_curves(RESULTS / "curves_codes.json", "val/report_reconstruction/visual_gain", (200, 600)),
        augmented_branin(RUNGS),
        currin_exponential(RUNGS),
        augmented_hartmann(RUNGS),
    ]


def interval(samples: NDArray[np.float64], resamples: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `samples` [n]."""
    draw = np.random.default_rng(0)
    means = samples[draw.integers(0, len(samples), (resamples, len(samples)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Courses:
    """Regret of each method on one problem, [seeds, POINTS], at budgets up to the whole."""

    problem: str
    regrets: dict[str, NDArray[np.float64]]

    def lines(self) -> list[dict[str, Any]]:
        """One figure each: regret by method, and the paired difference of ours to every other."""
        found: list[dict[str, Any]] = []
        ours = self.regrets["ours"][:, -1]
        for method, regrets in self.regrets.items():
            final = regrets[:, -1]
            low, high = interval(final)
            figure = {"problem": self.problem, "method": method, "seeds": len(final)}
            found.append(
                {
                    "figure": "regret",
                    **figure,
                    "mean": _short(final.mean()),
                    "interval": [_short(low), _short(high)],
                }
            )
            if method != "ours":
                low, high = interval(ours - final)
                found.append(
                    {
                        "figure": "ours_minus_other",
                        **figure,
                        "mean": _short((ours - final).mean()),
                        "interval": [_short(low), _short(high)],
                        "holds": high < 0 if method in MUST_BEAT else low <= 0,
                    }
                )
        return found


def measure(problem: Problem, methods: Sequence[str], seeds: int, budget: float, workers: int) -> Courses:
    """Every method on every seed, with `budget` full lengths of steps."""
    steps = round(budget * problem.full)
    at = np.linspace(steps / POINTS, steps, POINTS)
    regrets = {}
    for method in methods:
        rows = []
        for seed in range(seeds):
            spent, regret = zip(*quietly(problem, method, seed, steps, workers), strict=True)
            rows.append(np.array(regret)[np.searchsorted(spent, at, side="right") - 1])
        regrets[method] = np.array(rows)
    return Courses(problem.name, regrets)


def _short(value: float) -> float:
    return round(float(value), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description="regret after equal budget, ours beside others")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--budget", type=float, default=8.0, help="full lengths of training")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/search_quality.jsonl")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/pictures/search_quality.svg")
    options = parser.parse_args()
    from benchmarks.search_picture import picture

    start = time.perf_counter()
    all_courses = []
    lines: list[dict[str, Any]] = []
    for problem in problems():
        courses = measure(problem, list(METHODS), options.seeds, options.budget, options.workers)
        all_courses.append(courses)
        for line in courses.lines():
            lines.append({**line, "budget": options.budget, "workers": options.workers})
            print(json.dumps(lines[-1]), flush=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(picture(all_courses, options.budget))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
