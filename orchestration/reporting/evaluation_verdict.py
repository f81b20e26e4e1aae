"""The answer of an evaluation in one sentence, and what it rests on.

Decisions: a task counts as better only where every lead figure's paired interval lies above zero; where it
does not, the page says so by name, and so it does of what was skipped or failed.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestration.reporting.evaluation_facts import (
    UNTRAINED,
    Evaluation,
    Shown,
    TaskResult,
    Verdict,
    verdict_of,
)
from orchestration.reporting.evaluation_wording import listed, task_name
from orchestration.reporting.wording import counted


def headline(evaluation: Evaluation) -> str:
    """The one sentence."""
    found = _verdicts(evaluation)
    if not found:
        if any(result.names for result in evaluation.results):
            return "There is no comparison with an untrained model here."
        return "No task came to a figure."
    better = sum(verdict.shown == "better" for _, verdict in found)
    tasks = counted(len(found), "task")
    if not better:
        return (
            f"The pre-trained model was not shown to be better than the untrained one on any of {tasks}."
            if (len(found) > 1)
            else "The pre-trained model was not shown to be better than the untrained one."
        )
    told = "better than the untrained one on"
    if better == len(found):
        return f"The pre-trained model is {told} {f'all {tasks}' if better > 1 else _lower(found[0][0])}."
    return f"The pre-trained model is {told} {better} of {tasks}."


def lead(evaluation: Evaluation) -> str:
    """What the sentence rests on, task by task."""
    found = _verdicts(evaluation)
    parts = []
    if found:
        rule = "Better: the paired 95 % interval over patients lies above zero"
        several = any(len(result.leads) > 1 for result, _ in found)
        parts.append(f"{rule}, for every method and share of labels." if several else f"{rule}.")
    told: tuple[tuple[Shown, str], ...] = (
        ("better", "Better on"),
        ("in part", "Better in part on"),
        ("no difference", "No difference was shown on"),
        ("worse", "Worse, at least in part, on"),
    )
    for shown, words in told:
        tasks = [
            _lower(result) + _count(verdict, shown) for result, verdict in found if verdict.shown == shown
        ]
        if tasks and not (shown == "better" and len(tasks) == len(found)):
            parts.append(f"{words} {listed(tasks)}.")
    compared = {result.task for result, _ in found}
    rest = [result for result in evaluation.results if result.task not in compared]
    for state, words in (("skipped", "Skipped"), ("failed", "Failed")):
        if tasks := [_lower(result) for result in rest if result.state == state]:
            parts.append(f"{words}: {listed(tasks)}.")
    if tasks := [_lower(result) for result in rest if result.state in ("done", "partly")]:
        parts.append(f"Not compared with the untrained model: {listed(tasks)}.")
    if tasks := [_lower(result) for result in evaluation.results if result.state == "partly"]:
        parts.append(f"Some jobs failed: {listed(tasks)}.")
    return " ".join(parts)


def told_of(result: TaskResult) -> str:
    """A task's own sentence."""
    verdict = verdict_of(result)
    if verdict.shown == "unknown":
        return "It was not compared with the untrained model." if result.names else ""
    if verdict.shown == "better":
        several = f" in all {verdict.total} ways" if verdict.total > 1 else ""
        return f"The pre-trained model is better than the untrained one{several}."
    if verdict.shown == "no difference":
        return "No difference between the pre-trained and the untrained model was shown."
    ways = f" of {verdict.total} ways" if verdict.total > 1 else ""
    if verdict.shown == "in part":
        rest = f"; in {verdict.open} no difference was shown" if verdict.open else ""
        rest += f"; {verdict.unknown} could not be compared" if verdict.unknown else ""
        return f"The pre-trained model is better than the untrained one in {verdict.better}{ways}{rest}."
    if verdict.total == 1:
        return "The pre-trained model is worse than the untrained one."
    better = f", and better in {verdict.better}" if verdict.better else ""
    return f"The pre-trained model is worse than the untrained one in {verdict.worse}{ways}{better}."


def _verdicts(evaluation: Evaluation) -> list[tuple[TaskResult, Verdict]]:
    if UNTRAINED not in evaluation.models[1:]:
        return []
    found: Iterable[tuple[TaskResult, Verdict]] = ((one, verdict_of(one)) for one in evaluation.results)
    return [(result, verdict) for result, verdict in found if verdict.shown != "unknown"]


def _count(verdict: Verdict, shown: Shown) -> str:
    if shown == "in part":
        return f" ({verdict.better} of {verdict.total})"
    return f" ({verdict.worse} of {verdict.total})" if shown == "worse" and verdict.total > 1 else ""


def _lower(result: TaskResult) -> str:
    name = task_name(result.task)
    return name[:1].lower() + name[1:]
