"""The doctor finds what is wrong with clusters that are really broken, each in its own way, and names it.

Nodes are real, each in a network namespace; what is broken about them is made so: another version's
metadata, a clock that is off, a full or read-only disk, a folder that only looks the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from network_hosts import ROOT, Host, Network, Supervisor, forget_ended, require_namespaces, wait_until
from small_runs import phantom_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

_SHIM = """
import time
_true = time.time
time.time = lambda: _true() + 90.0
"""


@dataclass
class Answer:
    """What the doctor said."""

    code: int
    text: str

    def line(self, name: str) -> str:
        """Its line about something, with its remedy."""
        lines = self.text.splitlines()
        found = [number for number, line in enumerate(lines) if line[9:].startswith(name)]
        assert found, f"no line about {name}:\n{self.text}"
        return "\n".join(lines[found[0] : found[0] + 2])

    def fails(self, name: str, *words: str) -> None:
        """The line is a failure and says these words."""
        line = self.line(name)
        assert line.startswith("FAILURE"), f"{line}\n{self.text}"
        assert "->" in line, line
        for word in words:
            assert word in line, line


class Ward:
    """Hosts with Ray nodes, and a doctor on the first."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.network = Network(folder)
        self.network.open(names)
        self.environment = self.network.environment()
        self.supervisor = Supervisor(self.network, self.environment)

    def start(
        self, name: str, head: str, *options: str, wrap: tuple[str, ...] = (), **environment: str
    ) -> None:
        """Start a node, its command in others (`wrap`), with further variables."""
        host, first = self.network.hosts[name], self.network.hosts[head]
        self.supervisor.start(host, *options, head=first, wrap=wrap, environment=environment)
        log = self.network.folder / f"{name}.log"
        wait_until(lambda: "Ray runtime started" in log.read_text(), 60, f"{name} does not start")

    def ask(self, host: Host, *arguments: str, **environment: str) -> Answer:
        """Run the doctor on a host."""
        done = subprocess.run(
            host.command([sys.executable, "-m", "orchestration.doctor", *arguments]),
            env={**self.environment, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=150,
        )
        return Answer(done.returncode, done.stdout)

    def close(self) -> None:
        """End everything."""
        self.supervisor.close()
        self.network.close()


@contextmanager
def _ward(*names: str) -> Iterator[Ward]:
    require_namespaces()
    forget_ended()
    folder = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))
    ward = None
    try:
        ward = Ward(folder, list(names))
        yield ward
    finally:
        if ward is not None:
            ward.close()
        shutil.rmtree(folder, ignore_errors=True)


def _another_version(folder: Path) -> Path:
    """A folder that, first on the path, makes torch another version and the clock 90 s ahead."""
    metadata = folder / "torch-1.0.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    (folder / "sitecustomize.py").write_text(_SHIM)
    return folder


def test_a_sound_cluster_passes_and_nodes_that_differ_are_named(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with _ward("head", "sound", "odd") as ward:
        head, _, odd = ward.network.hosts.values()
        address = f"{head.address}:6379"
        ward.start("head", "head", "--num-cpus=0", '--resources={"trial_driver": 64}')
        ward.start("sound", "head", "--num-cpus=4")
        well = ward.ask(head, "--address", address, "--runs", str(runs), "--set", "training.workers=2")
        assert well.code == 0, well.text
        assert "doctor: all is well" in well.text
        assert "WARNING" in well.line("listening"), "stock Ray's metrics ports stand open"

        # 1: another version on a node; 2: a clock that is off; 3: a folder that only has the same name there.
        shim = _another_version(tmp_path / "shim")
        hidden = ("unshare", "--mount", "bash", "-c", f'mount -t tmpfs none {runs}; exec "$@"', "bash")
        ward.start("odd", "head", "--num-cpus=1", wrap=hidden, PYTHONPATH=f"{shim}:{ROOT}")
        ill = ward.ask(head, "--address", address, "--runs", str(runs))
        assert ill.code == 1
        ill.fails("version of torch", "1.0.0", odd.address, "make install")
        ill.fails("clocks", "+90 s", odd.address)
        ill.fails("storage", str(runs), odd.address)

        # 4: fewer CPUs than the workers and Ray Data need; 5: a GPU that nobody has.
        ill = ward.ask(head, "--address", address, "--set", "training.workers=16")
        ill.fails("room", "training.workers 16")
        wanted = ("--set", "training.device=cuda", "--set", "training.workers=2")
        ill = ward.ask(head, "--address", address, *wanted)
        ill.fails("room", "GPUs", "device=cpu")

        # 6: a token that others can read; 7: another cluster's token; 8: an address where nothing is.
        token = Path(ward.environment["RAY_AUTH_TOKEN_PATH"])
        token.chmod(0o644)
        ward.ask(head, "--address", address).fails("token file", "0644", "chmod 600")
        token.chmod(0o600)
        wrong = tmp_path / "wrong"
        wrong.write_text("f" * 64)
        wrong.chmod(0o600)
        ill = ward.ask(head, "--address", address, RAY_AUTH_TOKEN_PATH=str(wrong))
        ill.fails("cluster", "token")
        ward.ask(head, "--address", f"{head.address}:6399").fails("cluster", "nothing answers there")


def test_a_cluster_without_token_dashboard_drivers_and_room_is_told_so(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    locked = tmp_path / "locked"
    locked.mkdir()
    data = phantom_dataset(tmp_path / "data")
    next((data / "train").glob("*.parquet")).unlink()
    # Mounted before the host is there: it has mounts of its own from then on.
    for options, place in (("size=16m", small), ("ro", locked)):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True)
    try:
        with _ward("bare") as ward:
            _ask_of_bare_cluster(ward, data, small, locked)
    finally:
        for place in (small, locked):
            subprocess.run(["umount", str(place)], check=True)


def _ask_of_bare_cluster(ward: Ward, data: Path, small: Path, locked: Path) -> None:
    host = ward.network.hosts["bare"]
    address = f"{host.address}:6379"
    ward.environment["RAY_AUTH_MODE"] = "disabled"
    options = ("--num-cpus=4", "--include-dashboard=false", "--object-store-memory=90000000")
    ward.start("bare", "bare", *options, RAY_AUTH_MODE="disabled")
    # 9: no token; 10: no dashboard; 11: no place for drivers of trials; 12: a small object store; 13:
    # damaged data.
    ill = ward.ask(host, "--address", address, "--set", "training.workers=2", "--data", str(data))
    assert ill.code == 1
    ill.fails("token", "no token")
    ill.fails("dashboard", "there is none")
    ill.fails("trial drivers", "trial_driver")
    ill.fails("object store", "MiB")
    ill.fails("data", str(data))
    # 14: a disk that is nearly full; 15: storage that cannot be written.
    ill = ward.ask(host, "--address", address, "--runs", str(small))
    ill.fails("free disk", str(small))
    ill = ward.ask(host, "--address", address, "--runs", str(locked))
    ill.fails("storage", str(locked))
