"""The sections about trials and keys: learning curves, what the parameters do, trade-offs.

Decisions: keys are judged among trials of equal training only, and the reader chooses at which rung; what
too few trials cannot say is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestration.reporting.blocks import note, paragraph
from orchestration.reporting.html import Child, Html, element
from orchestration.reporting.importance import FEWEST_TRIALS, GOOD_TRIALS, importances
from orchestration.reporting.page import Section, chart
from orchestration.reporting.search_charts import (
    front,
    importance_bars,
    learning_curves,
    parallel_coordinates,
    slice_of,
)
from orchestration.reporting.search_facts import best_trial, comparable, default_trial, first_shown
from orchestration.reporting.wording import STATES, counted, metric_name
from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.space import SearchSpace


def curves(space: SearchSpace, state: SearchState) -> Section:
    """Learning curves by trial."""
    if not any(trial.reports for trial in state.trials):
        return Section("curves", "Learning curves", [paragraph("No trial has reported at a rung yet.")])
    best = best_trial(space, state)
    number_of = None if best is None else best.number
    figures = [
        chart(learning_curves(space, state, place, number_of)) for place in range(len(space.objectives))
    ]
    present = {trial.state for trial in state.trials}
    legend = element(
        "div",
        *(
            element("span", words, class_=f"mark {one}")
            for one, words in STATES.items()
            if one in present and one != "failed"
        ),
        element("span", "failed", class_="mark failed") if "failed" in present else None,
        element("span", "recipe’s own values", class_="mark own") if default_trial(state) else None,
        class_="legend",
    )
    silent = sum(trial.state == "failed" and not trial.reports for trial in state.trials)
    children: list[Child] = [legend, *figures]
    if len(figures) > 1:
        children = [legend, element("div", *figures, class_="grid wide")]
    told = "Dotted uprights are rungs, where trials are compared and the best go on. "
    told += "The thick line is the best trial." if best is not None else ""
    children.append(note(told))
    if silent:
        children.append(
            note(f"Without a line: {counted(silent, 'trial')} that failed before the first rung.")
        )
    return Section("curves", "Learning curves", children)


def parameters(space: SearchSpace, state: SearchState) -> Section:
    """What the searched keys do: parallel coordinates, importance and slices, at equal training."""
    title = "What the parameters do"
    by_step = comparable(space, state)
    if not by_step:
        return Section("parameters", title, [paragraph("No trial has a value yet.")])
    shown = first_shown(by_step)
    children: list[Child] = [
        paragraph(
            "Only trials with equal training are shown together. "
            + ("Choose where: " if len(by_step) > 1 else "")
            + "the longer the training, the fewer trials there are."
        )
    ]
    if len(by_step) > 1:
        words = {step: f"{step:,} ({counted(len(trials), 'trial')})" for step, trials in by_step.items()}
        children.append(_radio("step", "At step", words, shown))
    if len(space.objectives) > 1:
        names = {place: metric_name(one.metric) for place, one in enumerate(space.objectives)}
        children.append(_radio("objective", "By", names, 0))
    several = len(space.objectives) > 1
    for step, trials in by_step.items():
        for place in range(len(space.objectives)):
            children.append(
                element(
                    "div",
                    *_at_step(space, trials, step, place),
                    data_step=str(step) if len(by_step) > 1 else None,
                    data_objective=str(place) if several else None,
                    hidden=(step, place) != (shown, 0),
                )
            )
    return Section("parameters", title, children)


def _radio(name: str, legend: str, words: Mapping[int, str], checked: int) -> Html:
    return element(
        "fieldset",
        element("legend", legend),
        *(
            element(
                "label",
                element("input", type="radio", name=name, value=str(value), checked=value == checked),
                shown,
            )
            for value, shown in words.items()
        ),
        class_="choose",
    )


def _at_step(space: SearchSpace, trials: Sequence[TrialRecord], step: int, place: int) -> list[Child]:
    metric = space.objectives[place].metric
    children: list[Child] = [element("h3", f"All keys together, step {step:,}")]
    if len(trials) > 1:
        text = (
            f"A line a trial, from worst (grey) to best (blue) by {metric_name(metric)}; ochre: the recipe’s "
        )
        text += (
            "own values. Point at a line to follow it. Keys that a trial does not have stand at “not used”."
        )
        children.append(chart(parallel_coordinates(space, trials, step, place), text))
    else:
        children.append(paragraph("One trial alone: nothing to compare."))
    children.append(element("h3", f"Importance, step {step:,}"))
    found = importances(space, trials, step, place)
    if found is None:
        few = f"{counted(len(trials), 'trial')} here: too few for an estimate, which needs {FEWEST_TRIALS}."
        many = "No key sets the good trials apart from the others."
        children.append(paragraph(few if len(trials) < FEWEST_TRIALS else many))
    else:
        text = f"PED-ANOVA over {counted(len(trials), 'trial')} for {metric_name(metric)}: how much each "
        text += "key sets "
        text += f"the best (a tenth, at least {GOOD_TRIALS}) apart from all. "
        if len(trials) < 50:
            # Measured on random trials with planted keys: up to 0.27 for an idle key at 27, 0.07 at 64.
            text += "A rough guide with so few: a key that does nothing can get 0.2."
        children.append(chart(importance_bars(found, metric), text))
    children.append(element("h3", f"One key at a time, step {step:,}"))
    slices = [
        chart(slice_of(space, trials, step, place, key))
        for key in space.searched_keys()
        if any(key in trial.params for trial in trials)
    ]
    children.append(element("div", *slices, class_="grid"))
    text = f"{metric_name(metric)} of each trial; other keys differ as well. "
    text += "Ochre diamond: the recipe’s own values."
    if space.constraints:
        text += " Hollow: a constraint was broken."
    children.append(note(text[:1].upper() + text[1:]))
    return children


def pareto(space: SearchSpace, state: SearchState) -> Section | None:
    """The front of several objectives; None with one."""
    if len(space.objectives) < 2:
        return None
    by_step = comparable(space, state)
    if not by_step:
        return Section("front", "Trade-offs", [paragraph("No trial has values of all objectives yet.")])
    step = max(by_step)
    if len(by_step[step]) < 3:
        step = first_shown(by_step)
    figures = [chart(figure) for figure in front(space, by_step[step], step)]
    text = f"{counted(len(by_step[step]), 'trial')} at step {step:,}. Blue: no other trial is better in one "
    text += "objective and as good in all others. Ochre diamond: the recipe’s own values."
    if space.constraints:
        text += " Trials that broke a constraint are left out."
    return Section("front", "Trade-offs", [element("div", *figures, class_="grid wide"), note(text)])
