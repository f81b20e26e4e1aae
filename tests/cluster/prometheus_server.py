"""A real Prometheus on loopback that scrapes what Ray writes down; imported by test modules."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

_OPENER = build_opener(ProxyHandler({}))


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Prometheus:
    """Scrapes every second whatever the files of Ray's service discovery name, now or later."""

    def __init__(self, folder: Path, discovered: Sequence[Path]) -> None:
        folder.mkdir()
        config = folder / "prometheus.yml"
        files = json.dumps([str(file) for file in discovered])
        config.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
            "scrape_configs:\n"
            f"- {{job_name: ray, file_sd_configs: [{{files: {files}, refresh_interval: 1s}}]}}\n"
        )
        self.address = f"http://127.0.0.1:{free_port()}"
        command = [str(shutil.which("prometheus")), f"--config.file={config}"]
        command += [f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address={self.address.removeprefix('http://')}", "--log.level=error"]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        end = time.monotonic() + 60
        while True:
            try:
                self.query("vector(1)")
                return
            except (URLError, OSError):
                if time.monotonic() > end or self._process.poll() is not None:
                    self.close()
                    raise
                time.sleep(0.2)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What an expression gives now, `metric` and `value` for each series; raises where it is wrong."""
        address = f"{self.address}/api/v1/query?{urlencode({'query': expression})}"
        with _OPENER.open(address, timeout=10) as answer:
            return list(json.load(answer)["data"]["result"])

    def values(self, expression: str) -> list[float]:
        """The numbers alone."""
        return [float(series["value"][1]) for series in self.query(expression)]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
