"""Classification: methods against scikit-learn, shares of labels, and labels that nobody can judge or fit."""

from __future__ import annotations

import copy
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from task_samples import QUICK_FIT, LoadedModel, Row, tiny_model, written

from mpma.downstream.classification import Classification, build
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Job, NotPossible
from mpma.downstream.features import FeatureStore
from mpma.downstream.knn import TEMPERATURE, remember
from mpma.downstream.label_outcomes import best_threshold
from mpma.downstream.labelled import LabelledData, patients_within
from mpma.downstream.linear_probe import DEFAULT_C, fit_linear
from mpma.metrics.outcomes import Outcomes
from mpma.metrics.probe import patient_folds


def made_task(**own: Any) -> Classification:
    return build(EvaluationConfig.model_validate({"seeds": 2, "classification": own}))


def outcomes_of(task: Classification, features: FeatureStore, job: Job) -> Outcomes:
    prepared = task.prepare(features.data)
    fitted = task.fit(features.model, features, prepared, job)
    return task.score(prepared, task.predict(features.model, features, prepared, job, fitted))


def relabelled(rows: dict[str, list[Row]], path: Path, **labels: Any) -> LabelledData:
    """The rows with the labels of some splits replaced: `labels[split](number)`."""
    changed = {
        split: [
            {**copy.copy(row), "labels": labels[split](number) if split in labels else row["labels"]}
            for number, row in enumerate(found)
        ]
        for split, found in rows.items()
    }
    return written(path, changed)


