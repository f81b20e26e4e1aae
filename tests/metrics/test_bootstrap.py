"""Intervals over patients against brute force, scipy, scikit-learn and cases worked by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mpma.metrics.bootstrap import (
    bootstrap_interval,
    resample_counts,
    weighted_auroc,
    weighted_mean,
)
from mpma.metrics.patient_outcomes import PatientOutcomes, is_per_patient
from mpma.metrics.probe import auroc
from mpma.metrics.retrieval import RECALL_AT, Ranks, above_chance, chance_recall


def all_counts(patients: int, resamples: int, seed: int) -> np.ndarray:
    return np.concatenate(list(resample_counts(patients, resamples, seed)))


def made_outcomes(seed: int = 0, patients: int = 40, extra: int = 5, labels: int = 3) -> PatientOutcomes:
    """A gallery of `patients`, the first 8 with a report in common with another; `extra` more are probed."""
    draw = np.random.default_rng(seed)
    fixed = np.random.default_rng(99)
    classes = np.concatenate([np.arange(8) // 2, np.arange(4, patients - 4)])

    def ranks() -> Ranks:
        above = np.minimum(draw.geometric(0.2, patients) - 1, patients - 4)
        return Ranks(above, np.zeros_like(above), np.ones_like(above), patients)

    probed = np.concatenate([np.arange(patients), np.arange(patients), patients + np.arange(extra)])
    truth = (fixed.random((len(probed), labels)) < 0.3).astype(float)
    truth[fixed.random(truth.shape) < 0.1] = np.nan
    scores = draw.normal(size=truth.shape) + np.nan_to_num(truth)
    words = fixed.integers(1, 9, (30, 3)).astype(float)
    own = words * draw.gamma(2.0, 1.0, words.shape)
    other = own + words * draw.normal(0.2, 0.5, words.shape)
    return PatientOutcomes(
        patients=patients + extra,
        ranks=(ranks(), ranks()),
        classes=classes,
        probe_patient=probed,
        probe_scores=scores,
        probe_labels=truth,
        gain_patient=fixed.permutation(patients)[:30],
        gain_sums=np.stack([own, other, words], axis=-1),
    )


def repeated(counts: np.ndarray, patient_of: np.ndarray) -> np.ndarray:
    """Places of the pairs of a resample, each as often as its patient was drawn."""
    return np.repeat(np.arange(len(patient_of)), counts[patient_of].astype(int))


def by_hand(outcomes: PatientOutcomes, metric: str, counts: np.ndarray) -> float:
    """The figure of one resample, made of copies of pairs and the plain functions."""
    gallery = repeated(counts, np.arange(len(outcomes.classes)))
    recall = np.mean([found.recall_at(k)[gallery] for found in outcomes.ranks for k in RECALL_AT])
    probed = repeated(counts, outcomes.probe_patient)
    areas = []
    for scores, truth in zip(outcomes.probe_scores[probed].T, outcomes.probe_labels[probed].T, strict=True):
        known = ~np.isnan(truth)
        if len(set(truth[known])) == 2:
            areas.append(auroc(scores[known], truth[known] == 1))
    if metric == "retrieval/mean_recall":
        return float(recall)
    if metric == "probe/auroc":
        return float(np.mean(areas))
    if metric == "report_reconstruction/visual_gain":
        own, other, words = outcomes.gain_sums[repeated(counts, outcomes.gain_patient)].sum(0).T
        return float(np.mean((other - own) / words))
    size = len(outcomes.classes)
    sizes = np.bincount(outcomes.classes)[outcomes.classes]
    # C(N - m, k) / C(N, k) as a product, for the queries drawn.
    misses = [[np.prod([(size - m - i) / (size - i) for i in range(k)]) for m in sizes] for k in RECALL_AT]
    chance = np.mean([1 - np.array(missed)[gallery] for missed in misses])
    return (above_chance(float(recall), float(chance)) + 2 * float(np.mean(areas)) - 1) / 2


def test_a_resample_draws_as_many_patients_as_there_are_and_the_same_ones_for_a_seed() -> None:
    counts = all_counts(30, 500, seed=3)
    assert counts.shape == (500, 30)
    assert (counts.sum(axis=1) == 30).all()
    np.testing.assert_array_equal(counts, all_counts(30, 500, seed=3))
    assert (counts != all_counts(30, 500, seed=4)).any()
    # Multinomial: mean 1 and variance 1 - 1/P.
    assert counts.var() == pytest.approx(1 - 1 / 30, abs=0.05)
    assert len(np.unique(counts, axis=0)) == 500


def test_resamples_come_in_blocks_where_there_are_many_patients() -> None:
    blocks = list(resample_counts(50_000, 40, seed=0))
    assert [len(block) for block in blocks] == [16, 16, 8]
    assert all((block.sum(axis=1) == 50_000).all() for block in blocks)
    assert (blocks[0][0] != blocks[1][0]).any()


@pytest.mark.parametrize(("patients", "resamples"), [(0, 10), (10, 0)])
def test_nothing_to_draw_is_refused(patients: int, resamples: int) -> None:
    with pytest.raises(ValueError, match="needs patients and resamples"):
        list(resample_counts(patients, resamples, 0))


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, 1.0, 200)
    found = bootstrap_interval(lambda counts: weighted_mean(values, counts), 200, resamples=20_000)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.03 * width)
    assert found.high == pytest.approx(expected.high, abs=0.03 * width)
    assert found.resamples == 20_000


def test_three_patients_worked_by_hand() -> None:
    # Values 0, 0, 3 have the mean 3j/3 with j ~ Binomial(3, 1/3): at most 0 in 8/27, at most 2 in 26/27.
    def mean(counts: np.ndarray) -> np.ndarray:
        return weighted_mean(np.array([0.0, 0.0, 3.0]), counts)

    values = mean(all_counts(3, 30_000, seed=0))
    for count, probability in enumerate([8 / 27, 12 / 27, 6 / 27, 1 / 27]):
        assert np.mean(np.isclose(values, count)) == pytest.approx(probability, abs=0.01)
    found = bootstrap_interval(mean, 3, resamples=30_000, level=0.9)
    assert (found.low, found.high) == pytest.approx((0.0, 2.0))


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        values = generator.normal(0.0, 1.0, 80)
        found = bootstrap_interval(
            lambda counts, values=values: weighted_mean(values, counts), 80, resamples=400, seed=trial
        )
        covered += found.low <= 0.0 <= found.high
    # Binomial(300, 0.93): a deviation of 4.4 or so.
    assert 265 <= covered <= 298


def test_a_pair_of_models_is_told_apart_where_each_alone_is_uncertain() -> None:
    generator = np.random.default_rng(2)
    easy = generator.normal(0.0, 1.0, 100)
    better = easy + 0.05 + generator.normal(0.0, 0.05, 100)
    alone = bootstrap_interval(lambda counts: weighted_mean(better, counts), 100)
    paired = bootstrap_interval(
        lambda counts: weighted_mean(better, counts) - weighted_mean(easy, counts), 100
    )
    assert not alone.above_zero
    assert paired.above_zero
    assert paired.low <= (better - easy).mean() <= paired.high


def test_resamples_without_a_value_are_left_out_and_counted() -> None:
    def sometimes(counts: np.ndarray) -> np.ndarray:
        return np.where(counts[:, 0] > 0, counts[:, 0], np.nan)

    found = bootstrap_interval(sometimes, 10, resamples=1000)
    assert found.low == 1.0
    assert 600 < found.resamples < 700  # 1 - (9/10)^10 = 0.651
    never = bootstrap_interval(lambda counts: np.full(len(counts), np.nan), 10, resamples=50)
    assert never.resamples == 0
    assert not never.above_zero
    assert not never.below_zero


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=2, max_size=25),
)
def test_weights_count_as_copies_and_ties_a_half(pairs: list[tuple[int, bool, int]]) -> None:
    scores, positive, weights = (np.array(column) for column in zip(*pairs, strict=True))
    rows = np.stack([weights, np.ones_like(weights)]).astype(float)
    found = weighted_auroc(scores.astype(float), positive, rows)
    for row, area in zip(rows, found, strict=True):
        copies = np.repeat(np.arange(len(scores)), row.astype(int))
        if len(set(positive[copies].tolist())) < 2:
            assert np.isnan(area)
        else:
            assert area == pytest.approx(roc_auc_score(positive[copies], scores[copies]))


@pytest.mark.parametrize(
    "metric",
    ["representation_score", "retrieval/mean_recall", "probe/auroc", "report_reconstruction/visual_gain"],
)
def test_every_resample_is_what_copies_of_the_patients_would_give(metric: str) -> None:
    outcomes = made_outcomes()
    counts = all_counts(outcomes.patients, 60, seed=1)
    expected = [by_hand(outcomes, metric, row) for row in counts]
    np.testing.assert_allclose(outcomes.statistic(metric)(counts), expected, atol=1e-12)
    assert np.std(expected) > 1e-3


def test_every_recall_and_the_rank_score_are_means_over_drawn_queries() -> None:
    outcomes = made_outcomes(4)
    counts = all_counts(outcomes.patients, 20, seed=2)
    for direction, name in enumerate(("image_to_report", "report_to_image")):
        for k in (1, 3, 10):
            values = outcomes.ranks[direction].above < k
            expected = [values[repeated(row, np.arange(40))].mean() for row in counts]
            found = outcomes.statistic(f"retrieval/{name}/recall_at_{k}")(counts)
            np.testing.assert_allclose(found, expected, atol=1e-12)
    values = 1 - np.log(np.stack([found.above + 1 for found in outcomes.ranks])) / np.log(40)
    expected = [values[:, repeated(row, np.arange(40))].mean() for row in counts]
    np.testing.assert_allclose(outcomes.statistic("retrieval/rank_score")(counts), expected, atol=1e-12)


def test_on_all_patients_chance_is_that_of_the_gallery() -> None:
    outcomes = made_outcomes()
    figures = outcomes.figures()
    chance = float(np.mean([chance_recall(outcomes.classes, k) for k in RECALL_AT]))
    expected = above_chance(figures["retrieval/mean_recall"], chance) + 2 * figures["probe/auroc"] - 1
    assert figures["representation_score"] == pytest.approx(expected / 2)


def test_a_label_that_loses_a_class_is_left_out_of_that_resample() -> None:
    base = made_outcomes(labels=2)
    patient = base.probe_patient
    rare = np.zeros((len(patient), 1))
    rare[patient == 3] = 1.0
    outcomes = replace(
        base,
        probe_labels=np.concatenate([base.probe_labels, rare], axis=1),
        probe_scores=np.concatenate([base.probe_scores, -patient[:, None].astype(float)], axis=1),
    )
    counts = np.ones((2, base.patients))
    counts[1, 3] = 0.0
    with_rare, without = outcomes.statistic("probe/auroc")(counts)
    two = base.statistic("probe/auroc")(counts)
    # Of 85 pairs 6 have a smaller patient number, hence a higher score: 77 of 83 are overtaken.
    assert with_rare == pytest.approx((2 * two[0] + 77 / 83) / 3)
    assert without == pytest.approx(two[1])


def test_outcomes_without_probe_or_gain_have_the_figures_that_remain() -> None:
    full = made_outcomes()
    bare = replace(
        full,
        probe_patient=np.zeros(0, np.int64),
        probe_scores=np.zeros((0, 0)),
        probe_labels=np.zeros((0, 0)),
        gain_patient=np.zeros(0, np.int64),
        gain_sums=np.zeros((0, 3, 3)),
    )
    figures = bare.figures()
    assert set(full.figures()) - set(figures) == {"probe/auroc", "report_reconstruction/visual_gain"}
    chance = float(np.mean([chance_recall(bare.classes, k) for k in RECALL_AT]))
    assert figures["representation_score"] == pytest.approx(
        above_chance(figures["retrieval/mean_recall"], chance)
    )
    with pytest.raises(ValueError, match="probe/auroc"):
        bare.statistic("probe/auroc")
    assert not full.has("loss/total")
    assert not is_per_patient("pairs_per_second")
    assert is_per_patient("retrieval/image_to_report/recall_at_5")


def test_outcomes_survive_a_file_and_know_their_patients() -> None:
    outcomes = made_outcomes()
    back = PatientOutcomes.from_bytes(outcomes.to_bytes())
    assert back.figures() == outcomes.figures()
    assert back.same_patients(outcomes)
    assert outcomes.same_patients(made_outcomes(7))
    other_label = outcomes.probe_labels.copy()
    other_label[0, 0] = 1 - np.nan_to_num(other_label[0, 0])
    assert not outcomes.same_patients(replace(outcomes, probe_labels=other_label))
    with pytest.raises(ValueError):
        PatientOutcomes.from_bytes(b"not a file")
