"""The plan of an ingest and the rows it makes: nothing lost, nobody named, the same every time."""

from __future__ import annotations

import io
import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from source_samples import encoded, grey_pixels, png

from mpma.data.hashing import PUBLIC_KEY, keyed_hash
from mpma.data.images import read_grey
from mpma.data.ingest_plan import IngestOptions, IngestPlan, pairs_per_shard, plan_ingest
from mpma.data.pair_rows import make_row
from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA
from mpma.data.quality import QualityConfig
from mpma.data.sources.contract import Item, Rejection

KEY = b"k" * 32


@dataclass
class Listed:
    """A source that lists what a test gives it."""

    entries: list[Item | Rejection]
    images: Mapping[str, bytes] = field(default_factory=dict)
    fields: tuple[pa.Field, ...] = ()
    name: str = "listed"
    reports_expected: bool = True

    def assumptions(self) -> list[str]:
        return []

    def items(self) -> list[Item | Rejection]:
        return self.entries

    def extra_schema(self) -> pa.Schema:
        return pa.schema(self.fields)

    def load_image(self, item: Item) -> bytes:
        return self.images[item.pair_id]

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}


def item(number: int, **changes: Any) -> Item:
    plain = Item(
        pair_id=f"image-{number}",
        patient_id=f"MRN-{number // 2}",
        study_id=f"ACC-{number // 2}",
        report=f"FINDINGS: Heart is normal, number {number}. IMPRESSION: Clear.",
        path=f"images/{number}.png",
    )
    return replace(plain, **changes)


def plan(entries: list[Item | Rejection], key: bytes = KEY, **options: Any) -> IngestPlan:
    return plan_ingest(Listed(entries), IngestOptions(**options), key)


def planned(made: IngestPlan) -> list[Item]:
    return [entry for part in made.parts for entry in part.items()]


def test_every_candidate_is_planned_once_or_refused():
    refused = Rejection("gone.png", "gone", "missing_image")
    entries = [*map(item, range(3000)), refused, item(7), item(9, split="train"), item(8, split="val")]
    made = plan(entries)
    assert made.candidates == 3004
    assert sum(part.candidates for part in made.parts) + len(made.rejections) == 3004
    assert [len(part.items()) for part in made.parts] == [part.candidates for part in made.parts]
    # Patient 4 was given to two splits: images 8 and 9 and both of their repetitions are refused.
    assert Counter(entry.reason for entry in made.rejections) == {
        "missing_image": 1,
        "duplicate_id": 1,
        "patient_in_two_splits": 4,
    }


def test_no_patient_is_in_two_splits_and_none_is_named():
    made = plan(list(map(item, range(3000))))
    split_of: dict[str, set[str]] = {}
    for part in made.parts:
        for entry in part.items():
            split_of.setdefault(entry.patient_id, set()).add(part.split)
            assert b"MRN" not in pickle.dumps(replace(entry, report=""))
            assert b"ACC" not in pickle.dumps(replace(entry, report=""))
    assert len(split_of) == 1500
    assert all(len(found) == 1 for found in split_of.values())
    assert keyed_hash(KEY, "patient", "MRN-0") in split_of


def test_the_same_listing_gives_the_same_plan_and_any_change_another():
    entries = list(map(item, range(700)))
    made = plan(entries)
    assert plan(list(map(item, range(700)))) == made
    others = [
        plan(entries, key=b"l" * 32),
        plan(entries, short_side_pixels=256),
        plan(entries, split_seed=1),
        plan([*entries[:-1], item(699, report="Another text.")]),
        plan(entries[:-1]),
        plan([*entries, Rejection("a", "b", "missing_image")]),
    ]
    identities = {made.identity, *(other.identity for other in others)}
    assert len(identities) == 7
    names = {part.name for part in made.parts}
    assert all(not names & {part.name for part in other.parts} for other in others)


def test_given_splits_are_kept_for_all_rows_of_the_patient():
    entries = [
        item(0, split="test"),
        item(1),
        item(2, split="val"),
        item(3, split="val"),
        item(4, split="train"),
    ]
    made = plan(entries)
    assert {part.split: [entry.pair_id for entry in part.items()] for part in made.parts} == {
        "train": ["image-4"],
        "val": ["image-2", "image-3"],
        "test": ["image-0", "image-1"],
    }


