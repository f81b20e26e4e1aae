"""The charts of an evaluation: figures with intervals by row, differences, bars in groups.

Decisions: a model has one colour and one mark everywhere (blue disc: pre-trained; ochre diamond: untrained),
chance is a grey dash; every figure is drawn with its interval over patients, so that a difference is never
shown more certain than it is. A figure without a value leaves its place empty.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

from orchestration.reporting.charts import axis, layout, line, points, ticks_of, upright
from orchestration.reporting.evaluation_facts import Estimate
from orchestration.reporting.evaluation_wording import model_name
from orchestration.reporting.page import Figure
from orchestration.reporting.wording import number, signed

LOOKS: Final = (
    ("accent", "circle"),
    ("default", "diamond"),
    ("waiting", "square"),
    ("open", "triangle-up"),
    ("failed", "x"),
    ("faint", "pentagon"),
)
"""Colour and mark of the models, in the order of the file."""

_LABEL_WIDTH: Final = 26
"""Letters of a row's name before it is broken."""


def look(place: int) -> tuple[str, str]:
    """Colour's name and mark of a model by its place."""
    return LOOKS[min(place, len(LOOKS) - 1)]


@dataclass(frozen=True)
class Row:
    """A line of a chart; without estimates it is a heading."""

    name: str
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """By model."""
    chance: float | None = None


def forest(rows: Sequence[Row], models: Sequence[str], title: str, described: str) -> Figure:
    """Horizontal: a row a figure, a mark and an interval a model, a dash for chance."""
    spread = _spread(len(models), 0.26)
    traces = []
    for place, model in enumerate(models):
        colour, symbol = look(place)
        kept = [(at, row.estimates.get(model, Estimate())) for at, row in enumerate(rows)]
        kept = [(at, one) for at, one in kept if one.value is not None]
        told = [
            f"{escape(model_name(model))}, {escape(rows[at].name)}<br>{with_interval(one)}"
            for at, one in kept
        ]
        traces.append(
            points(
                [one.value for _, one in kept],
                [-at - spread[place] for at, _ in kept],
                f"@{colour}",
                size=9,
                symbol=symbol,
                text=told,
                error_x=error_bars([one for _, one in kept], f"@{colour}"),
            )
        )
    traces.append(_chance_marks([(row.chance, -at) for at, row in enumerate(rows)], "line-ns", 15))
    numbers = [value for row in rows for one in row.estimates.values() for value in _ends(one)]
    numbers += [row.chance for row in rows if row.chance is not None]
    x = axis(title, range=_range(numbers), nticks=6)
    step = 17 + 9 * len(models)
    return Figure(
        traces,
        layout(x, _rows_axis(rows)),
        66 + step * len(rows),
        described,
    )


def difference_forest(rows: Sequence[Row], title: str, described: str) -> Figure:
    """Horizontal: one difference a row against zero; blue above, red below, grey where it contains zero."""
    kept = [
        (at, one) for at, row in enumerate(rows) for one in row.estimates.values() if one.value is not None
    ]
    colours = ["@accent" if one.better else "@failed" if one.worse else "@faint" for _, one in kept]
    traces = []
    for colour in dict.fromkeys(colours):
        chosen = [pair for pair, own in zip(kept, colours, strict=True) if own == colour]
        traces.append(
            points(
                [one.value for _, one in chosen],
                [-at for at, _ in chosen],
                colour,
                size=9,
                text=[f"{escape(rows[at].name)}<br>{with_interval(one, signed)}" for at, one in chosen],
                error_x=error_bars([one for _, one in chosen], colour),
            )
        )
    numbers = [0.0, *(value for _, one in kept for value in _ends(one))]
    low, high = min(numbers), max(numbers)
    margin = 0.06 * (high - low) or 0.01
    x = axis(title, range=[low - margin, high + margin], nticks=6)
    frame = layout(x, _rows_axis(rows), shapes=[upright(0, "@soft", "dash", 1.2)])
    return Figure(traces, frame, 66 + 26 * len(rows), described)


