"""Searches in virtual time: workers, budgets in training steps, and searchers that are really run.

Decisions: a problem gives the value of a configuration after so many steps, at once; workers train
segments of trials asynchronously, a step costing the same everywhere; a method is what hands out segments
and is told their values. The methods that this project is compared with are the libraries' own classes,
driven through the calls that their own loops make. Values are maximised.
"""

from __future__ import annotations

import heapq
import math
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna

from benchmarks.recording import Curves
from orchestration.search.decide import Begin, End, Promote, Train, Wait, next_action
from orchestration.search.promote import best_first
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace
from orchestration.search.suggest import Exhausted, suggest

METRIC = "score"
Params = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """What is searched, and what a configuration scores after some steps."""

    name: str
    parameters: dict[str, dict[str, list[float]]]
    """As in a space file: `uniform` or `int` ranges."""
    rungs: tuple[int, ...]
    """Steps at which values are seen; the last is the full length."""
    value: Callable[[Mapping[str, Any], int], float]
    best: float
    """Highest value at full length."""
    typical: float
    """Mean value of random configurations at full length: regret is 1 there and 0 at the best."""

    @property
    def full(self) -> int:
        return self.rungs[-1]

    @property
    def reduction(self) -> int:
        return self.rungs[1] // self.rungs[0]

    def regret(self, params: Mapping[str, Any] | None) -> float:
        """Of a configuration trained in full; 1 where there is none yet."""
        if params is None:
            return 1.0
        return (self.best - self.value(params, self.full)) / (self.best - self.typical)

    def random_params(self, draw: random.Random) -> Params:
        """A configuration drawn uniformly."""
        return {
            key: draw.randint(int(one["int"][0]), int(one["int"][1]))
            if "int" in one
            else draw.uniform(*one["uniform"])
            for key, one in self.parameters.items()
        }

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The same ranges for Optuna."""
        return {
            key: optuna.distributions.IntDistribution(int(one["int"][0]), int(one["int"][1]))
            if "int" in one
            else optuna.distributions.FloatDistribution(*one["uniform"])
            for key, one in self.parameters.items()
        }


def _typical(problem: Callable[[Mapping[str, Any]], float], ranges: Mapping[str, Sequence[float]]) -> float:
    draw = random.Random(0)
    points = [{key: draw.uniform(*one) for key, one in ranges.items()} for _ in range(4000)]
    return float(np.mean([problem(point) for point in points]))


def augmented_branin(rungs: tuple[int, ...]) -> Problem:
    """Branin with a fidelity [Wu, Toscano-Palmerin, Frazier & Wilson, Practical multi-fidelity Bayesian
    optimization for hyperparameter tuning, UAI 2019], negated; two dimensions."""

    def value(params: Mapping[str, Any], step: int) -> float:
        x1, x2, fidelity = params["x1"], params["x2"], step / rungs[-1]
        b = 5.1 / (4 * math.pi**2) - 0.1 * (1 - fidelity)
        bowl = (x2 - b * x1**2 + 5 / math.pi * x1 - 6) ** 2
        return -(bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x1) + 10)

    ranges = {"x1": [-5.0, 10.0], "x2": [0.0, 15.0]}
    return Problem(
        "augmented_branin",
        {key: {"uniform": one} for key, one in ranges.items()},
        rungs,
        value,
        best=-0.397887,
        typical=_typical(lambda point: value(point, rungs[-1]), ranges),
    )


def currin_exponential(rungs: tuple[int, ...]) -> Problem:
    """Currin's exponential function with a fidelity [Kandasamy, Dasarathy, Schneider & Poczos,
    Multi-fidelity Bayesian optimisation with continuous approximations, ICML 2017]; two dimensions."""

    def value(params: Mapping[str, Any], step: int) -> float:
        x1, x2, fidelity = params["x1"], params["x2"], step / rungs[-1]
        damping = 1.0 if x2 == 0 else 1 - (1 - 0.1 * (1 - fidelity)) * math.exp(-1 / (2 * x2))
        upper = 2300 * x1**3 + 1900 * x1**2 + 2092 * x1 + 60
        return damping * upper / (100 * x1**3 + 500 * x1**2 + 4 * x1 + 20)

    ranges = {"x1": [0.0, 1.0], "x2": [0.0, 1.0]}
    return Problem(
        "currin_exponential",
        {key: {"uniform": one} for key, one in ranges.items()},
        rungs,
        value,
        best=13.798722,
        typical=_typical(lambda point: value(point, rungs[-1]), ranges),
    )


HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def augmented_hartmann(rungs: tuple[int, ...]) -> Problem:
    """Hartmann's function with a fidelity [Wu et al., as above], negated; six dimensions."""

    def value(params: Mapping[str, Any], step: int) -> float:
        point = np.array([params[f"x{i}"] for i in range(1, 7)])
        heights = np.array([1.0 - 0.1 * (1 - step / rungs[-1]), 1.2, 3.0, 3.2])
        return float(heights @ np.exp(-(HARTMANN_A * (point - HARTMANN_P) ** 2).sum(1)))

    ranges = {f"x{i}": [0.0, 1.0] for i in range(1, 7)}
    return Problem(
        "augmented_hartmann",
        {key: {"uniform": one} for key, one in ranges.items()},
        rungs,
        value,
        best=3.32237,
        typical=_typical(lambda point: value(point, rungs[-1]), ranges),
    )


