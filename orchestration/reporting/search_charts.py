"""The charts of a search: curves, parallel coordinates, slices, front, importance, confirmation, budget.

Decisions: colour means the same everywhere (ochre diamond: the recipe's own values; blue: the winner, or
better; the trial's state as in the legend); parallel coordinates are drawn as lines, not with plotly's own
trace, which needs WebGL, cannot leave a conditional key out, and prints as a blank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations
from typing import Any

import numpy as np

from orchestration.reporting.charts import (
    RAMP,
    STATE_COLOUR,
    axis,
    layout,
    line,
    linked_line,
    points,
    ticks_of,
    upright,
)
from orchestration.reporting.page import Figure
from orchestration.reporting.scale import Scale
from orchestration.reporting.search_facts import Confirmed, Spent, feasible, values_at
from orchestration.reporting.wording import (
    STATES,
    axis_name,
    counted,
    duration,
    metric_name,
    number,
    percent,
    setting,
    signed,
)
from orchestration.search.fronts import non_dominated_ranks
from orchestration.search.records import SearchState, TrialRecord
from orchestration.search.space import SearchSpace

NOT_USED = -0.13
"""Height of the lane for keys that a trial does not have."""


def learning_curves(space: SearchSpace, state: SearchState, objective: int, best: int | None) -> Figure:
    """An objective by training step, a line a trial, rungs as uprights."""
    sought = space.objectives[objective]
    rungs = space.fidelity.rungs(state.full_steps)
    traces = []

    def emphasis(trial: TrialRecord) -> int:
        return (trial.source == "default") + 2 * (trial.number == best) + (trial.state == "complete")

    for trial in sorted(state.trials, key=emphasis):
        pairs = [(step, sought.value(metrics)) for step, metrics in sorted(trial.reports.items())]
        pairs = [(step, value) for step, value in pairs if value is not None]
        if not pairs:
            continue
        own, chief = trial.source == "default", trial.number == best
        colour = "@default" if own else STATE_COLOUR[trial.state]
        told = f"trial {trial.number}{' · the recipe’s own values' if own else ''} · {STATES[trial.state]}"
        trace = line(
            [step for step, _ in pairs],
            [value for _, value in pairs],
            colour,
            width=3 if chief or own else 1.4,
            dots=8 if chief or own else 5,
            text=[f"{told}<br>step {step:,}: {number(value)}" for step, value in pairs],
            customdata=[trial.number] * len(pairs),
        )
        trace["marker"]["symbol"] = "diamond" if own else "circle"
        if trial.state == "failed":
            trace["marker"]["symbol"] = ["circle"] * (len(pairs) - 1) + ["x"]
        if not (own or chief):
            trace["opacity"] = 0.85
        traces.append(trace)
    steps = sorted({*rungs, *(step for trial in state.trials for step in trial.reports)})
    wide = len(steps) > 1 and steps[-1] / steps[0] >= 4
    places = [math.log10(step) for step in rungs] if wide else list(map(float, rungs))
    x = axis(
        "training step (rungs)",
        type="log" if wide else "linear",
        showgrid=False,
        **ticks_of([(rung, f"{rung:,}") for rung in rungs]),
    )
    low, high = (math.log10(steps[0]), math.log10(steps[-1])) if wide else (steps[0], steps[-1])
    x["range"] = [low - 0.06 * (high - low or 1), high + 0.06 * (high - low or 1)]
    shapes = [upright(10**place if wide else place, "@line", "dot") for place in places]
    return Figure(
        [*traces, linked_line()],
        layout(x, axis(metric_name(sought.metric)), shapes=shapes),
        380,
        f"{metric_name(sought.metric)} by training step for {counted(len(traces), 'trial')}",
        linked=True,
    )


def parallel_coordinates(
    space: SearchSpace, trials: Sequence[TrialRecord], step: int, objective: int
) -> Figure:
    """A line a trial over all searched keys and all objectives at one step; blue is better."""
    keys = space.searched_keys()
    scales = [Scale.of(space.parameters[key], (trial.params.get(key) for trial in trials)) for key in keys]
    measured = [values_at(space, trial, step) or [] for trial in trials]
    for place in range(len(space.objectives)):
        scales.append(Scale.over(values[place] for values in measured))
    names = [*keys, *(one.metric for one in space.objectives)]
    lanes = any(key not in trial.params for trial in trials for key in keys)
    groups = ramp_groups(space, trials, step, objective)
    traces = []
    for colour, members in [*groups, ("@default", [t for t in trials if t.source == "default"])]:
        x: list[Any] = []
        y: list[Any] = []
        told: list[Any] = []
        numbers: list[Any] = []
        for trial in members:
            values = [*(trial.params.get(key) for key in keys), *(values_at(space, trial, step) or [])]
            for at, (name, scale, value) in enumerate(zip(names, scales, values, strict=True)):
                missing = at < len(keys) and name not in trial.params
                place_of = NOT_USED if missing else scale.place(value)
                shown = "not used" if missing else setting(value) if at < len(keys) else number(value)
                x.append(at)
                y.append(place_of)
                told.append(f"trial {trial.number}<br>{escape(name)}: {escape(shown)}")
                numbers.append(trial.number)
            for column in (x, y, told, numbers):
                column.append(None)
        own = colour == "@default"
        traces.append(
            line(
                x,
                y,
                colour,
                width=3 if own else 1.8,
                dots=8 if own else 5,
                text=told,
                customdata=numbers,
                connectgaps=False,
            )
        )
        traces[-1]["marker"]["symbol"] = "diamond" if own else "circle"
    notes = []
    for at, scale in enumerate(scales):
        ticks = scale.ticks(4 if scale.log else 6)
        if at < len(keys) and any(names[at] not in trial.params for trial in trials):
            ticks = [(NOT_USED, "not used"), *ticks]
        notes += [
            {
                "x": at,
                "y": place,
                "text": escape(shown),
                "showarrow": False,
                "xanchor": "right",
                "xshift": -6,
                "font": {"size": 11, "color": "@soft"},
                "bgcolor": "@paper",
                "borderpad": 1,
            }
            for place, shown in ticks
        ]
    labels = [axis_name(key) for key in keys]
    labels += [f"<b>{escape(metric_name(one.metric))}</b>" for one in space.objectives]
    x_axis = axis(None, side="top", showgrid=False, **ticks_of(list(enumerate(labels))))
    x_axis |= {"range": [-0.55, len(names) - 0.5], "tickfont": {"size": 12, "color": "@ink"}}
    y_axis = axis(None, visible=False, range=[NOT_USED - 0.06 if lanes else -0.06, 1.06])
    return Figure(
        [*traces, linked_line()],
        layout(
            x_axis,
            y_axis,
            shapes=[upright(at, "@faint") for at in range(len(names))],
            annotations=notes,
            margin={"l": 8, "r": 24, "t": 56, "b": 8},
        ),
        400,
        f"Parallel coordinates of {counted(len(trials), 'trial')} at step {step}",
        least_width=124 * len(names) + 20,
        linked=True,
    )


def ramp_groups(
    space: SearchSpace, trials: Sequence[TrialRecord], step: int, objective: int
) -> list[tuple[str, list[TrialRecord]]]:
    """Up to five groups of about equal size by an objective, the worst first; the default is left out."""
    sought = space.objectives[objective]
    others = [trial for trial in trials if trial.source != "default"]
    order = sorted(others, key=lambda trial: -(sought.minimised(trial.reports[step]) or 0.0))
    parts = np.array_split(np.arange(len(order)), len(RAMP))
    return [
        (colour, [order[at] for at in part]) for colour, part in zip(RAMP, parts, strict=True) if len(part)
    ]


def slice_of(
    space: SearchSpace, trials: Sequence[TrialRecord], step: int, objective: int, key: str
) -> Figure:
    """An objective over one key, a dot a trial; hollow where a constraint was broken."""
    sought = space.objectives[objective]
    used = [trial for trial in trials if key in trial.params]
    scale = Scale.of(space.parameters[key], (trial.params[key] for trial in used))
    dots: dict[tuple[bool, bool], list[tuple[float, float, str, int]]] = {}
    for trial in used:
        value, place = sought.value(trial.reports[step]), scale.place(trial.params[key])
        if value is None or place is None:
            continue
        told = (
            f"trial {trial.number}<br>{escape(key)}: {escape(setting(trial.params[key]))}<br>{number(value)}"
        )
        kind = (trial.source == "default", feasible(space, trial, step))
        dots.setdefault(kind, []).append((place, value, told, trial.number))
    traces = []
    for (own, kept), found in sorted(dots.items()):
        x, y, told_of, numbers = zip(*found, strict=True)
        symbol = ("diamond" if own else "circle") + ("" if kept else "-open")
        traces.append(
            points(
                x,
                y,
                "@default" if own else "@accent",
                size=10 if own else 8,
                symbol=symbol,
                text=told_of,
                customdata=numbers,
                opacity=1 if own else 0.75,
            )
        )
        if not kept:
            traces[-1]["marker"]["line"] = {"color": "@default" if own else "@accent", "width": 1.5}
    ticks = scale.ticks(3 if scale.log else 4)
    if scale.categories and sum(len(shown) for _, shown in ticks) > 26:
        ticks = [(place, shown[:9]) for place, shown in ticks]
    x_axis = axis(None, range=[-0.12, 1.12], showgrid=False, **ticks_of([(p, escape(s)) for p, s in ticks]))
    x_axis |= {"title": {"text": escape(key), "font": {"size": 12, "color": "@ink"}, "standoff": 8}}
    x_axis |= {"tickangle": 0, "linecolor": "@faint", "showline": True}
    values = [value for trial in trials if (value := sought.value(trial.reports[step])) is not None]
    margin = 0.08 * (max(values) - min(values)) or 0.01
    y_axis = axis(None, range=[min(values) - margin, max(values) + margin], nticks=5)
    return Figure(traces, layout(x_axis, y_axis), 220, f"{metric_name(sought.metric)} over {key}")


def front(space: SearchSpace, trials: Sequence[TrialRecord], step: int) -> list[Figure]:
    """A plot for each pair of objectives; blue dots are dominated by no trial over all objectives."""
    kept = [trial for trial in trials if feasible(space, trial, step)] or list(trials)
    losses = np.array(
        [[one.minimised(t.reports[step]) for one in space.objectives] for t in kept], dtype=float
    )
    best = [rank == 0 for rank in non_dominated_ranks(losses)]
    figures = []
    for one, other in combinations(range(len(space.objectives)), 2):
        names = [metric_name(space.objectives[place].metric) for place in (one, other)]
        traces = []
        for on_front, colour, size in ((False, "@pruned", 7.0), (True, "@accent", 10.0)):
            members = [t for t, chief in zip(kept, best, strict=True) if chief == on_front]
            pairs = [values_at(space, trial, step) or [] for trial in members]
            trace = points(
                [values[one] for values in pairs],
                [values[other] for values in pairs],
                ["@default" if trial.source == "default" else colour for trial in members],
                size=size,
                text=[
                    f"trial {trial.number}<br>{names[0]}: {number(values[one])}<br>"
                    f"{names[1]}: {number(values[other])}"
                    for trial, values in zip(members, pairs, strict=True)
                ],
                customdata=[trial.number for trial in members],
            )
            trace["marker"]["symbol"] = ["diamond" if t.source == "default" else "circle" for t in members]
            traces.append(trace)
        if len(space.objectives) == 2:
            edge = sorted(zip(traces[1]["x"], traces[1]["y"], strict=True))
            x, y = [pair[0] for pair in edge], [pair[1] for pair in edge]
            stair = "hv" if space.objectives[0].direction == "minimise" else "vh"
            traces.insert(0, line(x, y, "@accent", width=1.2, hoverinfo="skip"))
            traces[0]["line"] |= {"shape": stair, "dash": "dot"}
        figures.append(
            Figure(
                traces,
                layout(axis(names[0], nticks=6), axis(names[1], nticks=6)),
                340,
                f"{names[1]} over {names[0]} for {counted(len(kept), 'trial')}",
            )
        )
    return figures


def importance_bars(found: Mapping[str, float], metric: str) -> Figure:
    """Horizontal bars, the most important key on top."""
    keys = list(found)[::-1]
    values = [found[key] for key in keys]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": [escape(key) for key in keys],
        "marker": {"color": "@accent"},
        "text": [f"{value:.2f}" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"color": "@ink"},
        "hoverinfo": "none",
        "width": 0.55,
    }
    top = max(values) * 1.12
    x = axis("share of importance", range=[0, top], nticks=6)
    y = axis(None, tickfont={"color": "@ink", "size": 12})
    described = f"Importance of {counted(len(keys), 'key')} for {metric_name(metric)}"
    return Figure([bars], layout(x, y, bargap=0.3), 62 + 30 * len(keys), described)


def seed_dots(rows: Mapping[str, Sequence[float]], winner: str, metric: str, where: str) -> Figure:
    """A row a candidate: a dot a seed and a bar at their mean; the default at the bottom."""
    names = sorted(rows, key=lambda name: (name != "default", name == winner))
    traces = []
    for name in names:
        colour = "@default" if name == "default" else "@accent" if name == winner else "@pruned"
        values = rows[name]
        told = [f"{escape(name)}<br>{number(value)}" for value in values]
        label = "recipe’s own values" if name == "default" else escape(name)
        mean = float(np.mean(values))
        symbol = "diamond" if name == "default" else "circle"
        traces.append(points(values, [label] * len(values), colour, size=10, symbol=symbol, text=told))
        traces.append(points([mean], [label], colour, size=26, symbol="line-ns"))
        traces[-1]["text"] = [f"{escape(name)}, mean of {len(values)}<br>{number(mean)}"]
        traces[-1]["marker"]["line"] = {"color": colour, "width": 2.5}
    x = axis(f"{metric_name(metric)} on {where} patients", nticks=7)
    y = axis(None, type="category", tickfont={"color": "@ink", "size": 12}, range=[-0.6, len(names) - 0.4])
    return Figure(traces, layout(x, y), 74 + 44 * len(names), f"{metric_name(metric)} of each seed, {where}")


def difference_plot(one: Confirmed) -> Figure:
    """The difference with its interval over patients against zero, and below it that of each seed."""
    assert one.difference is not None
    low, high = one.interval or (one.difference, one.difference)
    colour = "@accent" if one.better else "@soft"
    chief = points([one.difference], [1], colour, size=13)
    chief |= {
        "text": [f"{signed(one.difference)}<br>{percent(one.level)}: {signed(low)} to {signed(high)}"],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - one.difference],
            "arrayminus": [one.difference - low],
            "color": colour,
            "thickness": 2.5,
            "width": 7,
        },
    }
    seeds = [a - b for a, b in zip(one.winner_per_seed, one.default_per_seed, strict=False)]
    traces = [chief]
    labels = [(1.0, f"over patients, {percent(one.level)}")]
    if len(seeds) > 1:
        told = [f"seed {place + 1}: {signed(value)}" for place, value in enumerate(seeds)]
        traces.append(points(seeds, [0] * len(seeds), "@soft", size=9, symbol="circle-open", text=told))
        traces[-1]["marker"]["line"] = {"color": "@soft", "width": 1.8}
        labels.append((0.0, "seed by seed"))
    ends = [0.0, low, high, *seeds]
    margin = 0.08 * (max(ends) - min(ends)) or 0.01
    title = f"difference in {metric_name(one.metric)}, candidate minus the recipe’s own values"
    x = axis(title, range=[min(ends) - margin, max(ends) + margin], nticks=7)
    y = axis(None, range=[-0.6 if len(labels) > 1 else 0.5, 1.5], showgrid=False, **ticks_of(labels))
    return Figure(traces, layout(x, y, shapes=[upright(0, "@ink", "dash", 1.5)]), 176, title)


def budget_bars(found: Spent) -> Figure:
    """Device time by rung, and of the confirmation."""
    rows: list[tuple[str, float, str]] = []
    before = 0
    for rung, seconds in found.by_rung.items():
        trials = counted(found.trials_by_rung[rung], "trial")
        rows.append((f"steps {before + 1:,} to {rung:,}<br>{trials}", seconds, "@accent"))
        before = rung
    if found.confirmation:
        rows.append(("confirmation<br>with new seeds", found.confirmation, "@faint"))
    rows.reverse()
    unit, size = _unit(max(seconds for _, seconds, _ in rows))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [seconds / size for _, seconds, _ in rows],
        "y": [name for name, _, _ in rows],
        "marker": {"color": [colour for _, _, colour in rows]},
        "text": [duration(seconds) for _, seconds, _ in rows],
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"color": "@ink"},
        "hoverinfo": "none",
        "width": 0.5,
    }
    top = max(seconds for _, seconds, _ in rows) / size
    x = axis(f"device time, {unit}", range=[0, top * 1.25 or 1], nticks=6)
    y = axis(None, tickfont={"color": "@ink", "size": 12})
    return Figure([bars], layout(x, y), 62 + 46 * len(rows), "Device time by rung")


def _unit(seconds: float) -> tuple[str, float]:
    return ("seconds", 1.0) if seconds < 120 else ("minutes", 60.0) if seconds < 7200 else ("hours", 3600.0)
