from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mpma.data.phantom import codes_in_cells, information_bits, one_sided_attributes
from mpma.data.phantom.planted import (
    PlantedPair,
    bits_per_hidden_word,
    code_patterns,
    code_word,
    cue_word,
)
from mpma.data.sources.phantom import PhantomSource
from mpma.errors import UserError

SIZE = 128


def _read_codes(pair: PlantedPair, cells: int) -> list[int]:
    """The codes as the pixels show them, by correlation with every pattern."""
    columns = int(np.ceil(np.sqrt(cells)))
    side = SIZE // columns
    unit = (side - 2) // 4
    start = (side - 4 * unit) // 2
    patterns = code_patterns(cells).reshape(cells, 16) - 0.5
    codes = []
    for cell in range(cells):
        row, column = divmod(cell, columns)
        top, left = row * side + start, column * side + start
        shown = pair.grey[top : top + 4 * unit, left : left + 4 * unit].astype(float)
        blocks = shown.reshape(4, unit, 4, unit).mean(axis=(1, 3)).ravel() - 127.5
        codes.append(int(np.argmax(patterns @ blocks)))
    return codes


@pytest.mark.parametrize(("cells", "copies"), [(4, 1), (9, 3), (16, 3), (12, 2)])
def test_the_image_shows_every_code_and_the_report_repeats_the_named_cells(cells: int, copies: int) -> None:
    for index in range(12):
        pair = codes_in_cells(index, 5, SIZE, cells=cells, copies=copies)
        codes = _read_codes(pair, cells)
        assert sorted(codes) == list(range(cells))
        assert list(pair.truth[:-1]) == codes
        cue, *words = pair.report.split()
        named = [cue_word(cell) for cell in range(cells)].index(cue)
        assert words == [code_word(codes[named])] * copies
        assert pair.labels == (f"first_{code_word(codes[0])}",)
        assert pair.answer == words[0]


def test_a_report_alone_does_not_tell_its_code() -> None:
    cells, count = 4, 1600
    seen = Counter(
        tuple(codes_in_cells(i, 1, 64, cells=cells, copies=1).report.split()) for i in range(count)
    )
    assert len(seen) == cells * cells
    shares = np.array(list(seen.values())) / count
    information = float((shares * np.log2(shares * cells * cells)).sum())
    assert information < 0.03


def test_cue_and_code_words_are_distinct_words() -> None:
    words = [cue_word(number) for number in range(64)] + [code_word(number) for number in range(64)]
    assert len(set(words)) == 128


def test_cues_are_said_as_often_as_asked_before_the_codes() -> None:
    pair = codes_in_cells(3, 5, 64, cells=4, copies=2, cues=3)
    cue, code = cue_word(pair.truth[-1]), code_word(pair.truth[pair.truth[-1]])
    assert pair.report.split() == [cue] * 3 + [code] * 2
    with pytest.raises(ValueError, match="0 cues"):
        codes_in_cells(3, 5, 64, cells=4, copies=2, cues=0)


@pytest.mark.parametrize(("copies", "cues"), [(1, 1), (3, 1), (2, 2), (3, 3)])
def test_the_image_is_needed_where_all_of_one_kind_are_hidden_and_some_of_the_other_are_seen(
    copies: int, cues: int
) -> None:
    rng = np.random.default_rng(copies)
    hidden = rng.random((200_000, copies + cues)) < 0.6
    no_cue, no_code = hidden[:, :cues].all(axis=1), hidden[:, cues:].all(axis=1)
    # Code from cue and cue from code: either is one of 16, and the permutation decides it.
    usable = (no_code ^ no_cue).mean()
    assert information_bits(0.6, 16, copies, cues) == pytest.approx(4 * usable, rel=0.05)
    words = hidden.sum(axis=1).mean()
    assert bits_per_hidden_word(0.6, 16, copies, cues) == pytest.approx(4 * usable / words, rel=0.05)


@pytest.mark.parametrize(("copies", "most", "most_per_word"), [(2, 0.7071, 0.5774), (3, 0.7937, 0.7368)])
def test_an_optimum_lies_inside_where_cue_and_code_are_repeated(
    copies: int, most: float, most_per_word: float
) -> None:
    ratios = np.linspace(0.001, 1.0, 2000)
    bits = [information_bits(float(ratio), 16, copies, copies) for ratio in ratios]
    share = [bits_per_hidden_word(float(ratio), 16, copies, copies) for ratio in ratios]
    assert ratios[int(np.argmax(bits))] == pytest.approx(most, abs=1e-3)
    assert ratios[int(np.argmax(share))] == pytest.approx(most_per_word, abs=1e-3)


