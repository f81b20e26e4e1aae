"""The alignment losses against loops that follow the formulas word by word."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mpma.model import alignment
from mpma.model.alignment import (
    AlignmentFeatures,
    Temperature,
    global_alignment_loss,
    within_pair_loss,
    word_patch_scores,
    words_to_patches_loss,
)

A, P, W = 6, 5, 7


def _unit(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=draw), dim=-1)


def _features(pairs: int, *, same_report: tuple[int, ...] = (), seed: int = 0) -> AlignmentFeatures:
    draw = torch.Generator().manual_seed(seed)
    report_hash = torch.arange(pairs)
    report_hash[list(same_report)] = 77
    count = torch.randint(2, W + 1, (pairs, 1), generator=draw)
    return AlignmentFeatures(
        image=_unit(pairs, A, seed=seed + 1).requires_grad_(),
        report=_unit(pairs, A, seed=seed + 2).requires_grad_(),
        patches=_unit(pairs, P, A, seed=seed + 3).requires_grad_(),
        words=_unit(pairs, W, A, seed=seed + 4).requires_grad_(),
        word_mask=torch.arange(W) < count,
        word_ids=torch.randint(0, 4, (pairs, W), generator=draw),
        report_hash=report_hash,
        study_hash=torch.arange(pairs) + 500,
    )


def _naive_score(patches: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    similarities = []
    for word in words[mask]:
        attention = torch.softmax(10 * patches @ word, dim=0)
        context = attention @ patches
        # Words are unit vectors, as the projections give them.
        similarities.append(5 * word @ context / context.norm())
    return 10 * torch.stack(similarities).exp().mean().log() / 5


def _naive_contrast(scores: list[list[Tensor]], reports: list[int], studies: list[int]) -> Tensor:
    """Mean over pairs of both directions' cross-entropy, false negatives left out of both."""
    pairs = range(len(scores))
    losses = []
    for one in pairs:
        others = [j for j in pairs if j == one or (reports[j] != reports[one] and studies[j] != studies[one])]
        row = torch.stack([scores[one][j] for j in others])
        column = torch.stack([scores[j][one] for j in others])
        losses.append(0.5 * (row.logsumexp(0) + column.logsumexp(0)) - scores[one][one])
    return torch.stack(losses).mean()


def _gradients(loss: Tensor, features: AlignmentFeatures, *names: str) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [getattr(features, name) for name in names]))


