"""Figures out to Prometheus by Ray's own metrics: one gauge for each name of the catalogue.

Decisions: Ray hands a gauge on once after it was set and then forgets it, so a figure that is set rarely (a
validation's, a search's) would be seen for seconds; what was last set is therefore set again, twice in each
of Ray's reporting intervals, until `close`. A run that ended has no figures, which is how one sees that it
did. What is no finite number, or not in the catalogue, does not go out.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from orchestration.telemetry.catalogue import BY_NAME

MEMORY_SECONDS: Final = 5.0
"""How often a worker's memory is looked at, at most."""

Tags = tuple[tuple[str, str], ...]


class Gauges:
    """Figures with the tag `run`, or `search`, of this process."""

    def __init__(self, kind: str, name: str) -> None:
        self._own = {kind: name}
        self._values: dict[tuple[str, Tags], float] = {}
        self._gauges: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def set(self, values: Mapping[str, Any], **tags: str) -> None:
        """Publish the figures among `values` that the catalogue has with just these tags."""
        wanted = {*self._own, *tags}
        label = tuple(sorted(tags.items()))
        with self._lock:
            for name, value in values.items():
                figure = BY_NAME.get(name)
                if figure is None or set(figure.tags) != wanted or not _is_figure(value):
                    continue
                self._values[name, label] = float(value)
                self._publish(name, label, float(value))
        if self._thread is None:
            self._thread = threading.Thread(target=self._repeat, name="figures", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """No longer set anything again; Prometheus sees the figures end."""
        self._end.set()

    def _publish(self, name: str, tags: Tags, value: float) -> None:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            figure = BY_NAME[name]
            gauge = Gauge(figure.gauge, description=figure.meaning, tag_keys=figure.tags)
            gauge.set_default_tags(self._own)
            self._gauges[name] = gauge
        self._gauges[name].set(value, tags=dict(tags))

    def _repeat(self) -> None:
        import ray

        while not self._end.wait(_report_seconds() / 2):
            if not ray.is_initialized():
                return
            with self._lock, contextlib.suppress(Exception):
                for (name, tags), value in self._values.items():
                    self._publish(name, tags, value)


class RunGauges:
    """Figures of one worker of a run: the lines of metrics.jsonl, checkpoints, and the worker's memory."""

    def __init__(self, run: str, steps: int, rank: int = 0) -> None:
        self._gauges = Gauges("run", run)
        self._steps, self._rank = steps, rank
        self._looked = float("-inf")

    def line(self, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl. Of the lines of a step 0, which are a validation's, all but `step`."""
        step = values.get("step")
        trained = "loss/total" in values
        given = {name: value for name, value in values.items() if trained or name != "step"}
        if trained and step is not None:
            given["progress_fraction"] = step / self._steps
        self._gauges.set(given)

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint was written whole."""
        self._gauges.set({"checkpoint_step": step, "checkpoint_seconds": seconds})

    def progress(self) -> None:
        """A step is done: now and then the process's memory is looked at."""
        now = time.monotonic()
        if now - self._looked >= MEMORY_SECONDS:
            self._looked = now
            self._gauges.set(memory_in_use(), rank=str(self._rank))

    def close(self) -> None:
        """The run is no longer trained by this process."""
        self._gauges.close()


def memory_in_use() -> dict[str, int]:
    """Bytes of this process and of its GPU by the catalogue's names; asks nothing of the device itself."""
    import sys

    import psutil

    found = {"process_resident_bytes": psutil.Process().memory_info().rss}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu_allocated_bytes"] = torch.cuda.memory_allocated()
        found["gpu_reserved_bytes"] = torch.cuda.memory_reserved()
        found["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _report_seconds() -> float:
    """Seconds between Ray's reports of gauges; Ray's own floor is a second."""
    import ray

    return max(1.0, float(ray._config.metrics_report_interval_ms()) / 1000)
