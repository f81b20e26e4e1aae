"""A server of the S3 protocol on loopback with one bucket, `archive`; imported by several test modules."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nobody",
    # Else Arrow asks a cloud's own service of credentials, which nobody answers here.
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Environment of a process that reads or writes the bucket."""


@contextmanager
def bucket_server(log: Path | None = None) -> Iterator[str]:
    """The server's address while the block runs; `log` gets a line for each request before it is answered."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    place = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (log or Path(os.devnull)).open("w") as told:
        server = subprocess.Popen(command, stdout=told, stderr=told)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                request = urllib.request.Request(f"{place}/archive", method="PUT")
                request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/x")
                urllib.request.urlopen(request, timeout=10).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.1)
        yield place
    finally:
        server.kill()
        server.wait()


def settings_of(place: str) -> str:
    """What an address of a bucket needs behind it to reach the server."""
    return f"?endpoint_override={place}&region=us-east-1"
