"""Shared patients and pictures are found whatever they are called and however they are stored."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from mpma.data.images import encode_grey
from mpma.data.phantom.generate import generate_pair
from mpma.data.picture_signs import CORE_RADIUS, RADIUS, WORDS, find_pictures, fingerprints
from mpma.downstream.overlap import Contents, Overlap, check, compare
from mpma.errors import UserError


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Forty synthetic patients."""
    return [encode_grey(generate_pair(index, 3, 128).grey)[0] for index in range(40)]


def stored_again(image: bytes, scale: float = 1.0, quality: int = 95, gamma: float = 1.0) -> bytes:
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
        changed = opened.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    changed = changed.point([round(255 * (value / 255) ** gamma) for value in range(256)])
    return _jpeg(changed, quality)


def inverted(image: bytes) -> bytes:
    with Image.open(io.BytesIO(image)) as opened:
        return _jpeg(ImageOps.invert(opened), 90)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def contents(images: bool = True, **splits: Sequence[tuple[str, bytes]]) -> Contents:
    """Contents of (patient, image) rows; splits that are not named are empty."""
    rows = {split: splits.get(split, ()) for split in ("train", "val", "test")}
    return Contents(
        {split: np.array([name for name, _ in found], dtype=np.str_) for split, found in rows.items()},
        {split: fingerprints([image for _, image in found]) for split, found in rows.items()}
        if images
        else None,
    )


def numbered(pictures: Sequence[bytes], numbers: range, prefix: str = "p") -> list[tuple[str, bytes]]:
    return [(f"{prefix}{number}", pictures[number]) for number in numbers]


def test_no_shared_patient_and_no_shared_picture_is_clean(pictures):
    known = contents(train=numbered(pictures, range(10)), val=numbered(pictures, range(10, 14)))
    ours = contents(
        train=numbered(pictures, range(14, 20)),
        val=numbered(pictures, range(20, 24)),
        test=numbered(pictures, range(24, 40)),
    )
    found = compare(known, ours, "test")
    assert (found.patients, found.images, found.fitting_patients, found.marked) == (0, 0, 0, False)
    assert found.split_patients == {"train": 6, "val": 4, "test": 16}
    assert found.line == "no test or val patient was pre-trained on (by id or image)"
    check(found, allowed=False)


@pytest.mark.parametrize(
    ("ours", "theirs", "judged", "spoils"),
    [
        ("test", "train", "test", True),
        ("test", "val", "test", True),
        ("val", "train", "test", True),
        ("val", "train", "val", True),
        ("val", "val", "val", True),
        ("val", "val", "test", False),
        ("train", "train", "test", False),
        ("train", "val", "test", False),
        ("test", "test", "test", False),
        ("test", "train", "val", False),
        ("val", "test", "val", False),
    ],
)
def test_which_shared_patients_spoil_a_result(pictures, ours, theirs, judged, spoils):
    known, labelled = (
        {split: numbered(pictures, range(first + i, first + i + 1)) for i, split in enumerate(names)}
        for first, names in ((0, ("train", "val", "test")), (10, ("train", "val", "test")))
    )
    known[theirs] = [*known[theirs], ("shared", pictures[20])]
    labelled[ours] = [*labelled[ours], ("shared", pictures[30])]
    found = compare(contents(**known), contents(**labelled), judged)
    assert found.patients == int(spoils)
    assert found.marked == spoils
    assert found.fitting_patients == int((ours, theirs) == ("train", "train"))
    if spoils:
        with pytest.raises(UserError, match=f"1 of 2 {ours} patients") as caught:
            check(found, allowed=False)
        assert "--allow-overlap" in str(caught.value.hint)
        assert "shared" not in caught.value.message
    else:
        check(found, allowed=False)
    check(found, allowed=True)


def test_a_picture_under_another_name_counts_for_the_patient_judged(pictures):
    known = contents(train=numbered(pictures, range(10), "theirs"))
    again = [(f"ours{number // 2}", stored_again(pictures[number], 0.6, 70)) for number in range(4)]
    found = compare(known, contents(test=[*again, *numbered(pictures, range(20, 25))]), "test")
    shared = found.shared["test/train"]
    assert (shared.patients, shared.patients_by_id, shared.images, shared.identical_images) == (2, 0, 4, 0)
    assert (found.patients, found.images) == (2, 4)
    assert found.line == "2 of 7 test patients were pre-trained on (0 by id, 2 by image alone)"


def test_a_patient_found_in_two_ways_and_two_splits_is_counted_once(pictures):
    known = contents(
        train=[("a", pictures[0]), ("x", pictures[1])], val=[("y", pictures[0]), ("z", pictures[2])]
    )
    ours = contents(test=[("a", pictures[0]), ("a", pictures[5]), ("b", pictures[6])])
    found = compare(known, ours, "test")
    assert (found.patients, found.images) == (1, 1)
    assert found.shared["test/train"].patients_by_id == 1
    assert found.shared["test/val"].patients_by_id == 0
    assert found.shared["test/val"].identical_images == 1


def test_without_pictures_patients_are_still_compared(pictures):
    rows = numbered(pictures, range(3))
    found = compare(
        contents(False, train=rows), contents(False, train=rows, test=rows[:1]), "test", same_data=True
    )
    assert (found.patients, found.images, found.fitting_patients) == (1, 0, 3)
    assert found.line.endswith("; evaluated on the pre-training dataset itself")


def test_datasets_under_different_keys_say_so(pictures):
    found = compare(contents(), contents(test=numbered(pictures, range(2))), "test", same_key=False)
    assert "(by image)" in found.line
    assert "different patient keys" in found.line


