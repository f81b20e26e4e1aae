"""Runs the programs in folders of their own, makes them crash inside on demand, and asks what they serve."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from canaries import forms

HOOK = '''
"""Taken by every Python process of a program: one function raises what it was given, one takes its time."""
import importlib.abc, importlib.util, os, sys, time

def crash(plain):
    def broken(*arguments, **named):
        raise KeyError(repr((arguments, named)), *map(str, arguments))
    return broken

def linger(plain):
    def late(*arguments, **named):
        time.sleep(10)
        return plain(*arguments, **named)
    return late

class Changes(importlib.abc.MetaPathFinder):
    def __init__(self, place, change):
        self.module, self.function = place.split(":")
        self.change = change

    def find_spec(self, name, path, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        whole = spec.loader.exec_module
        def exec_module(module):
            whole(module)
            *owners, last = self.function.split(".")
            owner = module
            for one in owners:
                owner = getattr(owner, one)
            setattr(owner, last, self.change(getattr(owner, last)))
        spec.loader.exec_module = exec_module
        return spec

for change in (crash, linger):
    if place := os.environ.get("CANARY_" + change.__name__.upper()):
        sys.meta_path.insert(0, Changes(place, change))
'''

ENDPOINTS = (
    *("/", "/api/cluster_status", "/api/component_activities", "/api/grafana_health", "/api/jobs/"),
    *("/api/prometheus/sd", "/api/prometheus_health", "/api/serve/applications/", "/api/train/v2/runs/v1"),
    *("/api/train/v2/runs", "/api/v0/actors?detail=1", "/api/v0/actors/summarize", "/api/v0/cluster_events"),
    *(
        "/api/v0/cluster_metadata",
        "/api/v0/jobs?detail=1",
        "/api/v0/nodes?detail=1",
        "/api/v0/objects?detail=1",
    ),
    *("/api/v0/objects/summarize", "/api/v0/placement_groups?detail=1", "/api/v0/runtime_envs?detail=1"),
    *(
        "/api/v0/tasks?detail=1",
        "/api/v0/tasks/summarize",
        "/api/v0/tasks/timeline",
        "/api/v0/workers?detail=1",
    ),
    *("/api/v0/platform_events", "/api/version", "/events", "/logical/actors", "/nodes?view=summary"),
    *("/nodes?view=details", "/usage_stats_enabled"),
)


class Programs:
    """`python -m orchestration.NAME` in one working folder, home and place for temporary files."""

    MUST_ANSWER = frozenset(
        {"/api/v0/tasks", "/api/v0/actors", "/api/v0/nodes", "/api/v0/jobs", "/logical/actors", "/nodes"}
        | {"/events", "/api/cluster_status", "/api/data/datasets", "/metrics"}
    )
    """Endpoints that must have been read for the test to mean anything."""

    def __init__(self, work: Path, home: Path, temporary: Path, hooks: Path) -> None:
        self._work, self._hooks = work, hooks
        hooks.mkdir()
        (hooks / "sitecustomize.py").write_text(HOOK)
        dropped = ("RAY_ADDRESS", "RAY_TMPDIR")
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        self._environment = {**kept, "HOME": str(home), "TMPDIR": str(temporary)}
        self._environment["PYTHONPATH"] = str(Path.cwd())
        self._token = home / ".ray" / "auth_token"
        self._said: dict[str, str] = {}
        self._served: dict[str, bytes] = {}
        self._refused_without_token = False

    def __call__(
        self, program: str, *arguments: str, crash: str = "", linger: str = "", serves: bool = False
    ) -> None:
        """Run a program to its end, which is a failure where it was made to crash.

        Args:
            crash: `module:function` that raises what it is given.
            linger: one that takes ten seconds longer.
            serves: its dashboard is asked for everything again and again while it runs.
        """
        log = self._hooks / f"{program}-{len(self._said)}{'-crash' * bool(crash)}.log"
        environment = dict(self._environment)
        if crash:
            environment |= {"CANARY_CRASH": crash, "CANARY_LINGER": linger}
            environment["PYTHONPATH"] = f"{self._hooks}:{environment['PYTHONPATH']}"
        command = [sys.executable, "-m", f"orchestration.{program}", *arguments]
        command += [] if serves or program in ("ingest", "export") else ["--no-dashboard"]
        command += ["--cpus", "2"] if program != "export" else []
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, cwd=self._work, env=environment
            )
            if serves:
                self._ask_until(process, log)
            code = process.wait(timeout=600)
        self._said[log.name] = log.read_text()
        assert (code != 0) == bool(crash), (program, code, log.read_text()[-3000:])

    def said_at_a_crash_of(self, program: str) -> str:
        """What a program printed when it was made to crash."""
        return next(text for name, text in self._said.items() if name.startswith(program) and "crash" in name)

    def leaks_in_what_was_said(self) -> set[str]:
        """Forms of canaries in standard output and error."""
        return {f"{name} ({form})" for name, text in self._said.items() for form in forms(text.encode())}

    def leaks_in_what_was_served(self) -> set[str]:
        """Forms of canaries in what the dashboard and the ports of figures answered."""
        return {f"{name} ({form})" for name, body in self._served.items() for form in forms(body)}

    def failed_tasks_were_served(self) -> bool:
        """Whether what Ray keeps of a task that failed was among what was asked for."""
        return b'"error_message":"' in self._served["/api/v0/tasks?detail=1"].replace(b": ", b":")

    def was_served(self) -> set[str]:
        """Endpoints that answered, without their questions; the token must have been asked for."""
        assert self._refused_without_token
        return {re.sub(r"/api/data/datasets/.*", "/api/data/datasets", n.split("?")[0]) for n in self._served}

    def _ask_until(self, process: subprocess.Popen[bytes], log: Path) -> None:
        ended = threading.Event()

        def ask() -> None:
            while not ended.is_set():
                if found := re.search(r"Ray dashboard: http://(127\.0\.0\.1:\d+)", log.read_text()):
                    self._ask(found[1], ended)
                time.sleep(0.5)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            process.wait(timeout=600)
        finally:
            ended.set()
            thread.join(timeout=60)

    def _ask(self, address: str, ended: threading.Event) -> None:
        for endpoint in ENDPOINTS:
            if ended.is_set():
                return
            self._get(address, endpoint)
        if self._get(address, "/api/v0/nodes", token=False) == 401:
            self._refused_without_token = True
        for job in re.findall(rb'"job_id":\s*"(\w+)"', self._served.get("/api/v0/jobs?detail=1", b"")):
            self._get(address, f"/api/data/datasets/{job.decode()}")
        for node in re.findall(rb'"node_id":\s*"(\w+)"', self._served.get("/api/v0/nodes?detail=1", b"")):
            self._get(address, f"/nodes/{node.decode()}")
            self._get(address, f"/api/v0/logs?node_id={node.decode()}")
        with_targets = self._served.get("/api/prometheus/sd", b"[]")
        for target in {one for group in json.loads(with_targets) for one in group["targets"]}:
            self._get(target, "/metrics", token=False)

    def _get(self, address: str, endpoint: str, token: bool = True) -> int:
        """Status of an answer, which is kept beside earlier ones where it is 200; 0: none."""
        asked = urllib.request.Request(f"http://{address}{endpoint}")
        if token and self._token.exists():
            asked.add_header("Authorization", f"Bearer {self._token.read_text().strip()}")
        try:
            with urllib.request.urlopen(asked, timeout=20) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0
        # The newest is kept for what is asked next, any with a canary for good.
        if endpoint not in self._served or not forms(self._served[endpoint]):
            self._served[endpoint] = body
        return 200
