"""The curves of an evaluation: a figure against the share of labels, and ROC curves.

Decisions: charts that stand beside each other share their axis, so that methods can be compared by eye; the
judged model is drawn over the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from orchestration.reporting.charts import axis, layout, line, ticks_of
from orchestration.reporting.evaluation_charts import error_bars, look, titled, with_interval
from orchestration.reporting.evaluation_facts import Estimate
from orchestration.reporting.evaluation_wording import model_name
from orchestration.reporting.page import Figure
from orchestration.reporting.roc import Curve


def efficiency(
    shares: Sequence[float],
    found: Mapping[str, Sequence[Estimate]],
    chance: float | None,
    bounds: Sequence[float],
    title: str,
    measure: str,
) -> Figure:
    """A figure against the share of labels, a line a model. `bounds`: of the axis, shared by charts."""
    traces = []
    for place, (model, estimates) in enumerate(found.items()):
        colour, symbol = look(place)
        kept = [(x, one) for x, one in zip(shares, estimates, strict=True) if one.value is not None]
        factor = 1 + 0.07 * (place - (len(found) - 1) / 2)
        trace = line(
            [100 * x * factor for x, _ in kept],
            [one.value for _, one in kept],
            f"@{colour}",
            width=2,
            dots=8,
            text=[
                f"{escape(model_name(model))}, {100 * x:g} % of labels<br>{with_interval(one)}"
                for x, one in kept
            ],
            error_y=error_bars([one for _, one in kept], f"@{colour}"),
        )
        trace["marker"]["symbol"] = symbol
        traces.append(trace)
    x = axis(
        "share of labels",
        type="log",
        range=_log_range(shares),
        showgrid=False,
        **ticks_of([(100 * one, f"{100 * one:g} %") for one in shares]),
    )
    shapes = [] if chance is None else [_level(chance)]
    frame = layout(x, axis(measure, range=list(bounds), nticks=6), shapes=shapes)
    return Figure(traces, titled(frame, title), 290, f"{measure} by share of labels, {title}")


def roc_chart(curves: Mapping[str, Curve], models: Sequence[str], title: str, height: int) -> Figure:
    """True against false positive rate, a line a model."""
    diagonal = line([0, 1], [0, 1], "@faint", width=1, hoverinfo="skip")
    diagonal["line"]["dash"] = "dot"
    traces = [diagonal]
    # The judged model is drawn last, over the others.
    for model in reversed([one for one in models if one in curves]):
        colour, _ = look(list(models).index(model))
        curve = curves[model]
        trace = line(
            [round(float(x), 4) for x in curve.false_positive_rate],
            [round(float(y), 4) for y in curve.true_positive_rate],
            f"@{colour}",
            width=2,
            hovertemplate=f"{escape(model_name(model))}: %{{y:.2f}} at %{{x:.2f}}<extra></extra>",
        )
        traces.append(trace)
    ticks = ticks_of([(0, "0"), (0.5, "0.5"), (1, "1")])
    frame = layout(
        axis("false positive rate", range=[-0.02, 1.02], **ticks),
        axis("true positive rate", range=[-0.02, 1.02], **ticks),
    )
    return Figure(traces, titled(frame, title), height, f"ROC curves, {title}")


def _log_range(shares: Sequence[float]) -> list[float]:
    low, high = log10(100 * min(shares)), log10(100 * max(shares))
    margin = 0.14 * (high - low) or 0.3
    return [low - margin, high + margin]


def _level(value: float) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "yref": "y",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "line": {"color": "@faint", "width": 1.5, "dash": "dot"},
        "layer": "below",
    }
