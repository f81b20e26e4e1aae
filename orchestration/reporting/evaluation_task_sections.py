"""The section of one task: its answer, its charts, its tables, and what could not be done.

Decisions: every task is told in the same order, so that a reader of one can read all; which charts there are
follows from the figures that are there, never from the task's name alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mpma.downstream.contract import Example
from mpma.metrics.outcomes import Outcomes
from mpma.metrics.retrieval import DIRECTIONS
from orchestration.reporting.blocks import note, paragraph
from orchestration.reporting.evaluation_charts import (
    Row,
    bars,
    forest,
    look,
    shared_bounds,
)
from orchestration.reporting.evaluation_curves import efficiency, roc_chart
from orchestration.reporting.evaluation_examples import example_parts
from orchestration.reporting.evaluation_facts import TaskResult, share
from orchestration.reporting.evaluation_tables import (
    breakdown_table,
    failures_table,
    figures_table,
    problems_table,
)
from orchestration.reporting.evaluation_verdict import told_of
from orchestration.reporting.evaluation_wording import (
    METHOD_NAMES,
    TASK_TOLD,
    figure_name,
    model_name,
    task_name,
    variant_name,
)
from orchestration.reporting.html import Child, Html, element
from orchestration.reporting.page import Figure, Section, chart
from orchestration.reporting.roc import Curve, label_curves, mean_curve, thinned
from orchestration.reporting.wording import counted

OutcomesOf = Callable[[str, str], Outcomes | None]
"""(model, job key) -> stored outcomes, or None."""

_STATE_LOOK: Final[Mapping[str, str]] = {"skipped": "warning quiet", "failed": "warning"}

MOST_LABEL_CURVES: Final = 16
MOST_BARS: Final = 8

_KINDS: Final[Mapping[str, str]] = {"open_accuracy": "all open", "closed_accuracy": "all closed"}
"""Figures that stand beside those by type of question."""

_RECALL: Final = re.compile(rf"({'|'.join(DIRECTIONS)})/((?:recall|precision)_at_\d+)")


def task_section(result: TaskResult, outcomes: OutcomesOf, examples: Sequence[Example]) -> Section:
    """Everything about one task."""
    children: list[Child] = [element("p", TASK_TOLD.get(result.task, ""), class_="note")]
    if result.state in ("skipped", "failed"):
        reason = f": {result.reason}" if result.reason else "."
        children.append(
            element("p", f"{result.state.capitalize()}{reason}", class_=_STATE_LOOK[result.state])
        )
    if told := told_of(result):
        judged = f" Judged on {counted(result.patients, 'patient')}." if result.patients else ""
        children.append(paragraph(told + judged))
    if result.names:
        children.append(model_legend(result.models))
        children += _efficiency(result)
        children += _recalls(result)
        children += _parts(result)
        children += _figures(result)
        children += _curves(result, outcomes)
        children += _breakdowns(result)
    children += example_parts(result.task, examples)
    children += _troubles(result)
    return Section(result.task, task_name(result.task), children)


def model_legend(models: Sequence[str], *, chance: bool = True) -> Html:
    """Which mark is which model."""
    entries = []
    for place, model in enumerate(models):
        colour, symbol = look(place)
        kind = f"mark {symbol}"
        entries.append(element("span", model_name(model), class_=kind, style=f"--c: var(--{colour})"))
    if chance:
        entries.append(element("span", "chance", class_="mark dash", style="--c: var(--faint)"))
    return element("div", *entries, class_="legend")


def _efficiency(result: TaskResult) -> list[Child]:
    """The lead figure against the share of labels, a chart a method."""
    by_method: dict[str, list[tuple[float, str]]] = {}
    for variant in result.variants:
        part = share(variant)
        if part is not None and result.lead(variant) is not None:
            by_method.setdefault(variant.partition("/")[0], []).append((part, variant))
    by_method = {method: sorted(found) for method, found in by_method.items() if len(found) > 1}
    leads = {result.lead(variant) for found in by_method.values() for _, variant in found}
    if len(leads) != 1:
        return []
    name = next(iter(leads)) or ""
    estimates = {
        method: {model: [result.of(model, variant, name) for _, variant in found] for model in result.models}
        for method, found in by_method.items()
    }
    every = [one for models in estimates.values() for found in models.values() for one in found]
    chances = {method: result.chance(found[0][1], name) for method, found in by_method.items()}
    numbers = [value for one in every for value in (one.value, one.low, one.high)]
    bounds = shared_bounds([*numbers, *chances.values()])
    measure = figure_name(name)
    charts = [
        chart(
            efficiency(
                [part for part, _ in found],
                estimates[method],
                chances[method],
                bounds,
                METHOD_NAMES.get(method, method),
                measure,
            )
        )
        for method, found in by_method.items()
    ]
    told = f"{measure} by the share of labelled patients that were learned from, mean over seeds, with the "
    told += "interval over test patients. Dotted: chance. Marks are set a little apart to be seen."
    return [element("h3", "With few labels and many"), _beside(charts), note(told)]


def _beside(charts: Sequence[Html]) -> Html:
    """Charts side by side where there is room; few are larger than many."""
    few = {1: "grid wide", 2: "grid wide", 3: "grid three"}
    return element("div", *charts, class_=few.get(len(charts), "grid"))


def _recalls(result: TaskResult) -> list[Child]:
    """Recall and precision at k, a chart a direction."""
    charts: list[Html] = []
    for variant in result.variants:
        by_direction: dict[str, list[str]] = {}
        for name in result.figures(variant):
            if found := _RECALL.fullmatch(name):
                by_direction.setdefault(found[1], []).append(name)
        for direction, names in by_direction.items():
            rows = [
                Row(
                    figure_name(name).partition(",")[0],
                    {model: result.of(model, variant, name) for model in result.models},
                    result.chance(variant, name),
                )
                for name in names
            ]
            charts.append(chart(bars(rows, result.models, direction.replace("_", " "), "share of queries")))
    if not charts:
        return []
    told = "R@k: share of queries with a hit among the first k. P@k: share of the first k that carry the "
    told += "query’s labels. Dotted: chance."
    return [_beside(charts), note(told)]


def _parts(result: TaskResult) -> list[Child]:
    """Figures by label, question type and the like, of the way with the most labels."""
    variant = next(iter(result.fullest), None)
    if variant is None:
        return []
    children: list[Child] = []
    for base, names in result.parts(variant).items():
        kinds = [name for name in result.figures(variant) if name in _KINDS]
        rows = [
            Row(
                _KINDS.get(name) or name.partition("/")[2],
                {model: result.of(model, variant, name) for model in result.models},
                result.chance(variant, name),
            )
            for name in [*(kinds if base == "accuracy" else []), *names]
        ]
        if not any(one.value is not None for row in rows for one in row.estimates.values()):
            continue
        way = f", {variant_name(variant)}" if variant else ""
        by = "by type of question" if result.task == "vqa" else "by label"
        measure = figure_name(base)
        title = f"{measure} {by}"
        children.append(element("h3", title[:1].upper() + title[1:] + way))
        figure: Figure
        if len(rows) <= MOST_BARS and result.task == "vqa":
            figure = bars(rows, result.models, "", measure)
        else:
            figure = forest(rows, result.models, measure, title)
        children.append(chart(figure))
    return children


def _figures(result: TaskResult) -> list[Child]:
    """The headline figures, and all others folded away."""
    children: list[Child] = []
    leads = result.leads
    several = len(result.variants) > 1
    shown: list[tuple[str, str]]
    if several and len({name for _, name in leads}) == 1:
        title = figure_name(leads[0][1])
        children.append(element("h3", title))
        children.append(figures_table(result, leads, "method and labels", short=True))
        shown = list(leads)
    else:
        shown = [(variant, name) for variant in result.variants for name in result.headline(variant)]
        children.append(element("h3", "Figures"))
        children.append(figures_table(result, shown, "figure", short=False))
    if result.section.get("seeds"):
        seeds = {len(one) for one in result.section["seeds"].values()}
        if max(seeds, default=0) > 1:
            children.append(
                note("Small: the 95 % interval over patients, and below it the value of each training seed.")
            )
    rest = [
        (variant, name)
        for variant in result.variants
        for name in result.figures(variant)
        if (variant, name) not in shown
    ]
    if rest:
        words = f"{counted(len(rest), 'more figure')}, with intervals"
        inner = figures_table(result, rest, "figure", short=False)
        children.append(element("details", element("summary", words), inner))
    return children


def _curves(result: TaskResult, outcomes: OutcomesOf) -> list[Child]:
    """ROC curves of one job: the way with the most labels, its first seed."""
    variant = next(iter(result.fullest), None)
    keys = (result.section.get("jobs") or {}).get(variant) or []
    if variant is None or not keys:
        return []
    by_model: dict[str, dict[str, Curve]] = {}
    for model in result.models:
        stored = outcomes(model, str(keys[0]))
        if stored is not None and (found := label_curves(stored)):
            by_model[model] = found
    if not by_model:
        return []
    labels = list(dict.fromkeys(label for found in by_model.values() for label in found))
    means = {model: mean_curve(list(found.values())) for model, found in by_model.items()}
    mean = {model: curve for model, curve in means.items() if curve is not None}
    shown = labels[:MOST_LABEL_CURVES] if len(labels) > 1 else []
    charts = [chart(roc_chart(mean, result.models, "mean over labels" if shown else labels[0], 290))]
    for label in shown:
        of_label = {model: thinned(found[label]) for model, found in by_model.items() if label in found}
        charts.append(chart(roc_chart(of_label, result.models, label, 290)))
    way = f"{variant_name(variant)}, " if variant else ""
    seeds = (result.section.get("seeds") or {}).get(variant) or [0]
    told = f"{way}seed {seeds[0]}. " if len(seeds) > 1 or variant else ""
    told = f"{told[:1].upper()}{told[1:]}The dotted diagonal is chance."
    if len(labels) > len(shown) and shown:
        told += f" The first {len(shown)} of {len(labels)} labels; the table has all."
    return [element("h3", "ROC curves"), _beside(charts), note(told)]


def _breakdowns(result: TaskResult) -> list[Child]:
    children: list[Child] = []
    found: Mapping[str, Mapping[str, object]] = result.section.get("breakdown") or {}
    for column, values in found.items():
        made = breakdown_table(result, column, values)
        if made is not None:
            children += [element("h3", f"By {column}"), made]
    if children and any(share(variant) is not None for variant in result.fullest):
        children.append(note("With the most labels of each method; other shares stand in evaluation.json."))
    return children


def _troubles(result: TaskResult) -> list[Child]:
    children: list[Child] = []
    if problems := result.section.get("problems"):
        children += [element("h3", "Left out or treated"), problems_table(problems)]
    failures = result.section.get("failures") or []
    # A single reason stands at the top of the section already.
    if failures and not (result.reason and {str(one.get("reason")) for one in failures} == {result.reason}):
        children += [element("h3", "Jobs without a result"), failures_table(failures)]
    return children
