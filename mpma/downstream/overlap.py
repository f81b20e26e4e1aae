"""Whether what a model is judged on was already in its pre-training data.

Decisions:
- Wrong is a patient of the judged split, or of the evaluation's val split, among the patients that were
  pre-trained on, and a judged patient among those by whom the pre-training was validated. Patients fitted
  on who were pre-trained on are legal (their pictures were seen, their labels were not): counted and told.
- Patients are compared by keyed hash, which only works under one patient key; pictures are compared in
  any case, since archives publish each other's patients under other names. A picture that is found counts
  for the patient whom the evaluation data name.
- What one picture is under whatever size, compression or window: `mpma.data.picture_signs`.

No identifier and no pixel leaves this module: counts do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpma.data.picture_signs import Fingerprints, find_pictures, has_signs
from mpma.errors import UserError


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
        without_signs=sum(int((~has_signs(p)).sum()) for side in sides for p in side.values()),
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


def _forbidden(judged_split: str) -> list[str]:
    return list(dict.fromkeys((f"{judged_split}/train", "val/train", f"{judged_split}/val")))


def _pair(name: str) -> tuple[str, str]:
    evaluation, pretraining = name.split("/")
    return evaluation, pretraining


def _distinct(names: NDArray[np.str_]) -> int:
    return len(np.unique(names))
