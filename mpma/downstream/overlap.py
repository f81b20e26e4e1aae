"""Whether what a model is judged on was already in its pre-training data.

Decisions:
- Wrong is a patient of the judged split, or of the evaluation's val split, among the patients that were
  pre-trained on, and a judged patient among those by whom the pre-training was validated. Patients fitted
  on who were pre-trained on are legal (their pictures were seen, their labels were not): counted and told.
- Patients are compared by keyed hash, which only works under one patient key; pictures are compared in
  any case, since archives publish each other's patients under other names. A picture that is found counts
  for the patient whom the evaluation data name.
- A picture is named by 1,024 signs of its cosine transform (after the perceptual hash of Zauner,
  "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with the lowest frequencies,
  which all chest radiographs share, left out). Size, compression and windowing hardly move the signs, an
  inverted picture flips all of them. Radii and what they find: docs/overlap.md.
- Every pair of pictures is compared on 128 of the signs, in blocks that fit a cache, and few survive:
  exact under the stated radii and linear in memory, which an index of buckets is not where the signs are
  far from evenly spread.

No identifier and no pixel leaves this module: fingerprints and counts do.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpma.data.images import read_grey
from mpma.data.sources.contract import UnreadableImage
from mpma.errors import UserError

Fingerprints = NDArray[np.uint64]
"""[n, WORDS]: hash of the stored bytes, then the signs of the picture, which are all 0 where it has none."""

WORDS: Final = 17

FINGERPRINT_VERSION: Final = 1
"""Raise when fingerprints change: kept ones are made again."""

CORE_RADIUS: Final = 36
"""Most of the 128 core signs in which two copies of one picture differ."""

RADIUS: Final = 160
"""Most of all 1,024 signs in which two copies of one picture differ."""

_SIDE: Final = 64
_LOWEST: Final = 2
_BAND: Final = 32
_CORE: Final = 128
_SIGNS: Final = _BAND * _BAND
_LEAST_STRUCTURE: Final = 0.5
"""Share of coefficients that must stand out from rounding; below it signs are noise (a blank picture)."""
_QUERIES, _REFERENCES = 16, 4096  # a block's intermediate values stay in the second-level cache


@dataclass(frozen=True)
class Contents:
    """What is compared of one dataset, by split, in row order."""

    patients: Mapping[str, NDArray[np.str_]]
    """[n] keyed hashes."""
    pictures: Mapping[str, Fingerprints] | None
    """None where pictures are not compared."""


@dataclass(frozen=True)
class Shared:
    """What one split of the evaluation data shares with one split of the pre-training data."""

    patients: int
    """Patients of the evaluation data found by id or by picture."""
    patients_by_id: int
    """Of these, found by id."""
    images: int
    """Images of the evaluation data whose picture is there, in whatever size or compression."""
    identical_images: int
    """Of these, stored with the same bytes."""


@dataclass(frozen=True)
class Overlap:
    """What evaluation and pre-training data share. Counts only."""

    judged_split: str
    checked: bool = True
    """False where the pre-training data cannot be opened."""
    same_data: bool = False
    """Evaluated on another split of the dataset that was pre-trained on; pictures were not compared."""
    same_key: bool = True
    """False where the two datasets name patients under different keys, so that only pictures can match."""
    patients: int = 0
    """Patients who spoil the result, each counted once."""
    images: int = 0
    """Images whose picture spoils the result, each counted once."""
    fitting_patients: int = 0
    """Patients fitted on who were pre-trained on, which is legal."""
    split_patients: Mapping[str, int] = field(default_factory=dict)
    """Distinct patients by split of the evaluation data."""
    without_signs: int = 0
    """Images, on both sides, that are blank or cannot be decoded: compared by their bytes alone."""
    shared: Mapping[str, Shared] = field(default_factory=dict)
    """By `evaluation split/pre-training split`, for the pairs of `relations`."""

    @property
    def marked(self) -> bool:
        """Whether the result is to be marked: spoiled, or not known to be clean."""
        return not self.checked or self.patients > 0

    @property
    def line(self) -> str:
        """One sentence for tables and pages."""
        if not self.checked:
            return "overlap with the pre-training data was not checked: they cannot be opened"
        if self.patients:
            told = self.spoiled
        else:
            judged = " or ".join(dict.fromkeys((self.judged_split, "val")))
            how = "by id" if self.same_data else "by id or image" if self.same_key else "by image"
            told = f"no {judged} patient was pre-trained on ({how})"
        if self.fitting_patients:
            told += f"; {self._told('train/train')}, without their labels, as is allowed"
        if self.same_data:
            told += "; evaluated on the pre-training dataset itself"
        elif not self.same_key:
            told += "; ids could not be compared: the datasets were ingested with different patient keys"
        if self.without_signs:
            told += f"; {self.without_signs} blank or damaged images compared by their bytes alone"
        return told

    @property
    def spoiled(self) -> str:
        """What spoils the result, in counts; empty where nothing does."""
        return "; ".join(self._told(name) for name in _forbidden(self.judged_split) if self._any(name))

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values, `line` and `marked` among them."""
        return asdict(self) | {"line": self.line, "marked": self.marked}

    def _any(self, name: str) -> bool:
        return name in self.shared and self.shared[name].patients > 0

    def _told(self, name: str) -> str:
        evaluation, pretraining = name.split("/")
        found, of = self.shared[name], self.split_patients[evaluation]
        who = "patients fitted on" if evaluation == "train" else f"{evaluation} patients"
        what = "were pre-trained on" if pretraining == "train" else "validated the pre-training"
        told = f"{found.patients} of {of} {who} {what}"
        if alone := found.patients - found.patients_by_id:
            told += f" ({found.patients_by_id} by id, {alone} by image alone)"
        return told


