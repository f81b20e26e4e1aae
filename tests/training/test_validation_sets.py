"""The pairs of a validation: fixed by seed, one per patient, no picture read and no row too many."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from held_out_samples import MemoryDataset, made_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.errors import UserError
from mpma.training.config import ValidationConfig
from mpma.training.validation_sets import (
    choose_gallery,
    choose_labelled,
    choose_sets,
    derangement,
    gain_blocks,
)


def dataset_of(patients: list[str], reports: list[str]) -> MemoryDataset:
    pairs = zip(patients, reports, strict=True)
    return MemoryDataset(
        {"train": [], "val": [made_pair(i, patient=p, report=r, size=4) for i, (p, r) in enumerate(pairs)]}
    )


def test_the_gallery_has_one_pair_per_patient_and_reports_that_differ() -> None:
    patients = [f"p{i // 3}" for i in range(90)]
    reports = [f"Report {i % 40}." for i in range(90)]
    rows, classes = choose_gallery(dataset_of(patients, reports), 20, seed=0)
    assert len(rows) == 20
    assert len({patients[row] for row in rows}) == 20
    assert len(set(classes.tolist())) == 20
    again, _ = choose_gallery(dataset_of(patients, reports), 20, seed=0)
    other, _ = choose_gallery(dataset_of(patients, reports), 20, seed=1)
    np.testing.assert_array_equal(rows, again)
    assert set(rows.tolist()) != set(other.tolist())


def test_a_smaller_gallery_is_the_beginning_of_a_larger_one() -> None:
    dataset = dataset_of([f"p{i}" for i in range(60)], [f"r{i % 50}" for i in range(60)])
    small, _ = choose_gallery(dataset, 10, seed=3)
    large, _ = choose_gallery(dataset, 30, seed=3)
    np.testing.assert_array_equal(small, large[:10])


def test_repeated_reports_fill_the_gallery_only_where_distinct_ones_are_too_few() -> None:
    reports = ["No finding."] * 15 + ["no  FINDING"] * 5 + [f"nodule {i}" for i in range(10)]
    dataset = dataset_of([f"p{i}" for i in range(30)], reports)
    _, classes = choose_gallery(dataset, 11, seed=0)
    assert len(set(classes.tolist())) == 11
    rows, classes = choose_gallery(dataset, 16, seed=0)
    assert sorted(Counter(classes.tolist()).values()) == [1] * 10 + [6]
    rows, _ = choose_gallery(dataset, 100, seed=0)
    assert sorted(rows.tolist()) == list(range(30))


def test_a_patient_whose_first_report_is_taken_may_stand_with_another() -> None:
    dataset = dataset_of(["a", "b", "b"], ["same", "same", "own"])
    galleries = [choose_gallery(dataset, 2, seed)[0].tolist() for seed in range(8)]
    begun_with_a = [rows for rows in galleries if rows[0] == 0]
    assert begun_with_a
    assert all(rows == [0, 2] for rows in begun_with_a)


def test_a_val_split_of_one_patient_is_refused_with_what_is_needed() -> None:
    with pytest.raises(UserError, match="at least 2 patients in the val split; this dataset has 1") as error:
        choose_gallery(dataset_of(["a", "a"], ["one", "two"]), 10, seed=0)
    assert error.value.hint is not None
    with pytest.raises(UserError, match="has 0"):
        choose_gallery(dataset_of([], []), 10, seed=0)


def test_no_picture_is_read_and_no_more_row_groups_than_needed() -> None:
    count = 800
    dataset = dataset_of([f"p{i}" for i in range(count)], [f"r{i}" for i in range(count)])
    choose_gallery(dataset, 20, seed=0)
    assert len(dataset.reads) == 3  # row groups of 8
    for row in dataset.rows["val"]:
        row["labels"] = ["nodule"]
    dataset.reads.clear()
    assert len(choose_labelled(dataset, "val", 20, seed=0).rows) == 20
    assert len(dataset.reads) == 3
    choose_sets(dataset, ValidationConfig(gallery_size=20))
    assert all("image" not in columns for _, _, columns in dataset.reads)


def test_null_labels_are_left_out_and_empty_ones_are_negatives() -> None:
    given_labels = [None, [], ["nodule"], ["effusion", "nodule"], None, []]
    rows = [made_pair(i, labels=labels, size=4) for i, labels in enumerate(given_labels)]
    chosen = choose_labelled(MemoryDataset({"val": rows}), "val", 10, seed=0)
    np.testing.assert_array_equal(chosen.rows, [1, 2, 3, 5])
    np.testing.assert_array_equal(chosen.labels, [[0, 0], [0, 1], [1, 1], [0, 0]])
    assert chosen.patients.tolist() == ["patient1", "patient2", "patient3", "patient5"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40))
def test_no_pair_is_given_the_picture_of_its_own_report(classes: list[int]) -> None:
    array = np.array(classes, dtype=np.int64)
    kept, partner = derangement(array) if classes else (array, array)
    if classes:
        largest = max(Counter(classes).values())
        # As many as can have a partner: of a class in the majority, no more than there are others.
        assert len(kept) == min(len(classes), 2 * (len(classes) - largest))
    assert sorted(partner.tolist()) == list(range(len(kept)))
    assert (array[kept] != array[kept][partner]).all()


def test_blocks_of_visual_gain_hold_each_pair_once() -> None:
    rows = np.random.default_rng(0).permutation(100)
    blocks = gain_blocks(rows, np.arange(100))
    assert [len(block.rows) for block in blocks] == [32, 32, 32, 4]
    assert sorted(np.concatenate([block.rows for block in blocks]).tolist()) == list(range(100))
    assert gain_blocks(rows[:1], np.arange(1)) == ()