def made_features(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    features = (generator.normal(size=(160, 10)) * np.geomspace(4, 0.2, 10) + 2).astype(np.float32)
    logits = ((features - 2) / np.geomspace(4, 0.2, 10)) @ generator.normal(size=(10, 2))
    labels = (generator.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    return features, labels, np.array([f"p{n // 2}" for n in range(160)])


def test_the_linear_probe_is_scikit_learns_regression_at_its_strength() -> None:
    features, labels, patients = made_features()
    head = fit_linear(features[:100], labels[:100], patients[:100], c_grid=(0.05,))
    assert head.chosen_c == (0.05, 0.05)
    mean, scale = features[:100].astype(float).mean(0), features[:100].astype(float).std(0)
    for column in range(2):
        reference = LogisticRegression(C=0.05, tol=1e-10, max_iter=5000)
        reference.fit((features[:100] - mean) / scale, labels[:100, column])
        expected = reference.decision_function((features[100:] - mean) / scale)
        np.testing.assert_allclose(head.logits(features[100:])[:, column], expected, rtol=1e-3, atol=1e-4)


def test_a_label_that_no_fold_can_judge_takes_the_middle_of_the_grid() -> None:
    features, labels, patients = made_features()
    labels[:, 1] = 0.0
    labels[7, 1] = 1.0
    head = fit_linear(features, labels, patients, c_grid=(1e-4, 1.0))
    assert head.chosen_c == (1.0, DEFAULT_C)
    # Both pairs of one patient lie in one fold.
    labels[6, 1] = 1.0
    assert fit_linear(features, labels, patients, c_grid=(1e-4, 1.0)).chosen_c[1] == DEFAULT_C
    folds = patient_folds(patients)
    labels[np.flatnonzero(folds != folds[6])[0], 1] = 1.0
    assert fit_linear(features, labels, patients, c_grid=(1e-4, 1.0)).chosen_c[1] in (1e-4, 1.0)


def test_a_probe_on_one_patient_is_finite() -> None:
    features, labels, _ = made_features()
    labels[:2] = [[0.0, 1.0], [1.0, 0.0]]
    head = fit_linear(features[:2], labels[:2], np.array(["p", "p"]))
    assert np.isfinite(head.logits(features)).all()
    assert head.chosen_c == (DEFAULT_C, DEFAULT_C)


def test_nearest_neighbours_vote_as_scikit_learns_do() -> None:
    features, labels, _ = made_features(1)
    kept = remember(features[:100], labels[:100], neighbours=7)
    mean, scale = features[:100].astype(float).mean(0), features[:100].astype(float).std(0)
    reference = KNeighborsClassifier(7, metric="cosine", weights=lambda d: np.exp((1 - d) / TEMPERATURE))
    reference.fit((features[:100] - mean) / scale, labels[:100, 0].astype(int))
    expected = reference.predict_proba((features[100:] - mean) / scale)[:, 1]
    np.testing.assert_allclose(kept.shares(features[100:])[:, 0], expected, atol=1e-5)


def test_a_fitted_pair_is_not_its_own_neighbour() -> None:
    features = np.array([[2.0, 0.5], [2.0, 0.2], [-2.0, -0.5], [-2.0, -0.2]], dtype=np.float32)
    labels = np.array([[1.0], [0.0], [1.0], [0.0]])
    kept = remember(features, labels, neighbours=1)
    assert kept.shares(features).ravel().tolist() == [1.0, 0.0, 1.0, 0.0]
    assert kept.shares(features, themselves=True).ravel().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_more_neighbours_than_pairs_are_all_pairs() -> None:
    features, labels, _ = made_features(2)
    assert np.array_equal(
        remember(features[:6], labels[:6], 20).shares(features[6:]),
        remember(features[:6], labels[:6], 6).shares(features[6:]),
    )


def test_the_threshold_is_the_one_of_the_best_f1() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        truth = generator.random(30) < 0.3
        truth[0] = True
        scores = np.round(generator.normal(size=30) + truth, 1)
        reached = f1_score(truth, scores >= best_threshold(scores, truth))
        assert reached == pytest.approx(max(f1_score(truth, scores >= value) for value in scores))
    assert best_threshold(np.array([0.1, 0.4, 0.8]), np.array([False, False, True])) == pytest.approx(0.6)
    assert best_threshold(np.zeros(3), np.array([False, True, True])) == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smaller_shares_of_one_seed_lie_inside_larger_ones(seed: int) -> None:
    patients = np.array([f"patient {n // 3}" for n in range(300)])
    shares = [patients_within(patients, fraction, seed) for fraction in (0.01, 0.1, 0.5, 1.0)]
    assert [len(set(patients[share])) for share in shares] == [1, 10, 50, 100]
    for smaller, larger in pairwise(shares):
        assert not (smaller & ~larger).any()
        assert all((share[::3] == share[1::3]).all() for share in (smaller, larger))
    assert not np.array_equal(shares[1], patients_within(patients, 0.1, seed + 3))


def test_only_what_depends_on_a_seed_is_run_for_every_seed() -> None:
    jobs = made_task(label_fractions=[0.1, 1.0], fine_tune_fractions=[1.0]).jobs()
    found = [(job.variant, job.seed) for job in jobs]
    assert found == [
        ("fine_tune/100%", 0),
        ("fine_tune/100%", 1),
        ("linear_probe/100%", 0),
        ("linear_probe/10%", 0),
        ("linear_probe/10%", 1),
        ("knn/100%", 0),
        ("knn/10%", 0),
        ("knn/10%", 1),
    ]


def test_the_figures_are_scikit_learns(features: FeatureStore) -> None:
    outcomes = outcomes_of(made_task(), features, Job("classification", "linear_probe", 1.0))
    scores, labels = outcomes.arrays["scores"], outcomes.arrays["labels"]
    values, names = outcomes.values(), outcomes.names["scores"]
    areas = [roc_auc_score(labels[:, n], scores[:, n]) for n in range(len(names))]
    assert values["auroc"] == pytest.approx(np.mean(areas))
    assert [values[f"auroc/{name}"] for name in names] == pytest.approx(areas)
    precisions = [average_precision_score(labels[:, n], scores[:, n]) for n in range(len(names))]
    assert values["auprc"] == pytest.approx(np.mean(precisions))
    decided = outcomes.arrays["decisions"]
    assert values["f1"] == pytest.approx(f1_score(labels, decided, average="macro", zero_division=0))


@pytest.mark.parametrize("method", ["linear_probe", "knn", "fine_tune"])
def test_other_seeds_draw_other_subsets(features: FeatureStore, method: str) -> None:
    task = made_task(fine_tune=QUICK_FIT, neighbours=5)
    one, two = (outcomes_of(task, features, Job("classification", method, 0.5, seed)) for seed in (0, 1))
    assert not np.array_equal(one.arrays["scores"], two.arrays["scores"])


def test_fine_tuning_learns_what_the_images_show(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    # The label is told by the image itself: bright or dark as a whole.
    from PIL import Image

    def shaded(row: Row, bright: bool) -> Row:
        grey = np.asarray(Image.open(io.BytesIO(row["image"]))) // 3 + (150 if bright else 20)
        content = io.BytesIO()
        Image.fromarray(grey.astype(np.uint8)).save(content, "PNG")
        return {**row, "image": content.getvalue(), "labels": ["bright"] if bright else []}

    data = written(
        tmp_path / "shaded",
        {split: [shaded(row, n % 3 == 0) for n, row in enumerate(found)] for split, found in rows.items()},
    )
    loaded = tiny_model(data.dataset.tokenizer())
    fit = {"steps": 40, "batch_size": 16, "learning_rate": 3e-3, "augment": False}
    store = FeatureStore(loaded, data)
    for factor in (0.0, 0.3):
        task = made_task(fine_tune={**fit, "encoder_learning_rate_factor": factor})
        values = outcomes_of(task, store, Job("classification", "fine_tune", 1.0)).values()
        assert values["auroc"] > 0.95
        assert values["f1"] > 0.9


def test_labels_without_a_positive_in_the_judged_split_are_left_out_and_named(
    rows: dict[str, list[Row]], model: LoadedModel, tmp_path: Path
) -> None:
    def test_labels(number: int) -> list[str]:
        return ["everyone", *(["some"] if number % 4 == 0 else [])]

    def train_labels(number: int) -> list[str]:
        return [name for name, every in (("everyone", 2), ("some", 3), ("nobody", 5)) if number % every == 0]

    data = relabelled(rows, tmp_path / "odd", train=train_labels, val=train_labels, test=test_labels)
    outcomes = outcomes_of(made_task(), FeatureStore(model, data), Job("classification", "knn", 1.0))
    assert outcomes.names["scores"] == ["some"]
    assert outcomes.problems["labels without a positive in the test split, left out: nobody"] == 1
    assert outcomes.problems["labels without a negative in the test split, left out: everyone"] == 1
    assert set(outcomes.figures) == {"auroc", "auprc", "f1", "auroc/some"}
    assert outcomes.arrays["labels"].sum() == 16


@pytest.mark.parametrize("method", ["linear_probe", "knn", "fine_tune"])
def test_a_label_that_the_subset_does_not_show_scores_the_same_for_all(
    rows: dict[str, list[Row]], model: LoadedModel, tmp_path: Path, method: str
) -> None:
    def labels(number: int) -> list[str]:
        return ["seen"] if number % 2 else ["unseen"] if number % 4 == 0 else []

    data = relabelled(
        rows,
        tmp_path / "unseen",
        train=lambda number: ["seen"] if number % 2 else [],
        val=labels,
        test=labels,
    )
    task = made_task(fine_tune=QUICK_FIT)
    outcomes = outcomes_of(task, FeatureStore(model, data), Job("classification", method, 1.0))
    values = outcomes.values()
    assert values["auroc/unseen"] == 0.5
    assert values["auroc"] == pytest.approx((values["auroc/seen"] + 0.5) / 2)
    told = "labels without a positive in 100% of the labels, seed 0, scored the same for all: unseen"
    assert outcomes.problems[told] == 1
    assert not outcomes.arrays["decisions"][:, 1].any()


def test_a_share_that_leaves_nothing_to_learn_from_is_a_line(
    rows: dict[str, list[Row]], model: LoadedModel, tmp_path: Path
) -> None:
    data = relabelled(rows, tmp_path / "rare", train=lambda number: ["rare"] if number == 5 else [])
    task = made_task()
    store = FeatureStore(model, data)
    seed = next(seed for seed in range(9) if not patients_within(data.patients("train"), 0.02, seed)[5])
    with pytest.raises(NotPossible, match=rf"2% of the labels, seed {seed}: none of its 2 pairs"):
        task.fit(model, store, task.prepare(data), Job("classification", "linear_probe", 0.02, seed))


def test_data_without_labels_are_a_line(
    rows: dict[str, list[Row]], tmp_path: Path, model: LoadedModel
) -> None:
    for split in ("train", "test"):
        data = relabelled(rows, tmp_path / split, **{split: lambda number: None})
        with pytest.raises(NotPossible, match=f"no pair of the {split} split is labelled"):
            made_task().prepare(data)
    data = relabelled(rows, tmp_path / "same", test=lambda number: [])
    with pytest.raises(NotPossible, match="no label has both a positive and a negative in the test split"):
        made_task().prepare(data)


def test_pairs_without_labels_are_no_negatives(
    rows: dict[str, list[Row]], model: LoadedModel, tmp_path: Path
) -> None:
    data = relabelled(
        rows,
        tmp_path / "half",
        test=lambda number: None if number % 2 else (["cardiomegaly"] if number % 4 else []),
    )
    prepared = made_task().prepare(data)
    assert prepared.rows.tolist() == list(range(0, 64, 2))
    assert prepared.judged_truth[:, 0].tolist() == [0.0, 1.0] * 16


def test_one_label_a_pair_makes_classes_with_an_accuracy(
    rows: dict[str, list[Row]], model: LoadedModel, tmp_path: Path
) -> None:
    def labels(number: int) -> list[str]:
        return [("a", "b", "b", "c")[number % 4]]

    data = relabelled(rows, tmp_path / "classes", train=labels, val=labels, test=labels)
    task, store = made_task(fine_tune=QUICK_FIT, neighbours=5), FeatureStore(model, data)
    prepared = task.prepare(data)
    assert prepared.classes
    for method in ("linear_probe", "knn", "fine_tune"):
        outcomes = outcomes_of(task, store, Job("classification", method, 1.0))
        chosen = outcomes.arrays["scores"].argmax(axis=1)
        assert (outcomes.arrays["decisions"].sum(axis=1) == 1).all()
        assert outcomes.values()["accuracy"] == (outcomes.arrays["labels"][np.arange(64), chosen] == 1).mean()
    assert task.score(prepared, task.constant(prepared)).values()["accuracy"] == 0.5
    assert task.score(prepared, task.perfect(prepared)).values()["accuracy"] == 1.0


def test_scores_that_are_not_finite_are_a_line(data: LabelledData) -> None:
    task = made_task()
    prepared = task.prepare(data)
    predictions = dict(task.perfect(prepared))
    predictions["scores"][3, 0] = np.nan
    with pytest.raises(NotPossible, match="scores are not finite"):
        task.score(prepared, predictions)
    broken = tiny_model(data.dataset.tokenizer())
    next(broken.model.image_encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(NotPossible, match="image features are not finite"):
        task.fit(broken, FeatureStore(broken, data), prepared, Job("classification", "knn", 1.0))


def test_thresholds_come_from_val_where_it_has_a_positive_else_from_the_fitted_pairs(
    rows: dict[str, list[Row]], model: LoadedModel, tmp_path: Path
) -> None:
    data = relabelled(rows, tmp_path / "val", val=lambda number: ["cardiomegaly"] if number % 3 == 0 else [])
    task, store = made_task(), FeatureStore(model, data)
    prepared, job = task.prepare(data), Job("classification", "linear_probe", 1.0)
    fitted = task.fit(model, store, prepared, job)
    names = [data.label_names[column] for column in fitted.columns]
    place = names.index("cardiomegaly")
    for column in range(len(names)):
        part = prepared.val if column == place else prepared.train
        assert part is not None
        scores = fitted.score("val" if column == place else "train", part.rows)[:, column]
        truth = part.labels[:, fitted.columns[column]] == 1
        assert fitted.thresholds[column] == best_threshold(scores, truth)
