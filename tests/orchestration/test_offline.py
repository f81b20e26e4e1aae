"""--offline: what leaves the cluster is refused in one line, here, in tasks, in actors and in workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import phantom_dataset, recipe, write_recipe

from orchestration.offline import _host

# Addresses of documentation, which nothing answers (RFC 5737, 3849); a name that does not exist (RFC 2606).
FOREIGN = "192.0.2.77"

TRIES = '''
import asyncio, _socket, os, socket, tempfile
from mpma.data.remote import OfflineError
from mpma.data.storage import open_storage

def said(call):
    """What an attempt came to: the one line it was refused with, or the kind of its own failure."""
    try:
        call()
    except OfflineError as error:
        return error.message
    except Exception as error:
        return type(error).__name__
    return "went through"

def tries():
    tcp = lambda family=socket.AF_INET: socket.socket(family, socket.SOCK_STREAM)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    here = socket.create_server(("127.0.0.1", 0))
    port = here.getsockname()[1]
    folder = tempfile.TemporaryDirectory(dir="/tmp")
    there = os.path.join(folder.name, "socket")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(there)
    listening.listen()
    return {
        "connect": said(lambda: tcp().connect(("192.0.2.77", 443))),
        "connect_ex": said(lambda: tcp().connect_ex(("192.0.2.77", 443))),
        "connect by name": said(lambda: tcp().connect(("hub.invalid", 443))),
        "ipv6": said(lambda: tcp(socket.AF_INET6).connect(("2001:db8::77", 443))),
        "mapped": said(lambda: tcp(socket.AF_INET6).connect(("::ffff:192.0.2.77", 443))),
        "datagram": said(lambda: udp.sendto(b"x", ("192.0.2.77", 53))),
        "datagram by name": said(lambda: udp.sendto(b"x", 0, ("hub.invalid", 53))),
        "message": said(lambda: udp.sendmsg([b"x"], [], 0, ("192.0.2.77", 53))),
        "look-up": said(lambda: socket.getaddrinfo("hub.invalid", 443)),
        "old look-up": said(lambda: socket.gethostbyname("hub.invalid")),
        "library": said(lambda: socket.create_connection(("hub.invalid", 443), timeout=1)),
        "below the library": said(lambda: _socket.socket().connect(("192.0.2.77", 443))),
        "asynchronous": said(lambda: asyncio.run(asyncio.open_connection("192.0.2.77", 443))),
        "bucket": said(lambda: open_storage("s3://hospital/pairs?region=eu-west-1")),
        "loopback": said(lambda: tcp().connect(("127.0.0.1", port))),
        "localhost": said(lambda: socket.create_connection(("localhost", port), timeout=5)),
        "unix": said(lambda: socket.socket(socket.AF_UNIX).connect(there)),
        "own name": said(lambda: socket.getaddrinfo(socket.gethostname(), port)),
        "path": said(lambda: open_storage("file:///data/pairs")),
    }
'''

NEAR = ("loopback", "localhost", "unix", "own name", "path")


def carried_out(tmp_path: Path, code: str) -> Any:
    """What a program prints as its last line, as JSON."""
    script = tmp_path / "program.py"
    script.write_text(TRIES + code)
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={**_environment(), "PYTHONPATH": str(Path.cwd())},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    dropped = ("RAY_ADDRESS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return {name: value for name, value in os.environ.items() if name not in dropped}


def assert_guarded(found: dict[str, str]) -> None:
    assert {name: found[name] for name in NEAR} == dict.fromkeys(NEAR, "went through")
    refused = {name: line for name, line in found.items() if name not in NEAR}
    assert all("--offline" in line and "\n" not in line for line in refused.values()), refused
    for name, line in refused.items():
        if name == "bucket":
            assert line.startswith("s3://hospital/pairs: ")
        elif name == "old look-up":
            assert "hub.invalid" in line
        else:
            port = "53" if name in ("datagram", "datagram by name", "message") else "443"
            host = next(host for host in ("hub.invalid", FOREIGN, "2001:db8::77") if host in line)
            assert f"{host}, port {port}" in line


def test_a_guarded_process_reaches_itself_and_nothing_else(tmp_path):
    code = (
        "import json; from orchestration import offline; offline.begin(None, []);print(json.dumps(tries()))"
    )
    assert_guarded(carried_out(tmp_path, code))


def test_an_unguarded_process_is_not_refused(tmp_path):
    code = "import json; print(json.dumps(said(lambda: socket.getaddrinfo('192.0.2.77', 443))))"
    assert carried_out(tmp_path, code) == "went through"


def test_the_cluster_that_was_named_is_let_through(tmp_path):
    code = (
        "import json; from orchestration import offline; offline.begin('192.0.2.77:6379', ['runs']);"
        "hosts = ('192.0.2.77', '192.0.2.78');"
        "print(json.dumps([said(lambda: socket.getaddrinfo(host, 6379)) for host in hosts]))"
    )
    first, second = carried_out(tmp_path, code)
    assert first == "went through"
    assert "192.0.2.78, port 6379" in second


@pytest.mark.parametrize(
    ("address", "host"),
    [("10.0.0.1:6379", "10.0.0.1"), ("ray://head:10001", "head"), ("[::1]:6379", "::1"), ("auto", "auto")],
)
def test_the_host_of_an_address(address, host):
    assert _host(address) == host


IN_RAY = """
import json, sys
from orchestration import cluster, offline
offline.begin(None, [])
with cluster.connected(None, 2, dashboard=False) as connection:
    import ray
    from ray import cloudpickle
    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    environment = lambda: {name: os.environ.get(name) for name in offline.ENVIRONMENT}
    task = ray.remote(lambda: (tries(), environment()))
    class Actor:
        def tries(self):
            return tries(), environment()
    import ray.data
    block = ray.data.range(1).map_batches(lambda batch: {"said": [json.dumps(tries())]})
    print(json.dumps({
        "driver": [tries(), environment()],
        "task": ray.get(task.remote()),
        "actor": ray.get(ray.remote(Actor).remote().tries.remote()),
        "data": [json.loads(block.take(1)[0]["said"]), environment()],
        "logs": connection.logs,
        "nodes": [node["NodeManagerAddress"] for node in ray.nodes()],
    }))