def bars(rows: Sequence[Row], models: Sequence[str], title: str, measure: str) -> Figure:
    """Upright bars in groups, with intervals, and a dash for chance over each group."""
    traces: list[dict[str, Any]] = []
    spread = _spread(len(models), 0.28)
    width = 0.72 / len(models)
    for place, model in enumerate(models):
        colour, _ = look(place)
        kept = [(at, row.estimates.get(model, Estimate())) for at, row in enumerate(rows)]
        kept = [(at, one) for at, one in kept if one.value is not None]
        told = [
            f"{escape(model_name(model))}, {escape(rows[at].name)}<br>{with_interval(one)}"
            for at, one in kept
        ]
        traces.append(
            {
                "type": "bar",
                "x": [at + spread[place] for at, _ in kept],
                "y": [one.value for _, one in kept],
                "width": width * 0.9,
                "marker": {"color": f"@{colour}"},
                "error_y": error_bars([one for _, one in kept], "@ink") | {"thickness": 1.2, "width": 3},
                "text": told,
                "textposition": "none",
                "hoverinfo": "text",
            }
        )
    chance = [(row.chance, at) for at, row in enumerate(rows) if row.chance is not None]
    for value, at in chance:
        traces.append(line([at - 0.42, at + 0.42], [value, value], "@soft", width=1.6))
        traces[-1]["line"]["dash"] = "dot"
        traces[-1]["text"] = [f"chance<br>{number(value)}"] * 2
    numbers = [0.0, *(value for row in rows for one in row.estimates.values() for value in _ends(one))]
    numbers += [value for value, _ in chance if value is not None]
    top = max(numbers)
    ticks = ticks_of([(at, _wrapped(row.name, 14)) for at, row in enumerate(rows)])
    x = axis(None, range=[-0.55, len(rows) - 0.45], showgrid=False, tickangle=0, **ticks)
    x["tickfont"] = {"color": "@ink", "size": 12}
    y = axis(measure, range=[0, min(1.0, top * 1.08) if top else 1.0], nticks=6)
    frame = layout(x, y)
    described = f"{measure}, {title}" if title else measure
    return Figure(traces, titled(frame, title) if title else frame, 300, described)


def titled(frame: dict[str, Any], title: str) -> dict[str, Any]:
    """The layout with a small title, for charts that stand beside each other."""
    shown = {
        "text": f"<b>{escape(title)}</b>",
        "x": 0,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 6,
        "showarrow": False,
        "font": {"size": 13, "color": "@ink"},
    }
    return frame | {"annotations": [shown], "margin": frame["margin"] | {"t": 32}}


def shared_bounds(numbers: Sequence[float | None]) -> list[float]:
    """An axis that holds all numbers, within 0 and 1."""
    return _range([value for value in numbers if value is not None])


def with_interval(one: Estimate, shown: Callable[[float | None], str] = number) -> str:
    """`0.712  [0.690, 0.733]`."""
    told = shown(one.value)
    return told if one.interval is None else f"{told}  [{shown(one.low)}, {shown(one.high)}]"


def error_bars(estimates: Sequence[Estimate], colour: str) -> dict[str, Any]:
    """Intervals as plotly's error bars; of no length where there is none."""

    def reach(one: Estimate, end: float | None) -> float:
        return 0.0 if one.value is None or end is None else max(0.0, abs(end - one.value))

    return {
        "type": "data",
        "symmetric": False,
        "array": [reach(one, one.high) for one in estimates],
        "arrayminus": [reach(one, one.low) for one in estimates],
        "color": colour,
        "thickness": 1.8,
        "width": 0,
    }


def _chance_marks(places: Sequence[tuple[float | None, float]], symbol: str, size: float) -> dict[str, Any]:
    kept = [(value, at) for value, at in places if value is not None]
    told = [f"chance<br>{number(value)}" for value, _ in kept]
    trace = points(
        [value for value, _ in kept], [at for _, at in kept], "@faint", size=size, symbol=symbol, text=told
    )
    trace["marker"]["line"] = {"color": "@faint", "width": 2}
    return trace


def _rows_axis(rows: Sequence[Row]) -> dict[str, Any]:
    names = [
        (-float(at), _wrapped(row.name) if row.estimates else f"<b>{_wrapped(row.name)}</b>")
        for at, row in enumerate(rows)
    ]
    return axis(
        None,
        range=[-len(rows) + 0.4, 0.6],
        showgrid=False,
        tickfont={"color": "@ink", "size": 12},
        **ticks_of(names),
    )


def _wrapped(name: str, width: int = _LABEL_WIDTH) -> str:
    lines = textwrap.wrap(name, width, max_lines=2, placeholder="…") or [name]
    return "<br>".join(escape(one) for one in lines)


def _spread(count: int, reach: float) -> list[float]:
    """Places beside each other around 0."""
    if count == 1:
        return [0.0]
    return [reach * (2 * place / (count - 1) - 1) for place in range(count)]


def _ends(one: Estimate) -> list[float]:
    return [value for value in (one.value, one.low, one.high) if value is not None]


def _range(numbers: Sequence[float]) -> list[float]:
    if not numbers:
        return [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    margin = 0.06 * (high - low) or 0.05
    # A little beyond 0 and 1, so that a mark at the edge is whole.
    return [max(-0.02, low - margin), min(1.02, high + margin)]
