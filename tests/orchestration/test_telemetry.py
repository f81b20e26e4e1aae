"""The catalogue of figures, and what is made from it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mpma.comparability import METRICS
from mpma.errors import UserError
from orchestration.search.records import SearchState
from orchestration.search.space import SearchSpace
from orchestration.telemetry import gauges, grafana, reference
from orchestration.telemetry.catalogue import BY_NAME, FIGURES, RUN, SEARCH
from orchestration.telemetry.searching import search_samples


class Recorded:
    """Stands where Ray's gauges are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}
        recorded = self

        class Gauge:
            def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
                self._name, self._own = name, {}
                self._keys = tag_keys

            def set_default_tags(self, tags: dict[str, str]) -> None:
                self._own = tags

            def set(self, value: float, tags: dict[str, str]) -> None:
                all_tags = {**self._own, **tags}
                assert set(all_tags) == set(self._keys)
                recorded.values.setdefault((self._name, tuple(sorted(all_tags.items()))), []).append(value)

        monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)

    def names(self) -> set[str]:
        return {name for name, _ in self.values}


def test_every_name_is_there_once_and_is_one_that_prometheus_takes() -> None:
    assert len({figure.prometheus for figure in FIGURES}) == len(FIGURES) == len(BY_NAME)
    assert all(
        figure.prometheus.replace("_", "").isalnum() and figure.prometheus.islower() for figure in FIGURES
    )


def test_the_names_are_those_that_dashboards_of_users_were_built_on() -> None:
    # Frozen: a name that goes, or is called otherwise, breaks somebody's alerts.
    assert {figure.prometheus for figure in FIGURES} == {f"ray_mpma_{name}" for name in FROZEN.split()}


FROZEN = """
progress_fraction step epoch pairs_seen pairs_per_second data_wait_fraction workers gradient_norm
learning_rate image_mask_ratio alignment_temperature memory_usage_perplexity memory_dead_slot_fraction
loss_total loss_image_reconstruction loss_report_reconstruction loss_global_alignment loss_local_alignment
trunk_gradient_norm_image_reconstruction trunk_gradient_norm_report_reconstruction
trunk_gradient_norm_global_alignment trunk_gradient_norm_local_alignment
process_resident_bytes gpu_allocated_bytes gpu_reserved_bytes gpu_peak_bytes checkpoint_step
checkpoint_seconds val_representation_score val_retrieval_mean_recall val_retrieval_chance_mean_recall
val_retrieval_prior_mean_recall val_retrieval_rank_score val_retrieval_gallery_size
val_retrieval_image_to_report_recall_at_1 val_retrieval_image_to_report_recall_at_5
val_retrieval_image_to_report_recall_at_10 val_retrieval_report_to_image_recall_at_1
val_retrieval_report_to_image_recall_at_5 val_retrieval_report_to_image_recall_at_10
val_probe_auroc val_probe_labels val_probe_pairs val_probe_fitted_pairs val_probe_minimum_per_class
val_report_reconstruction_visual_gain val_loss_image_reconstruction val_loss_report_reconstruction
val_loss_global_alignment val_loss_local_alignment
search_trials search_best_value search_best_trial search_rung_trials search_failed_trials search_retries
search_device_seconds search_trials_left search_device_seconds_left search_wall_seconds_left
"""


def test_every_metric_that_can_rank_trials_is_promised() -> None:
    # The peak of memory of a trial is measured by the search alone.
    assert set(METRICS) - {"peak_memory_bytes"} <= BY_NAME.keys()


