"""A run's figures in MLflow, where `tracking.mlflow_uri` names one.

Decisions: a thread of the driver follows metrics.jsonl, which is the truth, and sends what the server does
not have yet; so training neither waits for a server nor hears of it, a run that is continued goes on in the
same MLflow run, and what could not be sent is sent later, once. What the server has is asked of it, figure
by figure, whenever that is in doubt: at the start, and after a failure. Only figures of the catalogue and the
configuration's numbers go out: no text, no place, no identifier; MLflow's client is used without its
`start_run`, which would add the user's name and the program's path. Its own usage statistics are off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mpma.config import ExperimentConfig, flatten
from mpma.data.remote import OfflineError
from mpma.errors import UserError
from mpma.training.config import TrackingConfig
from mpma.training.metrics_log import MetricsReader
from mpma.training.run_directory import RunDirectory
from orchestration.telemetry.catalogue import RUN

MLFLOW_FILE: Final = "mlflow.json"
"""Which MLflow run a run directory belongs to."""
LOOK_SECONDS: Final = 2.0
LONGEST_WAIT_SECONDS: Final = 60.0
"""Between tries while the server does not answer."""
CLOSING_SECONDS: Final = 15.0
"""How long the program's end may be held up for the last figures."""
_AT_A_TIME: Final = 900
"""MLflow takes at most 1,000 figures in a request, and 100 parameters."""

_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # A folder is what somebody without a server has; MLflow itself would rather have a database.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    # It would write to our terminal, among others the place of its tables.
    "MLFLOW_CONFIGURE_LOGGING": "false",
}


def require(config: TrackingConfig) -> None:
    """Raises `UserError` where MLflow is asked for and not installed."""
    if config.mlflow_uri is not None and importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "tracking.mlflow_uri: the package mlflow is not installed here",
            "pip install mlflow-skinny, or leave tracking.mlflow_uri out",
        )


def refuse_addresses(config: TrackingConfig) -> None:
    """Raises `OfflineError` where figures would be sent to an address. For --offline."""
    if config.leaves_the_machine:
        raise OfflineError(
            "tracking.mlflow_uri: an address, and --offline refuses every connection that leaves the cluster",
            "name a folder or sqlite:///FILE, or leave --offline out",
        )


@contextlib.contextmanager
def following(config: ExperimentConfig, run: RunDirectory, note: Callable[[str], None]) -> Iterator[None]:
    """Send the run's figures to the MLflow of its configuration while the block trains; else do nothing.

    Never raises for what MLflow meets; it is said once by `note`.
    """
    if config.tracking.mlflow_uri is None:
        yield
        return
    follower = Follower(config, run, note)
    follower.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED" if run.finished_steps() == config.training.steps else "KILLED"
    finally:
        follower.close(status)


class Follower:
    """Follows one run's metrics.jsonl, and sends what is new."""

    def __init__(self, config: ExperimentConfig, run: RunDirectory, note: Callable[[str], None]) -> None:
        self._config, self._run, self._note = config, run, note
        self._end = threading.Event()
        self._deadline = float("inf")
        self._status: str | None = None
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._told = False

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self, status: str) -> None:
        """Send what is left, and how the run ended (an MLflow status); waits for a bounded time."""
        self._status = status
        self._deadline = time.monotonic() + CLOSING_SECONDS
        self._end.set()
        self._thread.join(timeout=CLOSING_SECONDS)
        if self._thread.is_alive():
            self._tell("no answer")

    def _follow(self) -> None:
        reader, lines, mlflow_run, wait = (
            MetricsReader(self._run.folder),
            list[dict[str, Any]](),
            None,
            LOOK_SECONDS,
        )
        while True:
            ending = self._end.wait(wait)
            try:
                lines += reader.new_lines()
                # MLflow is imported when there is something to send, not while the run starts.
                if lines or ending:
                    if mlflow_run is None:
                        mlflow_run = MlflowRun.of(self._config, self._run)
                    mlflow_run.send(lines)
                    lines = []
                    if ending:
                        mlflow_run.end(str(self._status))
                wait = LOOK_SECONDS
            except Exception as error:
                mlflow_run = None
                # A message of an unknown error may hold anything; its kind does not.
                self._tell(type(error).__name__)
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
                if ending and time.monotonic() + LOOK_SECONDS < self._deadline:
                    time.sleep(LOOK_SECONDS / 2)
                    continue
            if ending:
                return

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._note(
                f"MLflow: tracking.mlflow_uri cannot be written to ({reason}); training goes "
                "on, and what is missing there is sent when it can be"
            )


class MlflowRun:
    """A run as MLflow's server has it."""

    def __init__(self, client: Any, identifier: str) -> None:
        self._client, self._id = client, identifier
        self._sent: dict[str, int] = {}
        """Last step that the server has, of the figures that were asked for."""

    @classmethod
    def of(cls, config: ExperimentConfig, run: RunDirectory) -> MlflowRun:
        """The MLflow run of a run directory, begun where there is none; raises what MLflow raises."""
        client = connect(str(config.tracking.mlflow_uri))
        found = cls._known(client, run)
        if found is None:
            experiment = _experiment(client, config.tracking.mlflow_experiment)
            found = client.create_run(experiment, run_name=run.name).info.run_id
            run.folder.write(MLFLOW_FILE, json.dumps({"run_id": found}).encode())
            numbers = sorted(config_numbers(config).items())
            for begin in range(0, len(numbers), 100):
                client.log_batch(found, params=[_param(*item) for item in numbers[begin : begin + 100]])
        else:
            client.update_run(found, status="RUNNING")
        return cls(client, found)

    @staticmethod
    def _known(client: Any, run: RunDirectory) -> str | None:
        from mlflow.exceptions import MlflowException

        if not run.folder.exists(MLFLOW_FILE):
            return None
        identifier = str(json.loads(run.folder.read(MLFLOW_FILE))["run_id"])
        try:
            client.get_run(identifier)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return identifier

    def send(self, lines: list[dict[str, Any]]) -> None:
        """Send the figures of lines that the server does not have yet."""
        from mlflow.entities import Metric

        now, metrics, upto = int(time.time() * 1000), [], dict(self._sent)
        for line in lines:
            step = int(line["step"])
            for name, value in line.items():
                if name not in _FIGURES or isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                if name not in upto:
                    upto[name] = self._last_step(name)
                if step > upto[name]:
                    metrics.append(Metric(name, float(value), now, step))
                    upto[name] = step
        for begin in range(0, len(metrics), _AT_A_TIME):
            self._client.log_batch(self._id, metrics=metrics[begin : begin + _AT_A_TIME])
        self._sent = upto

    def end(self, status: str) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._id, status)

    def _last_step(self, name: str) -> int:
        return max((one.step for one in self._client.get_metric_history(self._id, name)), default=-1)


_FIGURES: Final = frozenset(figure.name for figure in RUN) - {"step"}


def config_numbers(config: ExperimentConfig) -> Mapping[str, float]:
    """The numbers of a configuration by their dotted keys; no text, and no yes or no."""
    return {
        key: value
        for key, value in flatten(config.model_dump())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def connect(place: str) -> Any:
    """A client of the MLflow at a place of the configuration."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        address = place if "://" in place else Path(place).absolute().as_uri()
        return MlflowClient(tracking_uri=address)


def _experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def _param(key: str, value: float) -> Any:
    from mlflow.entities import Param

    return Param(key, str(value))
