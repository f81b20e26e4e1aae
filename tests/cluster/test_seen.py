"""What one sees of a run and of a search: in a real Prometheus, on Ray's dashboard in a browser, and
without a token."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from browsing import Page, chromium
from network_hosts import ROOT, wait_until
from small_runs import phantom_dataset, recipe
from small_searches import SPACE

from orchestration.telemetry.catalogue import METRICS, Metric, gauge_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


class Program:
    """A program of this project with a private Ray of its own, whose files lie in `folder`."""

    def __init__(self, folder: Path, log: Path, *arguments: str) -> None:
        self.folder, self.log = folder, log
        folder.mkdir()
        home = folder / "home"
        home.mkdir()
        environment = {**os.environ, "RAY_TMPDIR": str(folder), "HOME": str(home), "PYTHONPATH": str(ROOT)}
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def discovery(self) -> Path:
        """Where Ray tells Prometheus what to scrape."""
        return self.folder / f"mpma-{os.getuid()}" / "ray" / "prom_metrics_service_discovery.json"

    @property
    def token(self) -> str:
        """The token of its Ray."""
        return (self.folder / "home" / ".ray" / "auth_token").read_text().strip()

    def dashboard(self) -> str:
        """Address of its dashboard, as it printed it."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("Ray dashboard: ")]
        return lines[0].removeprefix("Ray dashboard: ") if lines else ""

    def end(self) -> None:
        """End it and its Ray, whatever it is doing."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(timeout=30)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        for process in psutil.process_iter(["cmdline"]):
            if str(self.folder) in " ".join(process.info["cmdline"] or []):
                process.kill()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def _prometheus(folder: Path, discovered: list[Path]) -> Iterator[str]:
    """Debian's Prometheus on loopback, scraping what the files name every second; its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed")
    port = _free_port()
    sources = [{"files": [str(file) for file in discovered], "refresh_interval": "1s"}]
    settings = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": sources}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(timeout=20)


def _asked(prometheus: str, query: str) -> list[dict[str, Any]]:
    address = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=20) as answer:
        return list(json.load(answer)["data"]["result"])


def _has_moved(prometheus: str, metric: Metric) -> bool:
    name = f"ray_{gauge_name(metric.source)}"
    if metric.is_prefix:
        return bool(_asked(prometheus, f'last_over_time({{__name__=~"{name}.*"}}[10m])'))
    if not metric.moves:
        return bool(_asked(prometheus, f"last_over_time({name}[10m])"))
    # A search's figures may come in one go: what was not there before has moved as well.
    spread = _asked(prometheus, f"max_over_time({name}[10m]) - min_over_time({name}[10m]) > 0")
    return bool(spread) or len(_asked(prometheus, f"last_over_time({name}[10m])")) > 1


def _status(address: str, token: str | None = None) -> int:
    request = urllib.request.Request(address)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _log_in(page: Page, address: str, token: str) -> None:
    """As a person: the page asks for the token, and is given it."""
    page.open(address)
    page.until("oken")
    page.run("document.querySelector('input').focus()")
    page.type(token)
    wanted = "/submit|log|sign|continue|save/i.test(one.innerText)"
    page.run(f"[...document.querySelectorAll('button')].find((one) => {wanted}).click()")


def test_a_run_and_a_search_are_seen_in_prometheus_and_on_the_dashboard_and_by_nobody_else(
    tmp_path: Path,
) -> None:
    data = phantom_dataset(tmp_path / "data")
    settings = recipe(steps=4000, workers=2, device="cpu", gradient_norms_every_steps=5, log_every_steps=5)
    settings["validation"]["every_steps"] = 40
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "search.yaml").write_text(
        yaml.safe_dump(recipe(threads_per_worker=1, checkpoint_every_steps=3, device="cpu"))
    )
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**SPACE, "recipe": "search.yaml"}))
    # Sockets lie below it, and their paths may not be long.
    short = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    programs: list[Program] = []
    try:
        common = ["--data", str(data)]
        program = ["orchestration.pretrain", "--config", str(tmp_path / "recipe.yaml"), *common]
        place = ["--runs", str(tmp_path / "runs"), "--name", "watched"]
        run = Program(short / "r", tmp_path / "run.log", *program, *place)
        programs.append(run)
        program = ["orchestration.tune", "--space", str(tmp_path / "space.yaml"), *common]
        place = ["--searches", str(tmp_path / "searches"), "--name", "looked-at"]
        search = Program(short / "t", tmp_path / "search.log", *program, *place)
        programs.append(search)
        with _prometheus(tmp_path, [run.discovery, search.discovery]) as prometheus:
            wait_until(
                lambda: run.dashboard() and "step" in run.log.read_text(), 120, "the run does not train"
            )
            address = run.dashboard()
            assert _status(f"{address}/api/jobs/") == 401
            assert _status(f"{address}/api/jobs/", run.token) == 200
            port = int(address.rpartition(":")[2])
            for name, addresses in psutil.net_if_addrs().items():
                for one in addresses:
                    if one.family == socket.AF_INET and not one.address.startswith("127."):
                        with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
                            socket.create_connection((one.address, port), timeout=5).close()
                        assert name != "lo"
            with chromium() as page:
                _log_in(page, address, run.token)
                page.open(f"{address}/#/train")
                page.until("watched", seconds=90)

            def promised() -> list[str]:
                return [
                    metric.source
                    for metric in METRICS
                    if not metric.needs_gpu and not _has_moved(prometheus, metric)
                ]

            wait_until(lambda: not promised(), 150, f"not seen in Prometheus: {promised()}")
    finally:
        for one in programs:
            one.end()
        shutil.rmtree(short, ignore_errors=True)
