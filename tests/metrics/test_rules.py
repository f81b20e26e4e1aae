"""Every rule against scikit-learn or sacrebleu, at weights 1 and with examples repeated."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from mpma.metrics.bootstrap import bootstrap_interval
from mpma.metrics.rules import KINDS, weighted_average_precision
from mpma.metrics.text import text_statistics, tokens

SEEDS = st.integers(0, 2**32 - 1)


def made(seed: int, examples: int = 30, labels: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Scores with many ties, labels of which some are not judged, decisions; and counts 0 to 3."""
    draw = np.random.default_rng(seed)
    truth = (draw.random((examples, labels)) < draw.uniform(0.05, 0.6, labels)).astype(float)
    scores = np.round(draw.normal(size=truth.shape) + truth, int(draw.integers(0, 3)))
    decisions = draw.random(truth.shape) < draw.uniform(0.0, 0.6, labels)
    truth[draw.random(truth.shape) < 0.15] = np.nan
    return {"scores": scores, "labels": truth, "decisions": decisions}, draw.integers(0, 4, examples)


def by_rule(kind: str, arrays: dict[str, Any], counts: np.ndarray, **options: Any) -> float:
    """The rule's value, computed beside another resample: rows must not mix."""
    other = counts[::-1]
    weights = np.stack([other, counts]).astype(float)
    return float(KINDS[kind](arrays, options, weights)[1])


def repeated(array: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.repeat(array, counts, axis=0)


def macro_by_sklearn(measure: Any, arrays: dict[str, np.ndarray], least_classes: int) -> float:
    found = []
    for column in range(arrays["labels"].shape[1]):
        known = ~np.isnan(arrays["labels"][:, column])
        truth, scores = arrays["labels"][known, column], arrays["scores"][known, column]
        if truth.sum() and (least_classes == 1 or truth.sum() < len(truth)):
            found.append(measure(truth, scores))
    return float(np.mean(found)) if found else float("nan")


@pytest.mark.parametrize(
    ("kind", "measure", "least"),
    [("macro_auroc", roc_auc_score, 2), ("macro_auprc", average_precision_score, 1)],
)
@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_areas_equal_scikit_learns_with_and_without_repeated_examples(
    kind: str, measure: Any, least: int, seed: int
) -> None:
    arrays, counts = made(seed)
    for weights in (np.ones(30, int), counts):
        literal = {name: repeated(array, weights) for name, array in arrays.items()}
        expected = macro_by_sklearn(measure, literal, least)
        assert by_rule(kind, arrays, weights) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(seed=SEEDS)
def test_f1_equals_scikit_learns_with_and_without_repeated_examples(seed: int) -> None:
    arrays, counts = made(seed)
    for weights in (np.ones(30, int), counts):
        per_label, everything = [], []
        for column in range(3):
            known = ~np.isnan(arrays["labels"][:, column])
            truth = repeated(arrays["labels"][known, column] == 1, weights[known])
            decided = repeated(arrays["decisions"][known, column], weights[known])
            everything.append((truth, decided))
            per_label.append(f1_score(truth, decided, zero_division=np.nan) if len(truth) else np.nan)
        judged = [value for value in per_label if not np.isnan(value)]
        macro = np.mean(judged) if judged else np.nan
        truth, decided = (np.concatenate(parts) for parts in zip(*everything, strict=True))
        micro = f1_score(truth, decided, zero_division=np.nan)
        assert by_rule("macro_f1", arrays, weights) == pytest.approx(macro, nan_ok=True)
        assert by_rule("micro_f1", arrays, weights) == pytest.approx(micro, nan_ok=True)
        for column in range(3):
            one = by_rule("macro_f1", arrays, weights, columns=[column])
            assert one == pytest.approx(per_label[column], nan_ok=True)


def test_f1_of_fully_judged_labels_is_the_librarys_macro_and_micro_average() -> None:
    arrays, _ = made(3, examples=200, labels=5)
    arrays["labels"] = np.nan_to_num(arrays["labels"])
    ones = np.ones(200, int)
    for kind, average in (("macro_f1", "macro"), ("micro_f1", "micro")):
        expected = f1_score(arrays["labels"], arrays["decisions"], average=average, zero_division=np.nan)
        assert by_rule(kind, arrays, ones) == pytest.approx(expected)


def test_f1_leaves_out_a_label_that_nobody_has_or_names_and_counts_a_false_alarm_as_zero() -> None:
    labels = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    decisions = np.array([[True, False, False], [False, False, True]])
    arrays = {"labels": labels, "decisions": decisions}
    # First label: 2/3; second: left out; third: a false alarm, 0.
    assert by_rule("macro_f1", arrays, np.ones(2, int)) == pytest.approx((2 / 3 + 0) / 2)
    assert np.isnan(by_rule("macro_f1", arrays, np.ones(2, int), columns=[1]))


def test_one_hot_labels_give_the_one_against_rest_auroc_of_classes() -> None:
    draw = np.random.default_rng(0)
    classes = draw.integers(0, 4, 120)
    scores = draw.random((120, 4)) + np.eye(4)[classes] * 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    counts = draw.integers(0, 3, 120)
    expected = roc_auc_score(
        repeated(classes, counts), repeated(scores, counts), multi_class="ovr", average="macro"
    )
    arrays = {"scores": scores, "labels": np.eye(4)[classes]}
    assert by_rule("macro_auroc", arrays, counts) == pytest.approx(expected)


def test_average_precision_of_a_case_worked_by_hand() -> None:
    # Thresholds 3 (one positive), 2 (a tie of both classes), 1 (a negative):
    # recall 1/2 at precision 1, then 1/2 more at precision 2/3.
    scores, positive = np.array([2.0, 3.0, 1.0, 2.0]), np.array([True, True, False, False])
    found = weighted_average_precision(scores, positive, np.ones((1, 4)))
    assert found[0] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_constant_scores_have_auroc_one_half_and_the_prevalence_as_average_precision() -> None:
    arrays = {"scores": np.zeros((10, 1)), "labels": np.array([[1.0]] * 3 + [[0.0]] * 7)}
    assert by_rule("macro_auroc", arrays, np.ones(10, int)) == 0.5
    assert by_rule("macro_auprc", arrays, np.ones(10, int)) == pytest.approx(0.3)


def test_a_resample_without_a_positive_has_no_area_and_no_effect_on_other_labels() -> None:
    arrays = {
        "scores": np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 2.0]]),
        "labels": np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]),
    }
    counts = np.array([2, 2, 0])
    for kind in ("macro_auroc", "macro_auprc"):
        assert by_rule(kind, arrays, counts, columns=[0]) == 1.0
        assert np.isnan(by_rule(kind, arrays, counts, columns=[1]))
        assert by_rule(kind, arrays, counts) == 1.0


