"""From an archive to a dataset: by Ray or without, whole or not at all, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from source_samples import write_openi

from mpma.data.config import PhantomConfig
from mpma.data.dataset import Dataset
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.images import encode_grey, read_grey
from mpma.data.ingest_plan import IngestOptions, PartPlan
from mpma.data.pair_rows import PartMaker
from mpma.data.pairs import SPLITS
from mpma.data.sources import SOURCES, build_source
from mpma.data.sources.contract import Source
from mpma.data.storage import open_storage
from mpma.errors import JobError, UserError
from orchestration import ingest_command, ingesting, phantom_data
from orchestration.ingesting import carry_out, prepare
from orchestration.phantom_data import ensure_phantom

SMALL_SHARDS = IngestOptions(pairs_per_shard=64)


def phantom(train: int = 200) -> Source:
    return build_source("phantom", None, [f"train_pairs={train}", "val_pairs=64", "test_pairs=3", "size=64"])


def make(source: Source, out: Path, options: IngestOptions = SMALL_SHARDS, **more: Any) -> Dataset:
    return carry_out(prepare(source, str(out), key=PUBLIC_KEY, options=options, **more)).dataset


def request(
    source: str, root: Path | None, out: Path | str, key: Path, **changes: Any
) -> ingest_command.Request:
    values: dict[str, Any] = {
        "source": source,
        "root": None if root is None else str(root),
        "out": str(out),
        "overrides": [],
        "row_filter": None,
        "split": "0.8/0.1/0.1",
        "split_seed": 0,
        "key_file": str(key),
        "short_side": 512,
        "image_format": "jpeg",
        "jpeg_quality": 95,
        "min_words": 1,
        "min_side": 64,
        "vocabulary_size": 30_000,
        "max_tokens": 128,
        "overwrite": False,
        "check": False,
        "as_json": True,
        "address": None,
        "cpus": None,
    }
    return ingest_command.Request(**(values | changes))


def run(capsys: pytest.CaptureFixture[str], *arguments: Any, **changes: Any) -> dict[str, Any]:
    ingest_command.execute(request(*arguments, **changes))
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("without_ray")
def test_phantom_pairs_become_a_dataset_with_masks_and_questions(tmp_path):
    dataset = make(phantom(), tmp_path / "made", synthetic=True)
    assert dataset.info.synthetic
    assert {split: dataset.rows(split) for split in SPLITS} == {"train": 200, "val": 64, "test": 3}
    assert [shard.rows for shard in dataset.shards("train")] == [64, 64, 64, 8]
    table = dataset.read_rows("train", range(200)).to_pylist()
    assert all(row["mask"] and row["finding_mask"] and row["questions"] for row in table)
    item = next(iter(phantom().items()))
    assert table[0]["pair_id"] == item.pair_id
    assert table[0]["image"] == phantom().load_image(item)
    assert set(dataset.label_names) == {
        label
        for split in SPLITS
        for row in dataset.read_rows(split, range(dataset.rows(split)), ["labels"]).to_pylist()
        for label in row["labels"]
    }
    dataset.verify()


def test_ray_and_this_process_make_the_same_dataset(tmp_path, ray_local, monkeypatch):
    on_ray = make(phantom(), tmp_path / "ray")
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    here = make(phantom(), tmp_path / "here")
    assert on_ray.info == here.info
    assert on_ray.read_rows("train", range(200)).equals(here.read_rows("train", range(200)))


def test_a_failure_inside_a_task_comes_back_as_one_line(tmp_path, ray_local):
    maker = PartMaker(phantom(), SMALL_SHARDS, open_storage(tmp_path))
    broken = PartPlan("no-such-folder/00000", "train", 0, ingest_packed())
    with pytest.raises(JobError, match=r"cannot write .*no-such-folder/00000") as caught:
        list(ingesting._on_ray([broken], maker))
    assert caught.value.hint


def ingest_packed() -> bytes:
    plan = prepare(phantom(64), "unused", key=PUBLIC_KEY).plan
    return plan.parts[0].packed


def test_openi_as_published_keeps_8_of_79_listed_images(tmp_path, data_root, ray_local, capsys):
    out = tmp_path / "openi"
    found = run(capsys, "openi", data_root / "raw" / "openi", out, tmp_path / "key")
    assert (found["candidates"], found["kept"], found["quarantined"]) == (79, 8, {"missing_image": 71})
    assert sum(found["patients"].values()) == 5
    assert all(found["pairs"][split] > 0 for split in SPLITS)
    dataset = Dataset.open(out)
    assert dataset.fingerprint == found["fingerprint"]
    assert not dataset.info.synthetic
    quarantine = pq.read_table(out / "quarantine.parquet").to_pylist()
    assert len(quarantine) == 71
    assert {row["reason"] for row in quarantine} == {"missing_image"}
    assert all(row["path"].endswith(".png") for row in quarantine)
    rows = [
        row for split in SPLITS for row in dataset.read_rows(split, range(dataset.rows(split))).to_pylist()
    ]
    assert {row["license"] for row in rows} == {"CC BY-NC-ND 4.0"}
    assert all(row["findings"] or row["impression"] for row in rows)
    published = {row["pair_id"].split("_")[0] for row in rows}
    assert not published & {row["patient_id"] for row in rows}


def test_the_covid_collection_as_published_keeps_39_of_45_listed_images(
    tmp_path, data_root, ray_local, capsys
):
    out = tmp_path / "covid"
    found = run(capsys, "covid_chestxray", data_root / "raw" / "covid-chestxray", out, tmp_path / "key")
    assert (found["candidates"], found["kept"]) == (45, 39)
    assert found["quarantined"] == {"missing_image": 3, "empty_report": 3}
    assert sum(found["patients"].values()) == 22
    dataset = Dataset.open(out)
    rows = [
        row for split in SPLITS for row in dataset.read_rows(split, range(dataset.rows(split))).to_pylist()
    ]
    assert len(rows) == 39
    assert {"CC BY-NC-SA", "CC BY-NC-ND 4.0", "CC BY 4.0"} <= {row["license"] for row in rows}
    assert sum(row["modality"] == "CT" for row in rows) == 5
    dataset.verify()


def test_real_pairs_keep_their_splits_pixels_and_licences(tmp_path, data_root, ray_local, capsys):
    root = data_root / "pairs"
    found = run(capsys, "manifest", root, tmp_path / "cxr", tmp_path / "key")
    assert found["kept"] == 307
    assert found["pairs"] == {"train": 240, "val": 31, "test": 36}
    assert found["patients"] == {"train": 102, "val": 12, "test": 18}
    dataset = Dataset.open(tmp_path / "cxr")
    for split in SPLITS:
        given = {row["id"]: row for row in pq.read_table(root / f"cxr-{split}.parquet").to_pylist()}
        for row in dataset.read_rows(split, range(dataset.rows(split))).to_pylist():
            original = given.pop(row["pair_id"])
            # Comments inside a JPEG are dropped; its pixels are not touched.
            assert np.array_equal(read_grey(row["image"]), read_grey(original["image"]))
            for column in ("report", "license", "modality", "caption", "url", "orig_width"):
                assert row[column] == original[column]
            assert row["patient_id"] != original["patient_id"]
        assert given == {}


def test_a_filter_keeps_the_rows_it_names(tmp_path, data_root, ray_local, capsys):
    root = data_root / "pairs"
    found = run(capsys, "manifest", root, tmp_path / "xr", tmp_path / "key", row_filter="modality == XR")
    tables = [pq.read_table(root / f"cxr-{split}.parquet", columns=["modality"]) for split in SPLITS]
    expected = sum(table.column("modality").to_pylist().count("XR") for table in tables)
    assert found["kept"] == expected == 254


BAD_ROWS = """id,patient_id,path,report,split
good-1,a,good-1.png,Heart is normal.,train
good-2,b,good-2.png,Lungs are clear.,val
good-3,c,good-3.png,No effusion.,test
good-1,a,good-1.png,The same id again.,train
missing,d,missing.png,Its image is not there.,train
pointer,e,pointer.png,A git-lfs pointer.,train
page,f,page.png,A web page.,train
torn,g,torn.png,Half an image.,train
empty,h,good-1.png,,train
no-number,i,good-1.png,NaN,train
outside,j,../../secret.png,Outside of the root.,train
both-1,k,good-2.png,The patient trains.,train
both-2,k,good-3.png,The patient is tested.,test
"""


def archive(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "pairs.csv").write_text(BAD_ROWS)
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 255, (80, 90), dtype=np.uint8)
        (root / f"good-{number}.png").write_bytes(encode_grey(pixels, None, image_format="png")[0])
    (root / "torn.png").write_bytes((root / "good-1.png").read_bytes()[:2000])
    (root / "pointer.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (root / "page.png").write_bytes(b"<!DOCTYPE html><title>Log in</title>")
    return root


def test_every_bad_row_is_quarantined_with_its_reason_and_none_is_lost(tmp_path, ray_local, capsys):
    root = archive(tmp_path / "archive")
    found = run(capsys, "manifest", root, tmp_path / "made", tmp_path / "key")
    assert found["pairs"] == {"train": 1, "val": 1, "test": 1}
    assert found["quarantined"] == {
        "duplicate_id": 1,
        "empty_report": 2,
        "git_lfs_pointer": 1,
        "html_page": 1,
        "missing_image": 1,
        "outside_root": 1,
        "patient_in_two_splits": 2,
        "truncated_image": 1,
    }
    assert found["candidates"] == 13
    file = tmp_path / "made" / "quarantine.parquet"
    assert file.stat().st_mode & 0o777 == 0o600
    rows = {row["pair_id"]: row["reason"] for row in pq.read_table(file).to_pylist()}
    assert rows["both-1"] == rows["both-2"] == "patient_in_two_splits"
    assert rows["torn"] == "truncated_image"


def test_pairs_without_a_report_can_be_asked_for_of_every_source(tmp_path, capsys):
    """`--min-words 0` is an option of a manifest too; in other sources `reports` names a place."""
    root = write_openi(tmp_path / "openi")
    found = run(capsys, "openi", root, tmp_path / "made", tmp_path / "key", min_words=0, check=True)
    assert (found["candidates"], found["kept"]) == (6, 6)
    table = archive(tmp_path / "archive")
    found = run(capsys, "manifest", table, tmp_path / "made", tmp_path / "key", min_words=0, check=True)
    assert "empty_report" not in found["quarantined"]


def test_what_is_shown_names_no_row(tmp_path, ray_local, capsys):
    root = archive(tmp_path / "archive")
    ingest_command.execute(request("manifest", root, tmp_path / "made", tmp_path / "key", as_json=False))
    shown = capsys.readouterr()
    for secret in ("good-1", "both-1", "torn.png", "Heart is normal", "secret"):
        assert secret not in shown.out + shown.err
    for wanted in ("duplicate_id", "kept", "fingerprint", "train"):
        assert wanted in shown.out


def test_a_check_reads_no_pixel_and_writes_nothing(tmp_path, capsys):
    root = archive(tmp_path / "archive")
    found = run(capsys, "manifest", root, tmp_path / "made", tmp_path / "key", check=True)
    assert found["candidates"] == 13
    assert found["quarantined"]["empty_report"] == 2
    assert found["quarantined"]["patient_in_two_splits"] == 2
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("without_ray")
def test_an_existing_dataset_is_refused_before_anything_is_listed(tmp_path, monkeypatch):
    source = phantom(64)
    make(source, tmp_path / "made")
    monkeypatch.setattr(type(source), "items", lambda self: pytest.fail("listed"))
    with pytest.raises(UserError, match="finished dataset already") as caught:
        make(source, tmp_path / "made")
    assert "--overwrite" in str(caught.value.hint)


class StopAfter:
    """Interrupts when so many parts stand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
        self.made: list[str] = []
        real = ingesting.PartMaker.make

        def make_or_stop(maker: PartMaker, plan: PartPlan) -> Any:
            if len(self.made) == parts:
                raise KeyboardInterrupt
            self.made.append(plan.name)
            return real(maker, plan)

        monkeypatch.setattr(ingesting.PartMaker, "make", make_or_stop)