"""


def test_tasks_actors_and_ray_data_are_guarded_and_ray_listens_on_loopback(tmp_path):
    found = carried_out(tmp_path, IN_RAY)
    for place in ("driver", "task", "actor", "data"):
        said, environment = found[place]
        assert_guarded(said)
        assert environment == {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
    assert found["nodes"] == ["127.0.0.1"]
    assert "/mpma-" in found["logs"]


IN_WORKERS = """
import json
from orchestration import cluster, offline
offline.begin(None, [])
def loop(settings):
    import pathlib, ray.train
    rank = ray.train.get_context().get_world_rank()
    pathlib.Path(settings["out"], f"{rank}.json").write_text(json.dumps(tries()))
with cluster.connected(None, 4, dashboard=False):
    import sys, tempfile
    from ray import cloudpickle
    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    folder = tempfile.TemporaryDirectory()
    out = folder.name
    TorchTrainer(loop, train_loop_config={"out": out},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=out)).fit()
    print(json.dumps([json.load(open(f"{out}/{rank}.json")) for rank in range(2)]))
"""


@pytest.mark.slow
def test_the_workers_of_a_training_group_are_guarded(tmp_path):
    for said in carried_out(tmp_path, IN_WORKERS):
        assert_guarded(said)


REMOTE = "s3://key:secret@hospital/x"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("pretrain", ["--data", REMOTE]),
        ("pretrain", ["--runs", REMOTE]),
        ("pretrain", ["--set", f"data.path={REMOTE}"]),
        ("tune", ["--searches", REMOTE]),
        ("evaluate", ["--run", REMOTE]),
        ("evaluate", ["--run", "RUN", "--features", REMOTE]),
        ("embed", ["--model", REMOTE, "--data", "DATA", "--out", "x.parquet"]),
        ("export", ["--run", "RUN", "--out", REMOTE]),
        ("ingest", ["manifest", REMOTE, "--out", "x"]),
        ("ingest", ["phantom", "--out", REMOTE]),
    ],
)
def test_every_program_refuses_a_remote_place_in_one_line_before_any_work(tmp_path, program, arguments):
    done = subprocess.run(
        [sys.executable, "-m", f"orchestration.{program}", "--offline", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**_environment(), "PYTHONPATH": str(Path.cwd())},
    )
    first, second = done.stderr.splitlines()
    assert done.returncode == 2
    assert first.startswith("error: s3://hospital/x: a remote place, and --offline refuses")
    assert second.startswith("hint: ")
    assert "secret" not in done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_goes_through_offline_alone_and_in_a_group(tmp_path):
    data = phantom_dataset(tmp_path / "data")
    small = write_recipe(tmp_path / "small.yaml", recipe(steps=2, checkpoint_every_steps=2))
    for workers in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "orchestration.pretrain", "--offline", "--no-dashboard"),
                *("--config", str(small), "--data", str(data), "--runs", str(tmp_path / "runs")),
                *("--name", f"w{workers}", "--set", f"training.workers={workers}", "--cpus", "4"),
            ],
            capture_output=True,
            text=True,
            env=_environment(),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "runs" / f"w{workers}" / "metrics.jsonl").exists()