def recorded_curves(path: Path, metric: str, rungs: tuple[int, ...]) -> Problem:
    """Learning curves of a whole grid of real runs, the mean over its seeds, at some of their steps."""
    curves = Curves.read(path, metric)
    keys = [key for key, values in curves.levels.items() if len(values) > 1]
    means = {
        tuple(curves.levels[key].index(point[key]) for key in keys): mean
        for point, mean in zip(curves.points, curves.runs.mean(axis=1), strict=True)
    }

    def value(params: Mapping[str, Any], step: int) -> float:
        return float(means[tuple(int(params[key]) for key in keys)][curves.steps.index(step)])

    finals = [float(mean[-1]) for mean in means.values()]
    return Problem(
        path.stem.replace("curves", "recorded"),
        {key: {"int": [0, len(curves.levels[key]) - 1]} for key in keys},
        rungs,
        value,
        best=max(finals),
        typical=float(np.mean(finals)),
    )


@dataclass(frozen=True)
class Segment:
    """Training that a worker does in one go."""

    trial: int
    params: Params
    begin: int
    until: int


class Method(Protocol):
    """A searcher with its scheduler."""

    def next(self) -> Segment | None:
        """What to train now; None: nothing before a running segment ends."""

    def reached(self, segment: Segment, value: float) -> None:
        """A segment ended with this value."""

    def incumbent(self) -> Params | None:
        """The configuration that the method would give to its user now."""


def simulate(problem: Problem, method: Method, budget: int, workers: int) -> list[tuple[int, float]]:
    """(steps trained, regret of the incumbent) at every change; the last one holds at the budget.

    A segment that would end beyond the budget is not begun: nobody gets more than `budget` steps.
    """
    running: list[tuple[int, int, Segment]] = []
    clock = spent = granted = order = 0
    course = [(0, 1.0)]
    while True:
        while len(running) < workers:
            segment = method.next()
            if segment is None:
                break
            length = segment.until - segment.begin
            if granted + length > budget:
                granted = budget  # its own decision was to train this; there is no budget left for it
                break
            granted += length
            heapq.heappush(running, (clock + length, order, segment))
            order += 1
        if not running:
            return course
        clock, _, segment = heapq.heappop(running)
        spent += segment.until - segment.begin
        method.reached(segment, problem.value(segment.params, segment.until))
        regret = problem.regret(method.incumbent())
        if regret != course[-1][1]:
            course.append((spent, regret))


