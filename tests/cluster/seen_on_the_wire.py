"""Run in the namespace of a switch: what whoever listens there sees of each connection.

    python seen_on_the_wire.py OUT NEEDLE     (SIGTERM ends it)

Writes JSON: per direction of a connection, how it begins and whether NEEDLE passed in the clear.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

ETH_P_ALL = 0x0003
IPV4, TCP = 0x0800, 6
TLS_RECORDS = range(0x14, 0x18)
"""First byte of a TLS record; a connection that was there before the listener begins with any kind."""


def listen(out: Path, needle: bytes) -> None:
    """Look at every packet until SIGTERM."""
    stopped: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    flows: dict[tuple[str, int, str, int], dict[str, Any]] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 26)
        wire.settimeout(0.5)
        out.with_suffix(".begun").touch()
        while not stopped:
            try:
                frame = wire.recv(1 << 17)
            except TimeoutError:
                continue
            if int.from_bytes(frame[12:14]) != IPV4 or frame[23] != TCP:
                continue
            segment = 14 + (frame[14] & 0x0F) * 4
            ends = (
                int.from_bytes(frame[segment : segment + 2]),
                int.from_bytes(frame[segment + 2 : segment + 4]),
            )
            body = frame[segment + (frame[segment + 12] >> 4) * 4 : 14 + int.from_bytes(frame[16:18])]
            if not body:
                continue
            key = socket.inet_ntoa(frame[26:30]), ends[0], socket.inet_ntoa(frame[30:34]), ends[1]
            flow = flows.setdefault(
                key,
                {
                    "begins": body[:12].hex(),
                    "tls": body[0] in TLS_RECORDS and body[1:2] == b"\x03",
                    "bytes": 0,
                    "needle": False,
                },
            )
            flow["bytes"] += len(body)
            flow["needle"] = flow["needle"] or needle in body
    out.write_text(json.dumps([{"from": k[:2], "to": k[2:], **flow} for k, flow in flows.items()]))


if __name__ == "__main__":
    listen(Path(sys.argv[1]), sys.argv[2].encode())
