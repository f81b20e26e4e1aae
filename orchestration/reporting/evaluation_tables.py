"""The tables of an evaluation: figures by model with intervals, chance and differences; breakdowns.

Decisions: a cell holds the value, under it the interval over patients and, where there are several, the
value of each seed, so that both kinds of chance stand beside every figure; what does not exist is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mpma.downstream.summary import prefixed
from orchestration.reporting.blocks import table
from orchestration.reporting.evaluation_facts import (
    UNTRAINED,
    Estimate,
    Evaluation,
    TaskResult,
    estimate,
)
from orchestration.reporting.evaluation_wording import (
    figure_name,
    full_name,
    model_name,
    task_name,
    variant_name,
)
from orchestration.reporting.html import Child, Html, element, join
from orchestration.reporting.wording import number, signed

_MOST_JOBS: Final = 3
"""Named in a row of failures; the rest are counted."""


def estimate_cell(one: Estimate, *, seeds: bool = False, difference: bool = False) -> Child:
    """Value, interval, and values by seed where asked for and several."""
    shown = signed if difference else number
    if one.value is None:
        return "–"
    parts: list[Child] = [shown(one.value)]
    if one.low is not None and one.high is not None:
        parts.append(element("small", f"{shown(one.low)} to {shown(one.high)}"))
    if seeds and len(one.by_seed) > 1:
        told = " · ".join(number(value) for value in one.by_seed)
        parts.append(element("small", f"seeds {told}"))
    return join(*parts)


def difference_cell(one: Estimate) -> Child:
    """A difference, coloured by what its interval shows."""
    if one.value is None:
        return "–"
    return element("span", estimate_cell(one, difference=True), class_=side(one))


def side(one: Estimate) -> str:
    """`above`, `below`, or `open` where the interval contains zero or does not exist."""
    return "above" if one.better else "below" if one.worse else "within"


def overview_table(evaluation: Evaluation) -> Html:
    """A row a lead figure, and one for each task without a figure."""
    models = evaluation.models
    compared = UNTRAINED in models[1:]
    head = ["task", "figure", *(model_name(model) for model in models), "chance"]
    head += [f"difference to {UNTRAINED}", ""] if compared else []
    rows: list[list[Child]] = []
    for result in evaluation.results:
        if not result.leads:
            told = f"{result.state}: {result.reason}" if result.reason else result.state
            rows.append(
                [task_name(result.task), element("span", told, class_="quiet name"), *[""] * (len(head) - 2)]
            )
        for at, (variant, name) in enumerate(result.leads):
            link = element("a", task_name(result.task), href=f"#{result.task}")
            row: list[Child] = [link if not at else "", _named(full_name(variant, name))]
            row += [estimate_cell(result.of(model, variant, name)) for model in models]
            row.append(number(result.chance(variant, name)))
            if compared:
                found = result.difference(UNTRAINED, variant, name)
                row += [difference_cell(found), _word(found)]
            rows.append(row)
    return table(head, rows, set(range(2, 2 + len(models) + 1 + compared)))


def _named(name: str) -> Html:
    """A figure's name, which a narrow window does not squeeze."""
    return element("span", name, class_="name")


def _word(one: Estimate) -> Html | str:
    if one.value is None or one.interval is None:
        return ""
    words = {"above": "better", "below": "worse", "within": "no difference shown"}
    return element("span", words[side(one)], class_=f"mark {side(one)}")


def figures_table(result: TaskResult, rows: Sequence[tuple[str, str]], first: str, *, short: bool) -> Html:
    """Figures (variant, name) by model. `first`: heading of the first column.

    `short`: the rows are told by their variant alone, since all have the same figure.
    """
    others = [model for model in result.models[1:] if _compared(result, model)]
    head = [first, *(model_name(model) for model in result.models), "chance"]
    head += [f"difference to {model_name(model)}" for model in others]
    filled = []
    for variant, name in rows:
        row: list[Child] = [_named(variant_name(variant) if short else full_name(variant, name))]
        row += [estimate_cell(result.of(model, variant, name), seeds=True) for model in result.models]
        row.append(number(result.chance(variant, name)))
        row += [difference_cell(result.difference(model, variant, name)) for model in others]
        filled.append(row)
    return table(head, filled, set(range(1, len(head))))


def _compared(result: TaskResult, model: str) -> bool:
    return bool((result.section.get("differences") or {}).get(model))


def breakdown_table(result: TaskResult, column: str, values: Mapping[str, Any]) -> Html | None:
    """Figures of each value of a column, of the ways with the most labels; None where none has any."""
    shown: list[tuple[str, str]] = []
    for variant in result.fullest:
        headline = result.headline(variant)
        shown += [(variant, name) for name in (headline[:1] if len(result.fullest) > 1 else headline[:3])]
    head = [column, "patients", "figure", *(model_name(model) for model in result.models)]
    rows: list[list[Child]] = []
    for value, entry in values.items():
        figures = entry.get("figures") or {}
        begun = False
        for variant, name in shown:
            key = prefixed(variant, name)
            found = [estimate((figures.get(model) or {}).get(key)) for model in result.models]
            if all(one.value is None for one in found):
                continue
            row: list[Child] = ["", ""] if begun else [value, f"{entry.get('patients', 0):,}"]
            told = full_name(variant, name) if len(result.fullest) > 1 else figure_name(name)
            rows.append([*row, _named(told), *(estimate_cell(one) for one in found)])
            begun = True
    return table(head, rows, {1, *range(3, len(head))}) if rows else None


def problems_table(problems: Mapping[str, Any]) -> Html:
    """What could not be judged, the most frequent first."""
    rows: list[list[Child]] = [
        [f"{int(count):,}", text] for text, count in sorted(problems.items(), key=lambda one: -int(one[1]))
    ]
    return table(["times", "what"], rows, {0})


def failures_table(failures: Sequence[Mapping[str, Any]]) -> Html:
    """Jobs without an outcome, by reason."""
    by_reason: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for one in failures:
        by_reason.setdefault((str(one.get("reason", "")), bool(one.get("possible", True))), []).append(one)
    rows: list[list[Child]] = []
    for (reason, possible), members in by_reason.items():
        models = dict.fromkeys(model_name(str(one.get("model", ""))) for one in members)
        jobs = list(dict.fromkeys(str(one.get("job", "")) for one in members))
        told = ", ".join(jobs[:_MOST_JOBS])
        more = f" and {len(jobs) - _MOST_JOBS} more" if len(jobs) > _MOST_JOBS else ""
        kind = "failed" if possible else "not possible with these data"
        rows.append([", ".join(models), join(element("code", told), more), kind, reason])
    return table(["models", "jobs", "what", "why"], rows)
