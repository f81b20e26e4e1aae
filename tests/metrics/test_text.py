"""Statistics of generated text against torchmetrics and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torchmetrics.text import BLEUScore

from mpma.metrics.rules import KINDS
from mpma.metrics.text import text_statistics, tokens

GENERATED = [
    "Small left pleural effusion. No pneumothorax.",
    "the heart is enlarged , mild . no pneumothorax .",
    "",
    "XXXX 4.5 cm tube",
]
REFERENCES = [
    "There is a small left pleural effusion. No pneumothorax is seen.",
    "The heart is enlarged, mild. No nodule. No pneumothorax.",
    "No acute disease.",
    "tube ends 4 . 5 cm above",
]


def bleu(order: int) -> float:
    found = text_statistics(GENERATED, REFERENCES)
    arrays = {role: found[f"bleu_{role}"] for role in ("matches", "totals", "lengths")}
    return float(KINDS["bleu"](arrays, {"n": order}, np.ones((1, 4)))[0])


def test_words_and_punctuation_are_apart_and_white_space_means_nothing() -> None:
    assert tokens("No  effusion,\n4.5 cm\t(left-sided).") == [
        *("no", "effusion", ",", "4", ".", "5", "cm", "(", "left", "-", "sided", ")", ".")
    ]
    assert tokens("a_b Größe") == ["a", "_", "b", "größe"]
    assert tokens(" \n") == []


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_of_the_same_words_equals_torchmetrics(order: int) -> None:
    library = BLEUScore(n_gram=order)
    cut = [" ".join(tokens(text)) for text in GENERATED], [[" ".join(tokens(text))] for text in REFERENCES]
    assert bleu(order) == pytest.approx(float(library(*cut)), abs=1e-6)
    assert bleu(order) > 0.2


def test_counts_and_bleu_of_a_case_worked_by_hand() -> None:
    # Generated: a a b; reference: a b c d. `a` matches once though it is said twice.
    found = text_statistics(["a a b"], ["a b c d"])
    assert found["bleu_matches"].tolist() == [[2, 1, 0, 0]]
    assert found["bleu_totals"].tolist() == [[3, 2, 1, 0]]
    assert found["bleu_lengths"].tolist() == [[3, 4]]
    arrays = {role: found[f"bleu_{role}"] for role in ("matches", "totals", "lengths")}
    expected = math.exp(1 - 4 / 3) * math.sqrt(2 / 3 * 1 / 2)
    assert KINDS["bleu"](arrays, {"n": 2}, np.ones((1, 1)))[0] == pytest.approx(expected)
    assert KINDS["bleu"](arrays, {"n": 3}, np.ones((1, 1)))[0] == 0.0


def test_rouge_l_of_a_case_worked_by_hand() -> None:
    # Longest common subsequence: a c d. Precision 3/4, recall 3/5.
    found = text_statistics(["A c x d", "same words .", ""], ["a b c d e", "Same words.", "words"])
    assert found["rouge_l"].tolist() == pytest.approx([2 * 0.75 * 0.6 / (0.75 + 0.6), 1.0, 0.0])


def test_nothing_generated_and_nothing_to_compare_have_shapes_all_the_same() -> None:
    found = text_statistics([], [])
    assert {name: array.shape for name, array in found.items()} == {
        "bleu_matches": (0, 4),
        "bleu_totals": (0, 4),
        "bleu_lengths": (0, 2),
        "rouge_l": (0,),
    }
    with pytest.raises(ValueError, match="1 generated texts for 2"):
        text_statistics(["a"], ["a", "b"])
