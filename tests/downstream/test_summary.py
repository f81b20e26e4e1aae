"""The summary of a task: paired differences, means over seeds, chance, and what is told at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from mpma.downstream.contract import Job
from mpma.downstream.summary import Failure, paired_differences, summarise_task
from mpma.errors import JobError
from mpma.metrics.outcomes import Figure, Outcomes, identity_of, numbered_patients


def right_or_wrong(
    values: np.ndarray, identity: str = "same", problems: dict[str, int] | None = None
) -> Outcomes:
    patients = [f"p{number // 2}" for number in range(len(values))]
    return Outcomes(
        patient=numbered_patients(patients),
        arrays={"right": values.astype(np.float64)},
        figures={"accuracy": Figure("mean", {"value": "right"})},
        headline=("accuracy",),
        identity=identity,
        problems=problems or {},
        groups={"view": ["PA" if number < len(values) // 2 else "AP" for number in range(len(values))]},
    )


JOBS = [Job("vqa", seed=0), Job("vqa", seed=1)]


def summary(outcomes: dict[tuple[str, str], Outcomes], failures: list[Failure] | None = None, **more: int):
    return summarise_task(
        ["pretrained", "untrained"],
        JOBS,
        outcomes,
        None,
        failures or [],
        resamples=200,
        breakdown_least_patients=more.get("least", 1),
    )


def test_a_figure_is_the_mean_over_seeds_and_the_difference_is_paired() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(400) < 0.5
    better = hard | (generator.random(400) < 0.2)
    found = summary(
        {
            ("pretrained", JOBS[0].key): right_or_wrong(better),
            ("pretrained", JOBS[1].key): right_or_wrong(better),
            ("untrained", JOBS[0].key): right_or_wrong(hard),
            ("untrained", JOBS[1].key): right_or_wrong(hard),
        }
    )
    assert found["state"] == "done"
    entry, other = found["pretrained"]["accuracy"], found["untrained"]["accuracy"]
    assert entry["value"] == pytest.approx(better.mean())
    assert entry["by_seed"] == [pytest.approx(better.mean())] * 2
    difference = found["differences"]["untrained"]["accuracy"]
    assert difference["value"] == pytest.approx(better.mean() - hard.mean())
    # Pairing cancels what the patients have in common: the interval is far narrower than either figure's.
    assert difference["high"] - difference["low"] < 0.85 * (entry["high"] - entry["low"])
    assert difference["low"] > 0
    assert other["low"] < other["value"] < other["high"]


def test_a_seed_that_one_model_lacks_is_left_out_for_all() -> None:
    ones, zeros = np.ones(8), np.zeros(8)
    found = summary(
        {
            ("pretrained", JOBS[0].key): right_or_wrong(ones),
            ("pretrained", JOBS[1].key): right_or_wrong(zeros),
            ("untrained", JOBS[0].key): right_or_wrong(zeros),
        },
        [Failure("untrained", JOBS[1].key, "its process ended", True)],
    )
    assert found["state"] == "partly"
    assert found["seeds"] == {"": [0]}
    assert found["pretrained"]["accuracy"]["value"] == 1.0
    assert found["failures"][0]["reason"] == "its process ended"


def test_a_breakdown_holds_the_figures_of_its_patients_alone() -> None:
    values = np.r_[np.ones(10), np.zeros(10)]
    outcomes = {
        (model, job.key): right_or_wrong(values) for model in ("pretrained", "untrained") for job in JOBS
    }
    found = summary(outcomes)["breakdown"]["view"]
    assert found["PA"]["figures"]["pretrained"]["accuracy"]["value"] == 1.0
    assert found["AP"]["figures"]["pretrained"]["accuracy"]["value"] == 0.0
    assert found["PA"]["patients"] == 5
    assert summary(outcomes, least=6)["breakdown"] == {}


def test_a_task_that_the_data_do_not_allow_is_skipped_and_one_that_broke_has_failed() -> None:
    reason = "the data have no questions"
    skipped = summary({}, [Failure("pretrained", JOBS[0].key, reason, False)])
    assert (skipped["state"], skipped["reason"]) == ("skipped", reason)
    assert summary({}, [Failure("pretrained", JOBS[0].key, "KeyError in x.py:1", True)])["state"] == "failed"


def test_outcomes_of_other_examples_are_never_compared() -> None:
    ours, theirs = right_or_wrong(np.ones(8)), right_or_wrong(np.ones(8), identity="other")
    with pytest.raises(JobError, match="different examples"):
        paired_differences({"": [ours]}, {"": [theirs]}, 200)
    assert identity_of(["a", "b"], np.array([1])) != identity_of(["b", "a"], np.array([1]))


def test_two_runs_are_compared_on_what_both_have() -> None:
    ours = {"": [right_or_wrong(np.ones(8))], "knn/10%": [right_or_wrong(np.ones(8))]}
    found = paired_differences(ours, {"": [right_or_wrong(np.zeros(8))]}, 200)
    assert set(found) == {"accuracy"}
    assert found["accuracy"]["difference"] == {"value": 1.0, "low": 1.0, "high": 1.0, "resamples": 200}


def test_a_figure_that_does_not_exist_is_null() -> None:
    nothing = right_or_wrong(np.full(8, np.nan), problems={"accuracy: nothing to judge": 8})
    found = summary({(model, job.key): nothing for model in ("pretrained", "untrained") for job in JOBS})
    assert found["pretrained"]["accuracy"]["value"] is None
    assert found["differences"]["untrained"]["accuracy"]["low"] is None
    assert found["problems"] == {"accuracy: nothing to judge": 8}
