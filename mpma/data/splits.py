"""Which patient trains, validates, tests: a pure function of the patient's keyed hash.

Decisions: a patient is never in two splits; the draw depends on nothing but the hash, the fractions
and a seed, so adding patients moves nobody who is there; a split that the source gives is kept, and
only patients without one are drawn; a patient whom the source puts into two splits belongs to neither,
since either choice would leak. One exception to "moves nobody": a handful of patients can leave a
split empty by chance, and then the patient with the smallest draw is moved into it (below).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Final

from mpma.data.pairs import SPLITS
from mpma.errors import UserError

DEFAULT_FRACTIONS: Final = (0.8, 0.1, 0.1)

Fractions = tuple[float, float, float]
"""Shares of patients for train, val and test; they sum to 1."""


def parse_fractions(text: str) -> Fractions:
    """`0.8/0.1/0.1` as three shares.

    Raises `UserError` for anything but three shares of at least 0 that sum to 1, the first above 0.
    """
    try:
        train, val, test = (float(part) for part in text.split("/"))
    except ValueError:
        train = val = test = -1.0
    if min(train, val, test) < 0 or train <= 0 or abs(train + val + test - 1) > 1e-6:
        raise UserError(
            f"--split {text}: not three shares of train/val/test that sum to 1", "for example 0.8/0.1/0.1"
        )
    return train, val, test


def draw(patient_hash: str, seed: int = 0) -> float:
    """A number in [0, 1), uniform over patients, from the keyed hash alone."""
    digest = hashlib.blake2b(patient_hash.encode(), digest_size=8, salt=seed.to_bytes(16, "little"))
    # 53 bits are what a double holds; more would round up to 1.
    return (int.from_bytes(digest.digest(), "little") >> 11) / float(1 << 53)


def split_of(patient_hash: str, fractions: Fractions = DEFAULT_FRACTIONS, seed: int = 0) -> str:
    """`train`, `val` or `test` for a patient named by keyed hash."""
    position = draw(patient_hash, seed)
    for split, bound in zip(SPLITS, itertools.accumulate(fractions), strict=True):
        if position < bound:
            return split
    # The shares may sum to a hair below 1.
    return next(split for split, share in reversed(list(zip(SPLITS, fractions, strict=True))) if share > 0)


def assign_patients(
    patients: Iterable[str],
    given: Mapping[str, str],
    fractions: Fractions = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> dict[str, str]:
    """The split of every patient: `given` where the source names one, else drawn.

    Where no split is given at all and chance left one of the wanted splits without a patient (likely
    below about 20 patients), the patient with the smallest draw of the split that has most is moved,
    train before val before test at a tie; that split keeps one patient, unless it is training that lacks one.
    """
    assigned = {name: given.get(name) or split_of(name, fractions, seed) for name in patients}
    if given:
        return assigned
    for empty, share in zip(SPLITS, fractions, strict=True):
        members = {split: [name for name, where in assigned.items() if where == split] for split in SPLITS}
        largest = max(SPLITS, key=lambda split: len(members[split]))
        spared = len(members[largest]) > 1 or empty == "train"
        if share > 0 and not members[empty] and members[largest] and spared:
            assigned[min(members[largest], key=lambda name: (draw(name, seed), name))] = empty
    return assigned