def relations(judged_split: str) -> list[tuple[str, str]]:
    """(evaluation split, pre-training split) that are compared: forbidden ones, and the fitted patients."""
    return [_pair(name) for name in (*_forbidden(judged_split), "train/train")]


def compare(
    pretraining: Contents,
    evaluation: Contents,
    judged_split: str,
    *,
    same_data: bool = False,
    same_key: bool = True,
    threads: int = 1,
) -> Overlap:
    """Count what is shared. Time grows with the product of the numbers of pictures, memory with their sum."""
    shared: dict[str, Shared] = {}
    spoiling: dict[str, list[NDArray[np.bool_]]] = {}
    images: dict[str, list[NDArray[np.bool_]]] = {}
    for ours, theirs in relations(judged_split):
        names = evaluation.patients[ours]
        by_id = np.isin(names, pretraining.patients[theirs])
        seen = identical = np.zeros(len(names), dtype=bool)
        if evaluation.pictures is not None and pretraining.pictures is not None:
            seen, identical = find_pictures(
                evaluation.pictures[ours], pretraining.pictures[theirs], threads=threads
            )
        found = by_id | np.isin(names, names[seen])
        name = f"{ours}/{theirs}"
        shared[name] = Shared(
            patients=_distinct(names[found]),
            patients_by_id=_distinct(names[by_id]),
            images=int(seen.sum()),
            identical_images=int(identical.sum()),
        )
        if name in _forbidden(judged_split):
            spoiling.setdefault(ours, []).append(found)
            images.setdefault(ours, []).append(seen)
    names_found = [evaluation.patients[split][np.any(found, axis=0)] for split, found in spoiling.items()]
    sides = [side.pictures for side in (pretraining, evaluation) if side.pictures is not None]
    return Overlap(
        judged_split=judged_split,
        same_data=same_data,
        same_key=same_key,
        patients=_distinct(np.concatenate(names_found)),
        images=sum(int(np.any(seen, axis=0).sum()) for seen in images.values()),
        fitting_patients=shared["train/train"].patients,
        split_patients={split: _distinct(names) for split, names in evaluation.patients.items()},
        without_signs=sum(int((~_has_signs(p)).sum()) for side in sides for p in side.values()),
        shared=shared,
    )


def check(overlap: Overlap, allowed: bool) -> None:
    """Refuse an evaluation that `overlap` spoils, unless the user allows it.

    Raises `UserError` with counts, never an identifier. Data that could not be checked are not refused.
    """
    if allowed or not overlap.patients:
        return
    raise UserError(
        f"evaluation and pre-training data overlap: {overlap.spoiled}",
        "evaluate on patients that were not pre-trained on, or mark the result with --allow-overlap",
    )


def fingerprints(images: Sequence[bytes | memoryview]) -> Fingerprints:
    """Fingerprints [n, WORDS] of encoded images; about 1 ms each for 512 pixels."""
    found = np.zeros((len(images), WORDS), dtype=np.uint64)
    for row, image in enumerate(images):
        digest = hashlib.blake2b(image, digest_size=8).digest()
        found[row, 0] = int.from_bytes(digest, "little")
        small = _small_grey(image)
        if small is not None:
            found[row, 1:] = _signs(small)
    return found


