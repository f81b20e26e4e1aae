"""A small search that came to its end, and made-up outcomes of its retrainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpma.config import ExperimentConfig
from mpma.metrics.patient_outcomes import PatientOutcomes
from mpma.metrics.retrieval import Ranks
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace

SCORE = "val/representation_score"
RECALL = "val/retrieval/mean_recall"
GAIN = "val/report_reconstruction/visual_gain"

BASE = ExperimentConfig.model_validate({"training": {"steps": 90, "seed": 4}, "data": {"path": "some/data"}})

Values = float | None | Mapping[str, float | None]


def made_space(**changed: Any) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "parameters": {
                "image.mask_ratio": {"uniform": [0.4, 0.9]},
                "report.mask_ratio": {"uniform": [0.2, 0.7]},
            },
            "fidelity": {"first_rung": 10, "reduction": 3},
            **changed,
        }
    )


def several(*metrics: str) -> list[dict[str, str]]:
    return [{"metric": metric} for metric in metrics]


def metrics_of(values: Values) -> dict[str, float | None]:
    return dict(values) if isinstance(values, Mapping) else {SCORE: values}


def searched(
    trials: Sequence[tuple[int, Values]], base: ExperimentConfig = BASE, default_first: bool = True
) -> SearchState:
    """A state of trials (step, figures there); the first has the recipe's values, trial n its own."""
    state = SearchState()
    time = iter(range(10_000))

    def apply(event: str, **content: Any) -> None:
        state.apply({"event": event, "time": next(time), **content})

    apply("begin", config=base.model_dump(mode="json"), full_steps=90, first_target=10)
    for number, (step, values) in enumerate(trials):
        params = {"image.mask_ratio": round(0.4 + number / 100, 2), "report.mask_ratio": 0.3}
        if number == 0 and default_first:
            params = {"image.mask_ratio": base.image.mask_ratio, "report.mask_ratio": base.report.mask_ratio}
        source = "default" if number == 0 and default_first else "tpe"
        apply("suggest", trial=number, params=params, source=source)
        apply("report", trial=number, step=step, metrics=metrics_of(values), seconds=1.0)
    return state


def confirmed(
    state: SearchState, plan: Mapping[str, Any], results: Mapping[str, Sequence[Values]]
) -> SearchState:
    """The planned retrainings done: figures by candidate in the order of the seeds, None for a failed one."""
    state.apply({"event": "confirm", "time": 1e5, **plan})
    for name, values in results.items():
        for seed, value in zip(plan["seeds"], values, strict=True):
            event = {"time": 1e5, "candidate": name, "seed": seed}
            if value is None:
                state.apply({"event": "confirm_fail", "reason": "out of memory", **event})
            else:
                metrics = metrics_of(value)
                state.apply({"event": "confirm_report", "metrics": metrics, "seconds": 2.0, **event})
    return state


def made_outcomes(skill: float, seed: int, patients: int = 200, gain: float = 0.2) -> PatientOutcomes:
    """Patients are easy or hard for every model alike; `skill` is the part of the way to rank 1."""
    fixed = np.random.default_rng(7)
    own = np.random.default_rng(seed)
    hardness = fixed.gamma(1.0, 12.0, patients)
    truth = (fixed.random((patients, 2)) < 0.4).astype(float)
    words = fixed.integers(2, 8, (patients // 2, 3)).astype(float)

    def ranks() -> Ranks:
        above = np.minimum(hardness * (1 - skill) * own.gamma(20.0, 1 / 20, patients), patients - 1)
        whole = above.astype(np.int64)
        return Ranks(whole, np.zeros_like(whole), np.ones_like(whole), patients)

    saved = gain + fixed.normal(0.0, 0.3, words.shape) + own.normal(0.0, 0.05, words.shape)
    return PatientOutcomes(
        patients=patients,
        ranks=(ranks(), ranks()),
        classes=np.arange(patients),
        probe_patient=np.arange(patients),
        probe_scores=truth * 2 * skill + fixed.normal(size=truth.shape) + own.normal(0, 0.1, truth.shape),
        probe_labels=truth,
        gain_patient=np.arange(patients // 2),
        gain_sums=np.stack([words * 1.5, words * (1.5 + saved), words], axis=-1),
    )
