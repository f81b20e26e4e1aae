"""A run's figures in MLflow: all of them, once, and never at the cost of training."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpma.config import ExperimentConfig, load_config
from mpma.data.remote import OfflineError
from mpma.errors import UserError
from mpma.training.metrics_log import MetricsLog
from mpma.training.run_directory import RunDirectory
from orchestration import tracking

pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at often, so that no test waits."""
    monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.05)


def config_for(uri: str) -> ExperimentConfig:
    return load_config(
        None, [f"tracking.mlflow_uri={uri}", "training.steps=40", "data.path=/secret/place"]
    ).config


def run_of(tmp_path: Path) -> RunDirectory:
    run = RunDirectory.at(tmp_path / "runs", "first")
    run.folder.make_directory()
    return run


def write(run: RunDirectory, continue_from: int, steps: range) -> None:
    """Lines of training, every other step with a validation."""
    log = MetricsLog(run.folder, continue_from, tensorboard=False)
    for step in steps:
        log.write({"step": step, "loss/total": 100.0 - step, "batch_digest": 123456, "gradient_norm": None})
        if step % 2 == 0:
            log.write({"step": step, "val/retrieval/mean_recall": step / 100})
    log.close()


def follow(config: ExperimentConfig, run: RunDirectory, work: Callable[[], None]) -> list[str]:
    """What was said while some work was followed."""
    said: list[str] = []
    with tracking.following(config, run, said.append):
        work()
    return said


def history(uri: str, run: RunDirectory, name: str) -> list[tuple[int, float]]:
    identifier = json.loads(run.folder.read(tracking.MLFLOW_FILE))["run_id"]
    return [(one.step, one.value) for one in tracking.connect(uri).get_metric_history(identifier, name)]


