"""The charts of a dataset's page: refusals by reason, effects against train, distributions by split.

Decisions: a split has one colour everywhere (grey area: train; blue: val; ochre: test); effects stand on one
axis with the threshold shaded, and chance as a thin line behind each mark, so that what is large and what is
merely drawn by few patients are told apart at a glance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from mpma.data.quality_info import DriftInfo, HistogramInfo
from orchestration.reporting.charts import axis, layout, line, points, ticks_of
from orchestration.reporting.evaluation_charts import titled
from orchestration.reporting.html import Html, element
from orchestration.reporting.page import Figure
from orchestration.reporting.quality_wording import CHARACTERISTICS, UNITS
from orchestration.reporting.wording import number, signed

SPLIT_LOOKS: Final[Mapping[str, tuple[str, str]]] = {
    "train": ("faint", "square"),
    "val": ("accent", "circle"),
    "test": ("default", "diamond"),
}
"""Colour and mark."""


def split_mark(split: str) -> Html:
    """The name of a split beside its mark."""
    colour, symbol = SPLIT_LOOKS[split]
    return element("span", split, class_=f"mark {symbol}", style=f"--c: var(--{colour})")


def reasons_chart(reasons: Mapping[str, int]) -> Figure:
    """Horizontal bars, the commonest reason first."""
    rows = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    top = max(reasons.values())
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [count for _, count in rows],
        "y": [-place for place in range(len(rows))],
        "width": 0.62,
        "marker": {"color": "@accent"},
        "text": [f"{count:,}" for _, count in rows],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
    }
    names = ticks_of([(-place, escape(name)) for place, (name, _) in enumerate(rows)])
    y = axis(None, showgrid=False, tickfont={"color": "@ink", "size": 12}, **names)
    x = axis("refused", range=[0, top * 1.12], nticks=5, tickformat=",d")
    if top < 5:
        x["dtick"] = 1
    return Figure([trace], layout(x, y), 60 + 28 * len(rows), "Refused candidates by reason")


def drift_chart(drift: Sequence[DriftInfo], threshold: float) -> Figure:
    """A row a characteristic, a mark a split: effect sizes against train."""
    rows: dict[str, list[DriftInfo]] = {}
    for one in drift:
        rows.setdefault(row_name(one), []).append(one)
    traces: list[dict[str, Any]] = []
    reach = [threshold]
    for place, split in ((0, "val"), (1, "test")):
        colour, symbol = SPLIT_LOOKS[split]
        kept = [
            (-at - 0.2 + 0.4 * (1 - place), one)
            for at, listed in enumerate(rows.values())
            for one in listed
            if one.split == split
        ]
        for height, one in kept:
            traces.append(line([-one.chance, one.chance], [height] * 2, "@line", width=5, hoverinfo="skip"))
            reach.append(abs(one.effect))
        traces.append(
            points(
                [_bounded(one.effect) for _, one in kept],
                [height for height, _ in kept],
                f"@{colour}",
                size=10,
                symbol=symbol,
                text=[
                    f"{escape(row_name(one))}, {split}<br>{signed(one.effect)} "
                    f"(chance reaches {number(one.chance)})"
                    for _, one in kept
                ],
            )
        )
    # Lines of chance lie behind all marks.
    traces.sort(key=lambda trace: trace["mode"] == "markers")
    furthest = min(1.15 * max(reach), _FURTHEST * 1.06)
    names = ticks_of([(-place, escape(name)) for place, name in enumerate(rows)])
    y = axis(
        None,
        range=[-len(rows) + 0.4, 0.6],
        showgrid=False,
        tickfont={"color": "@ink", "size": 12},
        **names,
    )
    x = axis("less than in train  ·  effect size  ·  more than in train", range=[-furthest, furthest])
    shade = {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": -threshold,
        "x1": threshold,
        "y0": 0,
        "y1": 1,
        "fillcolor": "@panel",
        "line": {"width": 0},
        "layer": "below",
    }
    return Figure(
        traces,
        layout(x, y, shapes=[shade]),
        70 + 34 * len(rows),
        "Effect sizes of val and test against train, by characteristic",
    )


_FURTHEST: Final = 3.2
"""Just beyond pi, the largest difference of two shares; effects beyond it stand at the edge."""


def _bounded(effect: float) -> float:
    return max(-_FURTHEST, min(_FURTHEST, effect))


def row_name(one: DriftInfo) -> str:
    """What is compared: `view PA`, `words of the report`."""
    name = CHARACTERISTICS.get(one.characteristic, one.characteristic)
    return f"{name} {one.value}" if one.value else name


def distribution(name: str, found: HistogramInfo) -> Figure:
    """Shares of pairs by value, an area for train and a line for each other split."""
    step = found.edges[1] - found.edges[0] if len(found.edges) > 1 else 1
    scale = 100 if name == "aspect" else 1
    ends = [edge / scale for edge in (*found.edges, found.edges[-1] + step)]
    traces = []
    for split, (colour, _) in SPLIT_LOOKS.items():
        counts = found.counts.get(split, [])
        total = sum(counts)
        if not total:
            continue
        shares = [100 * count / total for count in counts]
        told = [
            f"{split}, {_span(ends, place, len(counts))}<br>{number(share)} %"
            for place, share in enumerate(shares)
        ]
        trace = line([*ends], [*shares, shares[-1]], f"@{colour}", width=1.8, text=[*told, told[-1]])
        trace["line"]["shape"] = "hv"
        if split == "train":
            trace |= {"fill": "tozeroy", "fillcolor": "@line", "line": {"width": 0, "shape": "hv"}}
        traces.append(trace)
    unit = "" if name == "aspect" else UNITS[name]
    x = axis(unit or None, showgrid=False, nticks=7)
    y = axis("% of pairs", nticks=5, rangemode="tozero")
    frame = titled(layout(x, y), CHARACTERISTICS[name])
    return Figure(traces, frame, 250, f"Distribution of {CHARACTERISTICS[name]} by split")


def shares(title: str, by_split: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> Figure:
    """Dots in rows: the share of each value in each split, in per cent."""
    traces = []
    for split, (colour, symbol) in SPLIT_LOOKS.items():
        if split not in by_split:
            continue
        values = [100 * by_split[split].get(name, 0.0) for name in names]
        traces.append(
            points(
                values,
                [-place for place in range(len(names))],
                f"@{colour}",
                size=11 if split == "train" else 9,
                symbol=symbol,
                text=[
                    f"{escape(name)}, {split}<br>{number(v)} %" for name, v in zip(names, values, strict=True)
                ],
            )
        )
    ticks = ticks_of([(-place, escape(_short(name))) for place, name in enumerate(names)])
    y = axis(None, range=[-len(names) + 0.4, 0.6], tickfont={"color": "@ink", "size": 12}, **ticks)
    x = axis("% of pairs", rangemode="tozero", nticks=6)
    frame = titled(layout(x, y), title)
    return Figure(traces, frame, max(250, 90 + 24 * len(names)), f"{title} by split")


def _span(ends: Sequence[float], place: int, bins: int) -> str:
    if place == bins - 1:
        return f"{ends[place]:g} and more"
    return f"{ends[place]:g} to {ends[place + 1]:g}"


def _short(name: str, letters: int = 28) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
