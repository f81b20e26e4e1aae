"""Programs on a cluster that is a head without CPUs and nothing else, as `ray up` leaves it: machines come
when they ask, spot ones first, and others where there are none.

The head is started with the variables of cluster.yaml. The cloud is spot_market; everything runs in a
network namespace that has nothing but its own addresses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from network_hosts import ROOT, Host, forget_ended, require_namespaces
from small_runs import lines, phantom_dataset, recipe, write_recipe
from small_searches import state_of, write_space
from spot_market import ADDRESS, HEAD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@dataclass
class Cloud:
    """An empty cluster, and how programs are run on it."""

    folder: Path
    host: Host
    environment: dict[str, str]

    def run(self, program: str, *options: str) -> subprocess.CompletedProcess[str]:
        """A program of ours, as typed on the head."""
        command = [sys.executable, "-m", f"orchestration.{program}", "--address", f"{HEAD}:6379", *options]
        return subprocess.run(
            self.host.command(command),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )

    def asked(self) -> list[str]:
        """The machines that were asked for, in order."""
        file = self.folder / "asked"
        return file.read_text().split() if file.exists() else []


def _write_cluster_file(folder: Path) -> Path:
    from ray.autoscaler._private.util import prepare_config, validate_config

    machine = {"resources": {"CPU": 3}, "min_workers": 0, "max_workers": 2}
    provider = {"type": "external", "module": "spot_market.Market", "folder": str(folder)}
    config = prepare_config(
        {
            "cluster_name": "market",
            "max_workers": 2,
            "idle_timeout_minutes": 10,
            # The machines start Ray themselves.
            "provider": {**provider, "disable_node_updaters": True, "disable_launch_config_check": True},
            "auth": {},
            "available_node_types": {
                "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "one_on_demand": {**machine, "node_config": {}},
                "one_spot": {**machine, "node_config": {"InstanceMarketOptions": {"MarketType": "spot"}}},
            },
            "head_node_type": "head",
            **{f"{part}setup_commands": [] for part in ("", "head_", "worker_")},
            **{f"{part}_start_ray_commands": [] for part in ("head", "worker")},
            **{"initialization_commands": [], "file_mounts": {}, "cluster_synced_files": []},
        }
    )
    validate_config(config)
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    require_namespaces()
    forget_ended()
    folder = tmp_path_factory.mktemp("market")
    phantom_dataset(folder / "data")
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    (start,) = [
        line
        for line in yaml.safe_load((ROOT / "cluster.yaml").read_text())["head_start_ray_commands"]
        if "ray start" in line
    ]
    variables = dict(re.findall(r"(RAY_\w+)=([^\s;]+)", start))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {
        **kept,
        **variables,
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "OMP_NUM_THREADS": "1",
    }
    host = Host("market", f"mpma{os.getpid()}-market", HEAD, 1)
    subprocess.run(["ip", "netns", "add", host.namespace], check=True)
    # Sockets lie in Ray's folder: a short path.
    with tempfile.TemporaryDirectory(prefix="mpma", ignore_cleanup_errors=True) as session:
        try:
            subprocess.run(["ip", "-n", host.namespace, "link", "set", "lo", "up"], check=True)
            for number in range(1, 6):
                address = f"{ADDRESS.format(number)}/24"
                subprocess.run(["ip", "-n", host.namespace, "addr", "add", address, "dev", "lo"], check=True)
            head = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port=6379"]
            place = [f"--node-ip-address={HEAD}", "--dashboard-host=127.0.0.1", f"--temp-dir={session}"]
            has = ["--num-cpus=0", "--num-gpus=0", '--resources={"trial_driver": 64}']
            config = f"--autoscaling-config={_write_cluster_file(folder)}"
            done = subprocess.run(
                host.command([*head, *place, *has, "--object-store-memory=250000000", config]),
                env=environment,
                capture_output=True,
                text=True,
                timeout=90,
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            yield Cloud(folder, host, environment)
        finally:
            for _ in range(3):
                host.kill_everything()
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False)


def test_a_run_begins_on_a_head_without_cpus_and_takes_the_machine_that_is_not_refused(cloud: Cloud) -> None:
    (cloud.folder / "refuse").touch()
    file = write_recipe(cloud.folder / "recipe.yaml", recipe(steps=4, checkpoint_every_steps=4))
    done = cloud.run("pretrain", "--config", str(file), "--data", "data", "--runs", "runs", "--name", "first")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert lines(cloud.folder / "runs" / "first")[-1]["step"] == 4
    # One refusal is remembered; Ray by itself would have asked for spot machines every second.
    assert cloud.asked() == ["one_spot", "one_on_demand"]


def test_a_recipe_that_no_growth_makes_room_for_is_refused_at_once(cloud: Cloud) -> None:
    file = write_recipe(cloud.folder / "large.yaml", recipe(steps=4, workers=8))
    before = len(cloud.asked())
    done = cloud.run("pretrain", "--config", str(file), "--data", "data", "--runs", "runs", "--name", "large")
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert "8 workers and one CPU for Ray Data need 9 CPUs, and there are 6" in done.stderr
    assert len(cloud.asked()) == before


def test_a_search_has_as_many_trials_waiting_as_there_can_be_machines_for(cloud: Cloud) -> None:
    (cloud.folder / "refuse").unlink()
    before = cloud.asked()
    space = write_space(cloud.folder, budget={"trials": 5})
    options = ("--space", str(space), "--data", "data", "--searches", "searches", "--name", "wide")
    done = cloud.run("tune", *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(state_of(cloud.folder / "searches" / "wide").trials) == 5
    # The machine of the first test has room for three trials; the refusal of a spot one is still remembered.
    assert cloud.asked()[len(before) :] == ["one_on_demand"]
