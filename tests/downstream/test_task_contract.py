"""What every downstream task promises, on the entries of `task_samples.SAMPLES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from task_samples import SAMPLES, Row, TaskSample, all_rows

from mpma.downstream.config import TASKS
from mpma.downstream.contract import Job, Predictions, task
from mpma.downstream.features import FeatureStore
from mpma.downstream.labelled import LabelledData
from mpma.loading import LoadedModel
from mpma.metrics.outcomes import Outcomes


@dataclasses.dataclass
class Case:
    """One task on the tiny dataset."""

    sample: TaskSample
    data: LabelledData
    model: LoadedModel
    features: FeatureStore

    @cached_property
    def task(self) -> Any:
        return task(self.sample.task, self.sample.config)

    @cached_property
    def prepared(self) -> Any:
        return self.task.prepare(self.data)

    def one_job_a_method(self) -> list[Job]:
        return list({job.method: job for job in self.task.jobs()}.values())

    def predictions(self, job: Job, features: FeatureStore | None = None) -> Predictions:
        features = features or self.features
        fitted = self.task.fit(features.model, features, self.prepared, job)
        found: Predictions = self.task.predict(features.model, features, self.prepared, job, fitted)
        return found

    @cached_property
    def outcomes(self) -> dict[Job, Outcomes]:
        return {job: self.task.score(self.prepared, self.predictions(job)) for job in self.one_job_a_method()}


@pytest.fixture(scope="module", params=SAMPLES, ids=lambda sample: sample.task)
def case(
    request: pytest.FixtureRequest, data: LabelledData, model: LoadedModel, features: FeatureStore
) -> Case:
    return Case(request.param, data, model, features)


def assert_equal_arrays(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_perfect_predictor_scores_perfectly(case: Case) -> None:
    values = case.task.score(case.prepared, case.task.perfect(case.prepared)).values()
    ceiling = case.sample.ceiling(case.prepared)
    assert values
    for name, value in values.items():
        assert value == pytest.approx(ceiling.get(name, 1.0), abs=1e-9), name


def test_a_constant_predictor_scores_chance(case: Case) -> None:
    values = case.task.score(case.prepared, case.task.constant(case.prepared)).values()
    chance = case.sample.chance(case.prepared)
    assert chance, "state the exact chance of at least one figure"
    for name, value in chance.items():
        assert values[name] == pytest.approx(value, abs=1e-9), name


def test_a_constant_predictor_is_below_a_perfect_one_in_every_headline(case: Case) -> None:
    perfect, constant = (
        case.task.score(case.prepared, made(case.prepared))
        for made in (case.task.perfect, case.task.constant)
    )
    assert perfect.headline
    for name in perfect.headline:
        assert constant.values()[name] < perfect.values()[name], name


def test_jobs_have_keys_of_their_own_and_the_task_s_name(case: Case) -> None:
    jobs = case.task.jobs()
    assert case.sample.task in TASKS
    assert {job.task for job in jobs} == {case.task.name} == {case.sample.task}
    assert len({job.key for job in jobs}) == len(jobs) > 0


def test_what_is_judged_is_the_same_each_time(case: Case) -> None:
    again = task(case.sample.task, case.sample.config).prepare(case.data)
    for part in dataclasses.fields(case.prepared):
        ours, theirs = getattr(case.prepared, part.name), getattr(again, part.name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=part.name)
    assert case.prepared.problems == again.problems
    assert len(case.prepared.patients) == len(case.prepared.rows)
    assert case.prepared.rows.max() < case.data.rows(case.prepared.split)


def test_two_fits_give_equal_bits(case: Case) -> None:
    for job, outcomes in case.outcomes.items():
        again = case.task.score(case.prepared, case.predictions(job))
        assert_equal_arrays(outcomes.arrays, again.arrays)
        assert outcomes.values() == again.values()


def test_a_fit_leaves_the_model_and_the_random_state_as_they_were(case: Case) -> None:
    import torch

    before, state = case.model.weights_hash, torch.random.get_rng_state()
    case.predictions(case.one_job_a_method()[0])
    del case.model.__dict__["weights_hash"]
    assert case.model.weights_hash == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not case.model.model.training
    assert all(parameter.grad is None for parameter in case.model.model.parameters())


def test_outcomes_survive_being_stored(case: Case) -> None:
    for outcomes in case.outcomes.values():
        stored = Outcomes.from_bytes(outcomes.to_bytes())
        assert_equal_arrays(outcomes.arrays, stored.arrays)
        assert stored.values() == outcomes.values()
        assert (stored.identity, dict(stored.problems)) == (outcomes.identity, dict(outcomes.problems))


def test_no_figure_is_missing_and_problems_are_counted(case: Case) -> None:
    for outcomes in case.outcomes.values():
        assert not any(np.isnan(value) for value in outcomes.values().values())
        assert outcomes.problems.keys() >= case.prepared.problems.keys()
        for told, count in outcomes.problems.items():
            assert isinstance(count, int)
            assert count >= 1
            assert told.strip()
            assert "\n" not in told


def test_two_models_are_judged_on_the_same_examples(case: Case, other_model: LoadedModel) -> None:
    theirs = FeatureStore(other_model, case.data)
    for job, outcomes in case.outcomes.items():
        other = case.task.score(case.prepared, case.predictions(job, theirs))
        assert outcomes.identity == other.identity
        assert np.array_equal(outcomes.patient, other.patient)
        assert list(outcomes.figures) == list(other.figures)


def test_outcomes_hold_no_identifier_and_no_text(case: Case, rows: dict[str, list[Row]]) -> None:
    secret = {row[name] for row in all_rows(rows) for name in ("pair_id", "patient_id", "study_id", "report")}
    for outcomes in case.outcomes.values():
        assert all(array.dtype.kind in "biuf" for array in outcomes.arrays.values())
        words = {
            *outcomes.problems,
            *outcomes.figures,
            *(n for names in outcomes.names.values() for n in names),
        }
        assert not any(one in word for one in secret for word in words)


def test_examples_are_made_only_when_asked_for(case: Case) -> None:
    job = case.one_job_a_method()[0]
    fitted = case.task.fit(case.model, case.features, case.prepared, job)
    predictions = case.task.predict(case.model, case.features, case.prepared, job, fitted)
    arguments = (case.model, case.features, case.prepared, job, fitted, predictions)
    assert case.task.examples(*arguments, 0) == []
    shown = case.task.examples(*arguments, 2)
    assert shown
    for example in shown:
        pictures = [example.image, *(related.image for related in example.related)]
        side = case.model.pixel_side
        assert all(
            image is None or (image.dtype, image.shape) == (np.uint8, (side, side)) for image in pictures
        )
        assert all(layer.min() >= 0.0 and layer.max() <= 1.0 for layer in example.overlays.values())
        assert example.texts
    assert any(example.image is not None for example in shown)
