"""Whether the search finds optima that are known beforehand, on a formula and on recorded runs.

    python -m benchmarks.planted [--write]

Three kinds of search, each with several seeds, by the search's own decisions, suggestions and promotions:

- `closed_form`: score = u(r) / u_max - 0.15 log10(w / w*)^2, with u(r) = r^3 (1 - r)
  (r* = 0.75), and a third key that changes nothing. What the search sees has noise of the
  deviation that equal real runs showed between seeds. Judged by the winner's score without noise, and by
  how little PED-ANOVA makes of the idle key.
- `codes_2` and `codes_3`: recorded runs on codes and cues told m = 2 or 3 times each. The image gives
  r^m (1 - r^m) per report, and a loss that is a mean over hidden words sees that over r: the winner's
  ratio should lie where this is at least 0.81 of its best (0.36 to 0.77, and 0.57 to 0.87).
- `weights`: recorded runs on one-sided attributes, contrast weighed against reconstruction. The winner
  should lie inside: at least a decade from either end of the range, and better than both ends.

A recorded trial is the mean of five runs of the training loop with seeds of their own, drawn with
replacement from those recorded, anew in each search: so the searches differ in what they meet, as they
would if each trained anew. Between recorded values of the key the curves are interpolated.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.recording import Curves
from mpma.config import ExperimentConfig
from mpma.data.phantom.planted import bits_per_hidden_word
from orchestration.search.decide import Begin, End, Promote, Train, next_action
from orchestration.search.promote import best_first
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace, load_space
from orchestration.search.suggest import Exhausted, suggest

FIGURES: Final = ()  # its lines are searches, of a shape of their own
LONG: Final = True
ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"

COPIES: Final = {"codes_2": 2, "codes_3": 3}
"""How often cue and code are told in a recording."""

SHARE_OF_BEST: Final = 0.81
"""A ratio is where the optimum was planted if the image gives this share of the most, per hidden word."""

RECORDED: Final = (*COPIES, "weights")

Params = Mapping[str, Any]
Value = Callable[[Params, int], float]
"""What a trial reports after so many steps."""


def search(
    space: SearchSpace, base: ExperimentConfig, full_steps: int, value: Value, seed: int
) -> SearchState:
    """A sequential search to its end: the search's own decisions, told through the journal's events."""
    space = space.model_copy(update={"seed": seed, "concurrency": 1})
    metric = space.objectives[0].metric
    state, clock, exhausted = SearchState(), 0.0, ""

    def tell(event: str, **entries: Any) -> None:
        nonlocal clock
        clock += 1.0
        state.apply({"event": event, "time": clock, **entries})

    rungs = space.fidelity.rungs(full_steps)
    first = full_steps if space.scheduler.name == "none" else rungs[0]
    tell("begin", full_steps=full_steps, first_target=first)
    while True:
        action = next_action(space, state, set(), exhausted)
        if isinstance(action, End):
            return state
        if isinstance(action, Promote):
            tell("promote", trial=action.trial, target=action.target)
        elif isinstance(action, Train):
            trial = state.trials[action.trial]
            metrics = {metric: value(trial.params, trial.target)}
            seconds = float(trial.target - trial.step)
            tell("report", trial=trial.number, step=trial.target, metrics=metrics, seconds=seconds)
        elif isinstance(action, Begin):
            try:
                found = suggest(space, base, state, len(state.trials))
            except Exhausted as reason:
                exhausted = str(reason)
                continue
            tell(
                "suggest",
                trial=len(state.trials),
                params=found.params,
                source=found.source,
                attrs=found.attrs,
                study_attrs=found.study_attrs,
            )


def winner(space: SearchSpace, state: SearchState) -> Params:
    """The first of `best_first`, as the confirmation takes it."""
    return state.trials[best_first(space, state)[0]].params


# -- a formula -------------------------------------------------------------------------------------

RATIO, WEIGHT, IDLE = "report.mask_ratio", "loss_weights.global_alignment", "training.weight_decay"
BEST_WEIGHT: Final = 0.4
FULL_STEPS: Final = 90


def usable(ratio: float) -> float:
    """u(r) = r^3 (1 - r)."""
    return ratio**3 * (1.0 - ratio)


def formula(params: Params) -> float:
    """The score without noise; 1 at its best."""
    gained = usable(params[RATIO]) / usable(0.75)
    return float(gained - 0.15 * math.log10(params[WEIGHT] / BEST_WEIGHT) ** 2)


def measured_deviation() -> float:
    """Standard deviation between seeds of equal runs over their mean: that of the masking search's own
    confirmation, pooled over its candidates."""
    table = json.loads((RESULTS / "search_masking_seeds.json").read_text())
    runs = np.array(list(table["candidates"].values()))
    return float(np.sqrt(runs.var(axis=1, ddof=1).mean()) / runs.mean())


def closed_form_space() -> SearchSpace:
    """The formula's space: its two keys and an idle one."""
    return SearchSpace.model_validate(
        {
            "parameters": {
                RATIO: {"uniform": [0.1, 0.95]},
                WEIGHT: {"log_uniform": [0.01, 100.0]},
                IDLE: {"uniform": [0.0, 0.2]},
            },
            "objectives": [{"metric": "score"}],
            "budget": {"trials": 128},
            "scheduler": {"name": "none"},
        }
    )


