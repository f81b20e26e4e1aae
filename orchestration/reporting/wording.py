"""How figures, keys and metrics are written on a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any, Final

STATES: Final[Mapping[str, str]] = {
    "complete": "full length",
    "waiting": "waits at a rung",
    "open": "in training",
    "pruned": "stopped early",
    "failed": "failed",
}
"""What each state of a trial is called."""

MINUS: Final = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant ones at most four after the point; a dash for what is missing or not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if value != 0 and (abs(value) >= 1e6 or abs(value) < 1e-4):
        shown = f"{value:.3g}"
    elif abs(value) >= 1000:
        shown = f"{value:,.0f}"
    else:
        places = min(4, max(0, digits - 1 - math.floor(math.log10(abs(value))))) if value else 4
        shown = f"{value:.{places}f}"
    return shown.replace("-", MINUS)


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    if value is None or not math.isfinite(value):
        return "–"
    return number(value) if value < 0 else f"+{number(value)}"


def setting(value: Any) -> str:
    """A hyper-parameter's value as a recipe would have it, floats short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def metric_name(metric: str) -> str:
    """A metric in words: `val/retrieval/mean_recall` -> `mean recall`."""
    parts = metric.split("/")
    if parts[0] in ("val", "test"):
        parts = parts[1:]
    if parts[-1] == "auroc":
        return "AUROC of the probe"
    if parts[0] == "loss":
        return f"{parts[-1].replace('_', ' ')} loss"
    kept = parts[-2:] if parts[-1].startswith("recall_at") else parts[-1:]
    return " ".join(kept).replace("_", " ")


def axis_name(key: str) -> str:
    """A dotted key on two lines of a chart."""
    group, _, leaf = key.rpartition(".")
    return f"{escape(leaf)}<br>{escape(group)}" if group else escape(leaf)


def counted(count: int, one: str, several: str | None = None) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
