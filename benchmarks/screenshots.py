"""The pictures of docs/watching.md, taken from a real run and a real search on phantom pairs.

`python -m benchmarks.screenshots` makes docs/pictures/watch_*.png in about ten minutes on two cores. It needs
Chromium and Prometheus (apt-get install chromium prometheus) and the extra `dev` (TensorBoard). Everything
listens on loopback. What is shown is what the pages show, but for this machine's name, which is written as
`localhost`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import yaml

from benchmarks.browser import Browser

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
MOST_BYTES = 300_000
WIDTH = 1280

SEARCH = {
    "recipe": str(ROOT / "recipes" / "search.yaml"),
    "parameters": {
        "image.mask_ratio": {"uniform": [0.4, 0.9], "step": 0.05},
        "report.mask_ratio": {"uniform": [0.15, 0.75], "step": 0.05},
        "training.learning_rate_per_256": {"log_uniform": [2.0e-3, 4.0e-2]},
    },
    "budget": {"trials": 12},
    "fidelity": {"steps": 90, "first_rung": 30, "reduction": 3},
    "searcher": {"name": "tpe", "startup_trials": 6},
    "confirmation": {"candidates": 0},
}


def main() -> None:
    """Take them all."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mpma-", dir="/tmp")))
        page = stack.enter_context(Browser(place / "browser", WIDTH, 800))
        _of_a_run(place, page)
        _tensorboard(place, page)
        _of_a_search(place, page)
    for file in sorted(PICTURES.glob("watch_*.png")):
        print(f"{file.relative_to(ROOT)}: {file.stat().st_size} bytes")
        if file.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{file.name} is larger than {MOST_BYTES} bytes")


def _take(page: Browser, name: str, height: int, scale: float = 1.0, top: int = 0) -> None:
    page.value(
        "(() => { const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);"
        f"while (walk.nextNode()) if (walk.currentNode.data.trim() === {json.dumps(socket.gethostname())})"
        "walk.currentNode.data = 'localhost'; })()"
    )
    page.picture(PICTURES / f"watch_{name}.png", height, scale, top)


