"""`ray up deploy/on-prem.yaml` as a person types it: from three bare machines to a run, a search, and
nothing left."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from network_hosts import ROOT, wait_until
from rack import Rack, rack_of
from small_runs import phantom_dataset, recipe
from small_searches import SPACE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_COUNT = (
    "import logging, ray; ray.init('auto', logging_level=logging.ERROR, log_to_driver=False); "
    "print('alive', sum(node['Alive'] for node in ray.nodes()))"
)


def _launcher(rack: Rack) -> Path:
    """The shipped file with its values at the top replaced, and nothing else."""
    text = (ROOT / "deploy" / "on-prem.yaml").read_text()
    hosts = rack.network.hosts
    for before, after in (
        ("head_ip: 192.0.2.10", f"head_ip: {hosts['head'].address}"),
        (
            "worker_ips: [192.0.2.11, 192.0.2.12]",
            f"worker_ips: [{hosts['node1'].address}, {hosts['node2'].address}]",
        ),
        ("ssh_user: mpma", "ssh_user: root"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    file = rack.base / "on-prem.yaml"
    file.write_text(text)
    return file


def test_a_rack_comes_up_trains_searches_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with rack_of(["laptop", "head", "node1", "node2"]) as rack:
        laptop, head, *nodes = rack.network.hosts.values()
        launcher = _launcher(rack)
        token = rack.home(laptop) / ".ray" / "auth_token"
        token.parent.mkdir(mode=0o700)
        token.touch(mode=0o600)
        token.write_text("0123456789abcdef" * 4)

        rack.run(laptop, "ray", "up", "--yes", "--no-config-cache", str(launcher), seconds=120)
        assert (rack.home(head) / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600

        def joined() -> bool:
            said = rack.run(head, "env", "RAY_AUTH_MODE=token", "python", "-c", _COUNT, seconds=60)
            return "alive 3" in said

        wait_until(joined, 120, "the two workers do not join")
        assert (rack.home(nodes[0]) / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600

        shared = rack.base / "shared"
        shared.mkdir()
        data = phantom_dataset(shared / "data")
        settings = recipe(steps=12, workers=2, threads_per_worker=1, device="cpu")
        (shared / "recipe.yaml").write_text(yaml.safe_dump(settings))
        address = f"{head.address}:6379"
        train = ["python", "-m", "orchestration.pretrain", "--config", str(shared / "recipe.yaml")]
        train += [
            "--data",
            str(data),
            "--runs",
            str(shared / "runs"),
            "--name",
            "first",
            "--address",
            address,
        ]
        said = rack.run(head, *train)
        assert "first: finished" in said
        assert "workers: 2" in said

        said = rack.run(
            head,
            *("env", "RAY_AUTH_MODE=token", "ray", "job", "submit", "--address", "http://127.0.0.1:8265"),
            *("--working-dir", str(shared), "--", *train),
        )
        assert "finished after 12 steps; nothing to do" in said
        assert re.search(r"Job '.*' succeeded", said)

        searching = recipe(threads_per_worker=1, checkpoint_every_steps=3, device="cpu")
        (shared / "search.yaml").write_text(yaml.safe_dump(searching))
        (shared / "space.yaml").write_text(yaml.safe_dump({**SPACE, "recipe": "search.yaml"}))
        search = ["python", "-m", "orchestration.tune", "--space", str(shared / "space.yaml")]
        search += ["--data", str(data), "--searches", str(shared / "searches"), "--name", "second"]
        rack.run(head, *search, "--address", address, seconds=240)
        assert len(list((shared / "searches" / "second" / "trials").iterdir())) == 6
        assert (shared / "searches" / "second" / "report.html").exists()

        refused = rack.inside(head, [*train, "--set", "training.steps=24", "--runs", "/tmp/only-here"])
        done = subprocess.run(refused, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert "storage: /tmp/only-here: not the same folder there" in done.stdout + done.stderr

        rack.run(laptop, "ray", "down", "--yes", str(launcher), seconds=120)
        # `ray down` ends the head's processes; those of the workers end when they have not reached it for a
        # while.
        deadline = time.monotonic() + 120
        for host in (head, *nodes):
            while left := rack.left_running(host):
                assert time.monotonic() < deadline, f"{host.name} still runs {left}"
                time.sleep(0.2)
        shutil.rmtree(shared)
