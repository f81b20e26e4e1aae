"""A Grafana dashboard of the catalogue's figures, and where Ray's own Grafana looks for it.

    python -m orchestration.telemetry.grafana             write the shipped dashboard anew python -m
    orchestration.telemetry.grafana SESSION     copy it to a Ray session's dashboards
    (/tmp/ray/session_latest)

Decision: a panel for every title in the catalogue, all values of a run or search as lines; which runs and
searches are shown is chosen at the top. The file is made from the catalogue, and a test holds that it is up
to date.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from orchestration.telemetry.catalogue import METRICS, Metric, gauge_name

DASHBOARD: Final = Path(__file__).with_name("grafana_dashboard.json")
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_UNITS: Final = {"bytes": "bytes", "seconds": "s", "fraction": "percentunit", "steps": "none"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    titles = list(dict.fromkeys(metric.shown for metric in METRICS if metric.shown))
    return {
        "uid": "mpma",
        "title": "MPMA",
        "tags": ["mpma"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _variable("run", "ray_mpma_step"),
                _variable("search", "ray_mpma_search_trials"),
            ]
        },
        "panels": [
            _panel(number, title, [metric for metric in METRICS if metric.shown == title])
            for number, title in enumerate(titles)
        ],
    }


def _variable(name: str, gauge: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({gauge}, {name})",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, title: str, metrics: list[Metric]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "title": title,
        "description": "; ".join(f"{metric.source}: {metric.meaning}" for metric in metrics),
        "type": "timeseries",
        "datasource": _SOURCE,
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": _UNITS.get(metrics[0].unit, "none")}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [_target(place, metric) for place, metric in enumerate(metrics)],
    }


def _target(place: int, metric: Metric) -> dict[str, Any]:
    tag = f" {{{{{metric.tag}}}}}" if metric.tag else ""
    return {
        "refId": chr(ord("A") + place),
        "datasource": _SOURCE,
        "expr": f'ray_{gauge_name(metric.source)}{{{metric.of}=~"${metric.of}"}}',
        "legendFormat": f"{{{{{metric.of}}}}} {metric.source}{tag}",
    }


def encoded() -> str:
    """The dashboard's file, byte for byte."""
    return json.dumps(dashboard(), indent=1, sort_keys=True) + "\n"


def provision(session: Path) -> Path | None:
    """Copy the dashboard to where Ray provisions Grafana from; None where the session has no such place."""
    folder = session / "metrics" / "grafana" / "dashboards"
    if not folder.is_dir():
        return None
    place = folder / "mpma_grafana_dashboard.json"
    place.write_text(DASHBOARD.read_text())
    return place


def provision_within(session: Path, seconds: float) -> None:
    """`provision` as soon as the session has its dashboards, looked for twice a second for so long."""
    end = time.monotonic() + seconds
    while provision(session) is None and time.monotonic() < end:
        time.sleep(0.5)


def main(arguments: list[str]) -> int:
    """Write the shipped file, or provision a session."""
    if not arguments:
        DASHBOARD.write_text(encoded())
        return 0
    place = provision(Path(arguments[0]))
    print(
        place
        or f"{arguments[0]}: no metrics/grafana/dashboards there; name the session of a Ray with a dashboard"
    )
    return 0 if place else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
