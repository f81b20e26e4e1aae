"""Two datasets compared over Ray: exact counts on real data, fingerprints kept, damage named."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mpma.data.dataset import Dataset
from mpma.data.dataset_writing import write_dataset
from mpma.data.hashing import keyed_hash
from mpma.data.images import encode_grey
from mpma.data.storage import Storage, open_storage
from mpma.downstream.overlap import Shared, check
from mpma.errors import UserError
from orchestration.evaluation import overlap
from orchestration.evaluation.overlap import find_overlap

KEY, OTHER_KEY = b"k" * 32, b"o" * 32

Row = dict[str, Any]


def row(patient: str, image: bytes, key: bytes = KEY) -> Row:
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
    return {
        "pair_id": "pair",
        "patient_id": keyed_hash(key, "patient", patient),
        "study_id": "study",
        "image": image,
        "width": width,
        "height": height,
        "view": "unknown",
        "report": "A radiograph of the chest.",
        "findings": "",
        "impression": "",
        "labels": None,
        "source": "made",
        "license": "",
    }


def noise(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (96, 80), dtype=np.uint8)
    return encode_grey(pixels, None, image_format="png")[0]


def made(place: Path, splits: Mapping[str, Iterable[Row]], key: bytes = KEY, per_shard: int = 64) -> Dataset:
    return write_dataset(place, splits, key=key, synthetic=False, pairs_per_shard=per_shard)


@pytest.fixture
def cache(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "fingerprints")


def real(root: Path, pattern: str, key: bytes = KEY, half: bool = False) -> dict[str, list[Row]]:
    """Published rows by split, with images as they are or halved in size."""
    found: dict[str, list[Row]] = {}
    for split in ("train", "val", "test"):
        (file,) = root.glob(pattern.format(split))
        table = pq.read_table(file, columns=["patient_id", "image"]).to_pylist()
        found[split] = [
            row(item["patient_id"], halved(item["image"]) if half else item["image"], key) for item in table
        ]
    return found


def halved(image: bytes) -> bytes:
    out = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        small = opened.resize((opened.width // 2, opened.height // 2), Image.Resampling.BICUBIC)
        small.save(out, "JPEG", quality=75)
    return out.getvalue()


PAIRS, LUNGS = "pairs/cxr-{}.parquet", "downstream/covid_lungseg/{}.parquet"

NOTHING = Shared(0, 0, 0, 0)


def test_lung_masks_share_with_the_real_pairs_what_was_published_in_both(
    tmp_path, data_root, ray_local, cache
):
    pairs, lungs = real(data_root, PAIRS), made(tmp_path / "lungs", real(data_root, LUNGS))
    assert {split: lungs.rows(split) for split in lungs.info.splits} == {"train": 178, "val": 18, "test": 30}

    # Split alike, as published: 60 of 95 patients are fitted on after pre-training, nobody is judged.
    known = made(tmp_path / "pairs", pairs)
    found = find_overlap(known, lungs, cache, "test")
    assert found.shared == {
        "test/train": NOTHING,
        "val/train": NOTHING,
        "test/val": NOTHING,
        "train/train": Shared(60, 60, 108, 108),
    }
    assert (found.patients, found.fitting_patients, found.marked) == (0, 60, False)
    assert found.split_patients == {"train": 95, "val": 9, "test": 18}
    check(found, allowed=False)

    # Judged on val, the 6 patients that are in both validated the pre-training.
    found = find_overlap(known, lungs, cache, "val")
    assert found.shared["val/val"] == Shared(6, 6, 13, 13)
    assert (found.patients, found.images) == (6, 13)

    # Pre-trained on the test and val patients.
    turned = {"train": pairs["test"] + pairs["val"], "val": pairs["train"]}
    found = find_overlap(made(tmp_path / "turned", turned), lungs, cache, "test")
    assert found.shared == {
        "test/train": Shared(13, 13, 21, 21),
        "val/train": Shared(6, 6, 13, 13),
        "test/val": NOTHING,
        "train/train": NOTHING,
    }
    assert (found.patients, found.images, found.marked) == (19, 34, True)
    assert found.line == "13 of 18 test patients were pre-trained on; 6 of 9 val patients were pre-trained on"
    with pytest.raises(UserError, match="13 of 18 test patients"):
        check(found, allowed=False)


def test_under_another_key_and_at_another_size_the_same_patients_are_found_by_image(
    tmp_path, data_root, ray_local, cache
):
    pairs = real(data_root, PAIRS, OTHER_KEY, half=True)
    known = made(tmp_path / "pairs", {"train": pairs["train"], "val": pairs["test"]}, OTHER_KEY)
    lungs = made(tmp_path / "lungs", real(data_root, LUNGS))
    found = find_overlap(known, lungs, cache, "test")
    assert found.shared == {
        "test/train": NOTHING,
        "val/train": NOTHING,
        "test/val": Shared(13, 0, 21, 0),
        "train/train": Shared(60, 0, 108, 0),
    }
    assert found.line.startswith("13 of 18 test patients validated the pre-training (0 by id, 13 by image")
    assert "different patient keys" in found.line


def small_pair(place: Path) -> tuple[Dataset, Dataset]:
    known = {"train": [row(f"a{n}", noise(n)) for n in range(10)], "val": [row("b", noise(10))]}
    ours = {"train": [row("c", noise(20))], "val": [row("d", noise(21))]}
    ours["test"] = [row("a3", noise(22)), *(row(f"e{n}", noise(n)) for n in (5, 10, 30))]
    return made(place / "known", known, per_shard=4), made(place / "ours", ours, per_shard=3)


def test_fingerprints_are_made_once_and_kept_without_identifiers_for_their_owner_alone(
    tmp_path, ray_local, cache, monkeypatch
):
    known, ours = small_pair(tmp_path)
    told: list[tuple[int, int]] = []
    first = find_overlap(known, ours, cache, "test", lambda done, total: told.append((done, total)))
    assert first.shared["test/train"] == Shared(2, 1, 1, 1)
    assert first.shared["test/val"] == Shared(1, 0, 1, 1)
    assert (first.patients, first.images) == (3, 2)
    assert told == [(0, 17), (4, 17), (8, 17), (10, 17), (11, 17), (14, 17), (15, 17), (16, 17), (17, 17)]
    files = sorted(cache.names())
    assert files == sorted(
        f"{data.fingerprint}-{split}-1.npy"
        for data, splits in ((known, ("train", "val")), (ours, ("train", "val", "test")))
        for split in splits
    )
    patients = ours.read_rows("test", range(4), ["patient_id"])["patient_id"].to_pylist()
    for name in files:
        assert stat.S_IMODE(Path(cache.path(name)).stat().st_mode) == 0o600
        assert not any(patient.encode() in cache.read(name) for patient in patients)

    monkeypatch.setattr(overlap, "_shard_fingerprints", None)
    told.clear()
    assert find_overlap(known, ours, cache, "test", lambda *progress: told.append(progress)) == first
    assert not told


def test_a_torn_file_of_fingerprints_is_made_again(tmp_path, ray_local, cache):
    known, ours = small_pair(tmp_path)
    first = find_overlap(known, ours, cache, "test")
    name = f"{known.fingerprint}-train-1.npy"
    whole = cache.read(name)
    for torn in (b"", whole[:50], whole[:-8], whole.replace(b"10", b"11", 1)):
        cache.write(name, torn)
        assert find_overlap(known, ours, cache, "test") == first
        assert cache.read(name) == whole


def test_without_ray_the_same_is_found_here(tmp_path, ray_local, cache, monkeypatch):
    import ray

    known, ours = small_pair(tmp_path)
    on_ray = find_overlap(known, ours, cache, "test")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert find_overlap(known, ours, cache.child("other"), "test") == on_ray


def test_the_same_dataset_is_compared_by_id_alone(tmp_path, cache):
    _, ours = small_pair(tmp_path)
    found = find_overlap(ours, Dataset.open(ours.path), cache, "test")
    assert (found.patients, found.fitting_patients, found.same_data) == (0, 1, True)
    assert not cache.exists()
    assert find_overlap(ours, ours, cache, "val").patients == 1


def test_a_hand_made_dataset_whose_patient_crosses_splits_is_refused(tmp_path, cache):
    crossing = made(
        tmp_path / "crossing",
        {"train": [row("a", noise(0))], "test": [row("a", noise(1)), row("b", noise(2))]},
    )
    found = find_overlap(crossing, crossing, cache, "test")
    with pytest.raises(UserError, match="1 of 2 test patients were pre-trained on"):
        check(found, allowed=False)


def test_pre_training_data_that_are_gone_mark_the_result(tmp_path, cache):
    found = find_overlap(None, small_pair(tmp_path)[1], cache, "test")
    assert (found.checked, found.marked) == (False, True)
    check(found, allowed=False)


def test_a_damaged_shard_is_named_in_one_line(tmp_path, ray_local, cache):
    known, ours = small_pair(tmp_path)
    shard = known.shards("train")[1]
    place = Path(known.path, shard.path)
    content = bytearray(place.read_bytes())
    middle = content.index(b"IDAT")
    content[middle : middle + 400] = bytes(400)
    place.write_bytes(content)
    with pytest.raises(UserError, match=r"train/00001\.parquet cannot be read") as caught:
        find_overlap(known, ours, cache, "test")
    assert caught.value.hint
