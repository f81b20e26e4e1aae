from __future__ import annotations

import dataclasses
import io
import itertools
import pickle
import re
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mpma.data.phantom import (
    KINDS,
    LABELS,
    PHANTOM_SCHEMA,
    PhantomPair,
    generate_pair,
    generate_text,
    phantom_rows,
    retrieval_ceiling,
)
from mpma.data.phantom.anatomy import HEART_CLASSES
from mpma.data.phantom.draws import Draws
from mpma.data.phantom.findings import SIDED_KINDS
from mpma.data.phantom.render import render
from mpma.data.sources.contract import Item
from mpma.data.sources.phantom import PhantomSource
from mpma.errors import UserError

SIZE = 96

KEYWORDS = {
    "nodule": ("nodul", "mass"),
    "consolidation": ("consolidation",),
    "effusion": ("effusion",),
    "pneumothorax": ("pneumothorax",),
    "elevated_diaphragm": ("diaphragm",),
    "atelectasis": ("atelectasis",),
    "rib_fracture": ("fracture",),
    "cardiomegaly": ("cardiomegaly", "heart", "cardiac"),
    "interstitial_pattern": ("interstitial",),
    "endotracheal_tube": ("endotracheal",),
    "pacemaker": ("pacemaker",),
    "central_line": ("central",),
}
SHAPES = {"cardiomegaly", "elevated_diaphragm"}
"""Findings that are the patient's own shape, not something drawn upon it."""
NEGATION = re.compile(r"\b(no|not|without|negative|clear|normal)\b")


@pytest.fixture(scope="module")
def pairs() -> list[PhantomPair]:
    return [generate_pair(index, 3, SIZE) for index in range(240)]


def _statements(text: str) -> list[tuple[str, bool, str]]:
    """(kind, said present, sentence) of every sentence that names a finding."""
    found = []
    for sentence in re.split(r"(?<=[a-z])\.\s*", text.lower().replace("dr.", "dr")):
        for kind, words in KEYWORDS.items():
            if any(word in sentence for word in words):
                found.append((kind, NEGATION.search(sentence) is None, sentence))
    return found


def _patient_left(pair: PhantomPair) -> np.ndarray:
    """Pixels on the patient's left of the midline."""
    body = pair.description.anatomy
    centre = (np.arange(SIZE) + 0.5) * 2 / SIZE - 1
    return centre[None, :] - body.shear * centre[:, None] - body.shift_x > 0


def test_a_pair_is_a_pure_function_of_its_arguments(pairs: list[PhantomPair]) -> None:
    again = generate_pair(57, 3, SIZE)
    np.testing.assert_array_equal(again.grey, pairs[57].grey)
    np.testing.assert_array_equal(again.finding_mask, pairs[57].finding_mask)
    assert (again.report, again.description) == (pairs[57].report, pairs[57].description)
    backwards = phantom_rows(20, 4, 3, SIZE).take([3, 2, 1, 0])
    singly = [phantom_rows(index, 1, 3, SIZE).to_pylist()[0] for index in (23, 22, 21, 20)]
    assert backwards.to_pylist() == singly


def test_index_and_seed_both_change_the_patient(pairs: list[PhantomPair]) -> None:
    assert pairs[0].description != pairs[1].description
    other_seed = generate_pair(0, 4, SIZE)
    assert other_seed.description != pairs[0].description
    assert not np.array_equal(other_seed.grey, pairs[0].grey)


def test_the_truth_does_not_depend_on_the_size_of_the_image(pairs: list[PhantomPair]) -> None:
    for index in (0, 5, 9):
        larger = generate_pair(index, 3, 160)
        assert larger.description == pairs[index].description
        assert larger.report == pairs[index].report == generate_text(index, 3).report
        assert larger.grey.shape == (160, 160)


def test_every_finding_is_drawn_on_its_side_and_in_its_zone(pairs: list[PhantomPair]) -> None:
    seen: Counter[str] = Counter()
    for pair in pairs:
        body, left = pair.description.anatomy, _patient_left(pair)
        rows = (((np.arange(SIZE) + 0.5) * 2 / SIZE - 1) - body.shift_y) / body.scale
        for finding, mask in zip(pair.description.findings, pair.finding_masks, strict=True):
            assert mask.any(), finding.kind
            seen[finding.kind] += 1
            if finding.kind in (*SIDED_KINDS, "atelectasis", "rib_fracture"):
                on_left = mask[left].sum() / mask.sum()
                assert (on_left > 0.9) if finding.side == "left" else (on_left < 0.1)
            if finding.kind in ("nodule", "consolidation", "atelectasis"):
                top, bottom = body.zone_range(finding.zone, finding.side)
                assert all(top <= y <= bottom for _, y, _ in finding.places)
                height = rows[np.nonzero(mask)[0]].mean()
                assert top - 0.12 < height < bottom + 0.12
            if finding.kind in ("consolidation", "pneumothorax", "atelectasis", "interstitial_pattern"):
                assert pair.lung_mask[mask].mean() > 0.8
    assert set(seen) == set(KINDS)


