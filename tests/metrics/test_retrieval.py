"""Retrieval against brute force, hand-worked cases, torchmetrics and simulated chance."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torchmetrics.functional.retrieval import retrieval_hit_rate

from mpma.metrics.retrieval import (
    above_chance,
    chance_recall,
    prior_recall,
    ranks_of_similarity,
    retrieval_metrics,
    retrieval_ranks,
)


def brute_force_ranks(similarity: np.ndarray, classes: np.ndarray) -> list[int]:
    ranks = []
    for query, row in enumerate(similarity):
        order = np.argsort(-row, kind="stable")
        ranks.append(next(i for i, item in enumerate(order, start=1) if classes[item] == classes[query]))
    return ranks


def test_ranks_equal_a_sort_of_every_row_with_identical_reports_as_hits() -> None:
    generator = np.random.default_rng(0)
    similarity = generator.normal(size=(60, 60))
    classes = generator.integers(0, 25, size=60)
    ranks = ranks_of_similarity(torch.tensor(similarity), torch.tensor(classes), torch.tensor(classes))
    expected = np.array(brute_force_ranks(similarity, classes))
    np.testing.assert_array_equal(ranks.above + 1, expected)
    np.testing.assert_array_equal(ranks.tied, 0)
    for k in (1, 5, 10):
        np.testing.assert_allclose(ranks.recall_at(k), expected <= k, atol=1e-12)
    np.testing.assert_allclose(ranks.rank_score(), 1 - np.log(expected) / np.log(60), atol=1e-12)


def test_a_case_worked_by_hand() -> None:
    similarity = torch.tensor(
        [[0.9, 0.1, 0.5, 0.2], [0.8, 0.3, 0.1, 0.5], [0.1, 0.2, 0.9, 0.3], [0.4, 0.3, 0.2, 0.1]]
    )
    classes = torch.tensor([0, 1, 2, 1])
    ranks = ranks_of_similarity(similarity, classes, classes)
    # Query 1 finds item 3 (the same report) second; query 3 finds item 1 second.
    np.testing.assert_array_equal(ranks.above, [0, 1, 0, 1])
    assert ranks.recall_at(1).mean() == 0.5
    assert ranks.recall_at(2).mean() == 1.0


def test_recall_of_distinct_reports_equals_the_hit_rate_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    report = torch.nn.functional.normalize(image + torch.randn(40, 8, generator=generator), dim=1)
    metrics = retrieval_metrics(image, report, torch.arange(40))
    for name, similarity in (("image_to_report", image @ report.T), ("report_to_image", report @ image.T)):
        for k in (1, 5, 10):
            hits = [
                retrieval_hit_rate(similarity[i], torch.arange(40) == i, top_k=k).item() for i in range(40)
            ]
            assert metrics[f"{name}/recall_at_{k}"] == pytest.approx(np.mean(hits), abs=1e-9)


def test_ties_score_the_mean_over_every_order_of_the_tied() -> None:
    row = np.array([0.5, 0.5, 0.7, 0.5, 0.5, 0.1])
    classes = np.array([3, 1, 2, 3, 4, 5])
    ranks = ranks_of_similarity(torch.tensor(row[None]), torch.tensor([3]), torch.tensor(classes))
    tied = [0, 1, 3, 4]
    positions = []
    for order in itertools.permutations(tied):
        positions.append(2 + next(i for i, item in enumerate(order) if classes[item] == 3))
    assert 2 <= min(positions) < max(positions) == 4
    for k in range(1, 7):
        assert ranks.recall_at(k)[0] == pytest.approx(np.mean(np.array(positions) <= k), abs=1e-12)
    assert ranks.rank_score()[0] == pytest.approx(np.mean(1 - np.log(positions) / np.log(6)), abs=1e-12)


@pytest.mark.parametrize("count", [2, 7, 300])
def test_a_constant_similarity_scores_exactly_chance(count: int) -> None:
    classes = np.random.default_rng(2).integers(0, max(2, count // 2), size=count)
    constant = torch.ones(count, 4) / 2
    metrics = retrieval_metrics(constant, constant, classes)
    assert metrics["mean_recall"] == pytest.approx(metrics["chance_mean_recall"], abs=1e-12)


def test_chance_is_what_random_orders_score() -> None:
    generator = np.random.default_rng(3)
    classes = np.repeat(np.arange(12), [10, 6, 4, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    simulated = {1: [], 5: [], 10: []}
    for _ in range(400):
        ranks = ranks_of_similarity(
            torch.tensor(generator.random((30, 30))), torch.tensor(classes), torch.tensor(classes)
        )
        for k, values in simulated.items():
            values.append(ranks.recall_at(k).mean())
    for k, values in simulated.items():
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - chance_recall(classes, k)) < 4 * error
    assert chance_recall(np.arange(1000), 10) == pytest.approx(0.01)
    assert chance_recall(np.arange(4), 10) == pytest.approx(1.0)


def test_the_prior_is_the_best_constant_ranking() -> None:
    classes = np.array([0, 0, 0, 1, 1, 2, 3])
    for k in (1, 2, 3):
        best = max(
            np.mean(np.isin(classes, classes[list(shown)])) for shown in itertools.combinations(range(7), k)
        )
        assert prior_recall(classes, k) == pytest.approx(best)
    assert prior_recall(np.arange(50), 5) == pytest.approx(chance_recall(np.arange(50), 5))


def test_chunks_do_not_change_the_ranks_and_bound_the_memory() -> None:
    generator = torch.Generator().manual_seed(4)
    # Halves of small integers: every similarity is exact, so that chunks cannot differ by rounding.
    image = torch.randint(-3, 4, (101, 6), generator=generator) / 2
    report = torch.randint(-3, 4, (101, 6), generator=generator) / 2
    classes = torch.randint(0, 60, (101,), generator=generator)
    whole = retrieval_ranks(image, report, classes, classes, chunk=101)
    parts = retrieval_ranks(image, report, classes, classes, chunk=7)
    for field in ("above", "tied", "tied_hits"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(parts, field))
    assert whole.tied.max() > 0


def test_the_order_of_the_gallery_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(-2, 3, (50, 4), generator=generator).float()
    report = torch.randint(-2, 3, (50, 4), generator=generator).float()
    classes = torch.randint(0, 30, (50,), generator=generator)
    order = torch.randperm(50, generator=generator)
    one = retrieval_metrics(image, report, classes)
    other = retrieval_metrics(image[order], report[order], classes[order])
    assert one == pytest.approx(other, abs=1e-12)


def test_perfect_embeddings_score_one_and_means_are_means_of_the_six() -> None:
    eye = torch.eye(20)
    metrics = retrieval_metrics(eye, eye, np.arange(20))
    assert metrics["mean_recall"] == metrics["rank_score"] == 1.0
    assert metrics["gallery_size"] == 20
    shifted = retrieval_metrics(eye, eye.roll(1, 0) + 0.5 * eye, np.arange(20))
    recalls = [value for name, value in shifted.items() if "recall_at" in name]
    assert len(recalls) == 6
    assert shifted["mean_recall"] == pytest.approx(np.mean(recalls))
    assert shifted["image_to_report/recall_at_1"] == 0.0


def test_values_that_are_not_finite_are_refused_rather_than_ranked_first() -> None:
    image = torch.eye(5)
    image[2, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        retrieval_metrics(image, torch.eye(5), np.arange(5))
    with pytest.raises(ValueError, match="N >= 2"):
        retrieval_metrics(torch.eye(1), torch.eye(1), np.arange(1))


def test_above_chance_is_nought_at_chance_and_one_at_the_top() -> None:
    assert above_chance(0.2, 0.2) == 0.0
    assert above_chance(1.0, 0.2) == 1.0
    assert above_chance(0.1, 0.2) < 0.0
    assert above_chance(1.0, 1.0) == 0.0
