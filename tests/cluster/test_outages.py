"""A run on three hosts goes on through whatever befalls them, with the same pairs and the same numbers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from network_hosts import Host, cluster_of_hosts, end_group, wait_until
from runs_on_hosts import Progress, numbers, pretrain_command, resizing_recipe, unbroken
from small_runs import phantom_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 20_000
"""More than are ever made: both runs are stopped when enough has happened."""
CUT_SECONDS = 20.0


def test_a_run_survives_a_killed_worker_a_cut_a_lost_node_and_one_that_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, runs, recipe_file = phantom_dataset(tmp_path / "data"), tmp_path / "runs", tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(resizing_recipe(STEPS)))
    # Sockets lie below it, and their paths may not be long.
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    outages: dict[str, float] = {}
    log = (tmp_path / "driver.log").open("wb")
    driver: subprocess.Popen[bytes] | None = None
    try:
        with cluster_of_hosts(2, cpus=3, folder=folder) as (network, supervisor, head, (first, second)):
            progress = Progress(runs / "broken" / "metrics.jsonl")
            driver = subprocess.Popen(
                head.command(
                    pretrain_command(recipe_file, data, runs, "broken", "--address", f"{head.address}:6379")
                ),
                env=network.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

            def reaches(workers: int, steps_more: int = 15, seconds: float = 120) -> None:
                """Wait until so many workers have made so many new steps."""
                begun: list[int] = []

                def there() -> bool:
                    assert driver is not None
                    assert driver.poll() is None, (tmp_path / "driver.log").read_text()[-3000:]
                    if progress.workers != workers:
                        begun.clear()
                        return False
                    begun.append(progress.step)
                    return progress.step - begun[0] >= steps_more

                wait_until(there, seconds, f"{workers} workers do not make {steps_more} steps")

            with progress.watched():
                reaches(2)

                def befalls(name: str, event: Any, workers: int, more: Any = None) -> None:
                    since = time.monotonic()
                    event()
                    if more is not None:
                        more()
                    reaches(workers)
                    outages[name] = progress.longest_pause(since)

                befalls("a worker killed", lambda: _one_worker(second).kill(), 2)
                befalls(
                    "a node cut off for 20 s",
                    lambda: network.cable(second, "down"),
                    2,
                    lambda: (time.sleep(CUT_SECONDS), network.cable(second, "up")),
                )
                befalls("a node removed", lambda: _remove(network, supervisor, first), 1)
                befalls("a node that returns", lambda: _return(network, supervisor, first), 2)
                driver.send_signal(signal.SIGINT)
                assert driver.wait(timeout=120) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    finally:
        if driver is not None:
            end_group(driver)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)

    found = numbers(runs / "broken")
    expected = unbroken(recipe_file, data, runs, tmp_path / "unbroken.log", len(found))
    assert list(found) == list(range(1, len(found) + 1))
    assert {line["workers"] for line in found.values()} == {1, 2}
    for step, line in found.items():
        assert line["batch_digest"] == expected[step]["batch_digest"], step
    assert len({line["batch_digest"] for line in found.values()}) == len(found)
    worst = max(
        abs(expected[step][name] - value)
        for step, line in found.items()
        for name, value in line.items()
        if name.startswith("loss/")
    )
    with capsys.disabled():
        print("\nseconds without a new step:", {name: round(value, 1) for name, value in outages.items()})
        print(f"largest difference of a loss over {len(found)} steps: {worst:.1e}")
    assert worst < 1e-8
    assert outages["a worker killed"] < 20
    assert max(outages.values()) < 60


def _one_worker(host: Host) -> Any:
    workers = host.training_workers()
    assert workers, "a worker trains on this host"
    return workers[0]


def _remove(network: Any, supervisor: Any, host: Host) -> None:
    supervisor.forget(host)
    network.cable(host, "down")
    host.kill_everything()


def _return(network: Any, supervisor: Any, host: Host) -> None:
    network.cable(host, "up")
    supervisor.keep(host)
