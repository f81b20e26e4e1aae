"""Whether a cheaper setting ranks configurations as the full one does.

Decisions:
- The same configurations, the recipe's own first and then quasi-random ones, are trained at full length
  and at each proxy of the space. The rungs of the full runs come for nothing, as those runs pass them;
  a proxy of fewer steps differs from a rung in that its schedules come to their end.
- Kendall's tau-b, with a percentile interval over configurations drawn with replacement: a pair drawn of
  one configuration is a tie and does not count. Few configurations give a wide interval; that is honest.
- Beside it the top-1 regret: how much of the full setting's objective is lost by taking the proxy's best
  configuration, for a search needs the top and not the order of the rest.
- One seed for all, as in the search's trials. What a seed changes at full length bounds every tau here.

M. G. Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945), gives tau-b.
Shapes: n configurations · B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.stats

from mpma.config import ExperimentConfig
from mpma.metrics.bootstrap import Floats, bootstrap_interval
from orchestration.search.space import Objective, SearchSpace, apply_params

FULL: Final = "full"
"""The setting that the others are measured by."""

FEWEST: Final = 4
"""Configurations below which no correlation is told."""

_ATTEMPTS: Final = 20
"""Quasi-random points looked at for each one wanted, where many repeat each other."""


@dataclass(frozen=True)
class Measurement:
    """One configuration to be trained at one setting."""

    point: int
    setting: str
    """`full`, or the name of a proxy."""
    params: dict[str, Any]
    overrides: dict[str, Any]
    """The proxy's keys, which take the place of the configuration's; none at full length."""
    config: ExperimentConfig
    """With both."""
    rungs: tuple[int, ...]
    """Steps at which it is validated, ascending; the last is its end."""

    @property
    def name(self) -> str:
        """Of its run directory."""
        return f"point-{self.point}-{self.setting}"


@dataclass(frozen=True)
class Measured:
    """What a measurement gave."""

    curve: Mapping[int, Mapping[str, float | None]]
    """Validation metrics by step."""
    seconds: float
    """Time on its devices."""

    @property
    def final(self) -> Mapping[str, float | None]:
        """Metrics of its last step; empty where it gave none."""
        return self.curve[max(self.curve)] if self.curve else {}


Measurements = Mapping[tuple[int, str], Measured]
"""By point and setting; those that failed are missing."""


@dataclass(frozen=True)
class RankCorrelation:
    """How one setting orders configurations beside the full one, for one objective."""

    setting: str
    metric: str
    points: int
    """Configurations with a value in both settings."""
    tau: float | None
    """Kendall's tau-b; None with too few configurations, or where a setting tells none apart."""
    interval: tuple[float, float] | None
    """95 % of resamples of configurations."""
    regret: float | None
    """Full objective of the best configuration less that of the setting's best; 0 is the same choice."""
    regret_share: float | None
    """Regret over the full objective's range among these configurations."""
    cost: float | None
    """Time of this setting over that of the full one."""

    @property
    def verdict(self) -> str:
        """What the interval lets one say."""
        if self.tau is None or self.interval is None:
            return "too little to tell"
        low, high = self.interval
        if low > 0.5:
            return "ranks much as the full setting does"
        if low > 0.0:
            return "ranks better than chance"
        return "ranks against it" if high < 0.0 else "not shown to rank at all"


def plan_points(space: SearchSpace, base: ExperimentConfig, count: int) -> list[dict[str, Any]]:
    """Params of `count` different configurations, the recipe's own first; fewer where the space has fewer."""
    from orchestration.search.samplers import quasi_random_params
    from orchestration.search.suggest import identity

    points = {identity(params): params for params in [space.default_params(base)]}
    for index in range(_ATTEMPTS * count):
        if len(points) == count:
            break
        params = quasi_random_params(space, space.seed, index)
        points.setdefault(identity(params), params)
    return list(points.values())[:count]


def measurements(
    space: SearchSpace, base: ExperimentConfig, points: Sequence[Mapping[str, Any]]
) -> list[Measurement]:
    """What is to be trained: every point at full length, then at each proxy of the space.

    Raises `UserError` where a proxy does not fit a configuration.
    """
    full_steps = space.fidelity.steps or base.training.steps
    rungs = space.fidelity.rungs(full_steps)
    planned = [
        Measurement(number, FULL, dict(params), {}, apply_params(base, params, steps=full_steps), rungs)
        for number, params in enumerate(points)
    ]
    for name, overrides in space.proxies.items():
        for number, params in enumerate(points):
            config = apply_params(apply_params(base, params, steps=full_steps), overrides)
            ends = (config.training.steps,)
            planned.append(Measurement(number, name, dict(params), dict(overrides), config, ends))
    return planned


