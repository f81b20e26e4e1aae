"""Beam search against exhaustive and greedy search on small random models."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mpma.downstream.beam_search import Found, beam_search

START, END, VOCABULARY = 0, 1, 5


def table_model(seed: int, sharpness: float = 2.0):  # type: ignore[no-untyped-def]
    """Log-probabilities that depend on the example and on the whole prefix; the start is never generated."""
    known: dict[tuple[int, ...], Tensor] = {}

    def log_probs(example: int, prefix: tuple[int, ...]) -> Tensor:
        key = (example, *prefix)
        if key not in known:
            draw = torch.Generator().manual_seed(hash((seed, *key)) % 2**31)
            logits = sharpness * torch.randn(VOCABULARY, generator=draw, dtype=torch.float64)
            logits[START] = -torch.inf
            known[key] = logits.log_softmax(0)
        return known[key]

    def step(prefix_RT: Tensor, example_R: Tensor, parent_R: Tensor) -> Tensor:
        pairs = zip(example_R.tolist(), prefix_RT.tolist(), strict=True)
        return torch.stack([log_probs(example, tuple(prefix)) for example, prefix in pairs])

    return log_probs, step


def exhaustive(log_probs, example: int, max_tokens: int, power: float) -> tuple[float, list[int], bool]:  # type: ignore[no-untyped-def]
    """Best (score, tokens, ended) of all sequences that end, or that reach the greatest length."""
    best = (-math.inf, [], False)
    for length in range(1, max_tokens + 1):
        for tokens in itertools.product(range(1, VOCABULARY), repeat=length):
            if END in tokens[:-1] or (tokens[-1] != END and length < max_tokens):
                continue
            total = 0.0
            for place, token in enumerate(tokens):
                total += float(log_probs(example, (START, *tokens[:place]))[token])
            ended = tokens[-1] == END
            score = total / length**power
            if score > best[0]:
                best = (score, list(tokens[:-1] if ended else tokens), ended)
    return best


def search(step, examples: int, beams: int, max_tokens: int, power: float = 1.0) -> list[Found]:  # type: ignore[no-untyped-def]
    return beam_search(
        step, examples, beams=beams, start_id=START, end_id=END, max_tokens=max_tokens, length_power=power
    )


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_as_many_beams_as_sequences_find_the_best_of_all(seed: int, power: float) -> None:
    log_probs, step = table_model(seed)
    found = search(step, 3, VOCABULARY**4, 4, power)
    for example, one in enumerate(found):
        score, tokens, ended = exhaustive(log_probs, example, 4, power)
        assert (one.tokens, one.ended) == (tokens, ended)
        assert one.score == pytest.approx(score, abs=1e-12)


def test_one_beam_is_greedy_search() -> None:
    log_probs, step = table_model(7)
    found = search(step, 20, 1, 6)
    lengths = set()
    for example, one in enumerate(found):
        prefix: list[int] = [START]
        total = 0.0
        while len(prefix) <= 6 and (len(prefix) == 1 or prefix[-1] != END):
            best = int(log_probs(example, tuple(prefix)).argmax())
            total += float(log_probs(example, tuple(prefix))[best])
            prefix.append(best)
        assert one.tokens == [token for token in prefix[1:] if token != END]
        assert one.ended == (prefix[-1] == END)
        assert one.score == pytest.approx(total / (len(prefix) - 1))
        lengths.add(len(prefix))
    assert len(lengths) > 2


def test_more_beams_find_better_sequences_than_greedy_search_on_the_whole() -> None:
    _, step = table_model(3, sharpness=1.0)
    greedy = [one.score for one in search(step, 40, 1, 6, 0.0)]
    wide = [one.score for one in search(step, 40, 3, 6, 0.0)]
    assert sum(wide) > sum(greedy) + 1.0


def test_neighbours_in_a_batch_change_nothing() -> None:
    _, step = table_model(11)
    together = search(step, 6, 3, 7)

    for example in range(6):

        def alone(prefix_RT: Tensor, example_R: Tensor, parent_R: Tensor, number: int = example) -> Tensor:
            return step(prefix_RT, torch.full_like(example_R, number), parent_R)

        assert search(alone, 1, 3, 7) == [together[example]]


def test_a_row_is_told_which_row_it_continues() -> None:
    _, step = table_model(5)
    before: list[tuple[int, list[int]]] = []

    def watched(prefix_RT: Tensor, example_R: Tensor, parent_R: Tensor) -> Tensor:
        rows = list(zip(example_R.tolist(), prefix_RT.tolist(), strict=True))
        assert example_R.tolist() == sorted(example_R.tolist())
        if before:
            for (example, prefix), parent in zip(rows, parent_R.tolist(), strict=True):
                assert before[parent] == (example, prefix[:-1])
        else:
            assert parent_R.tolist() == [0, 1, 2, 3]
        before[:] = rows
        return step(prefix_RT, example_R, parent_R)

    search(watched, 4, 3, 6)
    assert len(before[0][1]) > 3


def test_a_model_that_never_ends_is_cut_at_the_greatest_length() -> None:
    def looping(prefix_RT: Tensor, example_R: Tensor, parent_R: Tensor) -> Tensor:
        log_probs = torch.full((len(prefix_RT), VOCABULARY), -torch.inf)
        log_probs[:, 3] = -0.1
        return log_probs

    (found,) = search(looping, 1, 3, 9)
    assert found.tokens == [3] * 9
    assert not found.ended
    assert found.score == pytest.approx(-0.1)


def test_a_higher_length_power_gives_longer_sequences() -> None:
    _, step = table_model(2, sharpness=0.7)
    lengths = [sum(len(one.tokens) for one in search(step, 30, 4, 6, power)) for power in (0.0, 0.5, 1.0)]
    assert lengths[0] < lengths[1] < lengths[2]


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        search(lambda prefix, example, parent: torch.full((len(prefix), VOCABULARY), torch.nan), 2, 2, 3)
    with pytest.raises(FloatingPointError, match="allows no token"):
        search(lambda prefix, example, parent: torch.full((len(prefix), VOCABULARY), -torch.inf), 2, 2, 3)
    with pytest.raises(ValueError, match="0 beams"):
        search(lambda prefix, example, parent: torch.zeros(len(prefix), VOCABULARY), 2, 0, 3)
