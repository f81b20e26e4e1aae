"""Writes the docs' table of metrics from the catalogue: `python -m orchestration.telemetry.reference`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestration.telemetry.catalogue import METRICS, gauge_name

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "watching.md"
BEGIN: Final = "<!-- metrics: written by python -m orchestration.telemetry.reference -->\n"


def table() -> str:
    """A row for every metric of the catalogue."""
    rows = ["| Prometheus | tags | unit | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        name = f"ray_{gauge_name(metric.source)}" + ("..." if metric.is_prefix else "")
        tags = ", ".join(f"`{tag}`" for tag in (metric.of, metric.tag) if tag)
        gpu = " (where there is a GPU)" if metric.needs_gpu else ""
        rows.append(f"| `{name}` | {tags} | {metric.unit} | {metric.meaning}{gpu} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """The page with its table as the catalogue has it."""
    return page.split(BEGIN)[0] + BEGIN + table()


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
