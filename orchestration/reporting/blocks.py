"""Pieces that sections are made of."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.reporting.html import Child, Html, element


def paragraph(*children: Child) -> Html:
    """A paragraph of text."""
    return element("p", *children)


def note(*children: Child) -> Html:
    """A quieter paragraph: how to read what stands above it."""
    return element("p", *children, class_="note")


def table(head: Sequence[str], rows: Sequence[Sequence[Child]], numeric: set[int] | None = None) -> Html:
    """A plain table; columns in `numeric` are set to the right."""
    right = numeric or set()
    return element(
        "div",
        element(
            "table",
            element(
                "thead",
                element(
                    "tr",
                    *(
                        element("th", name, scope="col", class_="n" if at in right else None)
                        for at, name in enumerate(head)
                    ),
                ),
            ),
            element(
                "tbody",
                *(
                    element(
                        "tr",
                        *(element("td", c, class_="n" if at in right else None) for at, c in enumerate(row)),
                    )
                    for row in rows
                ),
            ),
        ),
        class_="table",
    )