def evaluate(space: SearchSpace, results: Measurements) -> list[RankCorrelation]:
    """One entry per objective and cheaper setting: the rungs of the full runs, then the proxies."""
    full = {point: one for (point, setting), one in results.items() if setting == FULL}
    full_steps = max((step for one in full.values() for step in one.curve), default=0)
    whole = {point: one for point, one in full.items() if full_steps in one.curve}
    rungs = sorted({step for one in whole.values() for step in one.curve} - {full_steps})
    found = []
    for objective in space.objectives:
        truth = {point: objective.value(one.curve[full_steps]) for point, one in whole.items()}
        for step in rungs:
            values = {
                point: objective.value(one.curve[step]) for point, one in whole.items() if step in one.curve
            }
            found.append(correlate(f"step {step}", objective, values, truth, step / full_steps, space))
        for name in space.proxies:
            cheap = {
                point: one for (point, setting), one in results.items() if setting == name and point in whole
            }
            values = {point: objective.value(one.final) for point, one in cheap.items()}
            spent = sum(one.seconds for one in cheap.values())
            same = sum(whole[point].seconds for point in cheap)
            found.append(correlate(name, objective, values, truth, spent / same if same else None, space))
    return found


def correlate(
    setting: str,
    objective: Objective,
    values: Mapping[int, float | None],
    truth: Mapping[int, float | None],
    cost: float | None,
    space: SearchSpace,
) -> RankCorrelation:
    """Compare the objective by point at a cheaper setting with that at full length."""
    turn = -1.0 if objective.direction == "minimise" else 1.0
    pairs = [
        (turn * cheap, turn * full)
        for point, cheap in sorted(values.items())
        if cheap is not None and (full := truth.get(point)) is not None
    ]
    if len(pairs) < FEWEST:
        return RankCorrelation(setting, objective.metric, len(pairs), None, None, None, None, cost)
    cheap_values, full_values = np.array(pairs).T
    tau = float(scipy.stats.kendalltau(cheap_values, full_values).statistic)
    interval = bootstrap_interval(
        lambda counts: weighted_tau_b(cheap_values, full_values, counts),
        len(pairs),
        resamples=space.confirmation.resamples,
        seed=space.seed,
    )
    regret = top_1_regret(cheap_values, full_values)
    span = float(full_values.max() - full_values.min())
    told = math.isfinite(tau)
    return RankCorrelation(
        setting=setting,
        metric=objective.metric,
        points=len(pairs),
        tau=tau if told else None,
        interval=(interval.low, interval.high) if told and interval.resamples else None,
        regret=regret,
        regret_share=regret / span if span > 0 else None,
        cost=cost,
    )


def weighted_tau_b(one: Floats, other: Floats, counts: Floats) -> Floats:
    """Kendall's tau-b of values [n] and [n] under each row of counts [B, n], as of so many copies: [B].

    NaN where a row's copies are all tied in one of the two.
    """
    sign_one = np.sign(one[:, None] - one[None, :])
    sign_other = np.sign(other[:, None] - other[None, :])

    def pairs(signs: Floats) -> Floats:
        return np.asarray(((counts @ signs) * counts).sum(axis=1))

    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(pairs(sign_one * sign_other) / np.sqrt(pairs(sign_one**2) * pairs(sign_other**2)))


def top_1_regret(cheap: Floats, full: Floats) -> float:
    """What is lost at full length by taking the cheap setting's best; the mean over its ties. Higher is
    better in both."""
    return float(full.max() - full[cheap == cheap.max()].mean())


def table(found: Sequence[RankCorrelation]) -> str:
    """A plain table, one line per entry, by objective."""
    head = ("setting", "cost", "Kendall's tau (95 % interval)", "top-1 regret", "points", "")
    lines = []
    for metric in dict.fromkeys(one.metric for one in found):
        rows = [head, *(_row(one) for one in found if one.metric == metric)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines.append(metric)
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    return "\n".join(lines)


def _row(one: RankCorrelation) -> tuple[str, ...]:
    tau = "-" if one.tau is None else f"{one.tau:+.2f}"
    if one.interval is not None:
        tau += f" ({one.interval[0]:+.2f} to {one.interval[1]:+.2f})"
    regret = "-" if one.regret is None else f"{one.regret:.4f}"
    if one.regret_share is not None:
        regret += f" ({one.regret_share:.0%} of the range)"
    cost = "-" if one.cost is None else f"{one.cost:.2f}"
    return one.setting, cost, tau, regret, str(one.points), one.verdict
