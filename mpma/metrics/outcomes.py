"""What one model did on each example of a downstream task; figures as functions of patients' weights.

Decisions:
- An example belongs to one patient, and the patient is what a bootstrap draws: a figure is a function of how
  often each patient is drawn, so what was measured is never measured again.
- A figure is a kind (a rule of `mpma.metrics.rules`), the arrays it reads and its options. Outcomes are
  therefore plain arrays that can be stored, loaded and compared later, by a program that has no model and
  no data.
- A breakdown is the same figure with the weight of all other examples at zero.
- A figure that does not exist on these examples is NaN, and `checked` sees to it that a problem says so.
- Patients are numbers in the order of the examples; no identifier, text or pixel is kept. `identity` says
  whether two outcomes were measured on the same examples, and a reader cannot turn it round.

Shapes: m examples · P patients · B resamples.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.metrics.bootstrap import Statistic
from mpma.metrics.rules import KINDS

FORMAT_VERSION: Final = 1

_MAY_BE_UNKNOWN: Final = frozenset({"value", "labels", "numerator", "denominator"})
"""Roles in which NaN means that the example is not judged."""


@dataclass(frozen=True)
class Figure:
    """How one figure is made of the arrays."""

    kind: str
    """A key of `KINDS`."""
    arrays: Mapping[str, str]
    """Role that the rule knows -> name of an array of the outcomes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values."""


@dataclass(frozen=True)
class Outcomes:
    """One model, one job, one set of judged examples."""

    patient: NDArray[np.int64]
    """[m]: number of each example's patient, 0..P-1."""
    arrays: Mapping[str, NDArray[Any]]
    """Arrays [m, ...] by name: numbers and booleans."""
    figures: Mapping[str, Figure]
    """Every figure by name, in the order in which they are shown."""
    headline: Sequence[str]
    """Names of the figures that stand first."""
    identity: str
    """Equal where two outcomes were measured on the same examples with the same truth."""
    problems: Mapping[str, int] = field(default_factory=dict)
    """What could not be judged, and how often."""
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Breakdown column -> value of each example [m]; empty text where it has none."""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names along an array's second axis, such as label names by array name."""

    @property
    def patients(self) -> int:
        """P."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    def values(self) -> dict[str, float]:
        """Every figure on all patients, by name."""
        everyone = np.ones((1, self.patients))
        return {name: float(self.statistic(name)(everyone)[0]) for name in self.figures}

    def checked(self) -> Outcomes:
        """The same outcomes, with a problem for every figure that has no value on these examples.

        A figure is taken as told where a problem names it already. Raises ValueError where the outcomes do
        not fit together: another number of entries, a gap in the patients' numbers, an unknown kind, array
        or headline, infinite numbers, scores that are NaN, labels other than 0, 1 and NaN.
        """
        self._refuse_misfits()
        silent = [name for name, value in self.values().items() if np.isnan(value) and not self._tells(name)]
        return replace(
            self, problems={**self.problems, **{f"{name}: nothing to judge": 1 for name in silent}}
        )

    def _tells(self, name: str) -> bool:
        """Whether a problem names the figure, and not only one whose name is longer."""
        named = re.compile(rf"(?<![\w/]){re.escape(name)}(?![\w/%@])")
        return any(named.search(problem) for problem in self.problems)

    def _refuse_misfits(self) -> None:
        examples = len(self.patient)
        if not np.array_equal(np.unique(self.patient), np.arange(self.patients)):
            raise ValueError("patients are not numbered 0 to P-1")
        for what, table in (("array", self.arrays), ("breakdown", self.groups)):
            for name, entries in table.items():
                if len(entries) != examples:
                    raise ValueError(f"{what} {name} has {len(entries)} entries for {examples} examples")
        for name, array in self.arrays.items():
            if array.dtype.kind not in "biuf":
                raise ValueError(f"array {name} holds {array.dtype}, neither numbers nor booleans")
            if array.dtype.kind == "f" and bool(np.isinf(array).any()):
                raise ValueError(f"array {name} holds infinite numbers")
        for name, figure in self.figures.items():
            if figure.kind not in KINDS:
                raise ValueError(f"figure {name} is of the unknown kind {figure.kind}")
            for role, source in figure.arrays.items():
                if source not in self.arrays:
                    raise ValueError(f"figure {name} reads {source}, which is not there")
                known = self.arrays[source][~np.isnan(self.arrays[source])]
                if role not in _MAY_BE_UNKNOWN and known.size < self.arrays[source].size:
                    raise ValueError(f"figure {name}: {source} holds NaN")
                if role == "labels" and not bool(((known == 0) | (known == 1)).all()):
                    raise ValueError(f"figure {name}: {source} holds labels other than 0, 1 and NaN")
        if unknown := [name for name in self.headline if name not in self.figures]:
            raise ValueError(f"the headline names {unknown[0]}, which is no figure")

    def statistic(self, name: str, column: str | None = None, value: str | None = None) -> Statistic:
        """A figure as a function of patients' counts [B, P], of all examples or those of one group."""
        figure = self.figures[name]
        rule = KINDS[figure.kind]
        kept = np.arange(len(self.patient))
        if column is not None:
            kept = np.flatnonzero(np.asarray(self.groups[column], dtype=object) == value)
        arrays = {role: self.arrays[array][kept] for role, array in figure.arrays.items()}
        patient = self.patient[kept]
        return lambda counts: rule(arrays, figure.options, counts[:, patient])

    def group_sizes(self, column: str) -> dict[str, int]:
        """Patients of each value of a breakdown column, largest first."""
        found: dict[str, set[int]] = {}
        for value, patient in zip(self.groups[column], self.patient.tolist(), strict=True):
            if value:
                found.setdefault(value, set()).add(patient)
        sizes = {value: len(patients) for value, patients in found.items()}
        return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))

    def to_bytes(self) -> bytes:
        """A compressed npz file."""
        header = {
            "format_version": FORMAT_VERSION,
            "figures": {
                name: {"kind": f.kind, "arrays": dict(f.arrays), "options": dict(f.options)}
                for name, f in self.figures.items()
            },
            "headline": list(self.headline),
            "identity": self.identity,
            "problems": dict(self.problems),
            "groups": {column: list(values) for column, values in self.groups.items()},
            "names": {array: list(values) for array, values in self.names.items()},
        }
        content = io.BytesIO()
        arrays = {f"array_{name}": value for name, value in self.arrays.items()}
        packed = np.frombuffer(json.dumps(header).encode(), np.uint8)
        np.savez_compressed(content, header=packed, patient=self.patient, **arrays)  # type: ignore[arg-type]
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Outcomes:
        """What `to_bytes` made. Raises ValueError, OSError or KeyError where it is something else."""
        try:
            return cls._read(content)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"outcomes are damaged: {error}") from None

    @classmethod
    def _read(cls, content: bytes) -> Outcomes:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["format_version"] != FORMAT_VERSION:
                raise ValueError(f"outcomes of format {header['format_version']}")
            return cls(
                patient=file["patient"],
                arrays={n.removeprefix("array_"): file[n] for n in file.files if n.startswith("array_")},
                figures={name: Figure(**spec) for name, spec in header["figures"].items()},
                headline=tuple(header["headline"]),
                identity=header["identity"],
                problems=header["problems"],
                groups=header["groups"],
                names=header["names"],
            )


def numbered_patients(patients: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
    """[m] keyed hashes -> [m] numbers in the order of first appearance."""
    number_of: dict[str, int] = {}
    return np.array([number_of.setdefault(str(one), len(number_of)) for one in patients], np.int64)


def identity_of(patients: Sequence[str] | NDArray[np.str_], *truth: NDArray[Any]) -> str:
    """Hash of who is judged, in order, and of the truth that they are judged by."""
    digest = hashlib.sha256()
    for patient in patients:
        digest.update(str(patient).encode() + b"\0")
    for array in truth:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def mean_over_seeds(
    outcomes: Sequence[Outcomes], name: str, column: str | None = None, value: str | None = None
) -> Statistic:
    """The figure's mean over outcomes of several seeds, all under the same counts."""
    statistics = [one.statistic(name, column, value) for one in outcomes]
    return lambda counts: np.asarray(np.mean([statistic(counts) for statistic in statistics], axis=0))