def test_a_row_without_identity_reaches_its_own_check_and_harms_no_other():
    entries = [
        item(0, patient_id="", split="val"),
        item(2, patient_id="", split="train"),
        item(4, pair_id=""),
        item(6, pair_id=""),
        item(8, split="dev"),
        item(9, split="val"),
        item(11),
    ]
    made = plan(entries)
    assert made.rejections == []
    source = Listed(entries)
    found = [make_row(entry, source, IngestOptions(), pa.schema([])) for entry in planned(made)]
    reasons = Counter(entry.reason for entry in found if isinstance(entry, Rejection))
    assert reasons == {"missing_patient": 2, "missing_id": 2, "unknown_split": 1, "missing_image": 2}


def test_images_without_a_study_are_studies_of_their_own():
    made = plan([item(0, study_id=""), item(1, study_id="")])
    assert len({entry.study_id for entry in planned(made)}) == 2


def test_pair_ids_are_hashed_on_demand_and_the_quarantine_still_names_them():
    good, bad = item(1), item(2, report="")
    made = planned(plan([good, bad], hash_pair_ids=True))
    rows = [row(entry, png(), hash_pair_ids=True) for entry in made]
    assert rows[0][0]["pair_id"] == keyed_hash(KEY, "pair", good.pair_id)
    assert (rows[1].pair_id, rows[1].reason) == (bad.pair_id, "empty_report")
    assert len({keyed_hash(KEY, kind, "1") for kind in ("patient", "study", "pair")}) == 3
    readable = planned(plan([good]))
    assert row(readable[0], png())[0]["pair_id"] == good.pair_id


@dataclass
class Hospital(Listed):
    """A source whose image ids name a person."""

    pair_ids_are_identifying: bool = True


@pytest.mark.parametrize(("given", "hashed"), [(None, True), (False, False), (True, True)])
def test_a_source_with_identifying_ids_has_them_hashed_unless_the_user_says_no(given, hashed):
    options = IngestOptions(hash_pair_ids=given)
    made = planned(plan_ingest(Hospital([item(1)]), options, KEY))
    assert bool(made[0].stored_id) is hashed
    assert made[0].pair_id == "image-1"


def test_parts_keep_the_order_of_the_source():
    made = plan(list(map(item, range(3000))))
    for split in ("train", "val", "test"):
        numbers = [
            int(entry.pair_id[6:]) for part in made.parts if part.split == split for entry in part.items()
        ]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("candidates", [1, 511, 512, 8192, 40_000, 377_110, 5_000_000])
def test_shards_are_whole_row_groups_of_a_bounded_size(candidates):
    pairs = pairs_per_shard(candidates)
    assert pairs % 64 == 0
    assert 512 <= pairs <= 3456
    assert candidates > 64 * 512 or pairs == 512


def test_a_plan_says_how_far_the_listing_is():
    told: list[int] = []
    plan_ingest(Listed(list(map(item, range(1100)))), IngestOptions(), KEY, told.append)
    assert told == [512, 1024, 1100]


def row(entry: Item, image: bytes, fields: tuple[pa.Field, ...] = (), **options: Any) -> Any:
    source = Listed([], {entry.pair_id: image}, fields)
    return make_row(entry, source, IngestOptions(**options), source.extra_schema())


def test_a_row_holds_every_column_and_its_pixels():
    pixels = grey_pixels(3, 200, 150)
    values, grey, _ = row(
        item(1, labels=("a", "b", "a")), encoded(pixels), short_side_pixels=None, image_format="png"
    )
    assert list(values) == PAIR_SCHEMA.names
    assert (values["width"], values["height"]) == (150, 200)
    assert np.array_equal(read_grey(values["image"]), pixels)
    assert np.array_equal(grey, pixels)
    assert values["findings"] == "Heart is normal, number 1."
    assert values["impression"] == "Clear."
    assert values["labels"] == ["a", "b"]
    assert values["source"] == "listed"
    pa.Table.from_pylist([values], schema=PAIR_SCHEMA)


