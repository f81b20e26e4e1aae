"""A dataset that grows: nobody moves, nothing is lost or said twice, and the old one is never touched."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from grown_samples import (
    KEY,
    LOSSLESS,
    Archive,
    appended,
    files,
    ingested,
    item,
    merged,
    old_dataset,
    patient,
    png,
    quarantine,
    rows,
)
from test_ingest import StopAfter

from mpma.data.dataset import Dataset
from mpma.data.dataset_info import DatasetInfo
from mpma.data.hashing import keyed_hash
from mpma.data.images import read_grey
from mpma.data.ingest_plan import IngestOptions
from mpma.data.joining import join
from mpma.data.pairs import SPLITS
from mpma.data.splits import split_of
from mpma.data.statistics import PairStatistics, grey_histogram
from mpma.errors import UserError
from orchestration.growing import open_parents, prepare_joined
from orchestration.ingesting import carry_out

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return old_dataset(tmp_path_factory.mktemp("old") / "old")


NEW = Archive(
    [*(item(number, pair_id=f"new-{number}") for number in range(150, 400)), item(600, report="")],
    fields=(pa.field("device", pa.string()),),
    name="clinic",
)


@pytest.fixture(scope="module")
def grown(old: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return appended(old, NEW, tmp_path_factory.mktemp("grown") / "new")


def test_appending_keeps_every_old_pair_and_every_old_patients_split(old, grown):
    before, after = rows(old), rows(grown)
    for pair_id, row in before.items():
        assert after[pair_id] == row | {"device": None}
    assert len(after) == 450
    assert grown.info.columns[-2:] == ["age", "device"]
    split_of_patient = {row["patient_id"]: row["split"] for row in before.values()}
    for number in range(150, 400):
        row = after[f"new-{number}"]
        assert row["patient_id"] == patient(number)
        expected = split_of_patient.get(patient(number)) or split_of(patient(number))
        assert row["split"] == expected
        assert np.array_equal(read_grey(row["image"]), read_grey(png(number))) or row["age"] is None


def test_a_known_patient_keeps_a_split_that_the_draw_would_not_give(tmp_path):
    drawn = {number: split_of(patient(number)) for number in range(0, 40, 2)}
    moved = {number: "test" if split == "train" else "train" for number, split in drawn.items()}
    first = ingested(tmp_path / "old", [item(number, split=moved[number]) for number in moved])
    after = rows(appended(first, Archive([item(number + 1) for number in moved]), tmp_path / "new"))
    assert {number: after[f"image-{number + 1}"]["split"] for number in moved} == moved


def test_adding_patients_moves_nobody_even_where_the_first_were_a_handful(tmp_path):
    few = ingested(tmp_path / "few", map(item, range(8)))
    assert all(few.rows(split) for split in SPLITS)
    after = rows(appended(few, Archive(list(map(item, range(8, 300)))), tmp_path / "many"))
    assert {name: after[name]["split"] for name in rows(few)} == {
        name: row["split"] for name, row in rows(few).items()
    }
    assert all(after[f"image-{number}"]["split"] == split_of(patient(number)) for number in range(8, 300))


def test_the_old_directory_is_not_touched(old, tmp_path):
    place = Path(old.path)
    before = files(place), {file: file.stat().st_mtime_ns for file in place.rglob("*")}
    appended(old, NEW, tmp_path / "new")
    assert (files(place), {file: file.stat().st_mtime_ns for file in place.rglob("*")}) == before


def test_what_was_refused_before_is_still_told_and_what_is_refused_now_too(old, grown):
    told = quarantine(grown)
    assert [row for row in told if row in quarantine(old)] == quarantine(old)
    assert len(quarantine(old)) == 3
    assert [row for row in told if row not in quarantine(old)] == [("image-600", "empty_report", "")]
    assert grown.info.quarantine.reasons == {"empty_report": 2, "missing_image": 2}


def test_every_figure_of_the_marker_is_that_of_the_rows(grown):
    for split in SPLITS:
        counted = PairStatistics()
        for row in rows(grown).values():
            if row["split"] == split:
                counted.add(row, grey_histogram(read_grey(row["image"])))
        info = grown.info.splits[split]
        assert (info.pairs, info.patients, info.studies) == (
            counted.pairs,
            len(counted.patients),
            len(counted.studies),
        )
        assert info.label_counts == dict(sorted(counted.labels.items()))
        if split == "train":
            assert grown.info.images == counted.images()
    assert grown.info.sources == {"clinic": 250, "hospital": 200}
    grown.verify()


def test_equal_inputs_give_equal_files_and_another_input_another_fingerprint(old, grown, tmp_path):
    again = appended(old, NEW, tmp_path / "again")
    assert files(Path(again.path)) == files(Path(grown.path))
    fewer = appended(old, Archive(NEW.entries[:-2], NEW.fields, NEW.name), tmp_path / "fewer")
    assert len({old.fingerprint, grown.fingerprint, fewer.fingerprint}) == 3


def test_a_growth_that_was_stopped_goes_on_to_the_same_files(old, tmp_path, monkeypatch):
    options = {"pairs_per_shard": 64}
    whole = appended(old, NEW, tmp_path / "whole", **options)
    for parts in (1, 4):
        with monkeypatch.context() as patch:
            StopAfter(patch, parts)
            with pytest.raises(KeyboardInterrupt):
                appended(old, NEW, tmp_path / "made", **options)
        with pytest.raises(UserError, match="not a finished dataset"):
            Dataset.open(tmp_path / "made")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "made").glob("train/*.parquet")}
    assert len(kept) >= 4
    appended(old, NEW, tmp_path / "made", **options)
    assert files(tmp_path / "made") == files(Path(whole.path))
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_split_that_contradicts_is_refused_row_by_row_and_harms_no_old_row(old, tmp_path):
    known = rows(old)["image-0"]["split"]
    other = next(split for split in SPLITS if split != known)
    entries = [
        item(0, pair_id="agrees", split=known),
        item(0, pair_id="contradicts", split=other),
        item(0, pair_id="says-nothing"),
        item(700, pair_id="torn-1", split="train"),
        item(700, pair_id="torn-2", split="val"),
        item(702, pair_id="given", split="test"),
    ]
    grown = appended(old, Archive(entries), tmp_path / "new")
    after = rows(grown)
    assert set(after) - set(rows(old)) == {"agrees", "says-nothing", "given"}
    assert after["agrees"]["split"] == after["says-nothing"]["split"] == known
    assert after["given"]["split"] == "test"
    refused = [row for row in quarantine(grown) if row[1] == "patient_in_two_splits"]
    assert refused == [
        ("contradicts", "patient_in_two_splits", f"given {other}, the dataset has {known}"),
        ("torn-1", "patient_in_two_splits", ""),
        ("torn-2", "patient_in_two_splits", ""),
    ]


def test_an_id_of_the_same_source_is_a_repetition_and_of_another_source_another_pair(tmp_path):
    first = ingested(tmp_path / "a", [item(n, pair_id=str(n), split="train") for n in range(4)], name="a")
    entries = [item(n, pair_id=str(n), patient_id=f"other-{n}", split="train") for n in range(2, 6)]
    second = appended(first, Archive(entries, name="b"), tmp_path / "ab")
    assert set(rows(second)) == {"0", "1", "2", "3", "b:2", "b:3", "4", "5"}
    assert rows(second)["3"]["patient_id"] == patient(3)
    assert rows(second)["b:3"]["source"] == "b"
    third = appended(second, Archive(entries, name="b"), tmp_path / "abb")
    assert rows(third) == rows(second)
    assert Counter(reason for _, reason, _ in quarantine(third)) == {"duplicate_id": 4}
    assert sorted(name for name, *_ in quarantine(third)) == ["2", "3", "4", "5"]


def test_ids_that_are_stored_as_hashes_are_recognised_as_what_they_are(tmp_path):
    hashed = IngestOptions(image_format="png", hash_pair_ids=True)
    entries = [item(n, split="train") for n in range(4)]
    first = ingested(tmp_path / "a", entries, options=hashed, name="a")
    assert set(rows(first)) == {keyed_hash(KEY, "pair", f"image-{n}") for n in range(4)}
    again = appended(first, Archive(entries[2:], name="a"), tmp_path / "aa", hash_pair_ids=True)
    assert rows(again) == rows(first)
    assert quarantine(again) == [("image-2", "duplicate_id", ""), ("image-3", "duplicate_id", "")]
    other = appended(first, Archive(entries[:1], name="b"), tmp_path / "ab", hash_pair_ids=True)
    assert set(rows(other)) - set(rows(first)) == {f"b:{keyed_hash(KEY, 'pair', 'image-0')}"}


def test_merging_keeps_the_first_of_everything(tmp_path):
    one = ingested(tmp_path / "a", [item(n, split="train") for n in range(6)], name="a")
    two = ingested(
        tmp_path / "b",
        [
            item(4, pair_id="moved", split="val"),
            item(8, pair_id="image-0", split="train"),
            item(10, split="test"),
        ],
        name="b",
    )
    three = ingested(
        tmp_path / "c", [item(0, split="train"), item(11, split="train"), item(12, split="train")], name="a"
    )
    made = merged(tmp_path / "abc", one, two, three)
    assert {name: row["split"] for name, row in rows(made).items()} == {
        **{f"image-{n}": "train" for n in range(6)},
        "b:image-0": "train",
        "image-10": "test",
        "image-12": "train",
    }
    assert quarantine(made) == [
        ("image-0", "duplicate_id", ""),
        ("image-11", "patient_in_two_splits", "train"),
        ("moved", "patient_in_two_splits", "val"),
    ]
    assert made.info.history[-1].quarantined == {"duplicate_id": 1, "patient_in_two_splits": 2}
    made.verify()


def test_refused_rows_of_a_dataset_are_told_by_their_place(tmp_path):
    one = ingested(tmp_path / "a", [item(n, split="train") for n in range(6)])
    two = ingested(tmp_path / "b", [item(9, split="train"), item(3, split="train")])
    made = merged(tmp_path / "ab", one, two)
    joined = join([made])
    (refused,) = joined.origin().carried
    assert refused.path == f"{two.fingerprint[:12]}/{two.shards('train')[0].path} row 1"


def test_the_union_of_columns_is_kept_with_nulls(tmp_path):
    age, day = pa.field("age", pa.int64()), pa.field("day", pa.timestamp("ns", "UTC"))
    taken = pa.scalar(1_600_000_000_123_456_789, pa.timestamp("ns", "UTC")).as_py()
    one = ingested(
        tmp_path / "a", [item(n, split="train", extra={"age": n}) for n in range(3)], fields=(age,)
    )
    two = ingested(
        tmp_path / "b",
        [item(n, split="train", extra={"age": n, "day": taken}) for n in range(4, 6)],
        fields=(day, age),
    )
    made = merged(tmp_path / "ab", two, one)
    assert made.info.columns[-2:] == ["day", "age"]
    found = made.read_rows("train", range(5))
    assert found.column("age").to_pylist() == [4, 5, 0, 1, 2]
    assert found.column("day").to_pylist() == [taken, taken, None, None, None]
    assert found.schema.field("day").type == day.type
    assert found.select(two.info.columns).slice(0, 2).equals(two.read_rows("train", range(2)))


def test_a_column_of_two_types_is_refused_by_its_name(tmp_path):
    one = ingested(tmp_path / "a", [item(0)], fields=(pa.field("age", pa.int64()),))
    two = ingested(tmp_path / "b", [item(2)], fields=(pa.field("age", pa.string()),))
    with pytest.raises(UserError, match=r"column age is int64 in .*a and string in .*b") as caught:
        join([one, two])
    assert caught.value.hint
    with pytest.raises(UserError, match=r"column age is int64 in .*a and double in archive"):
        join([one], Archive([], fields=(pa.field("age", pa.float64()),)), key=KEY)
    empty = ingested(tmp_path / "c", [item(4)], fields=(pa.field("age", pa.null()),))
    assert join([empty, one]).schema.field("age").type == pa.int64()


def test_patients_of_another_key_are_refused_in_one_line(old, tmp_path):
    other = ingested(tmp_path / "other", [item(0)], key=b"l" * 32)
    for joined in (lambda: join([old, other]), lambda: join([old], Archive([]), key=b"l" * 32)):
        with pytest.raises(UserError, match=r"key_name differs: .* patients cannot be recognised") as caught:
            joined()
        assert "\n" not in caught.value.message


def test_generated_pairs_never_mix_with_real_ones(old, tmp_path):
    from test_ingest import make, phantom

    made = make(phantom(64), tmp_path / "phantom", synthetic=True)
    with pytest.raises(UserError, match=r"phantom is synthetic and .*old is real"):
        join([old, made])
    with pytest.raises(UserError, match=r"phantom is synthetic and .*old is real"):
        join([made, old])
    with pytest.raises(UserError, match=r"phantom is synthetic and .*old is real"):
        join([old], phantom(64), key=KEY, synthetic=True)


def test_the_tokeniser_is_trained_on_the_union_or_kept(old, tmp_path):
    words = Archive(
        [item(n, report="FINDINGS: Zwerchfell unauffällig.", split="train") for n in range(900, 940)]
    )
    anew, kept = (appended(old, words, tmp_path / str(keep), keep_tokenizer=keep) for keep in (False, True))
    content = [(Path(dataset.path) / "tokenizer.json").read_bytes() for dataset in (old, anew, kept)]
    assert content[2] == content[0] != content[1]
    assert b"zwerchfell" in content[1]
    assert b"zwerchfell" not in content[0]
    assert [dataset.info.history[-1].tokenizer for dataset in (anew, kept)] == ["trained", "kept"]
    assert kept.info.tokenizer == old.info.tokenizer
    assert anew.fingerprint != kept.fingerprint
    kept.verify()


def test_the_history_tells_the_whole_way_and_a_shared_step_once(old, grown, tmp_path):
    (first,) = old.info.history
    assert (first.step, first.source, first.parents, first.candidates) == ("ingest", "hospital", [], 203)
    assert first.quarantined == {"empty_report": 1, "missing_image": 2}
    assert first.fingerprint == old.fingerprint
    assert first.pairs == {split: old.rows(split) for split in SPLITS}
    assert grown.info.history[:-1] == old.info.history
    last = grown.info.history[-1]
    assert (last.step, last.source, last.candidates) == ("onto", "clinic", 451)
    assert [(parent.fingerprint, parent.pairs) for parent in last.parents] == [(old.fingerprint, 200)]
    assert last.quarantined == {"empty_report": 1}
    made = merged(tmp_path / "merged", old, grown)
    assert [step.step for step in made.info.history] == ["ingest", "onto", "merge"]
    own = made.info.history[-1]
    assert own.source is None
    assert own.candidates == 650 == sum(own.pairs.values()) + sum(own.quarantined.values())
    assert own.quarantined == {"duplicate_id": 200}
    assert own.fingerprint == made.fingerprint
    assert rows(made) == rows(appended(old, NEW, tmp_path / "again"))


def test_a_marker_from_before_the_history_still_opens_and_grows(tmp_path):
    ingested(tmp_path / "made", map(item, range(30)))
    marker = tmp_path / "made" / "dataset.json"
    content = json.loads(marker.read_text())
    del content["history"]
    marker.write_text(json.dumps(content))
    before = Dataset.open(tmp_path / "made")
    assert before.info.history == []
    grown = appended(before, NEW, tmp_path / "new")
    assert [step.step for step in grown.info.history] == ["onto"]
    assert DatasetInfo.model_validate_json(grown.info.to_json()) == grown.info


def test_the_result_may_not_overlap_what_it_is_made_from(old, tmp_path):
    place = Path(old.path)
    link = tmp_path / "link"
    link.symlink_to(place)
    for out in (place, place / "new", place.parent, link):
        with pytest.raises(UserError, match="overlap"):
            open_parents([old.path], str(out))
    assert open_parents([old.path], f"{old.path}-2")[0].fingerprint == old.fingerprint


def test_an_image_that_does_not_decode_stops_the_growth_by_the_shards_name(tmp_path):
    from mpma.data.dataset_writing import write_dataset

    row = dict(next(iter(rows(ingested(tmp_path / "a", [item(0, split="train")])).values())))
    del row["split"]
    handmade = write_dataset(tmp_path / "b", {"train": [row]}, key=KEY, synthetic=False)
    sound = row["image"]
    import mpma.data.dataset_writing as writing

    real = writing.read_grey
    try:
        writing.read_grey = lambda data: real(sound)
        broken = write_dataset(
            tmp_path / "c", {"train": [row | {"image": b"nothing", "pair_id": "c"}]}, key=KEY, synthetic=False
        )
    finally:
        writing.read_grey = real
    with pytest.raises(UserError, match=r"c/train/00000.parquet holds an image that does not decode"):
        merged(tmp_path / "d", handmade, broken)


@pytest.mark.usefixtures("ray_local")
def test_ray_and_this_process_make_the_same_files(old, grown, tmp_path, monkeypatch):
    import grown_samples
    import ray

    monkeypatch.undo()
    assert ray.is_initialized()
    # The tasks' processes cannot import a module of the tests.
    ray.cloudpickle.register_pickle_by_value(grown_samples)
    joined = join([old], NEW, key=KEY)
    on_ray = carry_out(prepare_joined(joined, str(tmp_path / "ray"), key=KEY, options=LOSSLESS)).dataset
    assert files(Path(on_ray.path)) == files(Path(grown.path))