def find_pictures(
    queries: Fingerprints, references: Fingerprints, threads: int = 1
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of [n, WORDS] are among [m, WORDS] others: (the picture, the same bytes), bool [n] each."""
    identical = np.isin(queries[:, 0], references[:, 0])
    seen = identical.copy()
    left = np.flatnonzero(~identical & _has_signs(queries))
    asked = queries[left, 1:]
    others = np.ascontiguousarray(references[_has_signs(references), 1:])
    core = np.ascontiguousarray(others[:, : _CORE // 64].T)

    def search(start: int) -> None:
        seen[left[start : start + _QUERIES]] = _search_block(asked[start : start + _QUERIES], others, core)

    starts = range(0, len(left), _QUERIES)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(search, starts):
            pass
    return seen, identical


def _search_block(queries: Fingerprints, references: Fingerprints, core: Fingerprints) -> NDArray[np.bool_]:
    """bool [q] for signs [q, 16] among [m, 16]; `core` [2, m] are their first words, contiguous."""
    found = np.zeros(len(queries), dtype=bool)
    words = np.empty((len(queries), _REFERENCES), dtype=np.uint64)
    for start in range(0, core.shape[1], _REFERENCES):
        part = core[:, start : start + _REFERENCES]
        space = words[:, : part.shape[1]]
        np.bitwise_xor(queries[:, :1], part[0], out=space)
        differ = np.bitwise_count(space)
        np.bitwise_xor(queries[:, 1:2], part[1], out=space)
        differ += np.bitwise_count(space)
        # Near 0, or near 128 for an inverted picture: both come to lie around the radius.
        differ += np.uint8(CORE_RADIUS)
        differ &= np.uint8(_CORE - 1)
        near = differ <= 2 * CORE_RADIUS
        if near.any():
            query, reference = np.nonzero(near)
            both = queries[query] ^ references[start + reference]
            distance = np.bitwise_count(both).sum(axis=1, dtype=np.int64)
            found[query[np.minimum(distance, _SIGNS - distance) <= RADIUS]] = True
    return found


def _small_grey(image: bytes | memoryview) -> NDArray[np.float32] | None:
    """Grey [_SIDE, _SIDE] whatever the aspect; None where the image cannot be decoded."""
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if opened.format == "JPEG":
                # libjpeg decodes at a fraction of the size, at least twice what is needed.
                opened.draft("L", (2 * _SIDE, 2 * _SIDE))
            grey = opened.convert("L") if opened.mode in ("L", "RGB") else None
        if grey is None:
            grey = Image.fromarray(read_grey(bytes(image)))
        return np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    except (UnreadableImage, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _signs(small: NDArray[np.float32]) -> NDArray[np.uint64]:
    """[16] words of signs of a grey [_SIDE, _SIDE] picture; zeros where it has no structure."""
    coefficients = (_COSINES @ small @ _COSINES.T).reshape(-1)[_ORDER]
    if (np.abs(coefficients) > 1.0).mean() < _LEAST_STRUCTURE:
        return np.zeros(_SIGNS // 64, dtype=np.uint64)
    return np.packbits(coefficients > 0).view(np.uint64)


def _sign_order() -> NDArray[np.int64]:
    """Coefficients [_SIGNS] in the order of their bits: first the core, every second of the lower quarter."""
    down, across = np.indices((_BAND, _BAND))
    core = (down < _BAND // 2) & (across < _BAND // 2) & ((down + across) % 2 == 0)
    return np.argsort(~core.reshape(-1), kind="stable")


def _cosines() -> NDArray[np.float32]:
    """[_BAND, _SIDE] rows of the cosine transform (type 2, not normalised), the lowest left out."""
    frequency = np.arange(_LOWEST, _LOWEST + _BAND)[:, None]
    place = 2 * np.arange(_SIDE)[None] + 1
    return np.cos(np.pi * frequency * place / (2 * _SIDE)).astype(np.float32)


_COSINES: Final = _cosines()
_ORDER: Final = _sign_order()


def _has_signs(found: Fingerprints) -> NDArray[np.bool_]:
    return np.asarray(found[:, 1:].any(axis=1))


def _forbidden(judged_split: str) -> list[str]:
    return list(dict.fromkeys((f"{judged_split}/train", "val/train", f"{judged_split}/val")))


def _pair(name: str) -> tuple[str, str]:
    evaluation, pretraining = name.split("/")
    return evaluation, pretraining


def _distinct(names: NDArray[np.str_]) -> int:
    return len(np.unique(names))
