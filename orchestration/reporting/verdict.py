"""The answer of a search in one sentence, and what it rests on.

Decisions: the sentence never claims more than was shown. A winner is named only by the confirmation; a
search without one says what is still open, and speaks of the best so far as not confirmed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestration.reporting.search_facts import Confirmed, best_trial, confirmed, default_trial, values_at
from orchestration.reporting.wording import counted, metric_name, number, percent, signed
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace

NOTHING_BETTER = "The search found nothing better than the recipe’s own values."


@dataclass(frozen=True)
class Verdict:
    """What stands at the top of the page."""

    sentence: str
    lead: str
    """One or two sentences more."""
    finished: bool


def verdict(space: SearchSpace, state: SearchState) -> Verdict:
    """The answer, whatever state the search is in."""
    found = confirmed(space, state)
    if found is not None:
        return Verdict(_compared(found), _what_it_rests_on(found), True)
    if not state.trials:
        return Verdict("The search has begun no trial yet.", "", False)
    best = best_trial(space, state)
    if best is None and all(trial.final for trial in state.trials):
        reasons = Counter(trial.reason for trial in state.trials if trial.state == "failed")
        reason = f" Most often: {reasons.most_common(1)[0][0]}" if reasons else ""
        return Verdict("No trial came to a value.", f"{_standing(state)}.{reason}", bool(state.search_ended))
    if state.ended:
        sentence = "The search has ended without a confirmation, so no winner is named."
        return Verdict(sentence, _best_so_far(space, state), True)
    if not state.search_ended:
        return Verdict(
            "The search is not finished.", f"{_open(space, state)}. {_best_so_far(space, state)}", False
        )
    runs = state.confirmations.values()
    done = sum(run.metrics is not None or bool(run.failed) for run in runs)
    told = f"{done} of {counted(len(runs), 'retraining')} done" if runs else "it has not begun"
    return Verdict(
        "The trials are done; the confirmation is not.",
        f"Confirmation: {told}. No winner is named before it. {_best_so_far(space, state)}",
        False,
    )


def _compared(found: Confirmed) -> str:
    if not found.named:
        compared = found.difference is not None or found.candidate == "default"
        return NOTHING_BETTER if compared else "No comparison could be made, so no winner is named."
    patients = f"{found.patients:,} patients" if found.patients else "patients"
    return (
        f"{found.candidate[:1].upper()}{found.candidate[1:]} is better than the recipe’s own values: "
        f"{metric_name(found.metric)} {number(found.winner)} against {number(found.default)} on {patients} "
        "that the search never saw."
    )


def _what_it_rests_on(found: Confirmed) -> str:
    if found.difference is None:
        return found.reason
    parts = [f"Difference {signed(found.difference)}"]
    if found.interval is not None:
        low, high = found.interval
        parts[0] += f", {percent(found.level)} interval over patients {signed(low)} to {signed(high)}"
        parts[0] += ", which contains zero" if low <= 0 <= high else ""
    else:
        parts[0] += ", without an interval"
    seeds = max(len(found.winner_per_seed), len(found.default_per_seed))
    if seeds:
        parts.append(f"means over {counted(seeds, 'new seed')} each")
    return "; ".join(parts) + "."


def _standing(state: SearchState) -> str:
    count = Counter(str(trial.state) for trial in state.trials)
    told = [counted(len(state.trials), "trial") + " begun"]
    words = {"complete": "trained in full", "waiting": "waiting at a rung", "open": "in training"}
    words |= {"pruned": "stopped early", "failed": "failed"}
    told += [f"{count[one]} {said}" for one, said in words.items() if count[one]]
    return ", ".join(told)


def _open(space: SearchSpace, state: SearchState) -> str:
    trials = space.budget.trials
    left = max(0, trials - len(state.trials)) if trials else 0
    return _standing(state) + (f", {left} still to come" if left else "") + "; then the confirmation"


def _best_so_far(space: SearchSpace, state: SearchState) -> str:
    best = best_trial(space, state)
    if best is None:
        return "No trial has a value yet."
    values = values_at(space, best, best.step) or []
    named = zip((metric_name(one.metric) for one in space.objectives), values, strict=True)
    told = ", ".join(f"{name} {number(value)}" for name, value in named)
    own = default_trial(state)
    whose = ", the recipe’s own values" if own is best else ""
    return f"Best so far, not confirmed: trial {best.number}{whose} ({told} at step {best.step:,})."
