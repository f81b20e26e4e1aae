"""Searches told as a journal would tell them, with plausible figures: what the report is tested on."""

from __future__ import annotations

import math
import random
from typing import Any

from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace

SCORE = "val/representation_score"
RECALL = "val/retrieval/mean_recall"
AUROC = "val/probe/auroc"
GAIN = "val/report_reconstruction/visual_gain"

PARAMETERS: dict[str, Any] = {
    "image.mask_ratio": {"uniform": [0.4, 0.9], "step": 0.05},
    "report.mask_ratio": {"uniform": [0.15, 0.75], "step": 0.05},
    "training.learning_rate_per_256": {"log_uniform": [5.0e-5, 1.5e-3]},
    "loss_weights.local_alignment": {"log_uniform": [0.03, 3.0], "or_zero": True},
    "memory.kind": {"choice": ["shared", "key_value", "none"]},
    "memory.slots": [
        {"choice": [64, 256, 512], "when": {"memory.kind": "shared"}},
        {"choice": [8, 16, 40], "when": {"memory.kind": "key_value"}},
    ],
}
DEFAULT: dict[str, Any] = {
    "image.mask_ratio": 0.75,
    "report.mask_ratio": 0.5,
    "training.learning_rate_per_256": 1.5e-4,
    "loss_weights.local_alignment": 1.0,
    "memory.kind": "shared",
    "memory.slots": 256,
}
PROVENANCE: dict[str, Any] = {
    "mpma": "0.1.0",
    "git_revision": "0123abc",
    "python": "3.11.9",
    "packages": {"torch": "2.8.0", "ray": "2.60.0"},
    "hardware": {"cpu": "a processor", "cores": 2, "gpus": []},
}
FULL_STEPS = 405


def space_of(objectives: list[dict[str, str]] | None = None, **entries: Any) -> SearchSpace:
    """The space of these searches; `entries` replace its own."""
    tree: dict[str, Any] = {
        "parameters": PARAMETERS,
        "objectives": objectives or [{"metric": SCORE, "direction": "maximise"}],
        "budget": {"trials": 27},
        "fidelity": {"first_rung": 15, "reduction": 3},
    }
    return SearchSpace.model_validate(tree | entries)


def several() -> list[dict[str, str]]:
    """Three objectives."""
    return [{"metric": metric, "direction": "maximise"} for metric in (RECALL, AUROC, GAIN)]


class Told:
    """A search that is told event by event."""

    def __init__(self, **begin: Any) -> None:
        self.state = SearchState()
        self.clock = 1000.0
        self.tell(
            "begin",
            **{
                "full_steps": FULL_STEPS,
                "first_target": 15,
                "space_hash": "5f2a",
                "config": {"data": {"path": None}},
                "data_fingerprint": "aa11",
                "provenance": PROVENANCE,
            }
            | begin,
        )

    def tell(self, event: str, seconds_later: float = 1.0, **entries: Any) -> None:
        self.clock += seconds_later
        self.state.apply({"event": event, "time": self.clock, **entries})

    def train(self, trial: int, step: int, metrics: dict[str, Any]) -> None:
        before = self.state.trials[trial].step
        seconds = 0.2 * (step - before)
        self.tell("report", seconds / 2, trial=trial, step=step, metrics=metrics, seconds=seconds)


def quality(params: dict[str, Any]) -> float:
    """How good a point truly is, about 0 to 1: report ratio and learning rate matter, slots do not."""
    rate = math.log10(params["training.learning_rate_per_256"] / 6e-4)
    kind = {"shared": 0.04, "key_value": 0.02, "none": 0.0}[params["memory.kind"]]
    apart = abs(params["report.mask_ratio"] - 0.6)
    return 0.62 + kind - 1.1 * apart**2 - 0.16 * rate**2 - 0.1 * (params["image.mask_ratio"] - 0.7) ** 2


def metrics_at(params: dict[str, Any], step: int, dice: random.Random) -> dict[str, Any]:
    """Metrics of a point after so many steps."""
    grown = 1 - math.exp(-step / 90)
    score = quality(params) * (0.25 + 0.75 * grown) + dice.gauss(0, 0.008)
    return {
        SCORE: score,
        RECALL: 0.9 * score,
        AUROC: 0.55 + 0.35 * score + dice.gauss(0, 0.01),
        GAIN: 0.9 - score + params["report.mask_ratio"] + dice.gauss(0, 0.03),
        "val/retrieval/gallery_size": 512.0,
        "val/retrieval/chance_mean_recall": 0.0104,
        "peak_memory_bytes": 2.1e9,
    }


