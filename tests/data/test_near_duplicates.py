"""Equal pictures and reports of one dataset are found, named in a file of their own, and nothing else is."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from mpma.data.dataset import Dataset
from mpma.data.dataset_quality import MarkedShard, dataset_quality
from mpma.data.dataset_writing import write_dataset
from mpma.data.images import encode_grey
from mpma.data.near_duplicates import band_width, equal_groups, picture_groups
from mpma.data.pair_marks import MARK_WORDS, PATIENT, REPORT, pair_mark, read_marks
from mpma.data.pairs import SPLITS
from mpma.data.phantom.generate import generate_pair
from mpma.data.picture_signs import CORE_RADIUS, RADIUS, WORDS, fingerprints, picture_signs
from mpma.data.quality_info import QualityInfo
from mpma.data.statistics import PairStatistics
from mpma.data.storage import open_storage
from mpma.errors import UserError


@pytest.fixture(scope="module")
def phantoms() -> list[np.ndarray]:
    return [generate_pair(index, 5, 128).grey for index in range(300)]


def prints(images: list[np.ndarray]) -> np.ndarray:
    """Fingerprints [n, WORDS] as an ingest takes them."""
    found = np.zeros((len(images), WORDS), np.uint64)
    for row, image in enumerate(images):
        found[row, 0] = row + 1
        found[row, 1:] = picture_signs(image)
    return found


def random_prints(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 2**63, (rows, WORDS), dtype=np.uint64)


def flipped(row: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """A fingerprint whose signs at these places differ, under other bytes."""
    bits = np.unpackbits(row[1:].copy().view(np.uint8))
    bits[signs] ^= 1
    return np.concatenate([[row[0] ^ np.uint64(1 << 40)], np.packbits(bits).view(np.uint64)])


def exhaustive(pictures: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of rows that are one picture, by comparing all."""
    signs = np.unpackbits(pictures[:, 1:].copy().view(np.uint8), axis=1).astype(bool)
    found = set()
    for row in range(len(signs)):
        differ = signs[row + 1 :] != signs[row]
        core, every = differ[:, :128].sum(axis=1), differ.sum(axis=1)
        near = (np.minimum(core, 128 - core) <= CORE_RADIUS) & (np.minimum(every, 1024 - every) <= RADIUS)
        found |= {(row, row + 1 + int(place)) for place in np.flatnonzero(near)}
    return found


# Groups of pictures.


def test_no_two_phantoms_are_one_picture(phantoms):
    assert picture_groups(prints(phantoms)).tolist() == list(range(300))


def test_copies_in_other_sizes_windows_and_compressions_join_their_original(phantoms):
    def again(pixels: np.ndarray, number: int) -> np.ndarray:
        image = Image.fromarray(pixels)
        if number % 4 == 0:
            image = image.resize((70, 70), Image.Resampling.BICUBIC)
        elif number % 4 == 1:
            image = image.point([round(255 * (value / 255) ** 0.7) for value in range(256)])
        elif number % 4 == 2:
            image = ImageOps.invert(image)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=60)
        return np.asarray(Image.open(io.BytesIO(out.getvalue())))

    copies = [again(pixels, number) for number, pixels in enumerate(phantoms[:100])]
    groups = picture_groups(prints([*phantoms, *copies]))
    assert groups.tolist() == [*range(300), *range(100)]


@given(st.integers(0, 2**32), st.integers(2, 60))
@settings(max_examples=40, deadline=None)
def test_copies_that_differ_in_fewer_signs_than_there_are_bands_are_found_for_certain(seed, rows):
    draws = np.random.default_rng(seed)
    pictures = random_prints(rows, seed)
    bands = 1024 // band_width(2 * rows)
    copies = []
    for row in pictures:
        # At most 36 of them in the core, where more would be another picture.
        signs = np.concatenate(
            [draws.choice(128, 36, replace=False), draws.choice(np.arange(128, 1024), bands - 37, False)]
        )
        copies.append(flipped(row, signs))
    groups = picture_groups(np.stack([*pictures, *copies]))
    assert groups.tolist() == [*range(rows), *range(rows)]


