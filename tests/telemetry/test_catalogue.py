"""The one list of metrics, and what is made from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestration.telemetry import gauges
from orchestration.telemetry.catalogue import METRICS, gauge_name, metric_of
from orchestration.telemetry.grafana import DASHBOARD, dashboard, encoded, provision
from orchestration.telemetry.reference import PAGE, written


def test_names_are_unique_and_fit_prometheus() -> None:
    names = [gauge_name(metric.source) for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() for name in names)


def test_a_figure_is_the_most_particular_metric_and_unknown_ones_do_not_go_out() -> None:
    found = metric_of("val/probe/auroc")
    assert found is not None
    assert found.shown == "Validation"
    prefix = metric_of("val/loss/global_alignment")
    assert prefix is not None
    assert prefix.source == "val/"
    assert metric_of("report") is None
    assert metric_of("batch_digest") is None


def test_the_shipped_dashboard_and_the_table_in_the_docs_are_those_of_the_catalogue() -> None:
    assert DASHBOARD.read_text() == encoded(), "python -m orchestration.telemetry.grafana"
    assert PAGE.read_text() == written(PAGE.read_text()), "python -m orchestration.telemetry.reference"


def test_the_dashboard_shows_every_metric_that_has_a_panel_once_and_has_what_an_import_needs() -> None:
    made = dashboard()
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= set(made)
    targets = [target for panel in made["panels"] for target in panel["targets"]]
    shown = [metric for metric in METRICS if metric.shown]
    assert sorted(target["expr"].split("{")[0] for target in targets) == sorted(
        f"ray_{gauge_name(metric.source)}" for metric in shown
    )
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    for panel in made["panels"]:
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)


def test_a_session_with_dashboards_gets_ours_and_one_without_is_left_alone(tmp_path: Path) -> None:
    assert provision(tmp_path) is None
    (tmp_path / "metrics" / "grafana" / "dashboards").mkdir(parents=True)
    place = provision(tmp_path)
    assert place is not None
    assert json.loads(place.read_text()) == dashboard()


def test_a_run_publishes_numbers_of_known_names_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    published: dict[str, tuple[float, dict[str, str]]] = {}

    class Kept:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tags = name, {}

        def set_default_tags(self, tags: dict[str, str]) -> None:
            self.tags = tags

        def set(self, value: float, tags: Any = None) -> None:
            published[self.name] = (value, self.tags)

    monkeypatch.setattr("ray.util.metrics.Gauge", Kept)
    gauges.RunGauges("first", 10).set(
        {"step": 5, "loss/total": 2.5, "patient": "MRN 77", "val/probe/auroc": None, "batch_digest": 12}
    )
    assert published["mpma_step"] == (5.0, {"run": "first"})
    assert published["mpma_progress"] == (0.5, {"run": "first"})
    assert published["mpma_resident_bytes"][0] > 1e6
    assert set(published) == {"mpma_step", "mpma_progress", "mpma_loss_total", "mpma_resident_bytes"}


def test_a_search_publishes_states_rungs_the_best_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    published: dict[tuple[str, str], float] = {}

    def kept(self: Any, figure: str, value: float, **tag: str) -> None:
        published[figure, next(iter(tag.values()), "")] = value

    monkeypatch.setattr(gauges._Gauges, "set", kept)
    monkeypatch.setattr("orchestration.search.promote.best_first", lambda space, state: [1, 0])
    objective = SimpleNamespace(metric="val/score", value=lambda metrics: metrics["val/score"])
    space = SimpleNamespace(
        objectives=[objective], budget=SimpleNamespace(trials=4, gpu_hours=None, wall_clock_hours=1.0)
    )

    def trial(state: str, reports: dict[int, dict[str, float]]) -> Any:
        final = state in ("complete", "pruned", "failed")
        return SimpleNamespace(
            state=state, reports=reports, retries=1, final=final, step=max(reports, default=0)
        )

    trials = [
        trial("pruned", {4: {"val/score": 0.1}}),
        trial("waiting", {4: {"val/score": 0.3}}),
        trial("open", {}),
    ]
    state = SimpleNamespace(trials=trials, device_seconds=60.0, wall_seconds=2700.0)
    gauges.SearchGauges("looked-at", space).set(state)  # type: ignore[arg-type]
    assert published["search/trials", "pruned"] == published["search/trials", "open"] == 1
    assert published["search/rung_trials", "4"] == 2
    assert published["search/best_trial", ""] == 1
    assert published["search/best_value", "val/score"] == 0.3
    assert published["search/budget_left", ""] == pytest.approx(0.25), "the hours are spent first"
    assert published["search/retries", ""] == 3
