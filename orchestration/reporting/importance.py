"""How much each searched key matters, by PED-ANOVA over trials of equal training.

Decisions: Optuna's evaluator [Watanabe, Bansal & Hutter, PED-ANOVA, IJCAI 2023; conditional keys as
Optuna has them] on an in-memory study of the trials at one step, so that nobody is judged by having
trained longer; one figure an objective; the quantile of good trials is widened until at least 5 are in
it, as Optuna advises; under 10 trials no figure is given, since it would be noise. Alternatives of one key
and its switch add up to the key's importance.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from orchestration.search.records import TrialRecord
from orchestration.search.space import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FEWEST_TRIALS: Final = 10
GOOD_TRIALS: Final = 5
"""At least as many are in the quantile of good trials."""


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
        quantile = min(0.5, max(0.1, GOOD_TRIALS / len(told)))
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = evaluator.evaluate(study, target=_loss)
    finally:
        optuna.logging.set_verbosity(level)
    total = sum(raw.values())
    if total <= 0:
        return None
    found = dict.fromkeys(space.searched_keys(), 0.0)
    for name, value in raw.items():
        found[name.removesuffix(SWITCH).partition(" [")[0]] += value / total
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _loss(trial: FrozenTrial) -> float:
    return float(trial.values[0])