def test_a_run_publishes_numbers_of_the_catalogue_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    run = gauges.RunGauges("first", steps=40, rank=1)
    run.line(
        {"step": 10, "loss/total": 2.5, "batch_digest": 7, "report": "no effusion", "path": "/data/x.dcm"}
        | {"gradient_norm": None, "learning_rate": float("nan"), "workers": True}
    )
    run.line({"step": 0, "val/probe/auroc": 0.5})
    run.saved(10, 0.25)
    run.progress()
    run.close()
    own = (("run", "first"),)
    assert {key: values[0] for key, values in recorded.values.items() if "bytes" not in key[0]} == {
        ("mpma_step", own): 10.0,
        ("mpma_progress_fraction", own): 0.25,
        ("mpma_loss_total", own): 2.5,
        ("mpma_val_probe_auroc", own): 0.5,
        ("mpma_checkpoint_step", own): 10.0,
        ("mpma_checkpoint_seconds", own): 0.25,
    }
    # A validation of the untrained model does not set the step back.
    assert recorded.values["mpma_step", own] == [10.0]
    assert ("mpma_process_resident_bytes", (("rank", "1"), ("run", "first"))) in recorded.values


def test_a_figure_is_set_again_and_again_until_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(monkeypatch)
    monkeypatch.setattr(gauges, "_report_seconds", lambda: 0.02)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    run = gauges.RunGauges("first", steps=40)
    run.line({"step": 20, "val/probe/auroc": 0.75})
    told = recorded.values["mpma_val_probe_auroc", (("run", "first"),)]
    end = time.monotonic() + 10
    while len(told) < 5:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert set(told) == {0.75}
    run.close()
    time.sleep(0.1)
    said = len(told)
    time.sleep(0.1)
    assert len(told) == said


def space_of(**budget: float) -> SearchSpace:
    return SearchSpace.model_validate(
        {
            "parameters": {"image.mask_ratio": {"uniform": [0.4, 0.9]}},
            "budget": budget,
            "fidelity": {"first_rung": 4, "reduction": 3},
        }
    )


def searched_state() -> SearchState:
    """Five trials, one in each state; the second came to the last rung."""
    state, clock = SearchState(), iter(range(1000, 2000, 10))

    def tell(event: str, **content: Any) -> None:
        state.apply({"event": event, "time": float(next(clock)), **content})

    def report(trial: int, step: int, score: float) -> None:
        tell("report", trial=trial, step=step, metrics={"val/representation_score": score}, seconds=15.0)

    tell("begin", full_steps=12, first_target=4)
    for trial in range(5):
        tell("suggest", trial=trial, params={"image.mask_ratio": 0.5}, source="tpe", target=4)
    report(0, 4, 0.2)
    report(1, 4, 0.3)
    tell("promote", trial=1, target=12)
    report(1, 12, 0.4)
    report(2, 4, 0.9)
    tell("prune", trial=2, reason="hopeless")
    tell("retry", trial=3, reason="its process died")
    tell("fail", trial=3, reason="its process died")
    return state


def test_the_figures_of_a_search_are_counted_from_its_state() -> None:
    state, space = searched_state(), space_of(trials=8, gpu_hours=1.0, wall_clock_hours=0.5)
    found = {(one.name, one.tags): one.value for one in search_samples(space, state)}

    def of(name: str, **tags: str) -> float:
        return found[name, tuple(sorted(tags.items()))]

    trials = {
        name: of("search/trials", state=name) for name in ("open", "waiting", "complete", "pruned", "failed")
    }
    assert trials == {"open": 1, "waiting": 1, "complete": 1, "pruned": 1, "failed": 1}
    at = {
        (step, name): of("search/rung_trials", step=step, state=name)
        for step in ("4", "12")
        for name in ("running", "waiting", "promoted", "stopped", "complete")
    }
    assert {key: value for key, value in at.items() if value} == {
        ("4", "running"): 1,
        ("4", "waiting"): 1,
        ("4", "promoted"): 1,
        ("4", "stopped"): 2,
        ("12", "complete"): 1,
    }
    # Each of the five trials is somewhere at the first rung, the promoted one at the second as well.
    assert sum(value for (step, _), value in at.items() if step == "4") == 5
    assert of("search/best_trial") == 1
    assert of("search/best_value", objective="val/representation_score") == 0.4
    assert of("search/failed_trials") == 1
    assert of("search/retries") == 1
    assert of("search/device_seconds") == 60.0
    assert of("search/trials_left") == 3
    assert of("search/device_seconds_left") == 3540.0
    assert of("search/wall_seconds_left") == 1800.0 - state.wall_seconds
    assert {name for name, _ in found} == {figure.name for figure in SEARCH}
    for name, tags in found:
        assert {"search", *(tag for tag, _ in tags)} == set(BY_NAME[name].tags)


