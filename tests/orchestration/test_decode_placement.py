from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpma.data.config import DataConfig
from mpma.data.dataset_info import ShardInfo
from mpma.data.decoding import Cropper
from mpma.data.shards import new_shard, shard_schema
from mpma.data.storage import Storage, open_storage
from mpma.errors import UserError
from orchestration.decode_placement import Trial, choose_decode, try_out

CROPPER = Cropper(size=64, scale_min=0.6, scale_max=1.0, aspect_max=1.3, flip=False, seed=0)
SIDE_BY_SIDE = Trial(one_thread=1000, threads=4, all_threads=3800)
WAITING = Trial(one_thread=1000, threads=4, all_threads=1100)


def one_shard(folder: Path, side: int, rows: int) -> tuple[Storage, ShardInfo]:
    out = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(out, "JPEG")
    texts = ("pair_id", "patient_id", "study_id", "report", "findings", "impression", "view")
    row = dict.fromkeys((*texts, "source", "license"), "x") | {"width": side, "height": side}
    storage = open_storage(folder)
    with new_shard(storage, "one.parquet", shard_schema()) as shard:
        for _ in range(rows):
            shard.add(row | {"image": out.getvalue(), "labels": None})
    assert shard.info is not None
    return storage, shard.info


@pytest.mark.parametrize("decode", ["read", "collate"])
def test_a_configured_place_is_kept_whatever_a_trial_says(decode: str) -> None:
    data = DataConfig.model_validate({"decode": decode})
    for device in ("cpu", "cuda"):
        assert choose_decode(data, device, WAITING, 8) == (decode, f"decode: {decode} (as configured)")


@pytest.mark.parametrize("trial", [None, SIDE_BY_SIDE, WAITING])
def test_a_cpu_decodes_in_its_own_threads_however_busy_it_was_for_a_moment(trial: Trial | None) -> None:
    place, reason = choose_decode(DataConfig(), "cpu", trial, 8)
    assert (place, reason) == (
        "collate",
        "decode: in the training process (tasks would take the same CPUs)",
    )


def test_beside_a_gpu_the_place_that_makes_more_is_taken() -> None:
    assert choose_decode(DataConfig(), "cuda", SIDE_BY_SIDE, 4)[0] == "collate"
    place, reason = choose_decode(DataConfig(), "cuda", SIDE_BY_SIDE, 15)
    assert place == "read"
    assert all(part in reason for part in ("1.00 ms", "4 threads here 3,800", "15 CPUs", "12,000"))


def test_without_a_trial_the_place_goes_by_the_device() -> None:
    assert choose_decode(DataConfig(), "cpu")[0] == "collate"
    assert choose_decode(DataConfig(), "cuda")[0] == "read"


def test_a_trial_is_short_however_large_the_images_and_is_made_once(tmp_path: Path) -> None:
    storage, shard = one_shard(tmp_path, 1500, 40)
    began = time.perf_counter()
    trial = try_out(storage, [shard], CROPPER, 2)
    assert time.perf_counter() - began < 2.0
    assert trial.threads == 2
    assert 0 < trial.one_thread < 10_000
    assert try_out(storage, [shard], CROPPER, 2) is trial
    assert try_out(storage, [shard], CROPPER, 1) is not trial


def test_a_trial_of_a_missing_shard_names_it(tmp_path: Path) -> None:
    storage, shard = one_shard(tmp_path, 80, 3)
    (tmp_path / "one.parquet").unlink()
    with pytest.raises(UserError, match=r"one.parquet"):
        try_out(storage, [shard.model_copy(update={"sha256": "0" * 64})], CROPPER, 2)
