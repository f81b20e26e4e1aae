"""A dataset directory: whole or unreadable, confidential, exact about what it holds."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from mpma.data.dataset import Dataset
from mpma.data.dataset_directory import UNFINISHED, unfinished_dataset
from mpma.data.dataset_info import DatasetInfo
from mpma.data.dataset_writing import Part, finished_part, write_dataset, write_part
from mpma.data.images import encode_grey, read_grey
from mpma.data.pairs import PAIR_SCHEMA
from mpma.data.shards import shard_schema
from mpma.data.sources.contract import Rejection
from mpma.data.storage import open_storage
from mpma.errors import UserError


def image(number: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side + number % 5), dtype=np.uint8)


def row(number: int, **changes: object) -> dict[str, object]:
    data, width, height = encode_grey(image(number), None, image_format="png")
    return {
        "pair_id": f"pair-{number}",
        "patient_id": f"patient-{number // 2}",
        "study_id": f"study-{number // 2}",
        "image": data,
        "width": width,
        "height": height,
        "view": "PA",
        "report": f"Heart is normal. Number {number}.",
        "findings": f"Heart is normal. Number {number}." if number % 2 else "",
        "impression": "",
        "labels": None if number % 3 == 0 else ["effusion"] * (number % 2),
        "source": "made",
        "license": "CC0",
    } | changes


TRAIN, VAL = range(0, 300), range(300, 340)


def write(place: Path, **options: object) -> Dataset:
    rows = {"train": map(row, TRAIN), "val": map(row, VAL)}
    return write_dataset(place, rows, pairs_per_shard=200, **options)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("datasets") / "made")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A dataset of the test's own, to be damaged."""
    write(tmp_path / "made")
    return tmp_path / "made"


def test_what_is_written_is_read_back(written):
    table = written.read_rows("train", range(300))
    assert table.schema.names == PAIR_SCHEMA.names
    assert table.to_pylist() == [row(number) for number in TRAIN]
    assert [shard.row_group_rows for shard in written.shards("train")] == [[64, 64, 64, 8], [64, 36]]
    assert written.row_group_rows("val") == [[40]]
    assert written.row_group_rows("test") == []
    assert written.rows("train") == 300


def test_the_marker_counts_exactly(written):
    info = written.info
    assert (info.splits["train"].pairs, info.splits["train"].patients, info.splits["train"].studies) == (
        300,
        150,
        150,
    )
    assert (info.splits["val"].pairs, info.splits["val"].patients) == (40, 20)
    assert info.splits["train"].labelled_pairs == 200
    assert info.splits["train"].label_counts == {"effusion": 100}
    assert info.labels == ["effusion"]
    assert info.sources == {"made": 340}
    assert info.licenses == {"CC0": 340}
    pixels = np.concatenate([image(number).ravel() for number in TRAIN]) / 255
    assert info.images.grey_mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert info.images.grey_deviation == pytest.approx(pixels.std(), rel=1e-9)
    assert info.images.short_side_median == 24
    assert info.reports.truncated == 0
    assert info.tokenizer.vocabulary_size == written.tokenizer().vocabulary_size
    assert info.synthetic


def test_any_rows_in_any_order_are_read_from_their_row_groups_alone(written, monkeypatch):
    import mpma.data.dataset as module

    asked: list[tuple[str, list[int]]] = []
    real = module.read_row_groups

    def spy(storage, shard, groups, columns):
        asked.append((shard.path, list(groups)))
        return real(storage, shard, groups, columns)

    monkeypatch.setattr(module, "read_row_groups", spy)
    wanted = [299, 3, 3, 130, 201, 0]
    table = written.read_rows("train", wanted, columns=["pair_id", "width"])
    assert table.column("pair_id").to_pylist() == [f"pair-{number}" for number in wanted]
    assert table.column_names == ["pair_id", "width"]
    assert asked == [("train/00000.parquet", [0, 2]), ("train/00001.parquet", [0, 1])]


def test_random_reads_equal_a_full_read(written):
    generator = np.random.default_rng(0)
    every = written.read_rows("train", range(300))
    for _ in range(20):
        wanted = generator.integers(0, 300, generator.integers(1, 80))
        assert written.read_rows("train", wanted).equals(every.take(pa.array(wanted)))


def test_no_rows_give_an_empty_table_and_rows_outside_an_error(written):
    assert written.read_rows("train", [], columns=["report"]).schema.names == ["report"]
    assert written.read_rows("train", []).num_rows == 0
    for outside in (300, -1):
        with pytest.raises(IndexError, match="outside the 300 rows of train"):
            written.read_rows("train", [outside])