@pytest.mark.usefixtures("without_ray")
def test_an_interrupted_ingest_leaves_nothing_readable_and_goes_on(tmp_path, monkeypatch):
    whole = make(phantom(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            make(phantom(), tmp_path / "made")
    with pytest.raises(UserError, match="not a finished dataset"):
        Dataset.open(tmp_path / "made")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "made").glob("train/*.parquet")}
    assert len(kept) == 2
    continued = make(phantom(), tmp_path / "made")
    assert continued.info == whole.info
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert {file.name for file in (tmp_path / "made").iterdir()} == {
        file.name for file in (tmp_path / "whole").iterdir()
    }


@pytest.mark.usefixtures("without_ray")
def test_another_archive_never_takes_over_the_parts_of_a_broken_ingest(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        StopAfter(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            make(phantom(), tmp_path / "made")
    other = make(phantom(100), tmp_path / "made")
    assert other.info == make(phantom(100), tmp_path / "clean").info
    shards = {shard.path for split in SPLITS for shard in other.shards(split)}
    assert {
        file.relative_to(tmp_path / "made").as_posix() for file in (tmp_path / "made").glob("*/*")
    } == shards


@pytest.mark.usefixtures("without_ray")
def test_overwriting_replaces_every_file(tmp_path):
    make(phantom(), tmp_path / "made")
    made = make(phantom(64), tmp_path / "made", overwrite=True)
    assert made.rows("train") == 64
    assert {file.name for file in (tmp_path / "made" / "train").iterdir()} == {
        Path(shard.path).name for shard in made.shards("train")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": ""}, "--out is missing"),
        ({"split": "0.9/0.2/0.1"}, "sum to 1"),
        ({"source": "opneni"}, "opneni is no source"),
        ({"row_filter": "a == b"}, "no filter"),
        ({"image_format": "tiff"}, "--image-format tiff"),
        ({"short_side": 8}, "--short-side 8"),
        ({"overrides": ["sise=64"]}, "sise"),
        ({"root": "somewhere"}, "takes no root"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, changes, message):
    wanted = request("phantom", None, tmp_path / "made", tmp_path / "key")
    with pytest.raises(UserError, match=message) as caught:
        ingest_command.execute(ingest_command.Request(**{**vars(wanted), **changes}))
    assert "\n" not in caught.value.message
    assert not (tmp_path / "made").exists()


def test_a_key_inside_the_dataset_is_refused(tmp_path, data_root):
    out = tmp_path / "made"
    with pytest.raises(UserError, match="inside the dataset directory"):
        ingest_command.execute(request("openi", data_root / "raw" / "openi", out, out / "key"))


def test_the_help_names_every_source():
    text = subprocess.run(
        [sys.executable, "-m", "orchestration.ingest", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(name in text for name in SOURCES)


def test_the_phantom_is_made_once_and_made_again_when_torn(tmp_path, ray_local):
    config = PhantomConfig(train_pairs=64, val_pairs=64, test_pairs=0, size=64)
    path = ensure_phantom(config, tmp_path)
    assert Path(path).parent == tmp_path
    first = Dataset.open(path)
    marker = (Path(path) / "dataset.json").stat().st_mtime_ns
    assert ensure_phantom(config, tmp_path) == path
    assert (Path(path) / "dataset.json").stat().st_mtime_ns == marker
    shard = Path(path) / first.shards("val")[0].path
    shard.write_bytes(b"torn")
    assert ensure_phantom(config, tmp_path) == path
    assert Dataset.open(path).fingerprint == first.fingerprint


def test_another_phantom_has_another_directory():
    config = PhantomConfig(train_pairs=64, val_pairs=64, test_pairs=0, size=64)
    other = config.model_copy(update={"seed": 1})
    assert phantom_data.phantom_name(config) == phantom_data.phantom_name(config)
    assert phantom_data.phantom_name(config) != phantom_data.phantom_name(other)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that starts tests in its background has them ignore SIGINT, and the programs they start too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("interruptible")
def test_an_ingest_stopped_by_ctrl_c_goes_on_to_the_same_dataset(tmp_path):
    """Ctrl-C with two parts standing, then a run to the end."""
    out = tmp_path / "made"
    pairs = [
        "--set",
        "train_pairs=3000",
        "--set",
        "val_pairs=64",
        "--set",
        "test_pairs=0",
        "--set",
        "size=64",
    ]
    command = [sys.executable, "-m", "orchestration.ingest", "phantom", "--out", str(out), *pairs, "--json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while len(list(out.glob("train/*.json"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    with pytest.raises(UserError, match="not a finished dataset"):
        Dataset.open(out)
    kept = {file: file.stat().st_mtime_ns for file in out.glob("train/*.parquet")}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    clean = tmp_path / "clean"
    subprocess.run(
        [str(clean) if part == str(out) else part for part in command],
        check=True,
        timeout=250,
        capture_output=True,
    )
    assert json.loads(done.stdout)["fingerprint"] == Dataset.open(clean).fingerprint
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    Dataset.open(out).verify()