def test_groups_are_those_of_an_exhaustive_comparison_and_do_not_depend_on_the_order(phantoms):
    draws = np.random.default_rng(1)
    pictures = prints(phantoms[:80])
    near = [
        flipped(pictures[row], draws.choice(1024, count, False)) for row in range(20) for count in (9, 90)
    ]
    pictures = np.concatenate([pictures, near])
    pairs = exhaustive(pictures)
    assert len(pairs) >= 40
    order = draws.permutation(len(pictures))
    for rows in (np.arange(len(pictures)), order):
        groups = picture_groups(pictures[rows])
        together = {
            (min(rows[a], rows[b]), max(rows[a], rows[b]))
            for a in range(len(rows))
            for b in range(a + 1, len(rows))
            if groups[a] == groups[b]
        }
        assert pairs <= together
        # What is together beyond that hangs together by a chain of pairs.
        assert all(any(one in pair for pair in pairs) for both in together for one in both)


def test_pictures_without_signs_match_by_their_bytes_alone():
    pictures = np.zeros((4, WORDS), np.uint64)
    pictures[:, 0] = [7, 8, 7, 9]
    assert picture_groups(pictures).tolist() == [0, 1, 0, 3]
    assert picture_groups(pictures[:0]).tolist() == []
    assert picture_groups(pictures[:1]).tolist() == [0]


def test_equal_bytes_join_groups_that_signs_alone_would_not():
    first, second = random_prints(2)
    second[0] = first[0]
    assert picture_groups(np.stack([first, second])).tolist() == [0, 0]


def test_a_chain_of_copies_is_one_group():
    row = random_prints(1)[0]
    chain = [row]
    for step in range(6):
        chain.append(flipped(chain[-1], np.arange(128 + 120 * step, 248 + 120 * step)[::2]))
        chain[-1][0] += np.uint64(step)
    assert picture_groups(np.stack(chain)).tolist() == [0] * 7


@pytest.mark.parametrize("alike", ["one picture", "look-alikes"])
def test_time_and_memory_stay_in_bounds_where_everything_looks_alike(alike):
    rows = 20_000
    pictures = np.repeat(random_prints(1), rows, axis=0)
    pictures[:, 0] = np.arange(rows)
    if alike == "look-alikes":
        # Each differs from the centre in 205 signs, and from the others in more than a copy would.
        draws = np.random.default_rng(0)
        bits = np.packbits(draws.random((rows, 1024)) < 0.2, axis=1).view(np.uint64)
        pictures[:, 1:] ^= bits
    began = time.process_time()
    groups = picture_groups(pictures)
    # Comparing every pair would take 200 million comparisons; here they are at most 64 a row and band.
    assert time.process_time() - began < 60
    assert len(np.unique(groups)) == (1 if alike == "one picture" else rows)


def test_equal_values_are_grouped_by_their_first_row():
    values = np.array([5, 3, 5, 2**63, 3, 2**63 + 1], np.uint64)
    assert equal_groups(values).tolist() == [0, 1, 0, 3, 1, 5]


# The published sets.


def real_images(root: Path, pattern: str) -> list[dict[str, Any]]:
    columns = ["id", "patient_id", "orig_file", "image"]
    return [
        row for file in sorted(root.glob(pattern)) for row in pq.read_table(file, columns=columns).to_pylist()
    ]


def test_the_142_images_that_two_published_sets_share_are_found(data_root):
    pairs = real_images(data_root, "pairs/*.parquet")
    lungs = real_images(data_root, "downstream/covid_lungseg/*.parquet")
    groups = picture_groups(fingerprints([row["image"] for row in (*pairs, *lungs)]))
    first = set(groups[: len(pairs)].tolist())
    seen = np.array([group in first for group in groups[len(pairs) :].tolist()])
    published = {row["orig_file"] for row in pairs}
    assert np.array_equal(seen, [row["orig_file"] in published for row in lungs])
    assert seen.sum() == 142


