"""Between a space and Optuna: its keys as Optuna's parameters, and the samplers by name.

Decisions: alternatives of one key under different conditions are different parameters to a sampler,
since Optuna wants one list of choices per name; a range that may be switched off is a switch and a range;
fixed keys are not Optuna's business. A value that the space would not sample (the recipe's own may be one)
stands at the nearest that it would. Startup points come from a scrambled Sobol sequence over all of
these, which covers a conditional space evenly without any state but a count [Bergstra & Bengio, Random
search for hyper-parameter optimization, JMLR 2012, section 4.1].
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from orchestration.search.parameters import Parameter

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

    from orchestration.search.space import SearchSpace

SWITCH: Final = " > 0"
"""Ends the name of the switch of a range that may be zero."""

GRID_POINTS: Final = 5
"""Values of a continuous range on the grid."""

Draw = Callable[[str, BaseDistribution], Any]
"""Gives the value of one of Optuna's parameters, by its name and distribution."""


def seed_of(*parts: int) -> int:
    """A seed in [0, 2**31) that depends on every part: equal in every process and on every platform."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


def distribution(parameter: Parameter) -> BaseDistribution:
    """What Optuna draws for a searched parameter, its switch aside."""
    if not parameter.is_range:
        return CategoricalDistribution(parameter.choices)
    if parameter.is_int:
        step = 1 if parameter.log else int(parameter.grid_step or 1)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.grid_step)


def name_of(space: SearchSpace, key: str, parameter: Parameter) -> str:
    """Optuna's name of a parameter: its key, and its condition where the key has several alternatives."""
    if len(space.parameters[key]) == 1:
        return key
    conditions = [
        f"{other}={'|'.join(map(str, values))}" for other, values in sorted((parameter.when or {}).items())
    ]
    return f"{key} [{', '.join(conditions)}]"


def axes(space: SearchSpace) -> dict[str, BaseDistribution]:
    """All of Optuna's parameters, whether or not they apply together."""
    found: dict[str, BaseDistribution] = {}
    for key, alternatives in space.parameters.items():
        for parameter in alternatives:
            if parameter.searched:
                name = name_of(space, key, parameter)
                if parameter.or_zero:
                    found[name + SWITCH] = CategoricalDistribution([True, False])
                found[name] = distribution(parameter)
    return found


def drawn(space: SearchSpace, draw: Draw) -> dict[str, Any]:
    """Params of a point of the space: walks its conditions, asking `draw` for what applies."""
    params: dict[str, Any] = {}
    for key in space.parameters:
        parameter = space.active(params, key)
        if parameter is None:
            continue
        if not parameter.searched:
            params[key] = parameter.fixed
            continue
        name = name_of(space, key, parameter)
        if parameter.or_zero and not draw(name + SWITCH, CategoricalDistribution([True, False])):
            params[key] = 0.0
            continue
        value = parameter.normalised(draw(name, distribution(parameter)))
        params[key] = parameter.clamped(value, params)
    return params


