"""The frame of a page: one file that needs nothing else, in light and dark, on paper and on a phone.

Decisions: plotly.js, style and figures stand inside the file, and a content security policy forbids it to
fetch anything, so that a page opened years later or on a closed network is the same and tells nobody
that it was opened. Figures are plain JSON; colours in them are names ("@accent") which page.js resolves
from the style sheet, so that charts and text share one palette in every mode. Without JavaScript all text
and tables remain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from orchestration.reporting.html import Child, Html, element, join

POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Figure:
    """A chart: plotly traces and layout, with colours by name."""

    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    """In pixels; the width is the page's."""
    described: str
    """What it shows, for those who cannot see it."""
    least_width: int = 0
    """In pixels; a narrower window scrolls it."""
    linked: bool = False
    """Points carry trial numbers, and pointing at one shows its line (an empty last trace is filled)."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    name: str
    title: str
    children: Sequence[Child] = field(default_factory=tuple)


def chart(figure: Figure, caption: Child = None, **attributes: str | bool | None) -> Html:
    """The place where page.js draws a figure, and its data."""
    data = {"data": figure.traces, "layout": figure.layout, "linked": figure.linked}
    inner = f"--height: {figure.height}px"
    if figure.least_width:
        inner += f"; min-width: {figure.least_width}px"
    return element(
        "figure",
        element(
            "div",
            element("div", class_="chart", role="img", aria_label=figure.described, style=inner),
            class_="scroll" if figure.least_width else None,
        ),
        element("script", Html(script_json(data)), type="application/json", class_="figure"),
        None if caption is None else element("figcaption", caption),
        **attributes,
    )


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element; numbers that are not finite become null."""
    plain = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return value


def page(title: str, head: Child, sections: Sequence[Section], foot: Child, *, charts: bool = True) -> str:
    """The whole file as text, about 5 MB with `charts`, nearly all of it plotly.js."""
    alone = "The charts need JavaScript; all figures are also in the text and the tables."
    links = [element("a", section.title, href=f"#{section.name}") for section in sections]
    body = join(
        element("header", head),
        element("nav", *links, aria_label="Sections"),
        element(
            "noscript",
            element("p", alone if charts else "To sort or filter the tables needs JavaScript."),
        ),
        element(
            "main",
            *(
                element("section", element("h2", section.title), *section.children, id=section.name)
                for section in sections
            ),
        ),
        element("footer", foot),
    )
    plotly = f"<script>{_plotly()}</script>" if charts else ""
    policy = element("meta", http_equiv="Content-Security-Policy", content=POLICY)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{policy}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"{element('title', title)}\n<style>\n{_own('page.css')}</style>\n</head>\n<body>\n{body}\n"
        f"{plotly}\n<script>\n{_own('page.js')}</script>\n</body>\n</html>\n"
    )


def _own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
