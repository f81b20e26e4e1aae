"""Outcomes: figures of all patients and of groups, files, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpma.metrics.outcomes import Figure, Outcomes, identity_of, mean_over_seeds, numbered_patients


def outcomes() -> Outcomes:
    """Five examples of three patients; no example has the label `rare`."""
    return Outcomes(
        patient=np.array([0, 0, 1, 2, 2]),
        arrays={
            "correct": np.array([1.0, 0.0, 1.0, 1.0, 0.0]),
            "scores": np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.4], [0.1, 0.2], [0.3, 0.5]]),
            "labels": np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]),
        },
        figures={
            "accuracy": Figure("mean", {"value": "correct"}),
            "auroc": Figure("macro_auroc", {"scores": "scores", "labels": "labels"}),
            "auroc/rare": Figure("macro_auroc", {"scores": "scores", "labels": "labels"}, {"columns": [1]}),
        },
        headline=["accuracy"],
        identity="x",
        problems={"label rare has no positive": 1},
        groups={"view": ["PA", "AP", "PA", "", "AP"]},
        names={"labels": ["common", "rare"]},
    )


def test_figures_of_all_patients_and_of_a_group() -> None:
    found = outcomes()
    assert found.values()["accuracy"] == pytest.approx(3 / 5)
    assert found.values()["auroc"] == 1.0
    counts = np.array([[1.0, 1.0, 1.0], [2.0, 0.0, 1.0]])
    assert found.statistic("accuracy")(counts).tolist() == pytest.approx([3 / 5, 3 / 6])
    assert found.statistic("accuracy", "view", "AP")(counts).tolist() == [0.0, 0.0]
    assert found.statistic("accuracy", "view", "PA")(counts).tolist() == [1.0, 1.0]
    assert found.group_sizes("view") == {"AP": 2, "PA": 2}


def test_a_group_that_does_not_occur_has_no_figures() -> None:
    for name in outcomes().figures:
        assert np.isnan(outcomes().statistic(name, "view", "lateral")(np.ones((2, 3)))).all()


def test_the_mean_over_seeds_is_taken_under_the_same_counts() -> None:
    one = outcomes()
    other = replace(one, arrays={**one.arrays, "correct": np.ones(5)})
    counts = np.array([[2.0, 0.0, 1.0]])
    assert mean_over_seeds([one, other], "accuracy")(counts)[0] == pytest.approx((3 / 6 + 1) / 2)


def test_outcomes_come_back_from_their_file_as_they_were() -> None:
    found = outcomes()
    back = Outcomes.from_bytes(found.to_bytes())
    assert back.patient.tolist() == found.patient.tolist()
    assert {name: array.tolist() for name, array in back.arrays.items()} == {
        name: array.tolist() for name, array in found.arrays.items()
    }
    assert back.figures == found.figures
    assert list(back.figures) == list(found.figures)
    assert (list(back.headline), back.identity, back.problems) == (["accuracy"], "x", found.problems)
    assert (back.groups, back.names) == (found.groups, found.names)


@pytest.mark.parametrize("part", [0, 3, 200, -1])
def test_a_damaged_file_is_a_value_error_or_an_os_error(part: int) -> None:
    with pytest.raises((ValueError, OSError, KeyError)):
        Outcomes.from_bytes(outcomes().to_bytes()[:part])


def test_a_figure_without_a_value_is_never_silent() -> None:
    checked = outcomes().checked()
    assert checked.problems == {"label rare has no positive": 1, "auroc/rare: nothing to judge": 1}
    assert checked.checked().problems == checked.problems
    told = replace(outcomes(), problems={"auroc/rare: no positive": 1}).checked()
    assert told.problems == {"auroc/rare: no positive": 1}


def test_a_problem_of_a_longer_name_does_not_speak_for_a_figure() -> None:
    unknown = replace(
        outcomes(),
        figures={"auroc": Figure("macro_auroc", {"scores": "scores", "labels": "labels"}, {"columns": [1]})},
        headline=["auroc"],
        problems={"auroc/rare: nothing to judge": 1},
    )
    assert "auroc: nothing to judge" in unknown.checked().problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient": np.array([0, 0, 1, 3, 3])}, "numbered"),
        ({"groups": {"view": ["PA"]}}, "view has 1 entries for 5"),
        ({"headline": ["f1"]}, "f1"),
        ({"figures": {"accuracy": Figure("median", {"value": "correct"})}}, "unknown kind median"),
        ({"figures": {"accuracy": Figure("mean", {"value": "right"})}}, "right, which is not there"),
    ],
)
def test_outcomes_that_do_not_fit_together_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(outcomes(), **change).checked()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scores", np.nan, "scores holds NaN"),
        ("scores", np.inf, "infinite"),
        ("labels", -1.0, "other than 0, 1 and NaN"),
    ],
)
def test_numbers_that_no_rule_can_read_are_refused(name: str, value: float, message: str) -> None:
    found = outcomes()
    array = found.arrays[name].copy()
    array[2, 0] = value
    with pytest.raises(ValueError, match=message):
        replace(found, arrays={**found.arrays, name: array}).checked()


def test_patients_are_numbered_as_they_appear_and_identity_changes_with_order_and_truth() -> None:
    assert numbered_patients(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    truth = np.array([1.0, 0.0])
    known = identity_of(["a", "b"], truth)
    assert known == identity_of(["a", "b"], truth.copy())
    assert len({known, identity_of(["b", "a"], truth), identity_of(["a", "b"], 1 - truth)}) == 3
