"""Ray's TLS between hosts: a run trains, a stranger is refused, and a listener reads none of Ray's calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from network_hosts import GCS_PORT, Host, Network, cluster_of_hosts, end_group, require_namespaces, wait_until
from runs_on_hosts import numbers, pretrain_command
from small_runs import phantom_dataset, recipe, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAME = "what-nobody-may-read"
"""The run's name, which travels from the driver to the worker in calls of Ray."""


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def _authority(folder: Path) -> None:
    """A certificate authority for one cluster: ca.crt and ca.key."""
    made = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=a cluster")
    _openssl(folder, "req", *made, "-keyout", "ca.key", "-out", "ca.crt")


def _certified(folder: Path, host: Host) -> Mapping[str, str]:
    """A certificate for a host's addresses; the environment of Ray's processes on it."""
    _openssl(
        folder,
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host.name}"),
        *("-keyout", f"{host.name}.key", "-out", f"{host.name}.csr"),
    )
    names = folder / f"{host.name}.ext"
    names.write_text(f"subjectAltName=IP:{host.address},IP:127.0.0.1,DNS:localhost\n")
    _openssl(
        folder,
        *("x509", "-req", "-in", f"{host.name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-days", "2", "-extfile", names.name, "-out", f"{host.name}.crt"),
    )
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / f"{host.name}.crt"),
        "RAY_TLS_SERVER_KEY": str(folder / f"{host.name}.key"),
        "RAY_TLS_CA_CERT": str(folder / "ca.crt"),
    }


def _status(network: Network, head: Host, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    command = ["timeout", "20", ray, "status", f"--address={head.address}:{GCS_PORT}"]
    return subprocess.run(
        head.command(command),
        env={**network.environment(), **environment},
        capture_output=True,
        text=True,
    )


def test_a_run_trains_over_tls_and_its_calls_cannot_be_read_on_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_namespaces()
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    data, runs = phantom_dataset(tmp_path / "data"), tmp_path / "runs"
    # So many threads that each of the two workers needs a host of its own.
    settings = recipe(steps=6, workers=2, threads_per_worker=2, device="cpu")
    settings["validation"]["every_steps"] = 6
    recipe_file = write_recipe(tmp_path / "recipe.yaml", settings)
    folder = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    said, wire = tmp_path / "driver.log", tmp_path / "wire.json"
    log = said.open("wb")
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    _authority(keys)
    made: dict[str, Mapping[str, str]] = {}

    def certified(host: Host) -> Mapping[str, str]:
        made[host.name] = _certified(keys, host)
        return made[host.name]

    running: list[subprocess.Popen[Any]] = []
    try:
        with cluster_of_hosts(2, cpus=3, folder=folder, more=certified) as (network, _, head, nodes):
            seer = Path(__file__).with_name("seen_on_the_wire.py")
            listening = ["ip", "netns", "exec", network.switch, sys.executable, str(seer), str(wire), NAME]
            running.append(subprocess.Popen(listening, start_new_session=True))
            wait_until(wire.with_suffix(".begun").exists, 20, "nobody listens")
            address = f"{head.address}:{GCS_PORT}"
            driver = subprocess.Popen(
                head.command(pretrain_command(recipe_file, data, runs, NAME, "--address", address)),
                env={**network.environment(), **made["head"]},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running.append(driver)
            assert driver.wait(timeout=120) == 0, said.read_text()[-3000:]
            assert _status(network, head, made["head"]).returncode == 0
            # The right token without a certificate, as a program that was not told of TLS has it.
            assert _status(network, head, {}).returncode != 0
            running[0].terminate()
            running[0].wait(timeout=20)
    finally:
        for process in running:
            end_group(process)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
    assert list(numbers(runs / NAME)) == [1, 2, 3, 4, 5, 6]
    flows = json.loads(wire.read_text())
    plain = [flow for flow in flows if not flow["tls"]]
    # PyTorch's workers alone do not know of Ray's TLS: the place where they meet, and gloo.
    between = {node.address for node in nodes}
    assert plain
    assert all({flow["from"][0], flow["to"][0]} == between for flow in plain), plain
    assert not any(flow["needle"] for flow in flows)
    with capsys.disabled():
        print(f"\n{len(flows) - len(plain)} of {len(flows)} directions of connections are TLS;", end=" ")
        print("in the clear:", sum(flow["bytes"] for flow in plain), "bytes between workers")