def test_every_finding_changes_the_pixels_of_its_mask(pairs: list[PhantomPair]) -> None:
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index, pair in enumerate(pairs[:120]):
        quiet = dataclasses.replace(pair.description.exposure, noise=0.0, mottle=0.0)
        for finding, mask in zip(pair.description.findings, pair.finding_masks, strict=True):
            if finding.kind in SHAPES:
                continue
            alone = dataclasses.replace(pair.description, exposure=quiet, findings=(finding,))
            healthy = dataclasses.replace(alone, findings=())
            shown = render(alone, index, 3, SIZE).grey.astype(float)
            change = np.abs(shown - render(healthy, index, 3, SIZE).grey)
            ratios[finding.kind].append(float(change[mask].mean() / (change[~mask].mean() + 0.5)))
    for kind in set(KINDS) - SHAPES:
        assert np.median(ratios[kind]) > (2 if kind == "interstitial_pattern" else 3), kind


def test_cardiomegaly_is_a_heart_wider_than_half_the_chest(pairs: list[PhantomPair]) -> None:
    for pair in pairs:
        enlarged = "cardiomegaly" in pair.labels
        assert (pair.description.anatomy.heart_ratio > 0.5) == enlarged
        for finding, mask in zip(pair.description.findings, pair.finding_masks, strict=True):
            if finding.kind == "cardiomegaly":
                low, high = HEART_CLASSES[finding.grade]
                assert low <= pair.description.anatomy.heart_ratio <= high
                body = pair.description.anatomy
                width = np.ptp(np.nonzero(mask.any(axis=0))[0]) + 1
                expected = body.heart_ratio * body.thorax_half_width * body.scale * SIZE
                assert width == pytest.approx(expected, rel=0.1)


def test_a_raised_diaphragm_stands_above_its_usual_place(pairs: list[PhantomPair]) -> None:
    for pair in pairs:
        body = pair.description.anatomy
        for side, base, usual in (
            ("right", body.base_right, body.usual_base_right),
            ("left", body.base_left, body.usual_base_left),
        ):
            assert (usual - base > 0.15) == (f"{side}_elevated_diaphragm" in pair.labels)


def test_reports_say_exactly_what_is_there_and_on_which_side() -> None:
    for index in range(1000):
        text = generate_text(index, 8)
        by_kind = {kind: text.description.of_kind(kind) for kind in KINDS}
        told = set()
        for kind, present, sentence in _statements(text.findings):
            assert present == bool(by_kind[kind]), (kind, present)
            if present:
                told.add(kind)
                sides = set(re.findall(r"\b(left|right)\b", sentence))
                assert sides == {finding.side for finding in by_kind[kind] if finding.side}
                for finding in by_kind[kind]:
                    for word in (finding.grade, finding.zone if kind != "effusion" else ""):
                        assert word in sentence
                    if kind == "nodule":
                        assert f"{finding.millimetres} mm" in sentence
        assert told == {finding.kind for finding in text.description.findings}
        for kind, present, _ in _statements(text.impression):
            assert present
            assert by_kind[kind]


def test_the_report_holds_its_sections() -> None:
    for index in range(50):
        text = generate_text(index, 1)
        assert text.report.endswith(f"FINDINGS: {text.findings} IMPRESSION: {text.impression}")
        assert text.findings
        assert text.impression


def test_reports_are_varied_and_of_moderate_length() -> None:
    texts = [generate_text(index, 2) for index in range(2000)]
    bodies = [f"{text.findings} {text.impression}" for text in texts]
    normalised = {re.sub(r"\W+", " ", body.lower()) for body in bodies}
    assert len(normalised) >= 0.95 * len(bodies)
    words = np.array([len(body.split()) for body in bodies])
    assert np.percentile(words, 5) >= 20
    assert np.percentile(words, 95) <= 46
    pieces = [len(re.findall(r"\w+|[^\w\s]", body)) + 2 for body in bodies]
    assert np.percentile(pieces, 98) <= 64
    hedged = sum(bool(re.search("possible|probable|questionable|suspected", body.lower())) for body in bodies)
    marked = sum("XXXX" in text.report for text in texts)
    assert hedged > 200
    assert marked > 200


def test_every_label_is_common_enough_on_each_side_to_be_probed() -> None:
    labels = [generate_text(index, 5).labels for index in range(2000)]
    counts = Counter(itertools.chain.from_iterable(labels))
    assert set(counts) == set(LABELS)
    assert all(0.05 * 2000 < count < 0.35 * 2000 for count in counts.values())
    assert 0.05 * 2000 < labels.count(()) < 0.3 * 2000