@contextlib.contextmanager
def _program(place: Path, *command: str) -> Iterator[Callable[[str], re.Match[str]]]:
    """A program of this folder's; gives how to wait for words of its output. Ended by Ctrl-C."""
    # Called as a person calls it, so that the dashboard shows no place of this machine.
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    paths = {"PATH": f"{Path(sys.executable).parent}:{kept['PATH']}", "PYTHONPATH": str(ROOT)}
    log = place / f"{command[0]}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            ["python", "-m", *command],
            executable=sys.executable,
            cwd=place,
            env={**kept, **paths, "RAY_TMPDIR": str(place), "RAY_metrics_report_interval_ms": "2000"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )

    def wait_for(words: str, seconds: float = 900.0) -> re.Match[str]:
        end = time.monotonic() + seconds
        while not (found := re.search(words, log.read_text())):
            if time.monotonic() > end or process.poll() not in (None, 0):
                raise SystemExit(f"{command[0]} did not come to {words!r}:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        return found

    try:
        yield wait_for
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _of_a_run(place: Path, page: Browser) -> None:
    recipe = str(ROOT / "recipes" / "search.yaml")
    steps = ["training.steps=300", "training.workers=2", "validation.every_steps=50"]
    steps += ["training.log_every_steps=2", "training.checkpoint_every_steps=50"]
    settings = [part for one in steps for part in ("--set", one)]
    command = ["orchestration.pretrain", "--name", "chest-first", "--config", recipe, *settings]
    with _program(place, *command) as wait_for, _prometheus(place) as prometheus:
        address = wait_for(r"Ray dashboard: (http://127\.0\.0\.1:\d+)")[1]
        wait_for("validation at step 50:")
        _log_in(page, address)
        _dashboard(page, address)
        wait_for("validation at step 200:")
        _curves(page, prometheus)
        wait_for("chest-first: finished")


def _curves(page: Browser, prometheus: str) -> None:
    losses = 'max by (run, __name__) ({__name__=~"ray_mpma_loss_.+"})'
    page.resize(WIDTH, 1000)
    page.open(f"{prometheus}/graph?g0.tab=0&g0.range_input=5m&g0.expr={quote(losses)}")
    page.until_text("ray_mpma_loss_total")
    time.sleep(3)
    _take(page, "prometheus", 920)
    page.resize(WIDTH, 800)


def _dashboard(page: Browser, address: str) -> None:
    page.resize(1440, 800)
    page.open(f"{address}/#/jobs")
    page.until_text("RUNNING")
    page.until_text("Fetched jobs")
    _take(page, "jobs", 520)
    page.resize(1280, 2200)
    page.open(f"{address}/#/cluster")
    page.until_text("ray::RayTrainWorker")
    time.sleep(2)
    # Down to the workers, which come after Ray's own processes.
    end = page.value(
        "Math.max(...[...document.querySelectorAll('tbody tr')].filter((row) => "
        "row.innerText.includes('ray::RayTrainWorker')).map((row) => row.getBoundingClientRect().bottom))"
    )
    _take(page, "cluster", min(2200, int(end) + 20), 0.75)
    page.resize(WIDTH, 800)


def _log_in(page: Browser, address: str) -> None:
    page.open(address)
    page.until_text("Authentication Token Required")
    time.sleep(1)
    page.picture(PICTURES / "watch_token.png", 600)
    page.click("input[type=password]")
    page.write((Path.home() / ".ray" / "auth_token").read_text().strip())
    page.click("[role=dialog] button", "SUBMIT")
    page.until("!document.querySelector('[role=dialog]')")


@contextlib.contextmanager
def _server(place: Path, address: str, *command: str) -> Iterator[str]:
    with (place / f"{Path(command[0]).name}.log").open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextlib.contextmanager
def _prometheus(place: Path) -> Iterator[str]:
    sessions = place / f"mpma-{os.getuid()}" / "ray"
    discovered = json.dumps([str(sessions / "prom_metrics_service_discovery.json")])
    config = place / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 2s}\nscrape_configs:\n"
        f"- {{job_name: ray, file_sd_configs: [{{files: {discovered}, refresh_interval: 2s}}]}}\n"
    )
    listen = f"127.0.0.1:{_free_port()}"
    options = [f"--config.file={config}", f"--storage.tsdb.path={place / 'prometheus'}"]
    program = shutil.which("prometheus") or sys.exit("no prometheus is installed")
    with _server(place, f"http://{listen}", program, *options, f"--web.listen-address={listen}") as server:
        yield server


def _tensorboard(place: Path, page: Browser) -> None:
    port = str(_free_port())
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(place / "runs"),
        "--host",
        "127.0.0.1",
    ]
    with _server(place, f"http://127.0.0.1:{port}", *command, "--port", port) as address:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=1):
                break
            if time.monotonic() > end:
                raise SystemExit("TensorBoard did not come up")
            time.sleep(0.5)
        page.resize(WIDTH, 900)
        page.open(f"{address}/?tagFilter=loss%2F#timeseries")
        page.until_text("chest-first", 60)
        time.sleep(8)
        _take(page, "tensorboard", 900)


def _of_a_search(place: Path, page: Browser) -> None:
    (place / "space.yaml").write_text(yaml.safe_dump(SEARCH))
    command = ["orchestration.tune", "--space", "space.yaml", "--name", "masking", "--no-dashboard"]
    with _program(place, *command) as wait_for:
        wait_for(r"report: \S+report.html", 1500)
    _report(place / "searches" / "masking" / "report.html", page)


def _report(file: Path, page: Browser) -> None:
    page.resize(WIDTH, 3000)
    page.open(file.as_uri())
    page.until("document.body.dataset.drawn !== undefined")
    time.sleep(2)
    # From the curves on: a search this small has no winner, and what stands above is the commands.
    top = page.value(
        "[...document.querySelectorAll('h2')].find((one) => one.innerText.startsWith('Learning curves'))"
        ".getBoundingClientRect().top"
    )
    _take(page, "report", 1250, 0.8, int(top) - 20)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    main()
