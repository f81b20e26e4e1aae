"""The forecast of an ingest: what it says comes true, and what it cannot know it says so."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from grown_samples import KEY, LOSSLESS, Archive, ingested, item, table
from scipy.stats import binomtest
from test_ingest import request

from mpma.data.dataset import Dataset
from mpma.data.images import encode_grey
from mpma.data.ingest_plan import IngestOptions, IngestPlan, plan_ingest
from mpma.data.pair_rows import PartMaker
from mpma.data.pairs import SPLITS
from mpma.data.storage import open_storage
from mpma.errors import UserError
from orchestration import ingest_command, ingest_forecast
from orchestration.ingest_forecast import (
    forecast,
    lines,
    mean_range,
    measure,
    sample_items,
    share_range,
)

pytestmark = pytest.mark.usefixtures("without_ray")


def planned(source: Archive, options: IngestOptions = LOSSLESS) -> IngestPlan:
    return plan_ingest(source, options, KEY)


def measured(source: Archive, options: IngestOptions = LOSSLESS) -> ingest_forecast.Measurement:
    plan = planned(source, options)
    return measure(PartMaker(source, options, open_storage("unused")), sample_items(plan, options))


def noise(number: int, side: int) -> bytes:
    """A picture that does not compress."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, 96), dtype=np.uint8)
    return encode_grey(pixels, None, image_format="png")[0]


def stored_bytes(dataset: Dataset) -> int:
    return sum(shard.bytes for split in SPLITS for shard in dataset.shards(split))


def test_the_bytes_come_true(tmp_path):
    images = {f"{number}.png": noise(number, 80 + number % 9 * 20) for number in range(300)}
    source = Archive(list(map(item, range(300))), images=images)
    plan = planned(source)
    found = forecast(300, len(plan.parts), measured(source), 1.0, [2], str(tmp_path))["forecast"]
    made = ingested(tmp_path / "made", source.entries, images=images)
    # Sizes deviate by a third of their mean, so the mean of 32 by 6 %: this is four times as much.
    assert found["bytes"][0] == pytest.approx(stored_bytes(made), rel=0.24)
    assert found["bytes"][1] < found["bytes"][0] < found["bytes"][2]


def test_images_that_are_refused_when_read_are_taken_off_the_pairs(tmp_path):
    missing = frozenset(f"{number}.png" for number in range(0, 400, 2))
    found = measured(Archive(list(map(item, range(400))), missing=missing))
    share = found.refused["missing_image"] / 32
    # A binomial share of a half: five standard deviations.
    assert share == pytest.approx(0.5, abs=0.44)
    pairs = forecast(400, 3, found, 1.0, [2], str(tmp_path))["forecast"]["pairs"]
    assert pairs[0] == round(400 * (1 - share))
    assert pairs[1] < pairs[0] < pairs[2]
    assert len(found.pair_bytes) == 32 - found.refused.total()


def test_where_every_image_was_seen_the_forecast_is_exact(tmp_path):
    source = Archive([item(number, split="train") for number in range(20)])
    found = forecast(20, 1, measured(source), 0.0, [1], str(tmp_path))
    made = ingested(tmp_path / "made", source.entries)
    assert found["forecast"]["pairs"] == [20, 20, 20]
    assert found["forecast"]["bytes"] == [stored_bytes(made)] * 3
    assert found["measured"]["images"] == 20


def test_hours_are_what_an_image_takes_shared_among_the_cpus(tmp_path):
    class Slow(Archive):
        def load_image(self, item: Any) -> bytes:
            time.sleep(0.02)
            return super().load_image(item)

    found = measured(Slow(list(map(item, range(300)))))
    # Twenty milliseconds of waiting and a few of work; a busy machine may add to them.
    assert 0.02 <= sum(found.seconds) / found.images < 0.2
    hours = forecast(3600, 1, found, 36.0, [1, 8], str(tmp_path))["forecast"]["hours"]
    mean = sum(found.seconds) / found.images
    assert hours["1"][0] == pytest.approx(0.01 + mean)
    assert hours["8"][0] == pytest.approx(0.01 + mean / 8)
    assert hours["1"][1] <= hours["1"][0] <= hours["1"][2]


