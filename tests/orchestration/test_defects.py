"""What an unexpected exception may say: its kind and places, wherever it is met, and never a value."""

from __future__ import annotations

import logging
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mpma.data.hashing import PUBLIC_KEY
from mpma.data.ingest_plan import IngestOptions, PartPlan
from mpma.data.pair_rows import PartMaker
from mpma.data.storage import open_storage
from mpma.errors import JobError, UserError
from orchestration import defects, ingesting, reading
from orchestration.command import run
from orchestration.defects import Defect, told, without_values

SECRET = "Zuckerkandl^Emil 48151623"


def breaks(*_: Any) -> None:
    try:
        pa.array([SECRET]).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise KeyError(SECRET) from error


def test_the_messages_that_are_held_back_do_quote_what_was_read():
    with pytest.raises(KeyError, match=r"Zuckerkandl\^Emil") as caught:
        breaks()
    assert SECRET in str(caught.value.__cause__)


def mistakes(*_: Any) -> None:
    try:
        breaks()
    except KeyError as error:
        raise UserError("columns.report: no such column", "name another") from error


@pytest.fixture
def shipped(ray_local: None) -> Any:
    """Ray, to whose workers this module's functions and classes go by value."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def hooks() -> Any:
    """The interpreter's hooks and limits as they were."""
    before = sys.excepthook, threading.excepthook, sys.unraisablehook, logging.lastResort
    limit, umask = resource.getrlimit(resource.RLIMIT_CORE), os.umask(0o022)
    yield
    resource.setrlimit(resource.RLIMIT_CORE, limit)
    os.umask(umask)
    sys.excepthook, threading.excepthook, sys.unraisablehook, logging.lastResort = before


@pytest.mark.usefixtures("hooks")
def test_a_defect_in_a_program_is_one_line_with_kind_and_place(capsys):
    with pytest.raises(SystemExit) as ended:
        run(breaks)
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("error: a defect of this software: KeyError at ")
    assert f"{Path(__file__).name}:" in said
    assert "orchestration/command.py:" in said
    assert len(said.splitlines()) == 1
    assert not any(part in said for part in SECRET.split())


@pytest.mark.usefixtures("hooks")
def test_a_program_writes_for_its_user_alone_and_leaves_no_core_dump(tmp_path):
    found = []

    def main() -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("")
        found.append(resource.getrlimit(resource.RLIMIT_CORE)[0])

    run(main)
    assert found == [0]
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == 0o600


@pytest.mark.usefixtures("hooks")
def test_a_defect_in_a_thread_is_one_line(capsys):
    defects.hook_program()
    thread = threading.Thread(target=breaks)
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert "KeyError" in said
    assert len(said.splitlines()) == 1
    assert SECRET not in said


def test_what_nobody_catches_in_a_program_shows_no_value():
    code = (
        "import sys, typer; from orchestration import defects; defects.hook_program();"
        f"secret = '{SECRET}'; assert secret.upper() == secret, secret"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: a defect of this software: AssertionError at <string>:1\n"


def test_a_task_function_tells_kind_and_places_and_keeps_nothing_of_the_exception():
    with pytest.raises(Defect) as caught:
        without_values(breaks)()
    error = caught.value
    assert str(error).startswith(f"KeyError at {Path(__file__).name}:")
    assert error.__cause__ is None
    assert error.__context__ is None
    assert told(error) == str(error)


def test_a_mistake_of_the_user_passes_a_task_without_what_it_was_made_of():
    with pytest.raises(UserError) as caught:
        without_values(mistakes)()
    assert (caught.value.message, caught.value.hint) == ("columns.report: no such column", "name another")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.usefixtures("shipped")
def test_what_ray_keeps_and_sends_of_a_task_shows_no_value():
    import ray

    for function, kind in ((breaks, Defect), (mistakes, UserError)):
        with pytest.raises(ray.exceptions.RayTaskError) as caught:
            ray.get(ray.remote(max_retries=0)(without_values(function)).remote())
        assert isinstance(caught.value.cause, kind)
        assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.cause!r}"
    assert "KeyError at" in told(WrappedError(Defect("KeyError at x.py:1")))


class WrappedError(Exception):
    """As Ray Train tells the failures of its workers."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("a worker failed")
        self.worker_failures = {0: inner}


@pytest.mark.usefixtures("shipped")
def test_a_defect_while_a_part_is_made_comes_back_as_one_line(tmp_path):
    from mpma.data.sources import build_source

    source = build_source("phantom", None, ["train_pairs=64", "val_pairs=64", "test_pairs=0", "size=64"])
    plan = ingesting.prepare(source, str(tmp_path / "out"), key=PUBLIC_KEY).plan
    maker = PartMaker(Broken(), IngestOptions(), open_storage(tmp_path))
    part = PartPlan("train/00000", "train", 64, plan.parts[0].packed)
    (tmp_path / "train").mkdir()
    with pytest.raises(JobError) as caught:
        list(ingesting._on_ray([part], maker))
    assert caught.value.message.startswith("a defect of this software: ZeroDivisionError at ")
    assert "mpma/data/pair_rows.py:" in caught.value.message
    assert SECRET not in str(caught.value.__cause__)


class Broken:
    """A source with a defect that quotes what it reads."""

    name = "broken"
    reports_expected = True

    def extra_schema(self) -> pa.Schema:
        return pa.schema([])

    def load_image(self, item: Any) -> bytes:
        raise ZeroDivisionError(f"{SECRET} {item.report}")


def test_a_defect_in_a_read_task_is_an_answer_and_no_exception():
    block = reading.read_or_say_why(pa.table({"piece": [SECRET]}), source=None)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="a defect of this software: KeyError at ") as caught:
        reading.raise_failure(block)
    assert "orchestration/reading.py:" in caught.value.message


def test_an_error_of_the_system_keeps_its_words_and_loses_its_file():
    with pytest.raises(FileNotFoundError) as caught:
        Path(f"/nowhere/{SECRET}").read_bytes()
    assert told(caught.value).startswith("FileNotFoundError (No such file or directory) at ")
    assert SECRET not in told(caught.value)


def test_libraries_that_read_records_warn_and_log_without_quoting():
    code = f"""
import logging, warnings
from orchestration import defects
defects.hold_back_library_messages()
warnings.warn("Invalid value: {SECRET}")
warnings.warn_explicit("CUDA is too old", UserWarning, "/site-packages/torch/cuda.py", 7)
logging.getLogger("some.reader").warning("Invalid value: %s", "{SECRET}")
logging.getLogger("torch.distributed").warning("no network device")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "warning: UserWarning at <string>:5",
        "warning: UserWarning at cuda.py:7: CUDA is too old",
        "warning: some.reader at <string>:7",
        "warning: torch.distributed at <string>:8: no network device",
    ]