class Ours:
    """This project's decisions, suggestions and promotions, told through the journal's events."""

    def __init__(self, problem: Problem, seed: int, searcher: str = "tpe") -> None:
        self._space = SearchSpace.model_validate(
            {
                "parameters": problem.parameters,
                "objectives": [{"metric": METRIC}],
                "budget": {"gpu_hours": 1e9},
                "fidelity": {"first_rung": problem.rungs[0], "reduction": problem.reduction},
                "searcher": {"name": searcher},
                "first": {"default": False},
                "seed": seed,
            }
        )
        self._state, self._clock, self._live, self._exhausted = SearchState(), 0.0, set[int](), ""
        self._tell("begin", full_steps=problem.full, first_target=problem.rungs[0])

    def _tell(self, event: str, **entries: Any) -> None:
        self._clock += 1.0
        self._state.apply({"event": event, "time": self._clock, **entries})

    def next(self) -> Segment | None:
        """As the search's own loop."""
        base: Any = None  # of no use without a default point
        while True:
            action = next_action(self._space, self._state, self._live, self._exhausted)
            if isinstance(action, (Wait, End)):
                return None
            if isinstance(action, Train):
                trial = self._state.trials[action.trial]
                self._live.add(trial.number)
                return Segment(trial.number, trial.params, trial.step, trial.target)
            if isinstance(action, Promote):
                self._tell("promote", trial=action.trial, target=action.target)
            elif isinstance(action, Begin):
                number = len(self._state.trials)
                try:
                    found = suggest(self._space, base, self._state, number)
                except Exhausted as exhausted:
                    self._exhausted = str(exhausted)
                    continue
                self._tell(
                    "suggest",
                    trial=number,
                    params=found.params,
                    source=found.source,
                    attrs=found.attrs,
                    study_attrs=found.study_attrs,
                )

    def reached(self, segment: Segment, value: float) -> None:
        """Report."""
        self._live.discard(segment.trial)
        length = float(segment.until - segment.begin)
        self._tell("report", trial=segment.trial, step=segment.until, metrics={METRIC: value}, seconds=length)

    def incumbent(self) -> Params | None:
        """The first of `best_first`, as the confirmation takes it."""
        order = best_first(self._space, self._state)
        return self._state.trials[order[0]].params if order else None


class FromScratch(ABC):
    """What the methods without promotions share: trials that go from rung to rung until they are stopped."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._going: list[Segment] = []
        self._count = 0
        self._values: dict[int, tuple[int, float, Params]] = {}

    @abstractmethod
    def suggest(self, trial: int) -> Params:
        """The values of a new trial."""

    @abstractmethod
    def goes_on(self, segment: Segment, value: float) -> bool:
        """Whether a trial with this value at the end of a segment is trained further."""

    def next(self) -> Segment | None:
        """A trial that goes on, else a new one."""
        if self._going:
            return self._going.pop(0)
        trial, self._count = self._count, self._count + 1
        return Segment(trial, self.suggest(trial), 0, self._problem.rungs[0])

    def reached(self, segment: Segment, value: float) -> None:
        """Ask whether it goes on."""
        self._values[segment.trial] = (segment.until, value, segment.params)
        if self.goes_on(segment, value) and segment.until < self._problem.full:
            following = next(rung for rung in self._problem.rungs if rung > segment.until)
            self._going.append(Segment(segment.trial, segment.params, segment.until, following))

    def incumbent(self) -> Params | None:
        """The best last value, whatever the length: what Tune's ResultGrid.get_best_result gives."""
        return max(self._values.values(), key=lambda found: found[1])[2] if self._values else None


class RandomSearch(FromScratch):
    """Random configurations, each trained in full."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem)
        self._draw = random.Random(seed)

    def suggest(self, trial: int) -> Params:
        return self._problem.random_params(self._draw)

    def goes_on(self, segment: Segment, value: float) -> bool:
        return True

    def incumbent(self) -> Params | None:
        """The best of those that were trained in full."""
        complete = [found for found in self._values.values() if found[0] == self._problem.full]
        return max(complete, key=lambda found: found[1])[2] if complete else None


class StockTune(FromScratch):
    """ray.tune's OptunaSearch and ASHAScheduler with their defaults, on the same rungs."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem)
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        self._search = OptunaSearch(problem.distributions(), metric=METRIC, mode="max", seed=seed)
        self._scheduler = ASHAScheduler(
            time_attr="training_iteration",
            metric=METRIC,
            mode="max",
            max_t=problem.full,
            grace_period=problem.rungs[0],
            reduction_factor=problem.reduction,
        )

    def suggest(self, trial: int) -> Params:
        self._scheduler.on_trial_add(None, SimpleNamespace(trial_id=str(trial)))
        return dict(self._search.suggest(str(trial)) or {})

    def goes_on(self, segment: Segment, value: float) -> bool:
        from ray.tune.schedulers import TrialScheduler

        trial = SimpleNamespace(trial_id=str(segment.trial))
        result = {METRIC: value, "training_iteration": segment.until}
        # The order of TuneController._process_trial_result: scheduler, then searcher.
        decision = self._scheduler.on_trial_result(None, trial, result)
        self._search.on_trial_result(trial.trial_id, result)
        if decision == TrialScheduler.STOP:
            self._scheduler.on_trial_complete(None, trial, result)
            self._search.on_trial_complete(trial.trial_id, result=result)
        return bool(decision != TrialScheduler.STOP)