def closed_form(seed: int, deviation: float) -> dict[str, Any]:
    """One search of the formula: the winner's true score and the share of the idle key."""
    from orchestration.reporting.importance import importances

    space, noise = closed_form_space(), np.random.default_rng([seed, 20_231_124])
    state = search(
        space,
        ExperimentConfig(),
        FULL_STEPS,
        lambda params, step: formula(params) + deviation * float(noise.standard_normal()),
        seed,
    )
    shares = importances(space, state.trials, FULL_STEPS, 0) or {}
    best = winner(space, state)
    return {
        "score": round(formula(best), 4),
        "idle_importance": round(shares.get(IDLE, 1.0), 4),
        "winner": {key: round(value, 4) for key, value in best.items()},
    }


# -- recorded runs ---------------------------------------------------------------------------------


def means(curves: Curves) -> dict[float, float]:
    """Mean over seeds at the end of training, by value of the only key."""
    (values,) = curves.levels.values()
    return dict(zip(values, curves.runs[:, :, -1].mean(axis=1).tolist(), strict=True))


def drawn(curves: Curves, seed: int, count: int = 5) -> Value:
    """The mean of `count` runs per value of the only key, drawn with replacement, by params and step."""
    ((key, values),) = curves.levels.items()
    draw = np.random.default_rng([seed, 20_231_125])
    chosen = draw.integers(curves.runs.shape[1], size=(len(values), count))
    runs = np.take_along_axis(curves.runs, chosen[:, :, None], axis=1).mean(axis=1)
    position = np.log if key == WEIGHT else np.asarray

    def value(params: Params, step: int) -> float:
        at = curves.steps.index(step)
        return float(np.interp(position(params[key]), position(values), runs[:, at]))

    return value


def recorded(name: str, seed: int) -> dict[str, Any]:
    """One search on recorded runs: the winner's value of the key."""
    loaded = load_space(ROOT / "search_spaces" / f"planted_{name}.yaml")
    curves = Curves.read(RESULTS / f"planted_{name}.json")
    (key,) = curves.levels
    state = search(loaded.space, loaded.base, loaded.full_steps, drawn(curves, seed), seed)
    best = winner(loaded.space, state)[key]
    steps = sum(trial.step for trial in state.trials)
    return {"winner": best, "found": found(name, best), "trials": len(state.trials), "steps": steps}


def found(name: str, value: float) -> bool:
    """Whether a value of the key lies where the optimum was planted."""
    low, high = region(COPIES[name]) if name in COPIES else inside()
    return low <= value <= high


def inside() -> tuple[float, float]:
    """A decade from either end of the weights, as far as the recorded runs are better than at both ends."""
    curve = means(Curves.read(RESULTS / "planted_weights.json"))
    lowest, highest = min(curve), max(curve)
    better = [
        weight
        for weight, mean in curve.items()
        if 10 * lowest <= weight <= highest / 10 and mean > max(curve[lowest], curve[highest])
    ]
    return min(better), max(better)


def region(copies: int) -> tuple[float, float]:
    """Lowest and highest report mask ratio at which the image gives `SHARE_OF_BEST` of the most."""
    ratios = np.linspace(0.01, 0.99, 981)
    bits = np.array([bits_per_hidden_word(float(ratio), 2, copies, copies) for ratio in ratios])
    inside = ratios[bits >= SHARE_OF_BEST * bits.max()]
    return float(inside[0]), float(inside[-1])


# -- the report ------------------------------------------------------------------------------------


def lines(seeds: int = 10) -> Iterator[dict[str, Any]]:
    """One line a search, and one that sums up each kind."""
    deviation = measured_deviation()
    runs = [closed_form(seed, deviation) for seed in range(seeds)]
    for seed, run in enumerate(runs):
        yield {"planted": "closed_form", "seed": seed, **run}
    yield {
        "planted": "closed_form",
        "seeds": seeds,
        "noise": round(deviation, 4),
        "within_a_tenth_of_the_best": sum(run["score"] >= 0.9 for run in runs),
        "idle_importance_below_0.05": sum(run["idle_importance"] < 0.05 for run in runs),
    }
    for name in RECORDED:
        runs = [recorded(name, seed) for seed in range(seeds)]
        for seed, run in enumerate(runs):
            yield {"planted": name, "seed": seed, **run}
        curve = means(Curves.read(RESULTS / f"planted_{name}.json"))
        rounded = {f"{value:g}": round(mean, 4) for value, mean in curve.items()}
        yield {"planted": name, "seeds": seeds, "found": sum(run["found"] for run in runs), "means": rounded}


def main() -> None:
    """Print the lines, and write them where asked to."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="into benchmarks/results/planted.jsonl too")
    given = parser.parse_args()
    text = []
    for line in lines():
        text.append(json.dumps(line))
        print(text[-1], flush=True)
    if given.write:
        (RESULTS / "planted.jsonl").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
