"""Beam search: the token sequence of the highest score under a model that gives the next token.

Decisions:
- The model is a callable, so the search knows neither weights nor images. Each row is told which row of the
  call before it continues, and a model may carry keys and values on.
- A sequence that ends keeps its place among the beams. One beam is then greedy search, and no sequence is
  thrown away: with beams = vocabulary ** length the search is exhaustive.
- Scores are compared as sum of log-probabilities / length ** `length_power` [after Y. Wu et al., Google's
  Neural Machine Translation System, 2016, in its plain form]; the length counts what was generated, the end
  token included. At 0 short sequences win, at 1 it is the mean log-probability of a token.
- A beam goes on only while it can still beat the best finished sequence of its example: log-probabilities
  never rise above zero, so its best future score is its sum over the greatest length. This changes no result.
- A sequence that reaches the greatest length counts as it stands, without an end.
- No n-gram is forbidden and no repetition punished: reports repeat themselves (`no ..., no ...`), and the
  greatest length bounds a loop.

Shape letters: N examples · R rows (live sequences of all examples) · K vocabulary · T tokens so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(prefix int64 [R,T], example int64 [R], parent int64 [R]) -> log-probabilities [R,K] of the next token.

Rows of an example stand together, in the order of the examples. `parent` is the row of the call before that
a row continues by one token; in the first call, the row itself. -inf forbids a token."""


@dataclass(frozen=True)
class Found:
    """The best sequence of one example."""

    tokens: list[int]
    """What was generated, without start and end."""
    score: float
    ended: bool
    """False where the greatest length cut it off."""


@torch.no_grad()
def beam_search(
    step: Step,
    examples: int,
    *,
    beams: int,
    start_id: int,
    end_id: int,
    max_tokens: int,
    length_power: float = 1.0,
    device: torch.device | None = None,
) -> list[Found]:
    """The best sequence of each of N examples: at most `max_tokens` tokens, the end token included.

    A pure function of `step`. Raises ValueError for numbers below 1, and FloatingPointError where a
    log-probability is NaN or every continuation of an example is forbidden.
    """
    if min(beams, max_tokens) < 1:
        raise ValueError(f"{beams} beams and {max_tokens} tokens: both must be at least 1")
    found: list[Found | None] = [None] * examples
    best_N = torch.full((examples,), -torch.inf, dtype=torch.float64, device=device)
    places_N = torch.full((examples,), beams, device=device)
    example_R = torch.arange(examples, device=device)
    prefix_RT = torch.full((examples, 1), start_id, device=device)
    sum_R = torch.zeros(examples, dtype=torch.float64, device=device)
    parent_R = example_R
    for length in range(1, max_tokens + 1):
        if not len(example_R):
            break
        log_probs_RK = step(prefix_RT, example_R, parent_R).double()
        if bool(torch.isnan(log_probs_RK).any()):
            raise FloatingPointError("the model's log-probabilities are not finite")
        row, token, total = _best_continuations(sum_R[:, None] + log_probs_RK, example_R, places_N, beams)
        example = example_R[row]
        score = total / length**length_power
        ends = token == end_id
        complete = ends if length < max_tokens else torch.ones_like(ends)
        for place in complete.nonzero().flatten().tolist():
            number, value = int(example[place]), float(score[place])
            if value > float(best_N[number]):
                best_N[number] = value
                ended = bool(ends[place])
                tokens = [*prefix_RT[row[place], 1:].tolist(), *([] if ended else [int(token[place])])]
                found[number] = Found(tokens, value, ended)
        places_N -= torch.bincount(example[complete], minlength=examples)
        goes_on = ~complete & (total / max_tokens**length_power > best_N[example])
        parent_R, example_R, sum_R = row[goes_on], example[goes_on], total[goes_on]
        prefix_RT = torch.cat([prefix_RT[parent_R], token[goes_on, None]], dim=1)
    whole = [one for one in found if one is not None]
    if len(whole) < examples:
        raise FloatingPointError("the model allows no token")
    return whole


def _best_continuations(
    total_RK: Tensor, example_R: Tensor, places_N: Tensor, beams: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, token and sum of the best continuations: as many per example as it has places, forbidden ones
    never. Examples in their order, the best first."""
    rows, vocabulary = total_RK.shape
    active, place_R, count = torch.unique_consecutive(example_R, return_inverse=True, return_counts=True)
    first_row = count.cumsum(0) - count
    slot_R = torch.arange(rows, device=total_RK.device) - first_row[place_R]
    widest = int(count.max())
    padded = total_RK.new_full((len(active), widest, vocabulary), -torch.inf)
    padded[place_R, slot_R] = total_RK
    total, flat = padded.flatten(1).topk(min(beams, widest * vocabulary), dim=1)
    rank = torch.arange(total.shape[1], device=total_RK.device)
    kept = (rank < places_N[active, None]) & (total > -torch.inf)
    row = first_row[:, None] + flat.div(vocabulary, rounding_mode="floor")
    return row[kept], (flat % vocabulary)[kept], total[kept]