def test_means_and_ratios_of_repeated_examples_leave_out_what_is_not_known() -> None:
    value = np.array([1.0, np.nan, 0.0, 1.0])
    counts = np.array([1, 5, 2, 1])
    assert by_rule("mean", {"value": value}, counts) == pytest.approx(2 / 4)
    arrays = {"numerator": np.array([3.0, 9.0, 1.0, np.nan]), "denominator": np.array([6.0, np.nan, 2.0, 8])}
    assert by_rule("ratio", arrays, counts) == pytest.approx((3 + 2 * 1) / (6 + 2 * 2))
    assert np.isnan(by_rule("mean", {"value": value}, np.array([0, 3, 0, 0])))
    assert np.isnan(by_rule("ratio", arrays, np.array([0, 3, 0, 1])))


WORDS = st.lists(st.sampled_from(["no", "small", "left", "effusion", "."]), max_size=9).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(WORDS, WORDS.filter(bool), st.integers(0, 3)), min_size=1, max_size=6))
def test_bleu_equals_sacrebleus_with_and_without_repeated_texts(
    drawn: list[tuple[str, str, int]],
) -> None:
    said, meant, times = (list(part) for part in zip(*drawn, strict=True))
    found = text_statistics(said, meant)
    arrays = {role: found[f"bleu_{role}"] for role in ("matches", "totals", "lengths")}
    for counts in (np.ones(len(said), int), np.array(times)):
        literal = np.repeat(np.arange(len(said)), counts).tolist()
        for order in (1, 2, 3, 4):
            value = by_rule("bleu", arrays, counts, n=order)
            if not literal:
                assert np.isnan(value)
                continue
            library = BLEU(tokenize="none", smooth_method="none", max_ngram_order=order)
            cut = [" ".join(tokens(text)) for text in said], [" ".join(tokens(text)) for text in meant]
            expected = library.corpus_score([cut[0][i] for i in literal], [[cut[1][i] for i in literal]])
            assert value == pytest.approx(expected.score / 100, abs=1e-12)


def test_an_order_that_bleu_does_not_have_is_refused() -> None:
    found = text_statistics(["a"], ["a"])
    arrays = {role: found[f"bleu_{role}"] for role in ("matches", "totals", "lengths")}
    with pytest.raises(ValueError, match="BLEU-5"):
        by_rule("bleu", arrays, np.ones(1, int), n=5)


@pytest.mark.parametrize("kind", ["macro_auroc", "macro_auprc", "macro_f1", "micro_f1"])
def test_a_thousand_resamples_of_a_thousand_patients_and_15_labels_take_seconds(kind: str) -> None:
    arrays, _ = made(0, examples=1000, labels=15)
    started = time.process_time()
    interval = bootstrap_interval(lambda counts: KINDS[kind](arrays, {}, counts), 1000, resamples=1000)
    assert time.process_time() - started < 5.0
    assert interval.resamples == 1000
    assert interval.low < interval.high
