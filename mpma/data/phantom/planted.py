"""Planted sets: synthetic pairs whose best training settings are known beforehand.

`codes_in_cells` decides how much of the report should be masked. The image shows all K codes in a
random permutation over K cells; the report says a cue word, which names a cell, c times and the word of
that cell's code m times. A hidden code word needs the image only where all m are hidden and a cue is
visible; and as image and code together tell the cell, a hidden cue needs the image only where all c are
hidden and a code is visible. Words hidden independently at ratio r so gain
(r**m * (1 - r**c) + r**c * (1 - r**m)) * log2(K) bits from the image. A loss that is the mean over hidden
words has that share per hidden word, r * (m + c) of them. With m = c = 3 the bits are most at r = 0.79 and
the bits per hidden word at 0.74; with m = c = 2 at 0.71 and 0.58. Where each is said once the bits per
hidden word are most at r = 0: nothing is planted inside.

`one_sided_attributes` decides between contrast and reconstruction. Attribute A is told by the report; in
the pixels it is the pattern in one of 16 cells. The other cells show patterns too, each as often as the
others, so that the mean over cells says nothing of A, and what a hidden cell shows cannot be told from
the visible ones. Attribute B is a wave, the same in all cells and far below the noise, and never told;
but it is all that can be told of a hidden cell. So a contrast learns A and lets B go under, a
reconstruction keeps B and does not learn A.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.phantom.draws import Draws, generator

MOST_CELLS: Final = 64

ATTRIBUTE_CLASSES: Final = 4

_ATTRIBUTE_WORDS: Final = ("amber", "birch", "cedar", "dune")
_ATTRIBUTE_FILLERS: Final = ("noted", "seen", "recorded", "given", "stated")
_TOLD_CELL: Final = 5
"""Of 4 x 4 cells, row by row."""
_TOLD_CONTRAST: Final = 0.2
_SHOWN_CONTRAST: Final = 0.008
_NOISE: Final = 0.05


@dataclass(frozen=True)
class PlantedPair:
    """One pair of a planted set."""

    index: int
    seed: int
    grey: NDArray[np.uint8]
    """[size, size]."""
    report: str
    labels: tuple[str, ...]
    finding_mask: NDArray[np.bool_]
    """[size, size]: where the image shows what the report tells."""
    question: str
    answer: str
    truth: tuple[int, ...]
    """Codes in cells: the code of every cell, then the named cell. One-sided: A's class, then B's."""


def cue_word(cell: int) -> str:
    """The word that names a cell."""
    return "site" + _letters(cell)


def code_word(code: int) -> str:
    """The word of a code."""
    return "code" + _letters(code)


def information_bits(mask_ratio: float, cells: int, copies: int, cues: int = 1) -> float:
    """Bits per report that only the image can give, words hidden independently at `mask_ratio`."""
    codes_hidden, cues_hidden = mask_ratio**copies, mask_ratio**cues
    needed = codes_hidden * (1.0 - cues_hidden) + cues_hidden * (1.0 - codes_hidden)
    return float(needed * np.log2(cells))


def bits_per_hidden_word(mask_ratio: float, cells: int, copies: int, cues: int = 1) -> float:
    """`information_bits` over the words that are hidden on average: what a mean over hidden words sees."""
    return information_bits(mask_ratio, cells, copies, cues) / (mask_ratio * (copies + cues))


@functools.cache
def code_patterns(cells: int) -> NDArray[np.float32]:
    """[cells, 4, 4] patterns of 0 and 1, half of them 1, any two differing in at least 4 places."""
    draws = np.random.Generator(np.random.Philox(key=[20_230_520, 0]))
    chosen: list[NDArray[np.float32]] = []
    while len(chosen) < cells:
        pattern = draws.permutation(np.repeat(np.array([0, 1], dtype=np.float32), 8)).reshape(4, 4)
        if all(np.abs(pattern - other).sum() >= 4 for other in chosen):
            chosen.append(pattern)
    return np.stack(chosen)


def codes_in_cells(
    index: int, seed: int, size: int, cells: int = 16, copies: int = 3, cues: int = 1
) -> PlantedPair:
    """Pair `index` of the set; a pure function.

    Raises ValueError where `cells` is outside 2..64, `copies` or `cues` below 1, or `size` too small for
    cells of 8 pixels.
    """
    columns = int(np.ceil(np.sqrt(cells)))
    side = size // columns
    if not 2 <= cells <= MOST_CELLS or min(copies, cues) < 1 or side < 8:
        raise ValueError(
            f"{cells} cells, {cues} cues and {copies} copies do not fit an image of {size} pixels"
        )
    random = generator(index, seed, "planted")
    codes = random.permutation(cells)
    named = int(random.integers(cells))
    grey = np.full((size, size), 0.5, dtype=np.float32)
    where = np.zeros((size, size), dtype=np.bool_)
    unit = (side - 2) // 4
    start = (side - 4 * unit) // 2
    patterns = code_patterns(cells)
    for cell, code in enumerate(codes):
        row, column = divmod(cell, columns)
        top, left = row * side + start, column * side + start
        shown = np.kron(patterns[code], np.ones((unit, unit), dtype=np.float32))
        grey[top : top + 4 * unit, left : left + 4 * unit] = 0.25 + 0.5 * shown
        if cell == named:
            where[row * side : (row + 1) * side, column * side : (column + 1) * side] = True
    grey += np.float32(0.04) * random.standard_normal((size, size), dtype=np.float32)
    word = code_word(int(codes[named]))
    return PlantedPair(
        index=index,
        seed=seed,
        grey=_to_bytes(grey),
        report=" ".join([*[cue_word(named)] * cues, *[word] * copies]),
        labels=(f"first_{code_word(int(codes[0]))}",),
        finding_mask=where,
        question=f"Which code is at {cue_word(named)}?",
        answer=word,
        truth=(*(int(code) for code in codes), named),
    )


def one_sided_attributes(index: int, seed: int, size: int) -> PlantedPair:
    """Pair `index` of the set; a pure function. `size` at least 32.

    Labels are `told_<word>` for A's class and `shown_<number>` for B's.
    """
    side = size // 4
    unit = side // 4
    if unit < 2:
        raise ValueError(f"one-sided attributes do not fit an image of {size} pixels")
    random = generator(index, seed, "planted")
    told, shown = (int(value) for value in random.integers(ATTRIBUTE_CLASSES, size=2))
    others = random.permutation(np.repeat(np.arange(ATTRIBUTE_CLASSES), 4))
    # One of the told class changes places with whatever stands in the told cell.
    where_told = int(np.flatnonzero(others == told)[random.integers(4)])
    others[[_TOLD_CELL, where_told]] = others[[where_told, _TOLD_CELL]]
    grey = np.full((size, size), 0.5, dtype=np.float32) + _SHOWN_CONTRAST * _wave(shown, size)
    where = np.zeros((size, size), dtype=np.bool_)
    patterns = code_patterns(ATTRIBUTE_CLASSES)
    for cell, pattern in enumerate(others):
        row, column = divmod(cell, 4)
        drawn = np.kron(2.0 * patterns[pattern] - 1.0, np.ones((unit, unit), dtype=np.float32))
        area = (
            slice(row * side, row * side + 4 * unit),
            slice(column * side, column * side + 4 * unit),
        )
        grey[area] += _TOLD_CONTRAST * drawn
        where[area] = cell == _TOLD_CELL
    grey = grey + _NOISE * random.standard_normal((size, size), dtype=np.float32)
    draws = Draws(index, seed, "wording")
    words = draws.shuffled([_ATTRIBUTE_WORDS[told], draws.choice(_ATTRIBUTE_FILLERS), "mark"])
    return PlantedPair(
        index=index,
        seed=seed,
        grey=_to_bytes(grey),
        report=" ".join(words),
        labels=(f"told_{_ATTRIBUTE_WORDS[told]}", f"shown_{shown}"),
        finding_mask=where,
        question="Which mark is told?",
        answer=_ATTRIBUTE_WORDS[told],
        truth=(told, shown),
    )


@functools.cache
def _wave(shown: int, size: int) -> NDArray[np.float32]:
    """[size, size]: B's pattern of a class, the same in each of 4 x 4 cells: a sine of one or two periods
    along or across."""
    side = size // 4
    ramp = (np.arange(side) + 0.5) / side
    sine = np.sin(2.0 * np.pi * (1 + shown % 2) * ramp).astype(np.float32)
    one = np.broadcast_to(sine[None, :] if shown < 2 else sine[:, None], (side, side))
    return np.pad(np.tile(one, (4, 4)), (0, size - 4 * side))


def _letters(number: int) -> str:
    """Two letters, so that no word is a prefix of another."""
    return "bdfgklmnprst"[number // 6] + "aeiouy"[number % 6]


def _to_bytes(grey: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.clip(grey * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8)