def draw(dice: random.Random) -> dict[str, Any]:
    """A point of the space."""
    kind = dice.choice(["shared", "key_value", "none"])
    params: dict[str, Any] = {
        "image.mask_ratio": round(0.4 + 0.05 * dice.randrange(11), 2),
        "report.mask_ratio": round(0.15 + 0.05 * dice.randrange(13), 2),
        "training.learning_rate_per_256": 10 ** dice.uniform(math.log10(5e-5), math.log10(1.5e-3)),
        "loss_weights.local_alignment": dice.choice([0.0, 10 ** dice.uniform(-1.5, 0.4)]),
        "memory.kind": kind,
    }
    if kind != "none":
        params["memory.slots"] = dice.choice([64, 256, 512] if kind == "shared" else [8, 16, 40])
    return params


def searched(trials: int = 27, *, finished: bool = True) -> Told:
    """A search by halving over rungs 15, 45, 135, 405, with failures; the default point is trial 0."""
    dice = random.Random(3)
    told = Told()
    for number in range(trials):
        params = DEFAULT if number == 0 else draw(dice)
        told.tell("suggest", trial=number, params=params, source="default" if number == 0 else "tpe")
        if number == 7:
            told.tell("retry", trial=number, reason="the worker was killed")
            told.tell("fail", trial=number, reason="embeddings are not finite at step 15", seconds=2.0)
        else:
            told.train(number, 15, metrics_at(params, 15, dice))
    state = told.state
    for rung, longer, count in ((15, 45, 9), (45, 135, 4), (135, 405, 2)):
        there = [trial for trial in state.trials if trial.step == rung]
        there.sort(key=lambda trial: -(trial.reports[rung][SCORE] or 0.0))
        for trial in there[:count]:
            told.tell("promote", trial=trial.number, target=longer)
            told.train(trial.number, longer, metrics_at(trial.params, longer, dice))
        if not finished and longer == 135:
            return told
    for trial in state.trials:
        if trial.state == "waiting":
            told.tell("prune", trial=trial.number, reason="9 were better where at most 9 go on")
    told.tell("search_end", reason="27 trials are done")
    return told


def confirm(told: Told, *, named: bool, compared: bool = True) -> Told:
    """Two candidates and the default over three seeds, and the comparison on the test split."""
    dice = random.Random(11)
    complete = [trial for trial in told.state.trials if trial.state == "complete"]
    complete.sort(key=lambda trial: -(trial.reports[FULL_STEPS][SCORE] or 0.0))
    candidates: list[dict[str, Any]] = [
        {"name": f"trial-{trial.number}", "trial": trial.number, "params": trial.params}
        for trial in complete[:2]
    ]
    candidates.append({"name": "default", "trial": 0, "params": DEFAULT})
    told.tell("confirm", candidates=candidates, seeds=[101, 102, 103], steps=FULL_STEPS)
    for candidate in candidates:
        for seed in (101, 102, 103):
            found = metrics_at(candidate["params"], FULL_STEPS, dice)
            told.tell(
                "confirm_report", 41.0, candidate=candidate["name"], seed=seed, metrics=found, seconds=81.0
            )
            if not compared and candidate["name"] == "default":
                return told
    best = candidates[0]["name"]
    winner, default = (
        ([0.583, 0.571, 0.590], [0.541, 0.548, 0.529])
        if named
        else ([0.551, 0.536, 0.549], [0.541, 0.548, 0.529])
    )
    means = [sum(values) / 3 for values in (winner, default)]
    difference = means[0] - means[1]
    told.tell(
        "compare",
        result={
            "metric": "test/representation_score",
            "direction": "maximise",
            "candidate": best,
            "winner": {"mean": means[0], "per_seed": winner, "seeds": [101, 102, 103]},
            "default": {"mean": means[1], "per_seed": default},
            "difference": difference,
            "interval": [difference - 0.021, difference + 0.022],
            "patients": 1024,
            "resamples": 2000,
            "named": named,
            "reason": "" if named else "the interval contains zero",
            "seed_spread": {"winner": 0.0096, "default": 0.0097},
        },
    )
    told.tell("end")
    return told