def test_a_budget_that_is_not_set_has_nothing_left() -> None:
    names = {one.name for one in search_samples(space_of(trials=8), searched_state())}
    assert "search/trials_left" in names
    assert not names & {"search/device_seconds_left", "search/wall_seconds_left"}


# --- Grafana --------------------------------------------------------------------------------------


def panels() -> list[dict[str, Any]]:
    return json.loads(grafana.FILE.read_text())["panels"]


def test_the_shipped_dashboard_is_what_the_catalogue_makes() -> None:
    assert grafana.FILE.read_text() == grafana.as_text(), "python -m orchestration.telemetry.reference"


def test_the_table_in_the_docs_is_what_the_catalogue_makes() -> None:
    page = reference.PAGE.read_text()
    assert page.split(reference.BEGIN)[1] == reference.table(), "python -m orchestration.telemetry.reference"
    assert all(f"`{figure.prometheus}`" in page for figure in FIGURES)


def test_every_figure_has_its_place_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in panels() for target in panel.get("targets", ()))
    for figure in FIGURES:
        assert f"({figure.prometheus}{{" in shown, figure.name


def test_the_dashboard_has_the_shape_that_grafana_reads() -> None:
    whole = json.loads(grafana.FILE.read_text())
    assert {"uid", "title", "schemaVersion", "version", "panels", "templating", "time"} <= whole.keys()
    assert isinstance(whole["schemaVersion"], int)
    assert len(whole["uid"]) <= 40
    names = {variable["name"] for variable in whole["templating"]["list"]}
    assert names == {"datasource", "run", "search"}
    numbers = [panel["id"] for panel in whole["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in whole["panels"]:
        assert {"id", "type", "title", "gridPos"} <= panel.keys()
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + across, place["y"] + down)
            for across in range(place["w"])
            for down in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] == "timeseries"
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in ("short", "percentunit", "s", "bytes", "cps")
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_figures_of_one_panel_have_one_unit() -> None:
    for figures in (RUN, SEARCH):
        units: dict[str, set[str]] = {}
        for figure in figures:
            units.setdefault(figure.panel, set()).add(figure.unit)
        assert {panel: kinds for panel, kinds in units.items() if len(kinds) > 1} == {}


def test_the_dashboard_is_put_beside_rays_own_once_those_are_there(tmp_path: Path) -> None:
    folder = grafana.folder_of(tmp_path)
    thread = grafana.provision_when_ready(str(tmp_path))
    folder.mkdir(parents=True)
    time.sleep(0.6)
    # Ray would remove it with the folder that it makes anew.
    assert not (folder / grafana.NAME).exists()
    (folder / "train_grafana_dashboard.json").write_text("{}")
    thread.join(timeout=10)
    assert (folder / grafana.NAME).read_text() == grafana.FILE.read_text()


def test_a_folder_that_is_not_there_is_a_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder") as caught:
        grafana.provision(tmp_path / "nowhere")
    assert "--to" in (caught.value.hint or "")


def test_rays_own_variables_say_where_its_grafana_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert grafana.folder_of("/s") == Path("/s/metrics/grafana/dashboards")
    monkeypatch.setenv("RAY_METRICS_OUTPUT_ROOT", "/m")
    assert grafana.folder_of("/s") == Path("/m/grafana/dashboards")
    monkeypatch.setenv("RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR", "/d")
    assert grafana.folder_of("/s") == Path("/d")


def test_the_program_prints_the_dashboard_or_puts_it_where_it_is_told(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from orchestration.grafana import app

    printed = CliRunner().invoke(app, ["--print"])
    assert printed.exit_code == 0
    assert printed.output == grafana.FILE.read_text()
    put = CliRunner().invoke(app, ["--to", str(tmp_path)])
    assert put.exit_code == 0
    assert (tmp_path / grafana.NAME).read_text() == grafana.FILE.read_text()
    assert str(tmp_path / grafana.NAME) in put.output