# A database makes its tables first, which takes seconds each time.
@pytest.fixture(params=["folder", pytest.param("database", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "mlruns") if request.param == "folder" else f"sqlite:///{tmp_path}/mlflow.db"


def test_a_run_that_is_continued_goes_on_in_the_same_mlflow_run_without_a_step_twice(
    uri: str, tmp_path: Path
) -> None:
    config, run = config_for(uri), run_of(tmp_path)
    assert follow(config, run, lambda: write(run, 0, range(1, 13))) == []
    before = run.folder.read(tracking.MLFLOW_FILE)
    # It was killed after step 12, and goes on from the checkpoint of step 8.
    assert follow(config, run, lambda: write(run, 8, range(9, 21))) == []
    assert run.folder.read(tracking.MLFLOW_FILE) == before
    assert history(uri, run, "loss/total") == [(step, 100.0 - step) for step in range(1, 21)]
    assert history(uri, run, "val/retrieval/mean_recall") == [(step, step / 100) for step in range(2, 21, 2)]
    assert len(tracking.connect(uri).search_runs([_experiment_of(uri, "mpma")])) == 1


def _experiment_of(uri: str, name: str) -> str:
    return str(tracking.connect(uri).get_experiment_by_name(name).experiment_id)


def test_only_figures_and_the_configurations_numbers_are_sent(uri: str, tmp_path: Path) -> None:
    config, run = config_for(uri), run_of(tmp_path)
    follow(config, run, lambda: write(run, 0, range(1, 5)))
    found = tracking.connect(uri).search_runs([_experiment_of(uri, "mpma")])[0]
    assert set(found.data.metrics) == {"loss/total", "val/retrieval/mean_recall"}
    assert found.data.params["training.steps"] == "40"
    assert all(float(value) is not None for value in found.data.params.values())
    assert "data.path" not in found.data.params
    assert found.data.tags == {"mlflow.runName": "first"}
    assert found.info.run_name == "first"
    assert found.info.user_id in ("", "unknown")
    everything = json.dumps([found.data.params, found.data.tags, found.data.metrics])
    assert "/secret/place" not in everything
    assert str(tmp_path) not in everything
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("ml*/**/*") if file.is_file())
    stored += b"".join(file.read_bytes() for file in tmp_path.glob("*.db"))
    assert b"0.04" in stored or b"mean_recall" in stored
    for text in ("/secret/place", str(tmp_path / "runs"), "batch_digest"):
        assert text.encode() not in stored, text


def test_how_the_run_ended_stands_there(uri: str, tmp_path: Path) -> None:
    config, run = config_for(uri), run_of(tmp_path)

    def status() -> str:
        return str(tracking.connect(uri).search_runs([_experiment_of(uri, "mpma")])[0].info.status)

    follow(config, run, lambda: write(run, 0, range(1, 5)))
    assert status() == "KILLED"
    with pytest.raises(ZeroDivisionError):
        follow(config, run, lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    assert status() == "FAILED"
    follow(config, run, lambda: run.mark_finished(40, {}))
    assert status() == "FINISHED"


@pytest.fixture(params=["nobody listens", "never an answer"])
def away(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server that is not there, or takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "never an answer":
            listener.listen(8)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_server_that_does_not_answer_is_said_once_and_holds_nothing_up(
    away: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CLOSING_SECONDS", 1.0)
    config, run = config_for(away), run_of(tmp_path)
    times: list[float] = []

    def work() -> None:
        log = MetricsLog(run.folder, 0, tensorboard=False)
        for step in range(1, 41):
            begun = time.perf_counter()
            log.write({"step": step, "loss/total": 1.0})
            times.append(time.perf_counter() - begun)
            time.sleep(0.01)
        log.close()

    begun = time.monotonic()
    said = follow(config, run, work)
    assert time.monotonic() - begun < 10
    assert len(said) == 1
    assert said[0].startswith("MLflow: tracking.mlflow_uri cannot be written to")
    assert max(times) < 0.5


def test_what_could_not_be_sent_is_sent_once_the_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "mlruns")
    config, run = config_for(uri), run_of(tmp_path)
    whole, failures = tracking.connect, iter([True, False, True])
    sent = threading.Event()

    class Shaky:
        """A client whose first batch of figures arrives although the answer is lost."""

        lost = False

        def __init__(self) -> None:
            self._client = whole(uri)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

        def log_batch(self, identifier: str, **content: Any) -> None:
            self._client.log_batch(identifier, **content)
            if "metrics" in content and not Shaky.lost:
                Shaky.lost = True
                raise ConnectionError("the answer was lost")
            if "metrics" in content:
                sent.set()

    def connect(place: str) -> Any:
        if next(failures, False):
            raise ConnectionError("not yet")
        return Shaky()

    monkeypatch.setattr(tracking, "connect", connect)
    monkeypatch.setattr(tracking, "LONGEST_WAIT_SECONDS", 0.1)

    def work() -> None:
        write(run, 0, range(1, 7))
        end = time.monotonic() + 60
        while not Shaky.lost and time.monotonic() < end:
            time.sleep(0.02)
        write(run, 6, range(7, 10))
        assert sent.wait(60)

    said = follow(config, run, work)
    assert len(said) == 1
    monkeypatch.setattr(tracking, "connect", whole)
    assert history(uri, run, "loss/total") == [(step, 100.0 - step) for step in range(1, 10)]


def test_mlflow_sends_nothing_about_its_use(tmp_path: Path) -> None:
    tracking.connect(f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_without_an_address_mlflow_is_not_even_imported(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    follow(load_config().config, run, lambda: write(run, 0, range(1, 3)))
    assert not run.folder.exists(tracking.MLFLOW_FILE)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("ftp://host/x", "an http or https address, sqlite:///FILE or a folder"),
        ("databricks://profile", "an http or https address"),
        ("https://me:secret@host", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_a_place_that_mlflow_may_not_have_is_refused_by_its_key(place: str, words: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.mlflow_uri") as caught:
        config_for(place)
    assert words in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("place", ["http://127.0.0.1:5000", "https://host"])
def test_offline_refuses_an_address(place: str) -> None:
    with pytest.raises(OfflineError, match="--offline"):
        tracking.refuse_addresses(config_for(place).tracking)


@pytest.mark.parametrize("place", ["mlruns", "file:///data/mlruns", "sqlite:///mlflow.db"])
def test_offline_lets_files_through(place: str) -> None:
    tracking.refuse_addresses(config_for(place).tracking)


def test_a_missing_package_is_a_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tracking\.mlflow_uri") as caught:
        tracking.require(config_for("mlruns").tracking)
    assert "pip install mlflow-skinny" in (caught.value.hint or "")
    tracking.require(load_config().config.tracking)
