"""Datasets that grow from the command line: adding, merging, mistakes, kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from grown_samples import (
    files,
    made_here,
    merged,
    old_dataset,
    rows,
    table,
)
from test_ingest import request

from mpma.data.dataset import Dataset
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.sources import build_source
from mpma.errors import UserError
from orchestration import ingest_command
from orchestration.ingesting import prepare
from orchestration.verify_command import verify

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return old_dataset(tmp_path_factory.mktemp("old") / "old")


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command works in this process."""
    from contextlib import nullcontext

    monkeypatch.setattr("orchestration.cluster.connected", lambda *_, **__: nullcontext())


# With the second key a patient fills the smallest split of `second`, and is in another one of `first`.
@pytest.mark.parametrize(("key", "refused"), [("11" * 32, set()), ("5a" * 32, {"b:48", "b:49"})])
@pytest.mark.usefixtures("no_cluster")
def test_the_command_adds_and_merges(tmp_path, capsys, key, refused):
    def run(source: str, *roots: Path, **changes: Any) -> dict[str, Any]:
        wanted = request(source, roots[0], changes.pop("out"), tmp_path / "key", **changes)
        names = tuple(map(str, roots))
        ingest_command.execute(ingest_command.Request(**{**vars(wanted), "roots": names}))
        return json.loads(capsys.readouterr().out)

    (tmp_path / "key").write_text(key)
    one, two = table(tmp_path / "one", range(60), "a"), table(tmp_path / "two", range(40, 90), "b")
    first = run("manifest", one, out=tmp_path / "first")
    checked = run("manifest", two, out=tmp_path / "both", onto=str(tmp_path / "first"), check=True)
    assert checked["kept"] == 110
    assert not (tmp_path / "both").exists()
    both = run("manifest", two, out=tmp_path / "both", onto=str(tmp_path / "first"))
    assert (first["kept"], both["kept"]) == (60, 110)
    assert both["pairs"] == checked["pairs"]
    assert [step["step"] for step in both["history"]] == ["ingest", "onto"]
    run("manifest", two, out=tmp_path / "second")
    joined = run("merge", tmp_path / "first", tmp_path / "second", out=tmp_path / "joined")
    of_both = rows(Dataset.open(tmp_path / "both")).keys()
    assert of_both - rows(Dataset.open(tmp_path / "joined")).keys() == refused
    assert rows(Dataset.open(tmp_path / "joined")).keys() <= of_both
    assert joined["quarantined"].get("patient_in_two_splits", 0) == len(refused)
    assert joined["candidates"] == 110
    ingest_command.execute(
        request(
            "manifest", two, tmp_path / "shown", tmp_path / "key", onto=str(tmp_path / "first"), as_json=False
        )
    )
    shown = capsys.readouterr()
    assert "onto: 60 pairs taken over, 50 listed in manifest; 0 refused in this step" in shown.out
    assert "number 7" not in shown.out + shown.err


@pytest.mark.usefixtures("no_cluster")
def test_open_i_is_added_to_real_pairs_and_the_result_verifies(tmp_path, data_root, capsys):
    def run(source: str, root: Path, out: str, **changes: Any) -> dict[str, Any]:
        wanted = request(source, root, tmp_path / out, tmp_path / "key", **changes)
        ingest_command.execute(wanted)
        return json.loads(capsys.readouterr().out)

    first = run("manifest", data_root / "pairs", "pairs")
    both = run("openi", data_root / "raw" / "openi", "both", onto=str(tmp_path / "pairs"))
    assert (first["kept"], both["kept"], both["candidates"]) == (307, 315, 386)
    assert both["quarantined"] == {"missing_image": 71}
    assert both["history"][-1]["quarantined"] == {"missing_image": 71}
    before, after = (rows(Dataset.open(tmp_path / name)) for name in ("pairs", "both"))
    for name, row in before.items():
        assert after[name] == row | dict.fromkeys(after[name].keys() - row.keys())
    checked = verify(str(tmp_path / "both"), cpus=1)
    assert checked.findings.in_order() == []
    assert checked.counted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "merge", "roots": ()}, "two datasets or more"),
        ({"source": "merge", "roots": ("nowhere", "b")}, "nowhere: no dataset there"),
        ({"source": "merge", "overrides": ["a=b"]}, "--set: merge takes"),
        ({"source": "merge", "onto": "a"}, "--onto: merge takes"),
        ({"root": "a", "roots": ("a", "b")}, "manifest takes one root and 2 are given"),
        ({"keep_tokenizer": True}, "--keep-tokenizer: there is none to keep"),
        ({"onto": "nowhere"}, "nowhere: no dataset there"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, changes, message):
    root = table(tmp_path / "one", range(4), "a")
    wanted = request("manifest", root, tmp_path / "made", tmp_path / "key")
    with pytest.raises(UserError, match=message) as caught:
        ingest_command.execute(ingest_command.Request(**{**vars(wanted), **changes}))
    assert "\n" not in caught.value.message
    assert not (tmp_path / "made").exists()


def test_adding_never_makes_a_key(old, tmp_path):
    root = table(tmp_path / "one", range(4), "a")
    wanted = request("manifest", root, tmp_path / "made", tmp_path / "key", onto=old.path)
    with pytest.raises(UserError, match="there is no patient key"):
        ingest_command.execute(wanted)
    assert not (tmp_path / "key").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_merge_that_was_killed_goes_on_to_the_same_files(tmp_path):
    """SIGKILL of the driver with one and three parts standing, then a run to the end."""
    members = []
    for seed in (0, 1):
        pairs = ["train_pairs=1100", "val_pairs=64", "test_pairs=0", "size=64", f"seed={seed}"]
        prepared = prepare(
            build_source("phantom", None, pairs), str(tmp_path / str(seed)), key=PUBLIC_KEY, synthetic=True
        )
        members.append(made_here(prepared))
    whole = merged(tmp_path / "whole", *members)
    out = tmp_path / "made"
    roots = [member.path for member in members]
    command = [sys.executable, "-m", "orchestration.ingest", "merge", *roots, "--out", str(out), "--json"]
    for parts in (1, 3):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        deadline = time.monotonic() + 200
        while len(list(out.glob("train/*.json"))) < parts and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert "Traceback" not in process.communicate(timeout=60)[1]
        assert process.returncode == -9
        with pytest.raises(UserError, match="not a finished dataset"):
            Dataset.open(out)
    subprocess.run(command, capture_output=True, check=True, timeout=250)
    made, expected = files(out), files(Path(whole.path))
    made.pop("quality.html")
    assert made == expected