class OptunaHyperband(FromScratch):
    """Optuna's TPE and HyperbandPruner with their defaults, on the same rungs."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem)
        self._study = optuna.create_study(
            direction="maximize",
            study_name=f"hyperband-{seed}",  # brackets are drawn by a hash of it
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.HyperbandPruner(
                min_resource=problem.rungs[0],
                max_resource=problem.full,
                reduction_factor=problem.reduction,
            ),
        )
        self._trials: dict[int, optuna.Trial] = {}

    def suggest(self, trial: int) -> Params:
        self._trials[trial] = self._study.ask(self._problem.distributions())
        return dict(self._trials[trial].params)

    def goes_on(self, segment: Segment, value: float) -> bool:
        trial = self._trials[segment.trial]
        trial.report(value, segment.until)
        if segment.until == self._problem.full:
            self._study.tell(trial, value)
            return False
        if trial.should_prune():
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return False
        return True

    def incumbent(self) -> Params | None:
        """The study's best trial; before any is complete, the best last value."""
        complete = [found for found in self._values.values() if found[0] == self._problem.full]
        return max(complete, key=lambda found: found[1])[2] if complete else super().incumbent()


class OneRung:
    """Half of the budget on random configurations up to the first rung, the rest on the best of them."""

    def __init__(self, problem: Problem, seed: int, budget: int) -> None:
        self._problem, self._draw = problem, random.Random(seed)
        self._first = max(1, budget // 2 // problem.rungs[0])
        self._begun = 0
        self._queue: list[Segment] | None = None
        self._values: dict[int, tuple[int, float, Params]] = {}

    def next(self) -> Segment | None:
        """A new one until there are enough, then the best."""
        if self._begun < self._first:
            self._begun += 1
            params = self._problem.random_params(self._draw)
            return Segment(self._begun - 1, params, 0, self._problem.rungs[0])
        if self._queue is None:
            if len(self._values) < self._first:
                return None
            order = sorted(self._values, key=lambda trial: -self._values[trial][1])
            self._queue = [
                Segment(trial, self._values[trial][2], self._problem.rungs[0], self._problem.full)
                for trial in order
            ]
        return self._queue.pop(0) if self._queue else None

    def reached(self, segment: Segment, value: float) -> None:
        """Keep the value."""
        self._values[segment.trial] = (segment.until, value, segment.params)

    def incumbent(self) -> Params | None:
        """The best of the longest trained."""
        return max(self._values.values(), key=lambda found: found[:2])[2] if self._values else None


METHODS: dict[str, Callable[[Problem, int, int], Method]] = {
    "ours": lambda problem, seed, budget: Ours(problem, seed),
    "random": lambda problem, seed, budget: RandomSearch(problem, seed),
    "stock_ray_tune": lambda problem, seed, budget: StockTune(problem, seed),
    "optuna_hyperband": lambda problem, seed, budget: OptunaHyperband(problem, seed),
    "one_rung_top_k": lambda problem, seed, budget: OneRung(problem, seed, budget),
}


def quietly(problem: Problem, method: str, seed: int, budget: int, workers: int) -> list[tuple[int, float]]:
    """`simulate` by a method's name, without the libraries' notes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return simulate(problem, METHODS[method](problem, seed, budget), budget, workers)