def test_writing_twice_gives_the_same_files_and_fingerprint(written, tmp_path):
    again = write(tmp_path / "again")
    assert again.info == written.info
    other = write_dataset(tmp_path / "other", {"train": map(row, range(1, 300))})
    assert other.fingerprint != written.fingerprint


def test_an_opened_dataset_crosses_process_borders(written):
    again = pickle.loads(pickle.dumps(written))
    assert again.read_rows("val", [7]).to_pylist() == [row(307)]


def test_extra_columns_are_kept_with_their_types(tmp_path):
    extra = [
        pa.field("age", pa.float64()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("mask", pa.binary()),
    ]
    rows = [row(n, age=None if n else 3.5, tags=["a"], mask=b"png") for n in range(4)]
    dataset = write_dataset(tmp_path / "extra", {"train": rows}, extra=extra)
    assert dataset.info.columns == [*PAIR_SCHEMA.names, "age", "tags", "mask"]
    assert dataset.read_rows("train", range(4)).to_pylist() == rows
    with pytest.raises(ValueError, match="report"):
        shard_schema([pa.field("report", pa.string())])


def test_files_are_for_their_owner_alone(written):
    root = Path(written.path)
    assert root.stat().st_mode & 0o777 == 0o700
    names = {entry.relative_to(root).as_posix(): entry.stat().st_mode & 0o777 for entry in root.rglob("*")}
    assert names == {
        "dataset.json": 0o600,
        "tokenizer.json": 0o600,
        "quarantine.parquet": 0o600,
        "near_duplicates.parquet": 0o600,
        "train": 0o700,
        "val": 0o700,
        "test": 0o700,
        "train/00000.parquet": 0o600,
        "train/00001.parquet": 0o600,
        "val/00000.parquet": 0o600,
    }


def test_pixels_are_stored_plain_and_text_compressed(written):
    meta = pq.ParquetFile(Path(written.path) / "train/00000.parquet").metadata.row_group(0)
    columns = {meta.column(n).path_in_schema: meta.column(n).compression for n in range(meta.num_columns)}
    assert columns.pop("image") == "UNCOMPRESSED"
    assert set(columns.values()) == {"ZSTD"}


def test_a_missing_directory_and_one_without_marker_are_refused(tmp_path, own):
    with pytest.raises(UserError, match="nothing: no dataset there"):
        Dataset.open(tmp_path / "nothing")
    (own / "dataset.json").unlink()
    with pytest.raises(UserError, match="not a finished dataset"):
        Dataset.open(own)


def test_a_torn_shard_is_refused_by_name(own):
    shard = own / "train" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"train/00001\.parquet is torn") as caught:
        Dataset.open(own)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_refused_by_name(own):
    (own / "val" / "00000.parquet").unlink()
    with pytest.raises(UserError, match=r"val/00000\.parquet is missing"):
        Dataset.open(own)


def test_a_shard_damaged_in_place_is_seen_when_read_and_when_verified(own):
    shard = own / "train" / "00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 0xFF
    shard.write_bytes(content)
    dataset = Dataset.open(own)
    with pytest.raises(UserError, match=r"train/00000\.parquet cannot be read"):
        dataset.read_rows("train", range(200))
    with pytest.raises(UserError, match=r"train/00000\.parquet is damaged"):
        dataset.verify()


def test_a_whole_dataset_verifies(written):
    written.verify()


def test_a_dataset_of_another_schema_version_is_refused_before_anything_else(own):
    content = json.loads((own / "dataset.json").read_text())
    (own / "dataset.json").write_text(json.dumps({"schema_version": 2, "shape": "unknown"}))
    with pytest.raises(UserError, match="dataset of another schema version") as caught:
        Dataset.open(own)
    assert caught.value.hint
    (own / "dataset.json").write_text(json.dumps(content | {"schema_version": 0}))
    with pytest.raises(UserError, match="another schema version"):
        Dataset.open(own)


@pytest.mark.parametrize("damage", ["half", "list", "row count", "unknown key"])
def test_a_damaged_marker_is_refused(own, damage):
    marker = own / "dataset.json"
    content = json.loads(marker.read_text())
    if damage == "half":
        marker.write_text(marker.read_text()[:200])
    elif damage == "list":
        marker.write_text("[]")
    elif damage == "row count":
        content["splits"]["train"]["shards"][0]["rows"] = 9
        marker.write_text(json.dumps(content))
    else:
        marker.write_text(json.dumps(content | {"surprise": 1}))
    with pytest.raises(UserError, match=r"dataset\.json"):
        Dataset.open(own)


def test_the_marker_survives_a_round_trip(written):
    assert DatasetInfo.model_validate_json(written.info.to_json()) == written.info