def test_labels_unknown_and_labels_none_stay_apart():
    assert row(item(1), png())[0]["labels"] is None
    assert row(item(1, labels=()), png())[0]["labels"] == []


def test_given_sections_and_origin_win():
    values, *_ = row(item(1, findings="Given.", impression="", source="hospital b", license="CC0"), png())
    assert (values["findings"], values["impression"]) == ("Given.", "")
    assert (values["source"], values["license"]) == ("hospital b", "CC0")


def test_a_large_image_is_shrunk_and_a_small_grey_jpeg_kept_byte_for_byte():
    values, grey, _ = row(item(1), encoded(grey_pixels(1, 1200, 900)), short_side_pixels=512)
    assert (values["width"], values["height"]) == (512, 683)
    assert grey.shape == (683, 512)
    small = encoded(grey_pixels(1, 100, 100), "JPEG")
    assert row(item(1), small)[0]["image"] == small


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty_file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git_lfs_pointer"),
        (b"<!DOCTYPE html><html></html>", "html_page"),
        (png()[:200], "truncated_image"),
        (b"\x00" * 300, "not_an_image"),
        (encoded(grey_pixels(0, 40, 300)), "too_small"),
        (encoded(np.full((80, 80), 9, np.uint8)), "constant_image"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_with_its_reason(image, reason):
    found = row(item(5), image)
    assert isinstance(found, Rejection)
    assert (found.reason, found.pair_id, found.path) == (reason, "image-5", "images/5.png")


def test_the_least_side_is_that_of_the_image_as_it_came():
    quality = QualityConfig(min_side_pixels=600)
    assert row(item(1), png(1, 700, 700), quality=quality, short_side_pixels=128)[0]["width"] == 128
    assert row(item(1), png(1, 500, 700), quality=quality, short_side_pixels=128).reason == "too_small"


@pytest.mark.parametrize("report", ["", "nan", "   ", "XXXX"])
def test_an_empty_report_is_refused_before_its_image_is_read(report):
    source = Listed([])
    found = make_row(item(1, report=report), source, IngestOptions(), pa.schema([]))
    assert isinstance(found, Rejection)
    assert found.reason == "empty_report"


def test_extra_columns_are_kept_and_a_value_of_another_type_is_refused():
    age = pa.field("age", pa.int64())
    assert row(item(1, extra={"age": 40}), png(), (age,))[0]["age"] == 40
    assert row(item(1), png(), (age,))[0]["age"] is None
    found = row(item(1, extra={"age": "forty"}), png(), (age,))
    assert isinstance(found, Rejection)
    assert (found.reason, found.detail) == ("wrong_type", "column age")


def test_text_that_utf8_cannot_hold_does_not_lose_the_row():
    values, *_ = row(item(1, report="FINDINGS: Half \ud83e of a pair."), png())
    pa.Table.from_pylist([values], schema=PAIR_SCHEMA)
    assert values["report"] == "FINDINGS: Half � of a pair."


def test_a_mask_follows_its_image_and_a_foreign_one_is_refused():
    mask = np.zeros((1024, 1024), np.uint8)
    mask[100:500, 200:700] = 127
    fields = (OPTIONAL_FIELDS["mask"],)
    image = encoded(grey_pixels(1, 1024, 1024))
    values, *_ = row(item(1, extra={"mask": encoded(mask)}), image, fields, short_side_pixels=256)
    with Image.open(io.BytesIO(values["mask"])) as small:
        assert np.array_equal(np.asarray(small), mask[2::4, 2::4])
    same = encoded(mask)
    assert row(item(1, extra={"mask": same}), image, fields, short_side_pixels=None)[0]["mask"] == same
    for wrong in (encoded(mask[:50]), b"<html>", same[:60]):
        assert isinstance(row(item(1, extra={"mask": wrong}), image, fields), Rejection)


def test_what_only_a_defect_explains_is_raised():
    class Broken(Listed):
        def load_image(self, item: Item) -> bytes:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make_row(item(1), Broken([]), IngestOptions(), pa.schema([]))


def test_the_public_key_is_not_a_secret_one():
    assert len(PUBLIC_KEY) == 32