def test_answers_agree_with_the_truth() -> None:
    topics: Counter[str] = Counter()
    closed: Counter[str] = Counter()
    for index in range(600):
        text = generate_text(index, 6)
        for asked in text.questions:
            topics[asked.topic] += 1
            kind = next((kind for kind, words in KEYWORDS.items() if any(w in asked.question for w in words)))
            there = text.description.of_kind(kind)
            if asked.topic == "presence":
                side = re.search(r"\b(left|right)\b", asked.question)
                expected = any(side is None or finding.side == side[1] for finding in there)
                assert asked.type == "closed"
                assert asked.answers == ("yes" if expected else "no",)
                closed[asked.answers[0]] += 1
            else:
                assert asked.type == "open"
            if asked.topic == "side":
                assert asked.answers[0] == there[0].side
            if asked.topic == "location":
                assert asked.answers[0] == f"{there[0].side} {there[0].zone} zone"
            if asked.topic == "size":
                assert asked.answers[0] in (f"{there[0].millimetres} mm", there[0].grade)
            if asked.topic == "count":
                assert asked.answers[0] == str(sum(finding.count for finding in there))
    assert set(topics) == {"presence", "side", "location", "size", "count"}
    assert min(closed["yes"], closed["no"]) > 0.25 * closed.total()


def test_mean_grey_does_not_give_the_labels_away() -> None:
    pairs = [generate_pair(index, 11, 64) for index in range(400)]
    brightness = np.array([pair.grey.mean() for pair in pairs]).argsort().argsort()
    for label in LABELS:
        has = np.array([label in pair.labels for pair in pairs])
        ranks = brightness[has].mean() - (has.sum() - 1) / 2
        auroc = ranks / (~has).sum()
        assert 0.3 < auroc < 0.7, label


def test_the_ceiling_is_what_an_ideal_reader_of_facts_reaches() -> None:
    facts = ["a"] * 2 + ["b"] + ["c"] * 3
    ceiling = retrieval_ceiling(facts, recall_at=(1, 2))
    places = []
    for query in range(len(facts)):
        group = [other for other in range(len(facts)) if facts[other] == facts[query]]
        for order in itertools.permutations(group):
            places.append((order.index(query), 1 / (len(facts) * np.prod(range(1, len(group) + 1)))))
    for k in (1, 2):
        assert ceiling[f"recall_at_{k}"] == pytest.approx(sum(w for place, w in places if place < k))
    gallery = [generate_text(index, 0).description.facts for index in range(512)]
    assert 0.85 < retrieval_ceiling(gallery)["mean_recall"] < 1.0
    with pytest.raises(ValueError, match="no pairs"):
        retrieval_ceiling([])


def test_thousands_of_pairs_a_minute_on_one_core() -> None:
    phantom_rows(0, 2, 0, 128)
    start = time.process_time()
    table = phantom_rows(0, 60, 0, 128)
    seconds = time.process_time() - start
    assert table.schema == PHANTOM_SCHEMA
    assert 60 / seconds * 60 > 2000


def test_draws_are_uniform_and_streams_are_independent() -> None:
    draws = Draws(1, 2, "findings")
    values = np.array([draws.unit() for _ in range(4000)])
    assert abs(values.mean() - 0.5) < 0.02
    other = Draws(1, 2, "wording")
    assert abs(np.corrcoef(values, [other.unit() for _ in range(4000)])[0, 1]) < 0.06
    assert sorted(draws.shuffled("abcdef")) == list("abcdef")
    assert Counter(draws.integer(1, 3) for _ in range(900)).keys() == {1, 2, 3}


# The source


def _source(**changes: object) -> PhantomSource:
    options = {"train_pairs": 6, "val_pairs": 3, "test_pairs": 2, "size": 64, "seed": 9, **changes}
    return PhantomSource(**options)  # type: ignore[arg-type]


def test_listing_draws_no_pixel_and_splits_share_no_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpma.data.phantom.generate.render", None)
    items = list(_source().items())
    assert Counter(item.split for item in items) == {"train": 6, "val": 3, "test": 2}
    assert len({item.patient_id for item in items}) == len({item.report for item in items}) == 11
    assert all("synthetic phantom" in text for item in items for text in (item.license, item.source))


def test_a_larger_training_split_leaves_validation_patients_alone() -> None:
    def held_out(source: PhantomSource) -> list[Item]:
        return [item for item in source.items() if item.split == "val"]

    assert held_out(_source()) == held_out(_source(train_pairs=9))


def test_an_item_loads_the_pair_it_lists() -> None:
    source = _source(size=128)
    items = list(source.items())
    for item in (items[0], items[7]):
        pair = generate_pair(item.locator["index"], 9, 128)
        grey = np.asarray(Image.open(io.BytesIO(source.load_image(item)))).astype(int)
        assert grey.shape == (128, 128)
        assert np.abs(grey - pair.grey).mean() < 4
        extra = source.load_extra(item)
        for name, mask in (("mask", pair.lung_mask), ("finding_mask", pair.finding_mask)):
            with Image.open(io.BytesIO(extra[name])) as stored:
                assert stored.mode == "L"
                np.testing.assert_array_equal(np.asarray(stored) > 0, mask)
        assert item.labels == pair.labels
        assert item.report == pair.report
    assert set(source.extra_schema().names) == set(items[0].extra) | set(source.load_extra(items[0]))


def test_a_pickled_source_loads_the_same_bytes() -> None:
    source = _source()
    item = next(source.items())
    image, extra = source.load_image(item), source.load_extra(item)
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert (copy.load_image(item), copy.load_extra(item)) == (image, extra)


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="'knee' is unknown"):
        _source(kind="knee")
    with pytest.raises(UserError, match="too small"):
        _source(size=32)
