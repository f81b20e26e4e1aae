"""Differences between splits: effect sizes against well-kept libraries, chance, and what is marked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from mpma.data.drift import (
    NUMERIC,
    distribution_distance,
    drift,
    histogram,
    mean_and_deviation,
    share_difference,
    standardised_difference,
)
from mpma.data.images import encode_grey
from mpma.data.quality_info import DriftInfo
from mpma.data.statistics import PairStatistics, grey_histogram, merged

values = st.lists(st.integers(-50, 3000), min_size=1, max_size=60)


@pytest.mark.filterwarnings("ignore:divide by zero")  # of the p-value, which is not asked for
@settings(max_examples=60, deadline=None)
@given(values, values)
def test_effects_are_those_of_the_values_that_were_counted(train, other):
    ours, theirs = Counter(train), Counter(other)
    assert mean_and_deviation(ours) == pytest.approx((np.mean(train), np.std(train)), abs=1e-9)
    assert distribution_distance(ours, theirs) == pytest.approx(
        ks_2samp(train, other, method="asymp").statistic, abs=1e-12
    )
    pooled = math.sqrt((np.var(train) + np.var(other)) / 2 + 1 / 12)
    expected = (np.mean(other) - np.mean(train)) / pooled
    assert standardised_difference(ours, theirs) == pytest.approx(expected, abs=1e-9)
    assert standardised_difference(theirs, ours) == pytest.approx(-expected, abs=1e-9)


def test_two_constant_sizes_differ_without_a_division_by_zero():
    assert standardised_difference({512: 9}, {512: 4}) == 0.0
    assert standardised_difference({512: 9}, {1024: 4}) == pytest.approx(512 * math.sqrt(12))


@pytest.mark.parametrize(
    ("train", "other", "h"), [(0.0, 1.0, math.pi), (0.5, 0.5, 0.0), (0.25, 0.75, math.pi / 3)]
)
def test_the_difference_of_shares_is_that_of_their_angles(train, other, h):
    assert share_difference(train, other) == pytest.approx(h)
    assert share_difference(other, train) == pytest.approx(-h)


@settings(max_examples=40, deadline=None)
@given(values, values)
def test_a_histogram_holds_every_value_once_and_its_last_bin_has_no_end(train, other):
    found = histogram({"train": Counter(train), "val": Counter(other), "test": Counter()})
    assert found is not None
    assert len(found.edges) <= 32
    assert found.edges == sorted(set(found.edges))
    for split, listed in (("train", train), ("val", other)):
        wanted = np.histogram(listed, [*found.edges, math.inf])[0]
        assert found.counts[split] == wanted.tolist()
        assert found.mean[split] == pytest.approx(np.mean(listed))
    assert sum(found.counts["test"]) == 0
    assert "test" not in found.mean


def test_without_values_there_is_no_histogram():
    assert histogram({"train": Counter()}) is None


# Statistics of splits.


def pair(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "patient_id": f"p{number}",
        "study_id": f"s{number}",
        "width": 60,
        "height": 50,
        "view": "PA",
        "report": "one two three",
        "findings": "",
        "impression": "",
        "labels": None,
        "source": "a",
        "license": "",
    } | changes


def counted(rows: list[Mapping[str, Any]], grey: int = 100, size: tuple[int, int] = (2000, 2500)) -> Any:
    found = PairStatistics()
    for row in rows:
        found.add(row, grey_histogram(np.full((50, 60), grey, np.uint8)), size)
    return found


def find(found: list[DriftInfo], characteristic: str, measure: str, value: str = "") -> DriftInfo:
    (one,) = (
        one
        for one in found
        if (one.characteristic, one.measure, one.value) == (characteristic, measure, value)
    )
    return one


def splits(**given: PairStatistics) -> dict[str, PairStatistics]:
    return {name: given.get(name, PairStatistics()) for name in ("train", "val", "test")}


def test_what_is_counted_of_a_pair():
    found = counted([pair(1, report="a b c d", findings="one two", view="AP")], grey=77, size=(2000, 1500))
    assert found.original_sides == {1500: 1}
    assert found.aspects == {120: 1}
    assert found.grey_means == {77: 1}
    assert found.report_words == {2: 1}
    assert found.views == {"AP": 1}
    assert PairStatistics.from_json(found.to_json()) == found


def test_the_grey_histogram_is_that_of_numpy():
    pixels = np.random.default_rng(0).integers(0, 256, (33, 47), dtype=np.uint8)
    assert grey_histogram(pixels).tolist() == np.bincount(pixels.reshape(-1), minlength=256).tolist()
    strided = pixels[::2, ::3]
    assert grey_histogram(strided).tolist() == np.bincount(strided.reshape(-1), minlength=256).tolist()


def test_splits_that_are_alike_are_not_marked():
    draws = np.random.default_rng(0)

    def drawn(count: int, first: int) -> PairStatistics:
        views = draws.choice(["PA", "AP"], count)
        words = draws.integers(5, 60, count)
        rows = [
            pair(first + n, view=str(views[n]), report="w " * int(words[n]), labels=["x"] * int(n % 2))
            for n in range(count)
        ]
        return merged(counted([row], grey=int(draws.integers(60, 180))) for row in rows)

    found = drift(splits(train=drawn(400, 0), val=drawn(60, 400), test=drawn(60, 500)), 0.2)
    assert {(one.characteristic, one.measure) for one in found} == {
        *((name, measure) for name in NUMERIC for measure in ("mean", "shape")),
        ("view", "share"),
        ("label", "share"),
    }
    assert not any(one.marked for one in found)


def test_every_kind_of_difference_is_marked_where_it_is_one():
    train = counted([pair(n, labels=["x"] if n % 10 == 0 else []) for n in range(200)])
    rows = [pair(n, view="AP", report="w " * 40, width=40, labels=["x"], source="b") for n in range(300, 400)]
    found = drift(splits(train=train, test=counted(rows, grey=150, size=(900, 700))), 0.2)
    assert {one.split for one in found} == {"test"}
    assert all(one.marked for one in found)
    words = find(found, "report_words", "mean")
    assert (words.train, words.other) == (3, 40)
    assert words.effect > 0 > find(found, "short_side", "mean").effect
    assert find(found, "grey_mean", "shape").effect == 1.0
    view = find(found, "view", "share", "AP")
    assert (view.train, view.other, view.effect) == (0, 1, pytest.approx(math.pi))
    label = find(found, "label", "share", "x")
    assert (label.train, label.other) == (0.1, 1)


def test_labels_are_compared_over_labelled_pairs_and_only_the_strongest_are_told():
    names = [f"l{n:02d}" for n in range(20)]
    train = counted([pair(n, labels=names if n % 2 else None) for n in range(200)])
    other = counted([pair(300 + n, labels=names[:15]) for n in range(100)])
    found = [one for one in drift(splits(train=train, val=other), 0.2) if one.characteristic == "label"]
    assert [one.value for one in found[:5]] == names[15:]
    assert len(found) == 10
    assert all((one.train, one.other, one.marked) == (1, 0, True) for one in found[:5])
    assert not any(one.marked for one in found[5:])


def test_a_mixture_with_the_same_mean_is_seen_by_its_shape():
    train = merged(counted([pair(n)], grey=grey) for n, grey in enumerate([60, 140] * 100))
    other = counted([pair(300 + n) for n in range(100)], grey=100)
    found = drift(splits(train=train, val=other), 0.2)
    assert not find(found, "grey_mean", "mean").marked
    assert find(found, "grey_mean", "shape").marked
    assert find(found, "grey_mean", "shape").effect == 0.5


def test_chance_is_reckoned_with_patients_and_not_with_images():
    def few(patients: int) -> list[DriftInfo]:
        train = merged(counted([pair(n % patients, width=60 + n % 3)], grey=100 + n % 40) for n in range(400))
        other = merged(counted([pair(1000 + n % patients)], grey=110 + n % 40) for n in range(400))
        return drift(splits(train=train, val=other), 0.2)

    many, one = find(few(400), "grey_mean", "mean"), find(few(4), "grey_mean", "mean")
    assert many.effect == one.effect > 0.2
    assert many.marked
    assert not one.marked
    assert one.chance == pytest.approx(10 * many.chance)
    assert one.chance == pytest.approx(2.5758 * math.sqrt(1 / 4 + 1 / 4), rel=1e-4)


def test_the_threshold_decides_above_chance():
    train = merged(counted([pair(n)], grey=100 + n % 40) for n in range(2000))
    other = merged(counted([pair(5000 + n)], grey=103 + n % 40) for n in range(2000))
    effect = find(drift(splits(train=train, val=other), 0.2), "grey_mean", "mean").effect
    assert 0.2 < effect < 0.3
    assert not find(drift(splits(train=train, val=other), 0.3), "grey_mean", "mean").marked


def test_the_false_alarms_of_equal_splits_are_as_rare_as_stated():
    draws = np.random.default_rng(3)
    marked = 0
    for _ in range(400):
        ours, theirs = (Counter(draws.normal(100, 20, 50).round().astype(int).tolist()) for _ in range(2))
        chance = 2.5758 * math.sqrt(1 / 50 + 1 / 50)
        marked += abs(standardised_difference(ours, theirs)) > chance
    # 4 are expected of 400; more than 12 would be a chance of one in a thousand.
    assert marked <= 12


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)), st.integers(1, 7))
def test_neither_order_nor_parts_change_what_is_found(order, cut):
    parts = [counted([pair(n, view=["PA", "AP"][n % 2], report="w " * n)], grey=90 + 7 * n) for n in range(8)]
    other = counted([pair(20 + n) for n in range(5)])
    whole = drift(splits(train=merged(parts), val=other), 0.2)
    shuffled = [parts[place] for place in order]
    halves = merged([merged(shuffled[:cut]), merged(shuffled[cut:])])
    assert drift(splits(train=halves, val=other), 0.2) == whole


def test_without_train_or_other_pairs_nothing_is_compared():
    some = counted([pair(1)])
    assert drift(splits(train=some), 0.2) == []
    assert drift(splits(val=some), 0.2) == []
    without = drift(splits(train=some, val=counted([pair(2, report="")])), 0.2)
    assert "report_words" not in {one.characteristic for one in without}


def test_stored_images_without_a_known_first_size_are_compared_by_the_rest(tmp_path):
    from mpma.data.dataset_writing import write_dataset

    data, width, height = encode_grey(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))
    rows = [pair(n, pair_id=f"{n}", image=data, width=width, height=height, labels=None) for n in range(6)]
    info = write_dataset(tmp_path / "made", {"train": rows[:4], "val": rows[4:]}).info.quality
    assert info is not None
    assert set(info.histograms) == set(NUMERIC) - {"short_side"}
    assert {one.characteristic for one in info.drift} == set(NUMERIC) - {"short_side"}
    assert info.views == {"train": {"PA": 4}, "val": {"PA": 2}, "test": {}}