def test_four_real_pictures_stand_under_two_patients_names(data_root):
    rows = real_images(data_root, "pairs/*.parquet")
    groups = picture_groups(fingerprints([row["image"] for row in rows]))
    assert len(rows) - len(np.unique(groups)) == 4
    for group in (group for group in np.unique(groups) if (groups == group).sum() > 1):
        assert len({rows[place]["patient_id"] for place in np.flatnonzero(groups == group)}) == 2


# Marks of pairs, and what a dataset says of itself.


def row(
    number: int, image: bytes, patient: str, report: str = "", split: str = "train", **more: Any
) -> dict[str, Any]:
    height, width = np.asarray(Image.open(io.BytesIO(image))).shape
    return {
        "pair_id": f"pair-{number}",
        "patient_id": patient,
        "study_id": f"study-{number}",
        "image": image,
        "width": width,
        "height": height,
        "view": "PA",
        "report": report or f"Report number {number}.",
        "findings": "",
        "impression": "",
        "labels": None,
        "source": "test",
        "license": "",
        **more,
    }


@pytest.fixture(scope="module")
def images(phantoms) -> list[bytes]:
    return [encode_grey(pixels)[0] for pixels in phantoms[:20]]


def half(image: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(image)).resize((64, 64), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
    return out.getvalue()


@pytest.fixture(scope="module")
def repeated(tmp_path_factory, images) -> Dataset:
    """Pictures and reports that repeat within a patient, between patients and between splits."""
    made = tmp_path_factory.mktemp("repeated") / "made"
    rows = {
        "train": [
            row(0, images[0], "a"),
            row(1, half(images[0]), "a"),
            row(2, images[1], "b", "Normal chest."),
            row(3, images[2], "c", "NORMAL  chest"),
            row(4, images[3], "d", "Old fracture."),
            row(5, images[4], "e"),
            row(6, images[4], "f"),
            *(row(number, images[number - 2], f"p{number}") for number in range(7, 12)),
        ],
        "val": [row(20, half(images[3]), "g", "Nothing new."), row(21, images[12], "h", "normal chest")],
        "test": [
            row(30, images[13], "i", "Old fracture!"),
            row(31, images[14], "j"),
            row(32, images[3], "k"),
        ],
    }
    return write_dataset(made, rows, pairs_per_shard=5)


def quality(dataset: Dataset) -> QualityInfo:
    assert dataset.info.quality is not None
    return dataset.info.quality


def test_groups_are_counted_within_patients_across_patients_and_across_splits(repeated):
    pictures, reports = quality(repeated).pictures, quality(repeated).reports
    assert pictures is not None
    assert reports is not None
    assert (pictures.groups, pictures.pairs) == (3, 7)
    assert (pictures.one_patient, pictures.across_patients, pictures.across_splits) == (1, 2, 1)
    assert pictures.held_out == {"val": 1, "test": 1}
    assert (reports.groups, reports.pairs) == (2, 5)
    assert (reports.one_patient, reports.across_patients, reports.across_splits) == (0, 2, 2)
    assert reports.held_out == {"val": 1, "test": 1}


def test_the_pairs_of_every_group_of_pictures_are_named_and_of_reports_those_across_splits(repeated):
    file = Path(repeated.path) / "near_duplicates.parquet"
    assert file.stat().st_mode & 0o777 == 0o600
    rows = pq.read_table(file).to_pylist()
    groups: dict[tuple[str, int, str], list[tuple[str, str, str]]] = {}
    for one in rows:
        key = one["kind"], one["group"], one["relation"]
        groups.setdefault(key, []).append((one["split"], one["pair_id"], one["patient_id"]))
    assert groups == {
        ("picture", 0, "one_patient"): [("train", "pair-0", "a"), ("train", "pair-1", "a")],
        ("picture", 1, "across_splits"): [
            ("train", "pair-4", "d"),
            ("val", "pair-20", "g"),
            ("test", "pair-32", "k"),
        ],
        ("picture", 2, "across_patients"): [("train", "pair-5", "e"), ("train", "pair-6", "f")],
        ("report", 0, "across_splits"): [
            ("train", "pair-2", "b"),
            ("train", "pair-3", "c"),
            ("val", "pair-21", "h"),
        ],
        ("report", 1, "across_splits"): [("train", "pair-4", "d"), ("test", "pair-30", "i")],
    }


def test_a_dataset_in_which_nothing_repeats_says_so(tmp_path, images):
    made = write_dataset(tmp_path / "made", {"train": [row(n, images[n], f"p{n}") for n in range(4)]})
    found = quality(made)
    assert found.pictures is not None
    assert found.pictures.groups == 0
    assert found.reports is not None
    assert found.reports.held_out == {"val": 0, "test": 0}
    assert pq.read_table(tmp_path / "made" / "near_duplicates.parquet").num_rows == 0


def test_pairs_without_reports_do_not_share_one(tmp_path, images):
    rows = [row(n, images[n], f"p{n}") | {"report": ""} for n in range(4)]
    rows[3] |= {"questions": None}
    with_words = [row(9, images[9], "z")]
    found = quality(write_dataset(tmp_path / "made", {"train": [*rows, *with_words]})).reports
    assert found is not None
    assert found.groups == 0


def test_the_marker_holds_counts_alone(repeated):
    text = (Path(repeated.path) / "dataset.json").read_text()
    assert "pair-" not in text
    assert "fracture" not in text


def test_a_torn_file_of_groups_is_seen_when_the_dataset_is_opened(repeated, tmp_path, images):
    made = write_dataset(tmp_path / "made", {"train": [row(n, images[n], f"p{n}") for n in range(4)]})
    file = Path(made.path) / "near_duplicates.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"near_duplicates\.parquet is torn"):
        Dataset.open(made.path)


def test_a_marker_from_before_is_still_opened(tmp_path, images):
    made = write_dataset(tmp_path / "made", {"train": [row(n, images[n], f"p{n}") for n in range(4)]})
    (Path(made.path) / "near_duplicates.parquet").unlink()
    marker = Path(made.path) / "dataset.json"
    content = json.loads(marker.read_text())
    del content["quality"]
    marker.write_text(json.dumps(content))
    again = Dataset.open(made.path)
    assert again.info.quality is None
    again.verify()


def test_marks_hold_signs_report_and_patient_and_no_text(images, phantoms):
    first = row(0, images[0], "a", "FINDINGS: Clear. IMPRESSION: Normal.")
    same = row(1, images[1], "b", "findings: clear impression: NORMAL")
    other = row(2, images[1], "a", "Fracture.")
    data = b"".join(pair_mark(one, phantoms[0]) for one in (first, same, other))
    assert len(data) == 3 * MARK_WORDS * 8
    marks = read_marks(data)
    assert marks[0, REPORT] == marks[1, REPORT] != marks[2, REPORT]
    assert marks[0, PATIENT] == marks[2, PATIENT] != marks[1, PATIENT]
    assert marks[1, 0] == marks[2, 0] != marks[0, 0]
    assert np.array_equal(marks[0, 1:WORDS], picture_signs(phantoms[0]))


def test_signs_of_pixels_are_those_of_the_stored_file_within_the_radius(images, phantoms):
    stored = fingerprints(images)[:, 1:]
    taken = np.stack([picture_signs(pixels) for pixels in phantoms[:20]])
    assert np.bitwise_count(stored ^ taken).sum(axis=1).max() < 60


def test_parts_without_marks_are_not_compared(tmp_path, images):
    made = write_dataset(tmp_path / "made", {"train": [row(n, images[n], f"p{n}") for n in range(4)]})
    shards = [MarkedShard("train", made.shards("train")[0], b"")]
    statistics = {split: PairStatistics() for split in SPLITS}
    found = dataset_quality(open_storage(made.path), shards, statistics, 0.2)
    assert (found.pictures, found.reports) == (None, None)