def _cells(pair: PlantedPair) -> np.ndarray:
    """[16, side, side]: the cells of a one-sided pair, around their mean."""
    side = len(pair.grey) // 4
    grey = pair.grey.astype(float).reshape(4, side, 4, side).transpose(0, 2, 1, 3).reshape(16, side, side)
    return np.asarray(grey - grey.mean(axis=(1, 2), keepdims=True))


def test_the_told_attribute_is_in_every_report_and_in_one_cell_alone() -> None:
    words = ("amber", "birch", "cedar", "dune")
    patterns = 2.0 * code_patterns(4) - 1.0
    for index in range(40):
        pair = one_sided_attributes(index, 2, SIZE)
        assert [word for word in words if word in pair.report.split()] == [words[pair.truth[0]]]
        assert set(pair.labels) == {f"told_{words[pair.truth[0]]}", f"shown_{pair.truth[1]}"}
        scores = np.einsum("cyx,pyx->cp", _cells(pair), np.kron(patterns, np.ones((1, 8, 8))))
        read = scores.argmax(axis=1)
        told = np.flatnonzero(pair.finding_mask.reshape(4, 32, 4, 32).any(axis=(1, 3)).ravel())
        assert read[told].tolist() == [pair.truth[0]]
        assert Counter(read.tolist()) == {0: 4, 1: 4, 2: 4, 3: 4}  # the mean over cells tells nothing


def test_the_shown_attribute_is_in_all_cells_and_not_in_the_report() -> None:
    pairs = [one_sided_attributes(index, 2, SIZE) for index in range(300)]
    shown = np.array([pair.truth[1] for pair in pairs])
    mean = np.array([_cells(pair).mean(axis=0) for pair in pairs])  # the patterns' mean is the same in all
    means = np.array([mean[shown == kind].mean(axis=0) for kind in range(4)])
    waves = means - means.mean(axis=0)
    ramp = (np.arange(32) + 0.5) / 32
    for kind in range(4):
        sine = np.sin(2 * np.pi * (1 + kind % 2) * ramp)
        expected = np.broadcast_to(sine[None, :] if kind < 2 else sine[:, None], (32, 32))
        alike = [np.corrcoef(wave.ravel(), expected.ravel())[0, 1] for wave in waves]
        assert int(np.argmax(alike)) == kind
    for word in ("amber", "birch", "cedar", "dune", "noted", "seen"):
        found = Counter(pair.truth[1] for pair in pairs if word in pair.report.split())
        assert len(found) == 4
        assert max(found.values()) < 0.5 * found.total()


def test_one_sided_attributes_need_room() -> None:
    with pytest.raises(ValueError, match="16 pixels"):
        one_sided_attributes(0, 0, 16)


def test_planted_pairs_are_pure_functions() -> None:
    for make in (codes_in_cells, one_sided_attributes):
        np.testing.assert_array_equal(make(7, 1, 64).grey, make(7, 1, 64).grey)
        assert make(7, 1, 64).report == make(7, 1, 64).report
        assert not np.array_equal(make(7, 1, 64).grey, make(8, 1, 64).grey)


def test_planted_sets_are_sources_too() -> None:
    for kind in ("codes_in_cells", "one_sided_attributes"):
        source = PhantomSource(5, 2, 1, 64, 0, kind=kind, cells=9, copies=2)  # type: ignore[arg-type]
        items = list(source.items())
        assert [item.split for item in items] == ["train"] * 5 + ["val"] * 2 + ["test"]
        assert len({item.patient_id for item in items}) == 8
        extra = source.load_extra(items[0])
        assert source.load_image(items[0])[:2] == b"\xff\xd8"
        assert extra["mask"] is None
        assert extra["finding_mask"][:4] == b"\x89PNG"
        assert source.extra_schema().names == ["mask", "questions", "finding_mask"]


def test_cells_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="65 cells"):
        PhantomSource(1, 1, 1, 128, 0, kind="codes_in_cells", cells=65)
    with pytest.raises(ValueError, match="do not fit"):
        codes_in_cells(0, 0, 64, cells=64 + 17)
