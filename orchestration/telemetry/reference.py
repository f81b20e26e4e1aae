"""Writes what is made from the catalogue: the table in docs/watching.md, and the Grafana dashboard's file.

`python -m orchestration.telemetry.reference` after a change to the catalogue; a test compares both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestration.telemetry import grafana
from orchestration.telemetry.catalogue import RUN, SEARCH, Figure

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "watching.md"
BEGIN: Final = "<!-- metrics: written by python -m orchestration.telemetry.reference -->\n"


def table() -> str:
    """Markdown: every figure of the catalogue with its tags, unit and meaning."""
    return f"### Of a run\n\n{_rows(RUN)}\n### Of a search\n\n{_rows(SEARCH)}"


def _rows(figures: tuple[Figure, ...]) -> str:
    lines = ["| in Prometheus | tags | unit | what it is |", "|---|---|---|---|"]
    for figure in figures:
        only = "on a GPU" if figure.gpu else figure.only
        meaning = figure.meaning + (f" ({only if figure.gpu else 'where ' + only})" if only else "")
        tags = ", ".join(f"`{tag}`" for tag in figure.tags)
        lines.append(f"| `{figure.prometheus}` | {tags} | {figure.unit} | {meaning} |")
    return "\n".join(lines) + "\n"


def write() -> None:
    """Rewrite both."""
    PAGE.write_text(PAGE.read_text().split(BEGIN)[0] + BEGIN + table())
    grafana.FILE.write_text(grafana.as_text())


if __name__ == "__main__":
    write()
