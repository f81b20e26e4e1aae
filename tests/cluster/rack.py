"""A rack on one machine: hosts in network namespaces, each with a home, a folder for temporary files and an
ssh server of its own. What they share is a folder, as an NFS would be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from network_hosts import ROOT, Host, Network, forget_ended, require_namespaces, wait_until

# Processes are a host's own too: `ray stop` ends every Ray that it sees.
_UNSHARE = [
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
]
_BOOT = """
set -e
mount --rbind "$ROOT" /mnt
mount --bind "$BASE/$NAME/home" "$BASE/home"
mount --bind "$BASE/passwd" /etc/passwd
mount --bind "$BASE/$NAME/tmp" /tmp
# Where the checkout lies in there, it is hidden now.
case "$ROOT" in /tmp/*) mkdir -p "$ROOT"; mount --rbind /mnt "$ROOT";; esac
exec /usr/sbin/sshd -D -e -f "$BASE/sshd_config" -o ListenAddress="$ADDRESS"
"""


class Rack:
    """Hosts that answer ssh."""

    def __init__(self, base: Path, network: Network) -> None:
        self.base, self.network = base, network
        self._servers: dict[str, subprocess.Popen[bytes]] = {}

    def boot(self) -> None:
        """Start every host's ssh server."""
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        key = self.base / "key"
        for name in ("key", "host_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.base / name)]
            subprocess.run(command, check=True)
        (self.base / "sshd_config").write_text(
            f"Port 22\nHostKey {self.base}/host_key\nAuthorizedKeysFile {self.base}/key.pub\nPidFile none\n"
            "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
            "MaxStartups 100\n"
        )
        (self.base / "home").mkdir()
        users = Path("/etc/passwd").read_text()
        (self.base / "passwd").write_text(
            re.sub(r"^(root:.*):[^:]*:([^:]*)$", rf"\1:{self.base}/home:\2", users, flags=re.M)
        )
        for host in self.network.hosts.values():
            home = self.base / host.name / "home"
            (home / ".ssh").mkdir(parents=True, mode=0o700)
            (home / ".bashrc").touch()
            (self.base / host.name / "tmp").mkdir(mode=0o1777)
            shutil.copy(key, home / ".ssh" / "id_ed25519")
            _already_installed(home / "mpma" / ".venv")
            log = (self.base / f"{host.name}.log").open("wb")
            self._servers[host.name] = subprocess.Popen(
                host.command([*_UNSHARE, "bash", "-c", _BOOT]),
                env={
                    **os.environ,
                    "ROOT": str(ROOT),
                    "BASE": str(self.base),
                    "NAME": host.name,
                    "ADDRESS": host.address,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            wait_until(
                lambda host=host: self._answers(host), 20, f"the ssh server of {host.name} does not come up"
            )

    def home(self, host: Host) -> Path:
        """The host's home as this process sees it."""
        return self.base / host.name / "home"

    def inside(self, host: Host, arguments: Sequence[str]) -> list[str]:
        """A command on the host, with its home, its /tmp and its network."""
        first = psutil.Process(self._servers[host.name].pid).children()[0].pid
        enter = ["nsenter", f"--target={first}", "--net", "--mount", "--pid"]
        path = f"{Path(sys.executable).absolute().parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        clean = ["env", "-i", f"--chdir={ROOT}", f"HOME={self.base}/home", f"PATH={path}", "LANG=C.UTF-8"]
        return [*enter, *clean, f"PYTHONPATH={ROOT}", "TERM=dumb", "OMP_NUM_THREADS=1", *arguments]

    def run(self, host: Host, *arguments: str, seconds: float = 180) -> str:
        """What a command on the host says; it must succeed."""
        done = subprocess.run(
            self.inside(host, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout[-6000:]}"
        return done.stdout

    def left_running(self, host: Host) -> list[str]:
        """Commands of what runs on the host beside its ssh server."""
        found = []
        for process in host.processes():
            with suppress(Exception):
                command = " ".join(process.cmdline())
                if command and "sshd" not in command and "unshare" not in command:
                    found.append(command[:200])
        return found

    def _answers(self, host: Host) -> bool:
        assert self._servers[host.name].poll() is None, (self.base / f"{host.name}.log").read_text()
        probe = ["bash", "-c", f"exec 3<>/dev/tcp/{host.address}/22"]
        return subprocess.run(host.command(probe), capture_output=True).returncode == 0


def _already_installed(place: Path) -> None:
    """An environment that `make install` finds up to date: this process's own."""
    place.mkdir(parents=True)
    for part in ("bin", "lib", "include", "pyvenv.cfg"):
        source = Path(sys.prefix) / part
        if source.exists():
            (place / part).symlink_to(source)
    stamp = place / ".installed-to-run"
    stamp.touch()
    later = time.time() + 86_400
    os.utime(stamp, (later, later))


@contextmanager
def rack_of(names: Sequence[str]) -> Iterator[Rack]:
    """A rack with these hosts, 10.77.0.1 and on; everything on it ends with the block."""
    for program in ("sshd", "ssh-keygen", "rsync", "nsenter", "unshare"):
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            pytest.skip(f"{program} is not installed")
    require_namespaces()
    forget_ended()
    base = Path(
        subprocess.run(["mktemp", "-d", "/var/tmp/rackXXXXXX"], capture_output=True, text=True).stdout.strip()
    )
    network = Network(base)
    try:
        network.open(names)
        rack = Rack(base, network)
        rack.boot()
        yield rack
    finally:
        network.close()
        shutil.rmtree(base, ignore_errors=True)