def test_the_sample_is_the_same_every_time_and_spread_over_the_listing():
    plan = planned(Archive([item(number, split="train") for number in range(3200)]))
    chosen = [int(entry.pair_id[6:]) for entry, _ in sample_items(plan, LOSSLESS)]
    assert chosen == [int(entry.pair_id[6:]) for entry, _ in sample_items(plan, LOSSLESS)]
    assert [number // 100 for number in chosen] == list(range(32))
    assert len({number % 100 for number in chosen}) > 15
    assert all(
        int(before.pair_id[6:]) in (number, number - 1)
        for number, (_, before) in zip(chosen, sample_items(plan, LOSSLESS), strict=True)
    )


def test_rows_that_the_table_refuses_are_not_sampled():
    entries = [item(number, report="" if number % 2 else "Clear lungs.") for number in range(400)]
    chosen = sample_items(planned(Archive(entries)), LOSSLESS)
    assert len(chosen) == 32
    assert all(int(entry.pair_id[6:]) % 2 == 0 for entry, _ in chosen)


def test_where_no_image_can_be_read_bytes_and_hours_are_unknown(tmp_path):
    entries = list(map(item, range(100)))
    found = measured(Archive(entries, missing=frozenset(entry.path for entry in entries)))
    assert found.refused == Counter(missing_image=32)
    values = {"kept": 100} | forecast(100, 1, found, 1.0, [2], str(tmp_path))
    assert values["forecast"]["bytes"] is None
    assert values["forecast"]["hours"] is None
    assert values["disk"]["enough"] is None
    assert values["forecast"]["pairs"][0] == 0
    assert "bytes and hours: unknown, since no image of the sample could be read" in lines(values)


def test_without_any_candidate_nothing_is_forecast(tmp_path):
    values = {"kept": 0} | forecast(0, 0, measured(Archive([])), 1.0, [2], str(tmp_path))
    assert values["forecast"] == {"pairs": None, "bytes": None, "hours": None}
    assert "bytes and hours: unknown, since there is no image to read" in lines(values)


def test_a_disk_that_is_too_small_is_said_to_be(tmp_path, monkeypatch):
    found = measured(Archive(list(map(item, range(100)))))
    monkeypatch.setattr(ingest_forecast, "free_bytes", lambda out: 1000)
    values = {"kept": 100} | forecast(100, 1, found, 1.0, [2], str(tmp_path))
    assert values["disk"]["enough"] is False
    assert values["disk"]["needed_bytes"] == pytest.approx(values["forecast"]["bytes"][2], abs=1)
    assert "NOT ENOUGH" in lines(values)[-1]
    monkeypatch.setattr(ingest_forecast, "free_bytes", lambda out: 10**12)
    assert lines({"kept": 100} | forecast(100, 1, found, 1.0, [2], "x"))[-1].endswith("1 TB, enough")


def test_free_bytes_are_those_of_the_nearest_folder_there_is(tmp_path):
    free = ingest_forecast.free_bytes(str(tmp_path / "not" / "yet" / "there"))
    assert free is not None
    assert free > 0
    assert ingest_forecast.free_bytes("mock://bucket/set") is None


def test_no_image_is_begun_after_the_time_for_the_sample(monkeypatch):
    monkeypatch.setattr(ingest_forecast, "SAMPLE_SECONDS", -1.0)
    assert measured(Archive(list(map(item, range(100))))).images == 1


def test_intervals_are_those_of_the_textbook():
    for count, total in ((1, 32), (0, 10), (17, 32)):
        known = binomtest(count, total).proportion_ci(0.95, "wilson")
        assert share_range(count, total) == pytest.approx((count / total, known.low, known.high), abs=1e-9)
    assert share_range(0, 10)[1] == 0.0
    assert share_range(3, 10, every=True) == (0.3, 0.3, 0.3)
    mean, low, high = mean_range([1.0] * 50 + [3.0] * 50)
    # The mean's standard error is 0.1.
    assert (mean, low, high) == (2.0, pytest.approx(1.8, abs=0.03), pytest.approx(2.2, abs=0.03))


def test_the_command_writes_nothing_and_names_nobody(tmp_path, capsys):
    root = table(tmp_path / "archive", range(50), "a")
    wanted = request("manifest", root, tmp_path / "made", tmp_path / "key", plan=True, cpus=64)
    ingest_command.execute(wanted)
    values = json.loads(capsys.readouterr().out)
    assert (values["kept"], values["measured"]["images"]) == (50, 32)
    assert "64" in values["forecast"]["hours"]
    assert values["disk"]["enough"]
    assert not (tmp_path / "made").exists()
    shown = ingest_command.Request(**{**vars(wanted), "as_json": False})
    ingest_command.execute(shown)
    said = capsys.readouterr()
    for word in ("measured here", "an image:", "a stored pair:", "on 64 CPUs", "enough"):
        assert word in said.out
    assert "number 7" not in said.out + said.err


def test_a_growth_is_not_forecast(tmp_path):
    old = ingested(tmp_path / "old", [item(0), item(2)])
    wanted = request("merge", None, "", tmp_path / "key", plan=True)
    merge = ingest_command.Request(**{**vars(wanted), "roots": (old.path, old.path)})
    with pytest.raises(UserError, match="--plan forecasts an archive alone"):
        ingest_command.execute(merge)
