"""The Grafana dashboard of runs and searches, made from the catalogue, and where Ray's Grafana finds it.

Decisions: one panel for each title of the catalogue, so that no promised figure is left out; the file in the
repository is what this module makes (a test compares them). Ray makes the folder of its dashboards anew when
its own dashboard starts, after `ray.init` has returned, so ours is put there once Ray's last one lies there.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

from mpma.errors import UserError
from orchestration.telemetry.catalogue import RUN, SEARCH, Figure, Unit

FILE: Final = Path(__file__).with_name("grafana_dashboard.json")
NAME: Final = "mpma_grafana_dashboard.json"
UID: Final = "mpmaRunsAndSearches"
_LAST_OF_RAY: Final = "train_grafana_dashboard.json"
_READY_SECONDS: Final = 120.0

_UNITS: Final[dict[Unit, str]] = {
    "": "short",
    "fraction": "percentunit",
    "seconds": "s",
    "bytes": "bytes",
    "pairs": "short",
    "pairs per second": "cps",
    "steps": "short",
    "trials": "short",
    "nats": "short",
}
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 8
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana (7 and later) reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, kind, figures in (("Runs", "run", RUN), ("Searches", "search", SEARCH)):
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": _COLUMNS, "x": 0, "y": top},
                "panels": [],
            }
        )
        top += 1
        for place, name in enumerate(dict.fromkeys(figure.panel for figure in figures)):
            shown = [figure for figure in figures if figure.panel == name]
            x, y = _WIDTH * (place % 3), top + _HEIGHT * (place // 3)
            panels.append(_panel(len(panels) + 1, shown, kind, x, y))
        top = max(panel["gridPos"]["y"] for panel in panels) + _HEIGHT
    return {
        "uid": UID,
        "title": "MPMA: runs and searches",
        "tags": ["mpma"],
        "timezone": "browser",
        "schemaVersion": 36,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "refresh": 1,
                    "hide": 0,
                    "includeAll": False,
                    "multi": False,
                },
                _variable("run", "Run", RUN[0]),
                _variable("search", "Search", SEARCH[0]),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, label: str, figure: Figure) -> dict[str, Any]:
    query = f"label_values({figure.prometheus}, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panel(number: int, figures: list[Figure], kind: str, x: int, y: int) -> dict[str, Any]:
    said = "\n".join(f"- `{figure.name}`: {figure.meaning}" for figure in figures)
    return {
        "id": number,
        "type": "timeseries",
        "title": figures[0].panel,
        "description": said,
        "datasource": _SOURCE,
        "gridPos": {"h": _HEIGHT, "w": _WIDTH, "x": x, "y": y},
        "fieldConfig": {
            "defaults": {
                "unit": _UNITS[figures[0].unit],
                "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 0, "showPoints": "auto"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "none"},
        },
        "targets": [
            {
                "refId": _letters(place),
                "datasource": _SOURCE,
                "expr": _query(figure, kind),
                "legendFormat": _legend(figure, kind, len(figures) > 1),
            }
            for place, figure in enumerate(figures)
        ],
    }


def _query(figure: Figure, kind: str) -> str:
    """Without the labels of processes, so that a run that went on in another process is one line."""
    return f'max by ({", ".join(figure.tags)}) ({figure.prometheus}{{{kind}=~"${kind}"}})'


def _legend(figure: Figure, kind: str, several: bool) -> str:
    parts = [f"{{{{{tag}}}}}" for tag in figure.tags]
    return " ".join([*parts, figure.name.rsplit("/", 1)[-1]] if several else parts)


def _letters(place: int) -> str:
    return chr(ord("A") + place)


def as_text() -> str:
    """The dashboard as its file holds it."""
    return json.dumps(dashboard(), indent=1) + "\n"


def folder_of(session: str | Path) -> Path:
    """Where Ray's Grafana looks for dashboards, for a session's folder."""
    named = os.environ.get("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR")
    if named:
        return Path(named)
    root = os.environ.get("RAY_METRICS_OUTPUT_ROOT")
    return (Path(root) if root else Path(session) / "metrics") / "grafana" / "dashboards"


def provision(folder: Path) -> Path:
    """Put the dashboard into a folder that Grafana reads; return its file. Raises `UserError`."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder",
            "name the folder of Grafana's dashboards with --to; Ray's is "
            "SESSION/metrics/grafana/dashboards on the node with the dashboard",
        )
    file = folder / NAME
    aside = file.with_suffix(".json.tmp")
    try:
        aside.write_text(as_text())
        os.replace(aside, file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from None
    return file


def provision_when_ready(session: str) -> threading.Thread:
    """Put the dashboard beside Ray's own as soon as those are there; waits in a thread, for a while."""

    def wait() -> None:
        folder = folder_of(session)
        end = time.monotonic() + _READY_SECONDS
        while time.monotonic() < end and Path(session).is_dir():
            last = folder / _LAST_OF_RAY
            if last.is_file() and last.stat().st_size:
                try:
                    provision(folder)
                except UserError:
                    # Ray's folder has gone meanwhile; a run is not ended for a picture of it.
                    return
                return
            time.sleep(0.5)

    thread = threading.Thread(target=wait, name="grafana", daemon=True)
    thread.start()
    return thread