def test_data_that_cannot_be_opened_mark_a_result_and_do_not_refuse_it():
    found = Overlap("test", checked=False)
    assert found.marked
    assert "not checked" in found.line
    check(found, allowed=False)
    assert found.as_dict()["marked"] is True


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        lambda image: stored_again(image, 0.5, 60),
        lambda image: stored_again(image, 2.5, 90),
        lambda image: stored_again(image, 1.0, 80, gamma=0.7),
        inverted,
    ],
    ids=["same", "half the size", "enlarged", "another window", "inverted"],
)
def test_a_picture_is_found_however_it_is_stored(pictures, change):
    seen, identical = find_pictures(
        fingerprints([change(image) for image in pictures[:20]]), fingerprints(pictures[10:])
    )
    assert seen.tolist() == [False] * 10 + [True] * 10
    assert identical.sum() == (10 if change(pictures[0]) == pictures[0] else 0)


@pytest.mark.parametrize(
    ("core", "all_signs"), [(CORE_RADIUS, RADIUS), (0, RADIUS), (CORE_RADIUS, CORE_RADIUS)]
)
@pytest.mark.parametrize("invert", [False, True])
def test_the_radii_are_inclusive_and_nothing_beyond_them_is_found(pictures, core, all_signs, invert):
    reference = fingerprints(pictures[:1])

    def flipped(in_core: int, in_rest: int) -> np.ndarray:
        signs = np.unpackbits(reference[:, 1:].copy().view(np.uint8), axis=1)
        signs[0, :in_core] ^= 1
        signs[0, 128 : 128 + in_rest] ^= 1
        words = np.packbits(signs ^ np.uint8(invert), axis=1).view(np.uint64)
        return np.concatenate([np.zeros((1, 1), np.uint64), words], axis=1)

    assert find_pictures(flipped(core, all_signs - core), reference)[0].all()
    if all_signs == RADIUS:
        assert not find_pictures(flipped(core, all_signs - core + 1), reference)[0].any()
    if core == CORE_RADIUS:
        assert not find_pictures(flipped(core + 1, 0), reference)[0].any()


def test_the_search_finds_what_comparing_every_pair_finds():
    draws = np.random.default_rng(0)
    references = draws.integers(1, 2**63, (9000, WORDS), dtype=np.uint64)
    queries = draws.integers(1, 2**63, (50, WORDS), dtype=np.uint64)
    for query, reference in ((0, 0), (17, 4096), (33, 8999), (49, 4095)):
        queries[query, 1:] = references[reference, 1:]
        queries[query, 3:5] ^= np.uint64((1 << 40) - 1)
    signs = [np.unpackbits(side[:, 1:].copy().view(np.uint8), axis=1) for side in (queries, references)]
    distance = np.array([(row != signs[1]).sum(axis=1).min() for row in signs[0]])
    for threads in (1, 3):
        seen, identical = find_pictures(queries, references, threads=threads)
        assert np.flatnonzero(seen).tolist() == [0, 17, 33, 49] == np.flatnonzero(distance <= RADIUS).tolist()
        assert not identical.any()


def test_blank_and_damaged_images_match_by_their_bytes_alone(pictures):
    blank, darker = (encode_grey(np.full((80, 80), value, np.uint8))[0] for value in (90, 40))
    stripes = encode_grey(np.tile(np.arange(96, dtype=np.uint8), (96, 1)))[0]
    torn = pictures[0][: len(pictures[0]) // 3]
    found = fingerprints([blank, darker, stripes, torn, b"no image"])
    assert not found[:, 1:].any()
    assert len(set(found[:, 0].tolist())) == 5
    seen, identical = find_pictures(found, found[[0, 3]])
    assert seen.tolist() == identical.tolist() == [True, False, False, True, False]
    nothing = find_pictures(found[:0], found)
    assert nothing[0].shape == (0,)
    ours = contents(train=[("a", blank)], test=[("b", darker)])
    clean = compare(contents(train=[("c", torn)]), ours, "test")
    assert (clean.patients, clean.without_signs) == (0, 3)
    assert "3 blank or damaged images" in clean.line


def _real(root: Any, pattern: str) -> list[dict[str, Any]]:
    columns = ["id", "patient_id", "orig_file", "image"]
    return [
        row for file in sorted(root.glob(pattern)) for row in pq.read_table(file, columns=columns).to_pylist()
    ]


def test_all_142_images_that_two_real_sets_share_are_found_after_another_encoding(data_root):
    pairs = _real(data_root, "pairs/*.parquet")
    lungs = _real(data_root, "downstream/covid_lungseg/*.parquet")
    published = {row["orig_file"] for row in pairs}
    shared = np.array([row["orig_file"] in published for row in lungs])
    assert shared.sum() == 142
    seen, identical = find_pictures(
        fingerprints([stored_again(row["image"], 0.6, 60) for row in lungs]),
        fingerprints([row["image"] for row in pairs]),
    )
    assert np.array_equal(seen, shared)
    assert not identical.any()


def test_no_two_of_a_thousand_real_radiographs_match_save_one_that_was_published_twice(data_root):
    rows = _real(data_root, "downstream/nih14_cls/*.parquet")
    found = fingerprints([row["image"] for row in rows])
    twins = [
        number
        for number in range(len(rows))
        if find_pictures(found[number : number + 1], np.delete(found, number, axis=0))[0].any()
    ]
    assert len(rows) == 1000
    assert len(twins) == 2
    assert rows[twins[0]]["image"] == rows[twins[1]]["image"]
    assert rows[twins[0]]["patient_id"] == rows[twins[1]]["patient_id"]