def test_a_finished_dataset_is_replaced_only_when_asked(own):
    with pytest.raises(UserError, match="finished dataset already") as caught:
        write_dataset(own, {"train": [row(1)]})
    assert "--overwrite" in str(caught.value.hint)
    assert write_dataset(own, {"train": [row(1)]}, overwrite=True).rows("train") == 1
    assert not (own / "train" / "00001.parquet").exists()


def test_a_directory_with_other_files_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"files that are no part of a dataset \(1\)"):
            write_dataset(tmp_path, {"train": [row(1)]}, overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_is_readable_while_a_dataset_is_made_nor_after_it_broke(tmp_path):
    place = tmp_path / "half"

    def broken():
        yield from map(row, range(100))
        with pytest.raises(UserError, match="not a finished dataset"):
            Dataset.open(place)
        with pytest.raises(UserError, match="written by another process"):
            write_dataset(place, {"train": [row(1)]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(place, {"train": broken()}, pairs_per_shard=64)
    with pytest.raises(UserError, match="not a finished dataset"):
        Dataset.open(place)
    assert not list(place.rglob("*.unfinished"))
    assert write_dataset(place, {"train": [row(1)]}).rows("train") == 1


def part(storage, name: str, numbers: range) -> Part:
    return write_part(storage, name, "train", PAIR_SCHEMA, ((row(n), image(n)) for n in numbers))


def test_the_same_plan_finds_its_whole_parts_and_another_plan_none(tmp_path):
    storage = open_storage(tmp_path / "made")
    with unfinished_dataset(storage, "plan a"):
        first, second = part(storage, "train/00000", range(5)), part(storage, "train/00001", range(5, 9))
    (tmp_path / "made/train/00001.parquet").write_bytes(b"torn")
    with unfinished_dataset(storage, "plan a"):
        assert finished_part(storage, "train/00000") == first
        assert finished_part(storage, "train/00001") is None
        assert part(storage, "train/00001", range(5, 9)) == second
        assert finished_part(storage, "train/00002") is None
    with unfinished_dataset(storage, "plan b"):
        assert sorted(storage.sizes()) == [".lock", UNFINISHED]


def test_a_part_keeps_its_refusals_and_may_be_nothing_else(tmp_path):
    storage = open_storage(tmp_path / "made")
    storage.make_directory("train")
    refused = Rejection("a.png", "a", "truncated_image", "9 bytes")
    alone = write_part(storage, "train/00000", "train", PAIR_SCHEMA, [refused])
    assert (alone.shard, alone.rejections) == (None, [refused])
    assert finished_part(storage, "train/00000") == alone
    assert sorted(storage.sizes()) == ["train/00000.json"]
    mixed = write_part(storage, "train/00001", "train", PAIR_SCHEMA, [refused, (row(3), image(3))])
    assert mixed.shard is not None
    assert (mixed.shard.rows, mixed.rejections) == (1, [refused])


def test_no_pair_left_to_train_on_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no pair is left for the training split"):
        write_dataset(tmp_path / "none", {"val": [row(1)]})
    with pytest.raises(UserError, match="not a finished dataset"):
        Dataset.open(tmp_path / "none")


def test_a_store_that_cannot_rename_holds_the_same_dataset(written):
    fsspec = pytest.importorskip("fsspec")
    filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory")))
    remote = write_dataset(
        "/bucket/made",
        {"train": map(row, TRAIN), "val": map(row, VAL)},
        pairs_per_shard=200,
        filesystem=filesystem,
    )
    assert remote.fingerprint == written.fingerprint
    assert remote.read_rows("train", [250, 1]).equals(written.read_rows("train", [250, 1]))
    remote.verify()
    with pytest.raises(UserError, match="finished dataset already"):
        write_dataset("/bucket/made", {"train": [row(1)]}, filesystem=filesystem)


def test_a_uri_opens_like_a_path_and_an_unknown_scheme_does_not(written):
    assert Dataset.open(f"file://{Path(written.path).absolute()}").fingerprint == written.fingerprint
    with pytest.raises(UserError, match="no filesystem for the scheme 'carrier'"):
        Dataset.open("carrier://pigeon/made")


def test_the_grey_statistics_are_those_of_what_is_stored(written):
    table = written.read_rows("train", range(300), columns=["image"])
    levels = np.concatenate([read_grey(data.as_py()).ravel() for data in table.column("image")]) / 255
    assert written.grey_mean == pytest.approx(levels.mean(), rel=1e-12)
    assert math.isclose(written.grey_std, levels.std(), rel_tol=1e-9)