@pytest.mark.parametrize("how", ["whole", "chunks", "chunks computed again"])
def test_local_scores_by_the_gram_matrix_equal_the_context_vectors(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how != "whole":
        monkeypatch.setitem(alignment._CHUNK_ELEMENTS, "cpu", 2 * W * 3 * P)
    if how == "chunks computed again":
        monkeypatch.setattr(alignment, "_RECOMPUTED_FROM", 1)
    features = _features(5)
    patches, words, mask = features.patches[:3], features.words, features.word_mask
    scores = word_patch_scores(patches, words, mask)
    naive = torch.stack(
        [torch.stack([_naive_score(patches[i], words[j], mask[j]) for j in range(5)]) for i in range(3)]
    )
    torch.testing.assert_close(scores, naive, atol=1e-5, rtol=1e-5)
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    ours = _gradients((scores * weight).sum(), features, "patches", "words")
    theirs = _gradients((naive * weight).sum(), features, "patches", "words")
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_a_report_said_twice_scores_as_said_once() -> None:
    patches, words = _unit(1, P, A, seed=0), _unit(1, 3, A, seed=1)
    once = word_patch_scores(patches, words, torch.ones(1, 3, dtype=torch.bool))
    twice = word_patch_scores(patches, words.repeat(1, 2, 1), torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(once, twice)


def test_a_report_without_words_scores_zero_with_finite_gradients() -> None:
    features = _features(3)
    features.word_mask[1] = False
    assert torch.equal(
        word_patch_scores(features.patches, features.words, features.word_mask)[:, 1], torch.zeros(3)
    )
    for loss in (words_to_patches_loss(features, 3), within_pair_loss(features, 0.1)):
        assert loss.isfinite()
        for gradient in _gradients(loss, features, "patches", "words"):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("group_size", [2, 3, 4, 6, 64])
def test_the_local_contrast_stays_inside_groups_and_leaves_out_false_negatives(group_size: int) -> None:
    features = _features(6, same_report=(0, 1, 5))
    features.study_hash[3] = features.study_hash[4] = 9
    naive = []
    for start in range(0, 6, group_size):
        group = range(start, min(6, start + group_size))
        scores = [
            [_naive_score(features.patches[i], features.words[j], features.word_mask[j]) for j in group]
            for i in group
        ]
        reports = [int(features.report_hash[i]) for i in group]
        studies = [int(features.study_hash[i]) for i in group]
        naive.append(_naive_contrast(scores, reports, studies) * len(group))
    expected = torch.stack(naive).sum() / 6
    loss = words_to_patches_loss(features, group_size)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    ours = _gradients(loss, features, "patches", "words")
    theirs = _gradients(expected, features, "patches", "words")
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_the_global_contrast_equals_the_formula() -> None:
    features = _features(5, same_report=(1, 4))
    features.study_hash[0] = features.study_hash[2] = 9
    temperature = torch.tensor(0.2, requires_grad=True)
    loss = global_alignment_loss(
        features.image, features.report, features.report_hash, features.study_hash, temperature
    )
    scores = [[features.image[i] @ features.report[j] / temperature for j in range(5)] for i in range(5)]
    expected = _naive_contrast(scores, features.report_hash.tolist(), features.study_hash.tolist())
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, [features.image, features.report, temperature])
    theirs = torch.autograd.grad(expected, [features.image, features.report, temperature])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_identical_reports_cost_exactly_zero_with_finite_gradients() -> None:
    features = _features(6, same_report=tuple(range(6)))
    losses = (
        global_alignment_loss(
            features.image, features.report, features.report_hash, features.study_hash, torch.tensor(0.07)
        ),
        words_to_patches_loss(features, 6),
    )
    for loss, names in zip(losses, (("image", "report"), ("patches", "words")), strict=True):
        assert loss.item() == 0.0
        for gradient in _gradients(loss, features, *names):
            assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_contrast_within_a_pair_equals_a_loop_over_its_tokens() -> None:
    features, temperature = _features(3), 0.1
    totals = []
    for pair in range(3):
        mask = features.word_mask[pair]
        tokens, ids = features.words[pair][mask], features.word_ids[pair][mask]
        patches = features.patches[pair]
        seen = functional.normalize(torch.softmax(10 * tokens @ patches.T, 1) @ patches, dim=1)
        read = functional.normalize(torch.softmax(10 * patches @ tokens.T, 1) @ tokens, dim=1)
        sides = []
        for left, right, names in ((tokens, seen, ids.tolist()), (patches, read, list(range(P)))):
            scores = left @ right.T / temperature
            losses = []
            for one in range(len(names)):
                others = [j for j in range(len(names)) if j == one or names[j] != names[one]]
                losses.append(
                    0.5 * (scores[one, others].logsumexp(0) + scores[others, one].logsumexp(0))
                    - scores[one, one]
                )
            sides.append(torch.stack(losses).mean())
        totals.append(0.5 * (sides[0] + sides[1]))
    expected = torch.stack(totals).mean()
    loss = within_pair_loss(features, temperature)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    ours = _gradients(loss, features, "patches", "words")
    theirs = _gradients(expected, features, "patches", "words")
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_the_temperature_stays_in_bounds_and_comes_back_from_them() -> None:
    temperature = Temperature(0.07)
    assert temperature().item() == pytest.approx(0.07)
    for start, bound, inward in ((-9.0, 0.01, -1.0), (3.0, 1.0, 1.0)):
        temperature.logarithm.data.fill_(start)
        assert temperature().item() == pytest.approx(bound)
        (back,) = torch.autograd.grad(inward * temperature(), temperature.logarithm)
        assert back.item() == pytest.approx(inward * bound)
        (further,) = torch.autograd.grad(-inward * temperature(), temperature.logarithm)
        assert further.item() == 0.0
    temperature.logarithm.data.fill_(math.log(0.5))
    (inside,) = torch.autograd.grad(temperature(), temperature.logarithm)
    assert inside.item() == pytest.approx(0.5)
