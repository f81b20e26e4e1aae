"""How much each searched key matters, by PED-ANOVA over trials of equal training.

Decisions: Optuna's evaluator [Watanabe, Bansal & Hutter, PED-ANOVA, IJCAI 2023; conditional keys as
Optuna has them] on an in-memory study of the trials at one step, so that nobody is judged by having
trained longer; one figure an objective; the best third are the good ones, and at least 5. A few trials set
good ones apart in any key by chance alone, and a sampler that drifts sets late ones apart: so values are
shuffled among neighbouring trials, a key that does not exceed 95 % of the shuffles has none, and from
the others the shuffles' mean is taken off. Without that an idle key had a fifth of the importance among 100
trials. Under 10 trials no figure is given, since it would be noise. Alternatives of one key and its switch
add up to the key's importance.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from orchestration.search.records import TrialRecord
from orchestration.search.space import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FEWEST_TRIALS: Final = 10
GOOD_TRIALS: Final = 5
"""At least as many are in the quantile of good trials."""

GOOD_SHARE: Final = 1 / 3
"""Share of trials that count as good where that is more."""

SHUFFLES: Final = 40
"""Times that the values are dealt anew to see what chance gives."""

NEIGHBOURS: Final = 16
"""Consecutive trials among which values are shuffled."""


def importances(
    space: SearchSpace, trials: Sequence[TrialRecord], step: int, objective: int
) -> dict[str, float] | None:
    """Share of each searched key in what sets good trials apart, adding up to 1, largest first.

    None where fewer than `FEWEST_TRIALS` trials have the objective at `step`, or none stands out.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    from orchestration.search.samplers import SWITCH, axes, observed

    sought = space.objectives[objective]
    told = []
    distributions = axes(space)
    for trial in trials:
        loss = sought.minimised(trial.reports.get(step, {}))
        params = observed(space, trial.params)
        if loss is not None and params is not None:
            told.append((loss, params))
    if len(told) < FEWEST_TRIALS:
        return None
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="minimize")
        for loss, params in told:
            used = {name: distributions[name] for name in params}
            study.add_trial(optuna.create_trial(value=loss, params=params, distributions=used))
        quantile = min(0.5, max(GOOD_SHARE, GOOD_TRIALS / len(told)))
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = evaluator.evaluate(study, target=_loss)
            chance = _by_chance(evaluator, study, [loss for loss, _ in told])
    finally:
        optuna.logging.set_verbosity(level)
    raw = {
        name: max(0.0, value - float(chance[name].mean()))
        if value > float(np.quantile(chance[name], 0.95))
        else 0.0
        for name, value in raw.items()
    }
    total = sum(raw.values())
    if total <= 0:
        return None
    found = dict.fromkeys(space.searched_keys(), 0.0)
    for name, value in raw.items():
        found[name.removesuffix(SWITCH).partition(" [")[0]] += value / total
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _by_chance(evaluator: Any, study: Any, losses: Sequence[float]) -> dict[str, NDArray[np.float64]]:
    """What the evaluator gives each parameter in each shuffle of the losses among neighbours."""
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for _ in range(SHUFFLES):
        dealt = np.array(losses)
        for start in range(0, len(dealt), NEIGHBOURS):
            part = slice(start, start + NEIGHBOURS)
            dealt[part] = random.permutation(dealt[part])

        def loss_of(trial: FrozenTrial, dealt: NDArray[np.float64] = dealt) -> float:
            return float(dealt[trial.number])

        for name, value in evaluator.evaluate(study, target=loss_of).items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def _loss(trial: FrozenTrial) -> float:
    return float(trial.values[0])
