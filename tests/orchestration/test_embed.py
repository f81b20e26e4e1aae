"""Vectors of a dataset in one file: the model's own, row by row, bounded in memory, refused where unclear."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_runs import WITHOUT_REPORT, config_of, finished_run, pairs, rewritten

import mpma
from mpma.data.dataset import Dataset
from mpma.data.pairs import model_text
from mpma.data.rows import encoded_images
from mpma.data.storage import open_storage
from mpma.embedding import KINDS, embed_batch
from mpma.errors import UserError
from mpma.exporting.export import export_run
from mpma.training.run_directory import RunDirectory
from orchestration import embed as program
from orchestration import embedding, embedding_parts
from orchestration.command import run as run_program


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pairs(tmp_path_factory.mktemp("embed") / "data")


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("embed-runs"), dataset)


class Terminal:
    """Runs the program in this process, as from a terminal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def embed(self, *arguments: str) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)."""
        self._monkeypatch.setattr(sys, "argv", ["embed", *arguments])
        self._monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(SystemExit) as ended:
            run_program(program.app)
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def _expected(trained: RunDirectory, dataset: Dataset, split: str) -> tuple[pa.Table, dict[str, Any]]:
    table = dataset.read_rows(split, np.arange(dataset.rows(split)))
    columns = (table[name].to_pylist() for name in ("report", "findings", "impression"))
    texts = [model_text(*text) for text in zip(*columns, strict=True)]
    return table, embed_batch(mpma.load(trained.folder.root), encoded_images(table), texts)


def test_every_pair_has_its_own_vectors_and_those_without_report_have_none(
    ray_local: None,
    terminal: Terminal,
    trained: RunDirectory,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "vectors.parquet"
    code, said, error = terminal.embed("--run", trained.folder.root, "--out", str(out), "--no-dashboard")
    assert (code, error) == (0, "")
    assert "70 pairs" in said
    table = pq.read_table(out)
    assert table.column_names == ["pair_id", "split", "patient_id", *KINDS]
    assert table["split"].to_pylist() == ["train"] * 40 + ["val"] * 20 + ["test"] * 10
    start = 0
    for split in ("train", "val", "test"):
        source, vectors = _expected(trained, dataset, split)
        part = table.slice(start, len(source))
        start += len(source)
        for name in ("pair_id", "patient_id"):
            assert part[name].to_pylist() == source[name].to_pylist()
        for kind in KINDS:
            column = part[kind].combine_chunks()
            assert column.type.list_size == vectors[kind].shape[1]
            empty = np.arange(len(source)) % WITHOUT_REPORT == 0
            absent = empty if kind in ("text", "fused") else np.zeros_like(empty)
            assert np.array_equal(column.is_null().to_numpy(zero_copy_only=False), absent)
            found = np.array([value for value in column.to_pylist() if value is not None], np.float32)
            np.testing.assert_allclose(found, vectors[kind][~absent], atol=1e-5)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.parquet"]


def test_the_file_says_what_made_it(
    ray_local: None, terminal: Terminal, trained: RunDirectory, dataset: Dataset, tmp_path: Path
) -> None:
    export_run(trained, open_storage(tmp_path / "export"))
    out = tmp_path / "vectors.parquet"
    arguments = ("--model", str(tmp_path / "export"), "--data", dataset.path, "--out", str(out))
    code, _, error = terminal.embed(*arguments, "--split", "val", "--what", "image, text", "--no-dashboard")
    assert (code, error) == (0, "")
    schema = pq.read_schema(out)
    assert schema.names == ["pair_id", "split", "patient_id", "image", "text"]
    told = json.loads(schema.metadata[b"mpma"])
    assert told["weights"] == mpma.load(trained.folder.root).weights_hash
    assert told["data"] == dataset.fingerprint
    assert told["widths"] == {"image": 16, "text": 16}
    assert told["rows"] == {"val": 20}
    assert os.fspath(tmp_path) not in json.dumps(told)
    code, _, error = terminal.embed(*arguments)
    assert code == 2
    assert "exists already" in error
    before = out.read_bytes()
    again = (*arguments, "--split", "val", "--what", "image,text", "--no-dashboard", "--overwrite")
    assert terminal.embed(*again)[0] == 0
    assert out.read_bytes() == before


# --- parts, without Ray ----------------------------------------------------------------------------


def _plan(trained: RunDirectory, dataset: Dataset, folder: Path, **changes: Any) -> embedding_parts.EmbedPlan:
    settings: dict[str, Any] = {
        "model": trained.folder.root,
        "step": 20,
        "weights": mpma.load(trained.folder.root).weights_hash,
        "data": dataset.path,
        "fingerprint": dataset.fingerprint,
        "kinds": ("image", "text"),
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 8,
        "threads": 1,
        "parts": str(folder),
    }
    return embedding_parts.EmbedPlan(**(settings | changes))


def test_parts_cover_every_row_once_in_order(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (1, 7, 20, 64):
        monkeypatch.setattr(embedding_parts, "PART_ROWS", rows)
        parts = embedding_parts.parts_of(dataset, ("train", "val", "test"))
        for split in ("train", "val", "test"):
            covered = [row for part in parts if part.split == split for row in range(part.first, part.last)]
            assert covered == list(range(dataset.rows(split)))
        assert max(part.last - part.first for part in parts) <= rows


def test_a_part_holds_the_same_rows_whatever_the_batch_and_the_threads(
    trained: RunDirectory, dataset: Dataset, tmp_path: Path
) -> None:
    part = embedding_parts.Part("val", 3, 17)
    found = []
    for number, changes in enumerate(({}, {"batch_size": 5}, {"threads": 2})):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = _plan(trained, dataset, folder, **changes)
        assert embedding_parts.make_part(plan, part) == 14
        found.append(pq.read_table(folder / part.name(plan)))
    expected = dataset.read_rows("val", np.arange(3, 17), ["pair_id"])["pair_id"].to_pylist()
    for table in found:
        assert table["pair_id"].to_pylist() == expected
        images = np.array(table["image"].to_pylist())
        np.testing.assert_allclose(images, np.array(found[0]["image"].to_pylist()), atol=1e-6)
        assert table["text"].null_count == found[0]["text"].null_count == 3
    assert found[2].equals(found[0])


def test_weights_or_pairs_that_changed_meanwhile_are_refused(
    trained: RunDirectory, dataset: Dataset, tmp_path: Path
) -> None:
    part = embedding_parts.Part("val", 0, 4)
    with pytest.raises(UserError, match="its weights changed"):
        embedding_parts.make_part(_plan(trained, dataset, tmp_path, weights="0" * 16), part)
    with pytest.raises(UserError, match="its pairs changed"):
        embedding_parts.make_part(_plan(trained, dataset, tmp_path, fingerprint="0" * 32), part)
    assert not list(tmp_path.iterdir())


def test_what_decides_a_part_changes_its_name(
    trained: RunDirectory, dataset: Dataset, tmp_path: Path
) -> None:
    part = embedding_parts.Part("val", 0, 4)
    base = part.name(_plan(trained, dataset, tmp_path))
    for changes in (
        {"weights": "0" * 16},
        {"fingerprint": "0" * 32},
        {"kinds": ("image",)},
        {"precision": "bf16"},
        {"batch_size": 4},
    ):
        assert part.name(_plan(trained, dataset, tmp_path, **changes)) != base
    assert part.name(_plan(trained, dataset, tmp_path, threads=2)) == base


def test_an_interrupted_embedding_goes_on_from_its_parts(
    ray_local: None,
    terminal: Terminal,
    trained: RunDirectory,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "vectors.parquet"
    arguments = ("--run", trained.folder.root, "--out", str(out), "--no-dashboard")
    arguments = (*arguments, "--split", "train", "--split", "val", "--what", "image")
    join = embedding._join

    def stopped(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedding, "_join", stopped)
    assert terminal.embed(*arguments)[0] == 130
    kept = sorted((tmp_path / "vectors.parquet.parts").glob("*.parquet"))
    assert len(kept) == 2
    assert not out.exists()
    kept[0].unlink()
    (kept[0].parent / "0123456789ab-train-0000000000.parquet").write_bytes(b"of another embedding")
    monkeypatch.setattr(embedding, "_join", join)
    code, said, _ = terminal.embed(*arguments)
    assert code == 0
    assert "1 of 2 parts are there already" in said
    assert pq.read_table(out)["pair_id"].to_pylist() == [
        name
        for split in ("train", "val")
        for name in dataset.read_rows(split, np.arange(dataset.rows(split)), ["pair_id"])[
            "pair_id"
        ].to_pylist()
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.parquet"]


# --- what a person meets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either --run or --model"),
        (["--run", "RUN", "--model", "x"], "give either --run or --model"),
        (["--run", "RUN"], "--out is missing"),
        (["--run", "RUN", "--out", "x.csv"], "a file that ends in .parquet is expected"),
        (["--run", "RUN", "--out", "x.parquet", "--what", "image,txt"], "--what image,txt: unknown vectors"),
        (["--run", "RUN", "--out", "x.parquet", "--what", ","], "unknown vectors"),
        (["--run", "RUN", "--out", "x.parquet", "--split", "dev"], "--split dev: unknown"),
        (["--run", "RUN", "--out", "x.parquet", "--precision", "fp16"], "--precision fp16: unknown"),
        (["--run", "RUN", "--out", "x.parquet", "--device", "tpu"], "--device tpu: unknown"),
        (["--run", "nowhere", "--out", "x.parquet"], "no run there"),
        (["--model", "nowhere", "--out", "x.parquet"], "--data is missing"),
        (["--model", "nowhere", "--data", "DATA", "--out", "x.parquet"], "no run there"),
        (["--run", "RUN", "--data", "nowhere", "--out", "x.parquet"], "no dataset there"),
    ],
)
def test_a_mistake_is_one_line_with_code_2(
    terminal: Terminal,
    trained: RunDirectory,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": trained.folder.root, "DATA": dataset.path}
    code, _, error = terminal.embed(*(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert words in error
    assert len(error.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_check_says_what_would_be_done_and_writes_nothing(
    terminal: Terminal, trained: RunDirectory, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "vectors.parquet"
    code, said, _ = terminal.embed(
        "--run", trained.folder.root, "--out", str(out), "--split", "val", "--check"
    )
    assert code == 0
    assert f"data: {dataset.fingerprint}, pairs: val 20" in said
    assert "check: all is well" in said
    assert not list(tmp_path.iterdir())


def test_data_that_were_replaced_since_the_training_are_refused_unless_named(
    terminal: Terminal, dataset: Dataset, tmp_path: Path
) -> None:
    run = finished_run(tmp_path, dataset)
    other = pairs(tmp_path / "other", train=20, seed=3)
    rewritten(run, config_of(other))
    out = ("--out", str(tmp_path / "vectors.parquet"), "--check")
    code, _, error = terminal.embed("--run", run.folder.root, *out)
    assert code == 2
    assert "is not what small was trained on any more" in error
    code, said, _ = terminal.embed("--run", run.folder.root, "--data", other.path, *out)
    assert code == 0
    assert other.fingerprint in said


def test_vectors_that_no_loss_trained_are_said_to_be_of_no_use(
    terminal: Terminal, dataset: Dataset, tmp_path: Path
) -> None:
    run = finished_run(tmp_path, dataset, loss_weights={"global_alignment": 0.0})
    out = ("--out", str(tmp_path / "vectors.parquet"), "--check")
    _, said, _ = terminal.embed("--run", run.folder.root, "--what", "image_mean,text", *out)
    assert "text: of no use, loss_weights.global_alignment is 0" in said
    assert "image: of no use" not in said
