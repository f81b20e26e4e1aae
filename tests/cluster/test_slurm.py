"""deploy/slurm.sh with stand-ins for SLURM's commands that reach two hosts in network namespaces."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from network_hosts import ROOT, Host, Network, forget_ended, require_namespaces
from small_runs import lines, phantom_dataset, recipe, write_recipe

SCRIPT = ROOT / "deploy" / "slurm.sh"
JOB = 4321

# Of srun's options the node's name alone means something here: the command runs in that host's network.
_SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do case $1 in --nodelist=*) node=${1#*=};; esac; shift; done
exec ip netns exec "TAG-$node" "$@"
"""
_SCONTROL = "#!/usr/bin/env bash\n[ \"$*\" = 'show hostnames node[1-2]' ] && printf 'node1\\nnode2\\n'\n"


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_without_a_program_or_an_environment_one_line_says_so(tmp_path: Path) -> None:
    for arguments, said in (([], "no program is named"), (["orchestration.tune"], "run `make install`")):
        command = ["bash", str(SCRIPT), *arguments]
        environment = {**os.environ, "MPMA_PROJECT": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


@dataclass
class Allocation:
    """Two nodes, and the folder that they share."""

    folder: Path
    nodes: list[Host]
    environment: dict[str, str]

    def submit(self, *arguments: str) -> subprocess.Popen[str]:
        """The script on the first node, as SLURM runs it."""
        return subprocess.Popen(
            self.nodes[0].command(["bash", str(SCRIPT), *arguments]),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def assert_nothing_is_left(self) -> None:
        """No process, no token, none of Ray's files."""
        deadline = time.monotonic() + 60
        while left := [process for node in self.nodes for process in node.processes()]:
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.2)
        assert not list(self.folder.glob(".mpma-*"))
        assert not Path(f"/tmp/ray-{JOB}").exists()


@pytest.fixture(scope="module")
def allocation() -> Iterator[Allocation]:
    require_namespaces()
    forget_ended()
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/var/tmp"))
    network = Network(folder)
    try:
        network.open(["node1", "node2"])
        commands = folder / "bin"
        commands.mkdir()
        for name, text in (("srun", _SRUN.replace("TAG", network.tag)), ("scontrol", _SCONTROL)):
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        (folder / ".venv").symlink_to(sys.prefix)
        phantom_dataset(folder / "data")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        slurm = {"SLURM_JOB_ID": str(JOB), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_PER_TASK": "2"}
        paths = {"PATH": f"{commands}:{kept['PATH']}", "PYTHONPATH": str(ROOT)}
        places = {"MPMA_PROJECT": str(folder), "MPMA_SHARED": str(folder), "OMP_NUM_THREADS": "1"}
        yield Allocation(folder, list(network.hosts.values()), kept | slurm | paths | places)
    finally:
        network.close()
        shutil.rmtree(folder, ignore_errors=True)


def _train(allocation: Allocation, name: str, steps: int) -> list[str]:
    settings = recipe(steps=steps, workers=2, threads_per_worker=1, device="cpu")
    file = write_recipe(allocation.folder / f"{name}.yaml", settings)
    places = ["--data", str(allocation.folder / "data"), "--runs", str(allocation.folder / "runs")]
    return ["orchestration.pretrain", "--config", str(file), *places, "--name", name]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_two_nodes_ends_and_leaves_nothing_behind(allocation: Allocation) -> None:
    job = allocation.submit(*_train(allocation, "whole", 8))
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 0, said
    assert "Ray: 2 nodes" in said
    assert lines(allocation.folder / "runs" / "whole")[-1]["step"] == 8
    allocation.assert_nothing_is_left()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_whose_time_is_over_saves_first(allocation: Allocation) -> None:
    job = allocation.submit(*_train(allocation, "cut", 100_000))
    metrics = allocation.folder / "runs" / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 12:
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=100)
    assert job.returncode == 0, said
    newest = max(int(path.name[5:]) for path in (metrics.parent / "checkpoints").glob("step_*"))
    assert newest == lines(metrics.parent)[-1]["step"]
    allocation.assert_nothing_is_left()
