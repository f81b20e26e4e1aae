"""Dice and intersection over union against scikit-learn, torchmetrics and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score
from torchmetrics.functional.segmentation import dice_score

from mpma.metrics.masks import mask_scores


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_scores_equal_scikit_learns_on_the_judged_pixels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    shapes = [tuple(draw.integers(1, 9, 2)) for _ in range(3)]
    predicted, true, judged = ([draw.random(shape) < 0.4 for shape in shapes] for _ in range(3))
    found = mask_scores(predicted, true, judged)
    for index in range(3):
        truth, guess = true[index][judged[index]], predicted[index][judged[index]]
        if truth.any() or guess.any():
            assert found["dice"][index] == pytest.approx(f1_score(truth, guess))
            assert found["iou"][index] == pytest.approx(jaccard_score(truth, guess))
        else:
            assert found["dice"][index] == found["iou"][index] == 1.0


def test_dice_equals_torchmetrics() -> None:
    draw = np.random.default_rng(1)
    predicted, true = draw.random((4, 16, 16)) < 0.3, draw.random((4, 16, 16)) < 0.5
    library = dice_score(
        torch.as_tensor(predicted)[:, None], torch.as_tensor(true)[:, None], num_classes=1
    ).reshape(-1)
    assert mask_scores(predicted, true)["dice"] == pytest.approx(library.numpy())


def test_a_case_worked_by_hand() -> None:
    predicted = np.array([[[1, 1, 0, 0]]], bool)
    true = np.array([[[0, 1, 1, 1]]], bool)
    found = mask_scores(predicted, true)
    assert (found["dice"][0], found["iou"][0]) == (2 * 1 / (2 + 3), 1 / 4)
    # Without the first pixel the only error left is what was missed.
    found = mask_scores(predicted, true, np.array([[[0, 1, 1, 1]]], bool))
    assert (found["dice"][0], found["iou"][0]) == (2 * 1 / (1 + 3), 1 / 3)


def test_two_empty_masks_agree_and_one_empty_mask_does_not() -> None:
    empty, full = np.zeros((1, 2, 2), bool), np.ones((1, 2, 2), bool)
    assert mask_scores(empty, empty)["dice"][0] == mask_scores(empty, empty)["iou"][0] == 1.0
    assert mask_scores(full, empty)["dice"][0] == mask_scores(empty, full)["iou"][0] == 0.0
    # Nothing is judged: nothing is wrong.
    assert mask_scores(full, empty, empty)["dice"][0] == 1.0


def test_masks_of_other_shapes_numbers_or_types_are_refused() -> None:
    one, other = np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3), bool)
    with pytest.raises(ValueError, match="mask 0: shapes"):
        mask_scores(one, other)
    with pytest.raises(ValueError, match="1 predicted masks for 2"):
        mask_scores(one, np.zeros((2, 2, 2), bool))
    with pytest.raises(ValueError, match="boolean"):
        mask_scores(one.astype(float), one)  # type: ignore[arg-type]
