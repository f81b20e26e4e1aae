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


def number(value: float | None) -> str:
    """A metric's value: few digits, as more mean nothing; a dash for what is missing."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-4:
        shown = compact(value)
    elif size < 0.01:
        shown = f"{value:.4f}"
    elif size < 1:
        shown = f"{value:.3f}"
    else:
        shown = f"{value:,.{max(0, 3 - len(str(int(size))))}f}"
    return shown.replace("-", MINUS, 1) if value < 0 else shown


def compact(value: float, digits: int = 3) -> str:
    """A number in few letters: 0.15, 1.5e-4, 2.1e9."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


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
    return compact(value, 4) if isinstance(value, float) else str(value)


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


def percent(level: float) -> str:
    """The level of an interval: `95 %`."""
    return f"{100 * level:.3g} %"


def counted(count: int, one: str, several: str | None = None) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
