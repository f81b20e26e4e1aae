"""Figures of a run in Ray's own metrics, for the dashboard and Prometheus.

Decisions: only figures whose names are known here go out, one gauge each, tagged with the run's name;
no text, identifier or pixel can pass. The gauges are `ray_mpma_...` at the node's metrics port.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PREFIXES = ("loss/", "val/", "memory/", "alignment/", "trunk_gradient_norm/")
_NAMES = (
    "step",
    "epoch",
    "pairs_seen",
    "learning_rate",
    "gradient_norm",
    "pairs_per_second",
    "data_wait_fraction",
)


def gauge_name(metric: str) -> str:
    """Name of a metric as Prometheus accepts it: `loss/total` -> `mpma_loss_total`."""
    return "mpma_" + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


class RayGauges:
    """Sets one gauge per known figure of each line."""

    def __init__(self, run_name: str) -> None:
        self._run_name = run_name
        self._gauges: dict[str, Any] = {}

    def set(self, values: Mapping[str, Any]) -> None:
        """Publish the numbers of a metrics line."""
        from ray.util.metrics import Gauge

        for name, value in values.items():
            known = name in _NAMES or name.startswith(_PREFIXES)
            if not known or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if name not in self._gauges:
                gauge = Gauge(gauge_name(name), description=f"MPMA {name}", tag_keys=("run",))
                gauge.set_default_tags({"run": self._run_name})
                self._gauges[name] = gauge
            self._gauges[name].set(float(value))
