"""The courses of `search_quality` as one SVG: regret against budget, a panel a problem.

Decisions: written by hand, since a page of lines and bands needs no library and stays a few kilobytes that
any browser shows. Regret is on a logarithmic axis, with the 95 % bootstrap interval of its mean as a band.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.search_quality import Courses

COLOURS: Final = {  # Okabe and Ito's, told apart by every eye
    "ours": "#D55E00",
    "random": "#999999",
    "stock_ray_tune": "#0072B2",
    "optuna_hyperband": "#009E73",
    "one_rung_top_k": "#CC79A7",
}
NAMES: Final = {
    "ours": "this project",
    "random": "random, full length",
    "stock_ray_tune": "Ray Tune: OptunaSearch + ASHA",
    "optuna_hyperband": "Optuna: TPE + Hyperband",
    "one_rung_top_k": "one rung, then the top k",
}
WIDTH, HEIGHT, LEFT, TOP, GAP = 330, 230, 56, 66, 34
FLOOR: Final = 1e-3
RESAMPLES: Final = 2000


def picture(all_courses: Sequence[Courses], budget: float) -> str:
    """SVG text: one panel per problem, side by side."""
    width = LEFT + len(all_courses) * (WIDTH + GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 46}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, (method, name) in enumerate(NAMES.items()):
        x = LEFT + place * 235
        parts.append(f'<path d="M{x} 18h26" stroke="{COLOURS[method]}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 32}" y="22">{escape(name)}</text>')
    for place, courses in enumerate(all_courses):
        parts += _panel(courses, LEFT + place * (WIDTH + GAP), budget, first=place == 0)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(courses: Courses, x0: float, budget: float, first: bool) -> list[str]:
    bottom = TOP + HEIGHT
    parts = [
        f'<text x="{x0 + WIDTH / 2}" y="{TOP - 10}" text-anchor="middle">{escape(courses.problem)}</text>',
        f'<rect x="{x0}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{x0 + WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">budget in full lengths</text>',
    ]
    if first:
        middle = TOP + HEIGHT / 2
        parts.append(
            f'<text transform="translate({x0 - 42} {middle}) rotate(-90)" text-anchor="middle">'
            "regret (1: a random configuration)</text>"
        )
    for exponent in range(round(np.log10(FLOOR)), 1):
        y = _height(np.array(10.0**exponent))
        parts.append(f'<path d="M{x0} {y:.1f}h{WIDTH}" stroke="#eee"/>')
        if first:
            parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g}</text>')
    for tick in range(0, int(budget) + 1, max(1, int(budget) // 4)):
        x = x0 + WIDTH * tick / budget
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    for method, regrets in reversed(courses.regrets.items()):
        xs = x0 + WIDTH * np.arange(1, regrets.shape[1] + 1) / regrets.shape[1]
        draw = np.random.default_rng(0)
        chosen = draw.integers(0, len(regrets), (RESAMPLES, len(regrets)))
        means = np.stack([regrets[rows].mean(0) for rows in chosen])
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        band = [*zip(xs, _height(low), strict=True), *zip(xs[::-1], _height(high)[::-1], strict=True)]
        colour = COLOURS[method]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, _height(regrets.mean(0)), strict=True))
        outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in band)
        parts.append(f'<polygon points="{outline}" fill="{colour}" opacity="0.15"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


def _height(regret: NDArray[np.float64]) -> NDArray[np.float64]:
    share = np.log(np.clip(regret, FLOOR, 1.5) / FLOOR) / np.log(1.5 / FLOOR)
    return np.asarray(TOP + HEIGHT * (1 - share))
