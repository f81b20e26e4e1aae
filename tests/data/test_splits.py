"""Patients and splits: a pure draw, nobody in two, small sets without empty splits."""

from __future__ import annotations

import pytest

from mpma.data.hashing import PUBLIC_KEY, key_name, keyed_hash, load_key, load_or_create_key
from mpma.data.splits import assign_patients, draw, parse_fractions, split_of
from mpma.errors import UserError

PATIENTS = [keyed_hash(PUBLIC_KEY, "patient", str(number)) for number in range(5000)]
PINNED_SPLITS = [
    "test",
    "train",
    "test",
    "train",
    "val",
    "train",
    "train",
    "train",
    "val",
    "train",
    "train",
    "train",
]
PINNED_DRAW = 0.9057803773547671


def test_shares_of_patients_are_the_fractions_asked_for():
    splits = [split_of(patient, (0.7, 0.2, 0.1)) for patient in PATIENTS]
    # Four standard deviations of a binomial share at 5,000 are below 0.026.
    assert splits.count("train") / len(splits) == pytest.approx(0.7, abs=0.026)
    assert splits.count("val") / len(splits) == pytest.approx(0.2, abs=0.026)
    assert splits.count("test") / len(splits) == pytest.approx(0.1, abs=0.026)


def test_a_patient_keeps_its_split_whoever_else_is_there():
    all_of_them = assign_patients(PATIENTS, {})
    some = assign_patients(PATIENTS[::-7], {})
    assert some == {patient: all_of_them[patient] for patient in PATIENTS[::-7]}


def test_the_draw_is_pinned_so_that_splits_never_change_between_versions():
    assert [split_of(patient) for patient in PATIENTS[:12]] == PINNED_SPLITS
    assert draw(PATIENTS[0]) == PINNED_DRAW


def test_another_seed_or_key_draws_anew():
    base = [split_of(patient) for patient in PATIENTS]
    assert base != [split_of(patient, seed=1) for patient in PATIENTS]
    other = [keyed_hash(b"k" * 32, "patient", str(number)) for number in range(5000)]
    assert base != [split_of(patient) for patient in other]


@pytest.mark.parametrize("count", range(3, 25))
def test_a_handful_of_patients_leaves_no_wanted_split_empty(count):
    for start in range(0, 400, 25):
        assigned = assign_patients(PATIENTS[start : start + count], {})
        assert set(assigned.values()) == {"train", "val", "test"}
        assert assigned == assign_patients(PATIENTS[start : start + count][::-1], {})


def test_one_patient_trains_and_a_share_of_nought_stays_empty():
    assert all(assign_patients([patient], {}) == {patient: "train"} for patient in PATIENTS[:50])
    assert assign_patients([], {}) == {}
    assert set(assign_patients(PATIENTS[:50], {}, (0.5, 0.5, 0.0)).values()) == {"train", "val"}
    assert set(assign_patients(PATIENTS[:50], {}, (1.0, 0.0, 0.0)).values()) == {"train"}


def test_given_splits_are_kept_and_the_others_drawn():
    given = {PATIENTS[0]: "test", PATIENTS[1]: "val"}
    assigned = assign_patients(PATIENTS[:100], given)
    assert {name: assigned[name] for name in given} == given
    assert all(assigned[name] == split_of(name) for name in PATIENTS[2:100])


@pytest.mark.parametrize("text", ["0.8/0.1", "0.8/0.1/0.2", "a/b/c", "0/0.5/0.5", "1.2/-0.1/-0.1", ""])
def test_fractions_that_do_not_add_up_are_refused_in_one_line(text):
    with pytest.raises(UserError, match="sum to 1"):
        parse_fractions(text)
    assert parse_fractions("0.7/0.2/0.1") == (0.7, 0.2, 0.1)


def test_a_hash_tells_patient_from_study_and_key_from_key():
    same = [keyed_hash(PUBLIC_KEY, "patient", "7"), keyed_hash(PUBLIC_KEY, "study", "7")]
    same.append(keyed_hash(b"k" * 32, "patient", "7"))
    assert len(set(same)) == 3
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in same)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path):
    file = tmp_path / "config" / "patient_key"
    key, created = load_or_create_key(file)
    assert created
    assert len(key) == 32
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert load_or_create_key(file) == (key, False)
    assert key.hex() not in key_name(key)
    assert [entry.name for entry in file.parent.iterdir()] == ["patient_key"]


def test_a_file_that_is_no_key_is_refused_by_name(tmp_path):
    file = tmp_path / "wrong_key"
    file.write_text("not a key")
    with pytest.raises(UserError, match="wrong_key: not a patient key"):
        load_or_create_key(file)
    with pytest.raises(UserError, match="cannot be read"):
        load_key(tmp_path / "absent")
