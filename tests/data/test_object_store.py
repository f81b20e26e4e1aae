"""Datasets and archives in a bucket: a real server of the S3 protocol on loopback, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bucket_server import CREDENTIALS, bucket_server, settings_of
from source_samples import (
    write_csv,
    write_masks,
    write_openi,
    write_parquet,
    write_questions,
    write_vqamed2019,
)

from mpma.data.dataset import Dataset
from mpma.data.hashing import PUBLIC_KEY
from mpma.data.ingest_plan import IngestOptions
from mpma.data.pairs import SPLITS
from mpma.data.sources import build_source
from mpma.data.storage import open_storage, shown
from mpma.errors import JobError, UserError
from orchestration.ingesting import carry_out, prepare

pytestmark = pytest.mark.slow

OPTIONS = IngestOptions(pairs_per_shard=64)


@pytest.fixture(scope="module")
def settings() -> Iterator[str]:
    """What an address needs behind it to reach the server; it holds one bucket, `archive`."""
    with bucket_server() as place:
        yield settings_of(place)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of nobody, no Ray, and no question to a cloud's own service of credentials."""
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def make(out: Path | str, train: int = 100) -> Dataset:
    source = build_source(
        "phantom", None, [f"train_pairs={train}", "val_pairs=64", "test_pairs=0", "size=64"]
    )
    return carry_out(prepare(source, str(out), key=PUBLIC_KEY, options=OPTIONS, synthetic=True)).dataset


def test_a_dataset_in_a_bucket_has_the_bytes_of_one_on_a_disk(tmp_path: Path, settings: str) -> None:
    there = make(f"s3://archive/set{settings}")
    here = make(tmp_path / "set")
    assert there.info == here.info
    there.verify()
    assert sorted(there.storage.sizes()) == sorted(here.storage.sizes())
    assert there.storage.hash_file("dataset.json") == here.storage.hash_file("dataset.json")
    again = Dataset.open(f"s3://archive/set{settings}")
    assert again.read_rows("train", [70, 3]).equals(here.read_rows("train", [70, 3]))


def test_a_finished_dataset_in_a_bucket_is_not_replaced_unasked(settings: str) -> None:
    make(f"s3://archive/kept{settings}", 64)
    with pytest.raises(UserError, match="holds a finished dataset already"):
        make(f"s3://archive/kept{settings}", 128)
    assert Dataset.open(f"s3://archive/kept{settings}").rows("train") == 64


def test_a_part_of_a_place_keeps_the_settings_of_its_address(settings: str) -> None:
    child = open_storage(f"s3://archive/runs{settings}").child("one").child("checkpoints")
    child.write("x", b"1")
    assert child.location == f"s3://archive/runs/one/checkpoints{settings}"
    assert open_storage(child.location).read("x") == b"1"


def test_a_bucket_that_is_absent_or_a_server_that_is_silent_is_one_line(settings: str) -> None:
    with pytest.raises(UserError, match="nowhere/set cannot be reached: no such bucket") as caught:
        make(f"s3://nowhere/set{settings}")
    with pytest.raises(JobError, match="cannot write s3://nowhere/set/x"):
        open_storage(f"s3://nowhere/set{settings}").write("x", b"1")
    silent = "s3://key:secret@archive/set?endpoint_override=http://127.0.0.1:9&region=us-east-1"
    for act in (lambda: Dataset.open(silent), lambda: make(silent)):
        with pytest.raises(UserError, match="set cannot be reached: network connection") as caught:
            act()
        said = f"{caught.value.message} {caught.value.hint}"
        assert "secret" not in said
        assert "\n" not in said


def upload(folder: Path, place: str) -> None:
    """All files of a folder into a folder of a bucket."""
    storage = open_storage(place)
    for file in folder.rglob("*"):
        if file.is_file():
            storage.write(file.relative_to(folder).as_posix(), file.read_bytes())


ARCHIVES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "table": ("manifest", write_csv, ()),
    "paths": ("manifest", lambda folder: write_csv(folder).parent, ("image_root=../archive",)),
    "images": ("manifest", write_parquet, ()),
    "questions": ("manifest", write_questions, ("questions_table=*-qa.parquet", "reports=optional")),
    "openi": ("openi", write_openi, ()),
    "masks": ("masks", write_masks, ("ignore_value=127",)),
    "vqamed2019": ("vqamed2019", write_vqamed2019, ()),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_in_a_bucket_gives_the_dataset_that_it_gives_on_a_disk(
    tmp_path: Path, settings: str, kind: str
) -> None:
    name, write, options = ARCHIVES[kind]
    root = write(tmp_path / "archive")
    upload(tmp_path / "archive", f"s3://archive/raw/{kind}/archive{settings}")
    address = f"s3://archive/raw/{kind}/{root.relative_to(tmp_path).as_posix()}{settings}"
    made = []
    for place, taken in (("here", str(root)), ("there", address)):
        prepared = prepare(build_source(name, taken, options), str(tmp_path / place), key=PUBLIC_KEY)
        made.append(carry_out(prepared).dataset)
    here, there = made
    assert sum(here.rows(split) for split in SPLITS) >= 6
    assert there.info.fingerprint == here.info.fingerprint
    assert there.info == here.info
    assert there.storage.hash_file("quarantine.parquet") == here.storage.hash_file("quarantine.parquet")


def test_an_archive_that_is_not_in_the_bucket_is_one_line(settings: str) -> None:
    for name in ("manifest", "openi", "masks", "vqamed2019"):
        with pytest.raises(UserError, match="s3://archive/raw/absent does not exist") as caught:
            build_source(name, f"s3://archive/raw/absent{settings}")
        assert "\n" not in caught.value.message


def test_a_message_names_a_place_without_its_keys() -> None:
    assert shown("s3://key:secret@bucket/set?region=x&access_key=y") == "s3://bucket/set"
    assert shown("/archives/what?/a@b") == "/archives/what?/a@b"
