"""Several machines on one: network namespaces on a bridge of their own, a Ray node in each, and what
befalls them.

The bridge lies in a namespace as well, so nothing of the machine's own network is touched and nothing
leaves it. Hosts share the filesystem, as machines share an NFS. A host's cable is the bridge's end of its
pair of interfaces.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

import mpma
from orchestration.ray_environment import NODE

ROOT = Path(mpma.__file__).parents[1]
SUBNET = "10.77.0"
GCS_PORT = 6379


def require_namespaces() -> None:
    """Skip where this process may not make network namespaces."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    name = f"mpma-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        pytest.skip("network namespaces cannot be made here (root is needed)")
    subprocess.run(["ip", "netns", "delete", name], check=False)


def forget_ended() -> None:
    """Take away what a test left behind that was killed itself."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for name in (line.split()[0] for line in listed.splitlines() if line):
        found = re.fullmatch(r"mpma(\d+)-\w+", name)
        if found and not psutil.pid_exists(int(found[1])):
            Host("", name, "", 0).kill_everything()
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@dataclass
class Host:
    """One machine: its namespace and address."""

    name: str
    namespace: str
    address: str
    number: int

    def command(self, arguments: Sequence[str]) -> list[str]:
        """A command inside this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs on it."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        found = []
        for number in listed.stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(number)))
        return found

    def kill_everything(self) -> None:
        """As when the power goes."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def training_workers(self) -> list[psutil.Process]:
        """Ray Train's workers on it."""
        found = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@dataclass
class Network:
    """A switch and the hosts on it."""

    folder: Path
    """For Ray's files and logs; a short path, since sockets lie below it."""
    tag: str = field(default_factory=lambda: f"mpma{os.getpid()}")
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def switch(self) -> str:
        """The namespace of the bridge."""
        return f"{self.tag}-switch"

    def open(self, names: Sequence[str]) -> None:
        """Make the bridge and a host for each name, 10.77.0.1 and on."""
        _ip("netns", "add", self.switch)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, name in enumerate(names, start=1):
            host = Host(name, f"{self.tag}-{name}", f"{SUBNET}.{number}", number)
            self.hosts[name] = host
            _ip("netns", "add", host.namespace)
            port = f"port{number}"
            pair = ["type", "veth", "peer", "name", port, "netns", self.switch]
            _ip("-n", host.namespace, "link", "add", "eth0", *pair)
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", self.switch, "link", "set", port, "master", "bridge", "up")

    def cable(self, host: Host, state: str) -> None:
        """`down` pulls the cable, `up` puts it back."""
        _ip("-n", self.switch, "link", "set", f"port{host.number}", state)

    def environment(self) -> dict[str, str]:
        """For every process of the cluster; the token lies in a file of mode 0600."""
        token = self.folder / "token"
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text("0123456789abcdef" * 4)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **kept,
            **NODE,
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def close(self) -> None:
        """End every process of every host and take the network away."""
        for host in self.hosts.values():
            for _ in range(3):
                host.kill_everything()
        for name in [*(host.namespace for host in self.hosts.values()), self.switch]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


class Supervisor:
    """Keeps a Ray node running on each host: one whose raylet ended is started again, as systemd would."""

    def __init__(self, network: Network, environment: Mapping[str, str]) -> None:
        self._network, self._environment = network, dict(environment)
        self._commands: dict[str, list[str]] = {}
        self._environments: dict[str, dict[str, str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._wanted: set[str] = set()
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.restarts: list[str] = []
        self._thread = threading.Thread(target=self._watch, daemon=True, name="supervisor")
        self._thread.start()

    def start(
        self,
        host: Host,
        *options: str,
        head: Host,
        wrap: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Keep `ray start` running there from now on; `wrap` goes before the command, and may change its
        place."""
        self._environments[host.name] = {**self._environment, **(environment or {})}
        place = (
            ["--head", f"--port={GCS_PORT}", "--dashboard-host=127.0.0.1"]
            if host is head
            else [f"--address={head.address}:{GCS_PORT}"]
        )
        ray = str(Path(sys.executable).with_name("ray"))
        # Machines that join at the same moment would mix up their files in one folder for sessions.
        place.append(f"--temp-dir={self._network.folder / str(host.number)}")
        common = [f"--node-ip-address={host.address}", "--object-store-memory=300000000", "--block"]
        self._commands[host.name] = host.command([*wrap, ray, "start", *place, *common, *options])
        self.keep(host)

    def keep(self, host: Host) -> None:
        """Start the host's node, and again whenever it ends."""
        with self._lock:
            self._wanted.add(host.name)
            self._launch(host.name)

    def forget(self, host: Host) -> None:
        """Leave the host's node as it is."""
        with self._lock:
            self._wanted.discard(host.name)

    def close(self) -> None:
        """Restart nothing from here on."""
        self._end.set()
        self._thread.join(timeout=5)

    def _launch(self, name: str) -> None:
        log = (self._network.folder / f"{name}.log").open("ab")
        self._running[name] = subprocess.Popen(
            self._commands[name],
            env=self._environments[name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            with self._lock:
                for name in self._wanted:
                    if self._running[name].poll() is not None:
                        self.restarts.append(name)
                        # Workers of the node that ended belong to nobody.
                        self._network.hosts[name].kill_everything()
                        self._launch(name)


@contextmanager
def cluster_of_hosts(
    workers: int, cpus: int, folder: Path, more: Callable[[Host], Mapping[str, str]] = lambda host: {}
) -> Iterator[tuple[Network, Supervisor, Host, list[Host]]]:
    """A head without CPUs and so many worker nodes, each a host of its own; `more` is a node's environment
    beside what all have."""
    require_namespaces()
    forget_ended()
    network = Network(folder)
    names = ["head", *(f"node{number}" for number in range(1, workers + 1))]
    supervisor = None
    try:
        network.open(names)
        supervisor = Supervisor(network, network.environment())
        head, *others = network.hosts.values()
        supervisor.start(head, "--num-cpus=0", head=head, environment=more(head))
        wait_until(lambda: _listens(head), 60, "the head does not come up")
        for host in others:
            supervisor.start(host, f"--num-cpus={cpus}", head=head, environment=more(host))
        for host in others:
            log = folder / f"{host.name}.log"
            wait_until(
                lambda log=log: "Ray runtime started" in log.read_text(), 60, f"{host.name} does not join"
            )
        yield network, supervisor, head, others
    finally:
        if supervisor is not None:
            supervisor.close()
        network.close()


def _listens(head: Host) -> bool:
    tried = subprocess.run(
        head.command(["bash", "-c", f"exec 3<>/dev/tcp/{head.address}/{GCS_PORT}"]), capture_output=True
    )
    return tried.returncode == 0


def wait_until(condition: object, seconds: float, otherwise: str) -> None:
    """Wait for a condition, looking ten times a second."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{otherwise} within {seconds:g} s"
        time.sleep(0.1)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a program and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
