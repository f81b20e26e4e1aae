"""Peak memory of a command and all its processes, by proportional set size.

    python -m benchmarks.memory -- python -m orchestration.pretrain --config recipes/demo.yaml --name demo

prints one JSON line at the end. Proportional set size counts a page shared by n processes as 1/n in
each, so that the sum over a process tree is what the machine really gave (Linux).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psutil

SAMPLE_SECONDS = 1.0


def proportional_bytes(root: psutil.Process) -> tuple[int, int]:
    """(bytes, processes) of a process and its descendants now."""
    total = count = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
            count += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total, count


def main(command: list[str]) -> int:
    """Run a command, sample it, print the peak; return its exit code."""
    if not command:
        print("error: name a command after --", file=sys.stderr)
        return 2
    begun = time.monotonic()
    process = subprocess.Popen(command)
    root = psutil.Process(process.pid)
    peak = processes = 0
    while process.poll() is None:
        try:
            now, count = proportional_bytes(root)
        except psutil.NoSuchProcess:
            break
        if now > peak:
            peak, processes = now, count
        time.sleep(SAMPLE_SECONDS)
    code = process.wait()
    print(
        json.dumps(
            {
                "figure": "peak_memory",
                "unit": "GiB (proportional set size, all processes)",
                "value": round(peak / 2**30, 3),
                "processes_at_peak": processes,
                "seconds": round(time.monotonic() - begun, 1),
                "exit_code": code,
                "command": " ".join(command),
            }
        )
    )
    return code


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(arguments[1:] if arguments[:1] == ["--"] else arguments))
