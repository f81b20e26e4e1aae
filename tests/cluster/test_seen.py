"""What a person sees of a run and of a search: every promised figure in a real Prometheus, the dashboard in a
real browser after logging in, and nothing of it without the token or from another machine."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
import pytest
from prometheus_server import Prometheus
from small_runs import RECIPE, Command, lines, phantom_dataset, recipe, write_recipe
from small_searches import SPACE, write_space

from benchmarks.browser import Browser, installed
from orchestration.telemetry.catalogue import RUN, SEARCH, Figure
from orchestration.telemetry.grafana import NAME, dashboard, folder_of
from orchestration.tracking import MLFLOW_FILE, connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

WINDOW = "[20m]"
OPENER = build_opener(ProxyHandler({}))


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    # A short name: Ray's sockets lie below it.
    folder = Path(tempfile.mkdtemp(prefix="seen-", dir="/tmp"))
    phantom_dataset(folder / "data")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def temporary(place: Path, name: str) -> Path:
    """Where the private Ray of a program keeps its sessions."""
    return place / name / f"mpma-{psutil.Process().uids().real}" / "ray"


@pytest.fixture(scope="module")
def prometheus(place: Path) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus is installed here (apt-get install prometheus)")
    discovered = [
        temporary(place, name) / "prom_metrics_service_discovery.json" for name in ("group", "here", "search")
    ]
    server = Prometheus(place / "prometheus", discovered)
    yield server
    server.close()


class Seen(Command):
    """A program with its dashboard, whose private Ray has a place of its own and reports every second."""

    def __init__(self, place: Path, name: str, *arguments: str) -> None:
        (place / name).mkdir()
        self.sessions = temporary(place, name)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RAY_TMPDIR", str(place / name))
            environment.setenv("RAY_metrics_report_interval_ms", "1000")
            environment.delenv("RAY_ADDRESS", raising=False)
            super().__init__(place / f"{name}.log", *arguments)

    def dashboard(self) -> str:
        """Its address, as the program prints it."""
        self.until(lambda: "Ray dashboard: http" in self.output(), 120)
        found = re.search(r"Ray dashboard: (http://127\.0\.0\.1:\d+)", self.output())
        assert found, self.output()
        return found[1]

    def stop(self) -> None:
        """Ctrl-C: it saves and ends."""
        self.process.send_signal(signal.SIGINT)
        assert self.wait(90) == 0, self.output()


def pretrain(place: Path, name: str, workers: int, *more: str) -> Seen:
    """A run of the small model that goes on until it is told to stop."""
    tree = recipe(
        steps=100_000,
        workers=workers,
        checkpoint_every_steps=20,
        gradient_norms_every_steps=1,
        threads_per_worker=1,
        learning_rate_per_256=0.02,
        warmup_fraction=0.0,
    ) | {"validation": {**RECIPE["validation"], "every_steps": 25}}
    write_recipe(place / f"{name}.yaml", tree)
    return Seen(
        place,
        name,
        *("orchestration.pretrain", "--config", str(place / f"{name}.yaml"), "--data", str(place / "data")),
        *("--runs", str(place / "runs"), "--name", name, "--cpus", "3", *more),
    )


@contextlib.contextmanager
def training(place: Path, name: str, workers: int, *more: str) -> Iterator[Seen]:
    program = pretrain(place, name, workers, *more)
    try:
        yield program
        program.stop()
    finally:
        program.kill()


@pytest.fixture(scope="class")
def group(place: Path, prometheus: Prometheus) -> Iterator[Seen]:
    """A run of two workers, at work during the tests."""
    with training(place, "group", 2) as program:
        program.until(lambda: "validation at step 25" in program.output(), 180)
        yield program


def token() -> str:
    return (Path.home() / ".ray" / "auth_token").read_text().strip()


def ask(address: str, with_token: bool = True) -> tuple[int, str]:
    """(status, answer)."""
    given = {"Authorization": f"Bearer {token()}"} if with_token else {}
    try:
        with OPENER.open(Request(address, headers=given), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def missing(prometheus: Prometheus, figures: list[Figure], selected: str) -> dict[str, str]:
    """What is wrong with each figure that has not appeared, or has not moved where it must."""
    wrong = {}
    for figure in figures:
        series = f"{figure.prometheus}{{{selected}}}"
        if not prometheus.query(f"last_over_time({series}{WINDOW})"):
            wrong[figure.name] = "absent"
        elif figure.moves and not any(prometheus.values(f"changes({series}{WINDOW})")):
            wrong[figure.name] = "never moved"
    return wrong


def until_none(wrong: Callable[[], dict[str, str]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while left := wrong():
        assert time.monotonic() < end, left
        time.sleep(1)


def _index(address: str) -> int:
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return socket.if_nametoindex(name) if address.startswith("fe80") else 0
    return 0


class TestARunOfTwoWorkers:
    """One run for all of these, ended before the other programs begin."""

    def test_every_promised_figure_of_a_run_is_in_prometheus_and_moves(
        self, prometheus: Prometheus, group: Seen
    ) -> None:
        # Without a GPU there is none to tell of.
        promised = [figure for figure in RUN if not figure.gpu]
        until_none(lambda: missing(prometheus, promised, 'run="group"'), 120)
        # Of both workers, and as the run itself has it.
        ranks = prometheus.query('ray_mpma_process_resident_bytes{run="group"}')
        assert {series["metric"]["rank"] for series in ranks} == {"0", "1"}
        assert all(float(series["value"][1]) > 100e6 for series in ranks)
        assert prometheus.values('ray_mpma_workers{run="group"}') == [2.0]
        assert prometheus.values('ray_mpma_val_retrieval_gallery_size{run="group"}') == [32.0]

    def test_no_figure_goes_out_that_is_not_promised(self, prometheus: Prometheus, group: Seen) -> None:
        names = {series["metric"]["__name__"] for series in prometheus.query('{__name__=~"ray_mpma_.*"}')}
        assert names
        assert names <= {figure.prometheus for figure in (*RUN, *SEARCH)}

    def test_every_panel_of_the_dashboard_that_shows_runs_gets_something(
        self, prometheus: Prometheus, group: Seen
    ) -> None:
        panels = [panel for panel in dashboard()["panels"] if panel["type"] == "timeseries"]
        asked = 0
        for panel in panels:
            for target in panel["targets"]:
                expression = target["expr"].replace("$run", ".*").replace("$search", ".*")
                found = prometheus.query(expression)
                if "search=~" not in expression and "ray_mpma_gpu" not in expression:
                    asked += 1
                    assert found, expression
        assert asked == sum(not figure.gpu for figure in RUN)

    def test_a_private_ray_has_the_dashboard_among_those_of_its_grafana(self, group: Seen) -> None:
        folder = folder_of(group.sessions / "session_latest")
        group.until(lambda: (folder / NAME).is_file(), 30)
        assert (folder / "train_grafana_dashboard.json").is_file()

    def test_without_the_token_the_dashboard_answers_401_and_other_interfaces_not_at_all(
        self, group: Seen
    ) -> None:
        address = group.dashboard()
        for path in ("/api/jobs/", "/api/train/v2/runs/v1", "/nodes?view=summary", "/api/v0/tasks"):
            assert ask(f"{address}{path}", with_token=False)[0] == 401, path
            assert ask(f"{address}{path}")[0] == 200, path
        port = int(address.rpartition(":")[2])
        elsewhere = [
            (entry.family, entry.address.partition("%")[0])
            for entries in psutil.net_if_addrs().values()
            for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6) and not entry.address.startswith("127.")
        ]
        # All of 127/8 is this machine too; what the dashboard listens on is one address of it.
        for family, other in [(socket.AF_INET, "127.0.0.2"), *elsewhere]:
            with socket.socket(family) as one:
                one.settimeout(5)
                # A link-local address needs its interface; it is looked up by name.
                scope = (0, _index(other)) if family == socket.AF_INET6 else ()
                with pytest.raises(ConnectionRefusedError):
                    one.connect((other, port, *scope))

    def test_a_person_logs_in_and_finds_the_run(self, group: Seen, tmp_path: Path) -> None:
        if installed() is None:
            pytest.skip("no browser is installed here (apt-get install chromium)")
        address = group.dashboard()
        with Browser(tmp_path) as page:
            page.open(address)
            page.until_text("Authentication Token Required")
            page.click("input[type=password]")
            page.write("not the token")
            page.click("[role=dialog] button", "SUBMIT")
            page.until("document.querySelector('[role=dialog]').innerText.includes('invalid')")
            assert page.answers[f"{address}/api/authenticate"] == 403
            page.open("about:blank")
            page.open(address)
            page.until_text("Authentication Token Required")
            page.click("input[type=password]")
            page.write(token())
            page.click("[role=dialog] button", "SUBMIT")
            page.until("!document.querySelector('[role=dialog]')")
            page.open(f"{address}/#/jobs")
            page.until_text("RUNNING")
            row = page.until("[...document.querySelectorAll('tbody tr')].map((row) => row.innerText)[0]")
            assert "group" in row.split()
            assert "orchestration.pretrain" in row
            page.open(f"{address}/#/cluster")
            page.until_text("ray::RayTrainWorker")
            # Pages ask nobody but the dashboard itself.
            outside = [one for one in page.asked if not one.startswith((address, "data:", "about:"))]
            assert outside == []
        runs = ask(f"{address}/api/train/v2/runs/v1")[1]
        assert '"status":"RUNNING"' in runs.replace(" ", "")
        assert '"num_workers":2' in runs.replace(" ", "")


def test_a_run_in_the_programs_own_process_is_a_job_by_its_name_and_has_its_figures_there_and_in_mlflow(
    place: Path, prometheus: Prometheus
) -> None:
    some = [figure for figure in RUN if figure.moves]
    mlflow = f"sqlite:///{place}/mlflow.db"
    with training(place, "here", 1, "--set", f"tracking.mlflow_uri={mlflow}") as program:
        jobs = ask(f"{program.dashboard()}/api/jobs/")[1].replace(" ", "")
        assert '"metadata":{"job_name":"here"}' in jobs
        until_none(lambda: missing(prometheus, some, 'run="here"'), 120)
    assert "MLflow" not in program.output()
    run, client = place / "runs" / "here", connect(mlflow)
    identifier = json.loads((run / MLFLOW_FILE).read_text())["run_id"]
    written = [line for line in lines(run) if "loss/total" in line]
    sent = client.get_metric_history(identifier, "loss/total")
    assert len(written) > 25
    assert [(one.step, one.value) for one in sent] == [(line["step"], line["loss/total"]) for line in written]
    assert client.get_run(identifier).info.status == "KILLED"


def test_every_promised_figure_of_a_search_is_in_prometheus_and_moves(
    place: Path, prometheus: Prometheus
) -> None:
    budget = {"trials": 5, "gpu_hours": 1.0, "wall_clock_hours": 1.0}
    # Three rungs, 4, 12 and 36 steps: the best value is that of the highest reached, so it changes twice.
    space = write_space(place, budget=budget, fidelity={**SPACE["fidelity"], "steps": 36})
    program = Seen(
        place,
        "search",
        *("orchestration.tune", "--space", str(space), "--data", str(place / "data")),
        *("--searches", str(place / "searches"), "--name", "search", "--cpus", "3"),
    )
    try:
        assert program.wait(240) == 0, program.output()
    finally:
        program.kill()
    assert missing(prometheus, list(SEARCH), 'search="search"') == {}
    labels: list[dict[str, Any]] = [
        series["metric"]
        for series in prometheus.query(
            f'last_over_time(ray_mpma_search_rung_trials{{search="search"}}{WINDOW})'
        )
    ]
    assert {one["step"] for one in labels} == {"4", "12", "36"}
    assert {one["state"] for one in labels} == {"running", "waiting", "promoted", "stopped", "complete"}