def observed(space: SearchSpace, params: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values of Optuna's parameters at a trial's params: the inverse of `drawn`.

    A number outside the space stands at the nearest inside. None where a value without order is foreign.
    """
    values: dict[str, Any] = {}
    for key in space.parameters:
        parameter = space.active(params, key)
        if parameter is None or not parameter.searched:
            continue
        if key not in params:
            return None
        value = params[key]
        if not parameter.contains(value):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return None
            value = parameter.nearest(value)
        name = name_of(space, key, parameter)
        if parameter.or_zero:
            values[name + SWITCH] = value != 0
        if not (parameter.or_zero and value == 0):
            values[name] = parameter.normalised(value)
    return values


def at_unit(one: BaseDistribution, unit: float) -> Any:
    """The value at `unit` in [0, 1) of a distribution's range: every choice and step equally wide."""
    if isinstance(one, CategoricalDistribution):
        return one.choices[int(unit * len(one.choices))]
    if isinstance(one, IntDistribution):
        if one.log:
            low, high = math.log(one.low - 0.5), math.log(one.high + 0.5)
            return min(max(round(math.exp(low + unit * (high - low))), one.low), one.high)
        return one.low + int(unit * ((one.high - one.low) // one.step + 1)) * one.step
    assert isinstance(one, FloatDistribution)
    if one.log:
        return math.exp(math.log(one.low) + unit * (math.log(one.high) - math.log(one.low)))
    if one.step is not None:
        return one.low + int(unit * (round((one.high - one.low) / one.step) + 1)) * one.step
    return one.low + unit * (one.high - one.low)


def random_params(space: SearchSpace, seed: int) -> dict[str, Any]:
    """An independent random point."""
    generator = np.random.default_rng(seed)
    return drawn(space, lambda name, one: at_unit(one, generator.random()))


def quasi_random_params(space: SearchSpace, seed: int, index: int) -> dict[str, Any]:
    """Point `index` of the scrambled Sobol sequence of `seed` over all parameters of the space."""
    from scipy.stats import qmc

    names = list(axes(space))
    engine = qmc.Sobol(max(1, len(names)), rng=np.random.default_rng(seed_of(seed, 0)))
    if index:
        engine.fast_forward(index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its balance needs a power of two: points come one by one
        units = dict(zip(names, engine.random(1)[0], strict=False))
    return drawn(space, lambda name, one: at_unit(one, min(float(units[name]), 1 - 1e-12)))


def grid_size(space: SearchSpace) -> int:
    """Indices of the grid: its points, and combinations that conditions rule out."""
    return math.prod(_widths(space).values())


def grid_point(space: SearchSpace, index: int) -> dict[str, Any] | None:
    """The point of the grid at an index below `grid_size`; every point stands at one index, clamped ones
    aside. None at an index that is no point: a key's digit without meaning there must be 0.
    """
    params: dict[str, Any] = {}
    for key, width in _widths(space).items():
        index, digit = divmod(index, width)
        parameter = space.active(params, key)
        values = [] if parameter is None else _grid_values(parameter)
        if digit >= max(1, len(values)):
            return None
        if parameter is not None:
            params[key] = parameter.clamped(values[digit], params)
    return params


def grid(space: SearchSpace) -> Iterator[dict[str, Any]]:
    """Every point of the grid: of a continuous range `GRID_POINTS`, of anything else all values."""
    points = (grid_point(space, index) for index in range(grid_size(space)))
    return (point for point in points if point is not None)


def shuffled(size: int, seed: int, place: int) -> int:
    """What stands at `place` of a permutation of range(size): an affine one, so that nothing is listed."""
    generator = np.random.default_rng(seed)
    factor = next(
        one
        for one in iter(lambda: int(generator.integers(1, max(2, size))), None)
        if math.gcd(one, size) == 1
    )
    return (factor * place + int(generator.integers(0, size))) % size


def is_finite(space: SearchSpace) -> bool:
    """Whether the space has no continuous range, so that the grid is all of it."""
    return all(one.values() is not None for found in space.parameters.values() for one in found)


def _widths(space: SearchSpace) -> dict[str, int]:
    return {key: max(len(_grid_values(one)) for one in found) for key, found in space.parameters.items()}


def _grid_values(parameter: Parameter) -> Sequence[Any]:
    values = parameter.values()
    if values is not None:
        return values
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        spaced = np.geomspace(low, high, GRID_POINTS)
    else:
        spaced = np.linspace(low, high, GRID_POINTS)
    inside = [parameter.normalised(float(value)) for value in spaced]
    return [0.0, *inside] if parameter.or_zero else inside


def sampler(name: str, seed: int, population: int) -> BaseSampler:
    """Optuna's sampler of that name: tpe, gp, nsga2 or cmaes.

    What gp and cmaes leave out (keys that do not always apply; choices, for cmaes) TPE draws for them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ExperimentalWarning of `group`
        tpe = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=1, multivariate=True, group=True, constant_liar=True
        )
        if name == "tpe":
            return tpe
        if name == "gp":
            return optuna.samplers.GPSampler(
                seed=seed,
                n_startup_trials=1,
                independent_sampler=tpe,
                warn_independent_sampling=False,
            )
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
        assert name == "cmaes"
        return ReplayedCmaEs(
            seed=seed, n_startup_trials=1, independent_sampler=tpe, warn_independent_sampling=False
        )


class ReplayedCmaEs(optuna.samplers.CmaEsSampler):
    """CMA-ES whose distribution is computed anew from the trials' values at every suggestion.

    Optuna keeps the optimiser pickled in the study; a journal holds no pickles, and a replay of its
    generations costs milliseconds. Trials carry the generation that they were drawn in.
    """

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        self._solutions: list[FrozenTrial] = []

    def _get_trials(self, study: optuna.Study) -> list[FrozenTrial]:
        self._solutions = super()._get_trials(study)
        return self._solutions

    def _split_optimizer_str(self, optimizer_str: str) -> dict[str, str]:
        return {}

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        return None

    def _init_optimizer(self, trans: Any, direction: Any) -> Any:
        optimiser = super()._init_optimizer(trans, direction)
        sign = 1.0 if direction == optuna.study.StudyDirection.MINIMIZE else -1.0
        while True:
            members = self._get_solution_trials(self._solutions, optimiser.generation)
            if len(members) < optimiser.population_size:
                return optimiser
            optimiser.tell(
                [
                    (trans.transform(trial.params), sign * float(trial.values[0]))
                    for trial in members[: optimiser.population_size]
                ]
            )
