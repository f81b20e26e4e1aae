"""The probe against scikit-learn: the same optimum, the same area, and the rules of who counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mpma.metrics.probe import auroc, fit_logistic, linear_probe, patient_folds, usable_labels

Sets = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def made_sets(pairs: int = 600, scored: int = 500, width: int = 12, labels: int = 3, seed: int = 0) -> Sets:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(pairs + scored, width)) * np.geomspace(5, 0.1, width) + 3
    logits = 0.6 * (features - 3) / np.geomspace(5, 0.1, width) @ generator.normal(size=(width, labels))
    truth = (generator.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    patients = np.repeat(np.arange(pairs // 2), 2)
    return features[:pairs], truth[:pairs], patients, features[pairs:], truth[pairs:]


def test_every_regression_of_a_joint_solve_equals_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(300, 8)) @ generator.normal(size=(8, 8))
    targets = (generator.random((300, 4)) < [[0.5, 0.2, 0.05, 0.9]]).astype(float)
    weight = (generator.random((300, 4)) < 0.8).astype(float)
    strength = [1e-3, 1.0, 0.1, 100.0]
    weights, intercept = fit_logistic(*(torch.tensor(a) for a in (features, targets, weight, strength)))
    for q, c in enumerate(strength):
        keep = weight[:, q] == 1
        reference = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(features[keep], targets[keep, q])
        np.testing.assert_allclose(weights[:, q].numpy(), reference.coef_[0], rtol=2e-3, atol=2e-5)
        assert intercept[q].item() == pytest.approx(reference.intercept_[0], rel=2e-3, abs=2e-4)


def test_a_separable_or_one_sided_regression_stays_finite() -> None:
    features = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    targets = torch.stack([(features[:, 0] > 0).double(), torch.ones(40, dtype=torch.float64)], dim=1)
    ones = torch.ones(40, 2, dtype=torch.float64)
    weights, intercept = fit_logistic(features, targets, ones, torch.tensor([1e4, 1e4], dtype=torch.float64))
    reference = LogisticRegression(C=1e4, tol=1e-12, max_iter=10_000).fit(features, targets[:, 0])
    assert weights[0, 0].item() == pytest.approx(reference.coef_[0, 0], rel=1e-2)
    assert weights[0, 1].item() == 0.0 == intercept[1].item()


def test_auroc_equals_scikit_learns_with_ties() -> None:
    generator = np.random.default_rng(2)
    positive = generator.random(200) < 0.3
    scores = np.round(generator.normal(size=200) + positive, 1)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert auroc(np.zeros(200), positive) == 0.5
    with pytest.raises(ValueError, match="positives and negatives"):
        auroc(scores, np.ones(200, dtype=bool))


def test_the_macro_area_is_the_mean_of_scikit_learn_fits_at_the_chosen_strengths() -> None:
    features, labels, patients, val_features, val_labels = made_sets()
    names = ["effusion", "nodule", "fracture"]
    result = linear_probe(features, labels, patients, val_features, val_labels, names)
    mean, scale = features.mean(0), features.std(0)
    for column, name in enumerate(names):
        reference = LogisticRegression(C=result.chosen_c[name], tol=1e-9, max_iter=5000)
        reference.fit((features - mean) / scale, labels[:, column])
        expected = roc_auc_score(
            val_labels[:, column], reference.decision_function((val_features - mean) / scale)
        )
        assert result.per_label[name] == pytest.approx(expected, abs=2e-4)
    assert result.auroc == pytest.approx(np.mean(list(result.per_label.values())))
    assert result.auroc > 0.7
    assert (result.minimum, result.fitted_pairs, result.scored_pairs) == (20, 600, 500)


def test_the_strength_is_the_one_with_the_least_held_out_loss_over_patient_folds() -> None:
    features, labels, patients, val_features, val_labels = made_sets(pairs=180, width=60, labels=1, seed=3)
    grid = (1e-4, 1e-2, 100.0)
    result = linear_probe(features, labels, patients, val_features, val_labels, ["one"], c_grid=grid)
    standard, folds = (features - features.mean(0)) / features.std(0), patient_folds(patients)
    losses = []
    for c in grid:
        loss = 0.0
        for fold in range(3):
            held = folds == fold
            model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(standard[~held], labels[~held, 0])
            logit = model.decision_function(standard[held])
            loss += float((np.logaddexp(0, logit) - labels[held, 0] * logit).sum())
        losses.append(loss)
    assert result.chosen_c["one"] == grid[int(np.argmin(losses))]
    assert np.argsort(losses)[0] != len(grid) - 1  # the grid's end would show nothing


def test_the_pairs_of_a_patient_stay_in_one_fold() -> None:
    patients = np.random.default_rng(4).integers(0, 90, size=500).astype(str)
    folds = patient_folds(patients)
    for patient in np.unique(patients):
        assert len(set(folds[patients == patient])) == 1
    assert np.bincount(folds).min() > 100
    np.testing.assert_array_equal(folds, patient_folds(list(patients)))


def test_null_labels_are_left_out_and_never_negative() -> None:
    features, labels, patients, val_features, val_labels = made_sets(labels=1)
    holes, val_holes = labels.copy(), val_labels.copy()
    holes[::3] = np.nan
    val_holes[::4] = np.nan
    result = linear_probe(features, holes, patients, val_features, val_holes, ["one"])
    kept, val_kept = ~np.isnan(holes[:, 0]), ~np.isnan(val_holes[:, 0])
    dropped = linear_probe(
        features[kept], labels[kept], patients[kept], val_features[val_kept], val_labels[val_kept], ["one"]
    )
    assert result.fitted_pairs == kept.sum()
    assert result.scored_pairs == val_kept.sum()
    assert result.auroc == pytest.approx(dropped.auroc, abs=5e-3)
    as_negative = linear_probe(
        features, np.nan_to_num(holes), patients, val_features, np.nan_to_num(val_holes), ["one"]
    )
    assert as_negative.auroc < result.auroc - 0.02


def test_a_label_needs_twenty_of_each_kind_in_both_sets_and_five_on_tiny_sets() -> None:
    def column(pairs: int, positives: int) -> np.ndarray:
        return (np.arange(pairs) < positives).astype(float)

    train = np.stack([column(1000, n) for n in (20, 19, 981, 500)], axis=1)
    val = np.stack([column(400, n) for n in (20, 200, 200, 381)], axis=1)
    assert usable_labels(train, val) == ([0], 20)
    tiny_val = np.stack([column(399, n) for n in (5, 4, 200, 394)], axis=1)
    assert usable_labels(train, tiny_val) == ([0, 2, 3], 5)
    unlabelled = np.full((400, 4), np.nan)
    assert usable_labels(train, unlabelled) == ([], 5)
    with pytest.raises(ValueError, match="5 positives"):
        linear_probe(
            np.zeros((1000, 2)), train, np.arange(1000), np.zeros((400, 2)), unlabelled, list("abcd")
        )


def test_a_label_whose_positives_are_one_patients_is_still_scored() -> None:
    features, labels, patients, val_features, val_labels = made_sets(pairs=300, scored=200, labels=1)
    labels[:] = 0.0
    patients[:10] = 0
    labels[:10] = 1.0
    features[:10] += 4
    result = linear_probe(features, labels, patients, val_features, val_labels, ["one"])
    assert result.minimum == 5
    assert np.isfinite(result.auroc)


def test_a_constant_or_shifted_feature_changes_nothing_and_a_missing_number_is_refused() -> None:
    features, labels, patients, val_features, val_labels = made_sets(labels=1)
    plain = linear_probe(features, labels, patients, val_features, val_labels, ["one"])
    wider = [
        np.concatenate([a * 10 - 7, np.full((len(a), 1), 0.1)], axis=1) for a in (features, val_features)
    ]
    changed = linear_probe(wider[0], labels, patients, wider[1], val_labels, ["one"])
    assert changed.auroc == pytest.approx(plain.auroc, abs=1e-6)
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        linear_probe(features, labels, patients, val_features, val_labels, ["one"])
