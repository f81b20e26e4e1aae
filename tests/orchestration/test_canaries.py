"""A hundred canaries go through every program, and are found nowhere but in the columns meant for them."""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from canaries import CANARIES, forms, found_below, open_to_others
from canary_programs import Programs
from canary_trees import QUARANTINE, TEXT_COLUMNS, Tree, dicom_tree, manifest_tree
from small_runs import recipe

from mpma.data.dataset import Dataset
from mpma.data.ingest_plan import IngestOptions
from mpma.data.sources import build_source
from orchestration import defects, ingest_command
from orchestration.command import run
from orchestration.ingesting import carry_out, prepare

TREES: dict[str, Callable[[Path], Tree]] = {"manifest": manifest_tree, "dicom": dicom_tree}


# --- without Ray ----------------------------------------------------------------------------------


@pytest.fixture(params=sorted(TREES))
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return TREES[request.param](tmp_path / "archive")


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no Ray were running, whatever other tests have started."""
    if "ray" in sys.modules:
        monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)


@pytest.fixture
def hooks() -> Iterator[None]:
    before = sys.excepthook, sys.unraisablehook
    umask = os.umask(0o077)
    yield
    sys.excepthook, sys.unraisablehook = before
    os.umask(umask)


def ingested(tree: Tree, out: Path) -> None:
    """As the program does it, without its Ray."""
    source = build_source(tree.source, tree.root)
    print(*source.assumptions(), sep="\n")
    with ingest_command.ProgressWatcher(ingest_command.Console(stderr=True)) as watcher:
        result = carry_out(prepare(source, str(out), key=bytes(32), watcher=watcher), watcher)
    summary = ingest_command.summary(result, str(out))
    ingest_command._show(summary, False, "Dataset")
    print(json.dumps(summary))


@pytest.mark.usefixtures("without_ray", "hooks")
def test_an_ingest_tells_of_nobody_and_keeps_canaries_in_the_columns_meant_for_them(tree, tmp_path, capsys):
    out = tmp_path / "out"
    ingested(tree, out)
    said = capsys.readouterr()
    assert forms(said.out.encode()) | forms(said.err.encode()) == set()
    assert found_below(out, tree.allowed) == set()
    assert open_to_others(out) == []
    # The search is not blind, and nothing that was planted has been lost.
    info = Dataset.open(out).info
    assert sum(split.pairs for split in info.splits.values()) == tree.pairs
    assert tree.reasons <= info.quarantine.reasons.keys()
    there = found_below(out)
    assert {place.partition("!")[2] for place in there if place.startswith("train/")} >= {
        "report (text)",
        "findings (text)",
        "impression (text)",
    }
    assert "quarantine.parquet!path (text)" in there


@pytest.mark.usefixtures("without_ray", "hooks")
def test_hashed_ids_of_a_table_are_left_to_the_quarantine_alone(tmp_path):
    tree = manifest_tree(tmp_path / "archive")
    options = IngestOptions(hash_pair_ids=True)
    source = build_source(tree.source, tree.root)
    carry_out(prepare(source, str(tmp_path / "out"), key=bytes(32), options=options))
    assert found_below(tmp_path / "out", (*TEXT_COLUMNS, *QUARANTINE)) == set()


@pytest.mark.usefixtures("without_ray", "hooks")
def test_no_piece_of_a_canary_is_in_the_vocabulary(tree, tmp_path):
    out = tmp_path / "out"
    ingested(tree, out)
    vocabulary = json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    pieces = {entry.removeprefix("##") for entry in vocabulary}
    told = {piece for piece in pieces if len(piece) > 2 and any(piece in canary for canary in CANARIES)}
    assert told == set()
    assert "effusion" not in vocabulary
    assert "lungs" in vocabulary


@pytest.mark.usefixtures("without_ray", "hooks")
def test_a_defect_that_quotes_a_whole_row_tells_of_nobody_and_a_leak_would_be_found(
    tmp_path, capsys, monkeypatch
):
    tree = manifest_tree(tmp_path / "archive")

    def broken(item: Any, *_: Any) -> None:
        raise KeyError(repr(item))

    monkeypatch.setattr("mpma.data.pair_rows.make_row", broken)

    def said() -> str:
        with pytest.raises(SystemExit) as ended:
            run(lambda: ingested(tree, tmp_path / "out"))
        assert ended.value.code == 1
        return capsys.readouterr().err

    told = said()
    assert "KeyError at " in told
    assert forms(told.encode()) == set()
    monkeypatch.setattr(defects, "told", repr)
    assert forms(said().encode()) == {"text"}


# --- every program --------------------------------------------------------------------------------

SETTINGS = {
    "tasks": ["classification", "retrieval", "report_generation"],
    "seeds": 1,
    "resamples": 100,
    "classification": {"label_fractions": [1.0], "fine_tune_fractions": []},
    "report_generation": {
        "test_patients": 4,
        "max_tokens": 8,
        "beams": 2,
        "fit": {"steps": 2, "batch_size": 8, "augment": False},
    },
}

ALLOWED = {
    "data/manifest": (
        *(f"*.parquet!{name}" for name in ("report", "findings", "impression", "pair_id")),
        "quarantine.parquet!path",
    ),
    "data/dicom": (
        *(f"*/*.parquet!{name}" for name in ("report", "findings", "impression")),
        "quarantine.parquet!path",
        "quarantine.parquet!pair_id",
    ),
}
"""Columns of the datasets that are meant for text and ids: those of a hospital's are hashed."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_canary_is_found_in_anything_that_the_programs_write_say_or_serve(tmp_path):
    trees = {name: make(tmp_path / "archives" / name) for name, make in TREES.items()}
    work, home = tmp_path / "work", tmp_path / "home"
    for folder in (work, home):
        folder.mkdir(mode=0o700)
    small = recipe(steps=4, checkpoint_every_steps=4)
    small["pictures"] = {"enabled": True}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        do = Programs(work, home, Path(temporary), tmp_path / "hooks")
        for name, tree in trees.items():
            do("ingest", tree.source, str(tree.root), "--out", f"data/{name}")
        run_it = ("--data", "data/dicom", "--config", str(tmp_path / "small.yaml"))
        again = ("dicom", str(trees["dicom"].root), "--out", "data/broken")
        do("ingest", *again, crash="mpma.data.pair_rows:make_row")
        do("pretrain", *run_it, "--name", "one", serves=True)
        do("pretrain", *run_it, "--name", "broken", crash="mpma.data.batches:Collator.collate")
        judged = ("--run", "runs/one", "--config", str(tmp_path / "settings.yaml"))
        do("evaluate", *judged, serves=True)
        once = (*judged, "--name", "broken", "--task", "retrieval")
        do("evaluate", *once, crash="mpma.data.pairs:model_text")
        do("embed", "--run", "runs/one", "--out", "embeddings.parquet", serves=True)
        # What Ray tells of a task that failed is asked for while the program hesitates to end.
        late = {"crash": "mpma.data.pairs:model_text", "linger": "orchestration.embedding:_failure"}
        do("embed", "--run", "runs/one", "--out", "broken.parquet", serves=True, **late)
        assert do.failed_tasks_were_served()
        do("export", "--run", "runs/one", "--out", "exported")
        assert do.leaks_in_what_was_said() == set()
        assert do.leaks_in_what_was_served() == set()
        assert do.was_served() >= do.MUST_ANSWER
        sessions = Path(temporary, f"mpma-{os.getuid()}")
        assert list(sessions.rglob("worker-*.err"))
        assert found_below(Path(temporary)) == set()
        assert found_below(home) == set()
        # Ray opens folders of its own to everybody: that of this user around them is closed.
        assert stat.S_IMODE(sessions.stat().st_mode) == 0o700
        # While an ingest is unfinished its parts remember what they refused.
        unfinished = ("data/broken/*/*.json",)
        allowed = tuple(f"{place}/{column}" for place, columns in ALLOWED.items() for column in columns)
        assert found_below(work, (*allowed, *unfinished)) == set()
        assert open_to_others(work) == []
        assert open_to_others(home) == []
    for program in ("ingest", "pretrain", "evaluate", "embed"):
        assert "KeyError at " in do.said_at_a_crash_of(program)
