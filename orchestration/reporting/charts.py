"""The one look of all charts: axes, grids, lines and dots, with colours by name (page.css has them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

RAMP: Final = ("@low", "@low2", "@middle", "@high2", "@high")
"""From worst to best."""

STATE_COLOUR: Final = {
    "complete": "@accent",
    "waiting": "@waiting",
    "open": "@open",
    "pruned": "@pruned",
    "failed": "@failed",
}


def axis(title: str | None = None, **more: Any) -> dict[str, Any]:
    """A quiet axis; `more` overrides."""
    quiet: dict[str, Any] = {
        "gridcolor": "@grid",
        "linecolor": "@line",
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "ticks": "",
    }
    if title is not None:
        quiet["title"] = {"text": title, "font": {"size": 12, "color": "@soft"}, "standoff": 8}
    return quiet | more


def layout(xaxis: dict[str, Any], yaxis: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A frame without legend or title: those stand in the text."""
    return {
        "xaxis": xaxis,
        "yaxis": yaxis,
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 8, "r": 12, "t": 10, "b": 8},
    } | more


def ticks_of(pairs: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """Ticks at given places."""
    return {
        "tickmode": "array",
        "tickvals": [place for place, _ in pairs],
        "ticktext": [shown for _, shown in pairs],
    }


def line(
    x: Sequence[Any], y: Sequence[Any], colour: str, *, width: float = 1.5, dots: float = 0.0, **more: Any
) -> dict[str, Any]:
    """A line, with dots where `dots` (their size) is not 0."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if dots else "lines",
        "x": list(x),
        "y": list(y),
        "line": {"color": colour, "width": width},
        "marker": {"color": colour, "size": dots or 6},
        "hoverinfo": "text",
    } | more


def points(
    x: Sequence[Any], y: Sequence[Any], colour: Any, *, size: float = 8, symbol: str = "circle", **more: Any
) -> dict[str, Any]:
    """Dots with a thin edge in the paper's colour, so that overlapping ones stay apart."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(x),
        "y": list(y),
        "marker": {"color": colour, "size": size, "symbol": symbol, "line": {"color": "@paper", "width": 1}},
        "hoverinfo": "text",
    } | more


def upright(x: float, colour: str = "@line", dash: str = "solid", width: float = 1) -> dict[str, Any]:
    """A vertical line over the whole height."""
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": colour, "width": width, "dash": dash},
        "layer": "below",
    }


def linked_line() -> dict[str, Any]:
    """The empty last trace that page.js fills with the trial that is pointed at."""
    return line([], [], "@ink", width=3, dots=7, hoverinfo="skip")
