"""Labels and splits of MIMIC-CXR-JPG by study, held as a few numbers each.

Decisions: `labels` holds what was positively mentioned. It is empty only where the labeller says `No
Finding`; a study in which nothing is positive and `No Finding` is not said either is not labelled: its
findings are uncertain, or lie outside the fourteen names, and to call it normal would be wrong. (The
publisher counts 2,414 studies to which CheXpert gave no label at all.) Uncertain and explicitly negative
findings are lists of their own. What a table does not mention is in none of them. The publisher's split is
by image and the same for all images of a study, so it is held by study, and by image only where one
differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Rejection
from mpma.data.sources.csv_rows import CsvRow, columns_of, csv_rows, described
from mpma.data.sources.values import as_split
from mpma.errors import UserError

FINDINGS: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
NO_FINDING: Final = "No Finding"

_OTHER_NAMES: Final = {"Airspace Opacity": "Lung Opacity", "No Findings": NO_FINDING}
"""The radiologist's table has words of its own."""
_ORDER: Final = (*FINDINGS, NO_FINDING)
_ABSENT, _NEGATIVE, _UNCERTAIN, _POSITIVE = range(4)
_CODES: Final = {
    **dict.fromkeys(("", "nan"), _ABSENT),
    **dict.fromkeys(("0", "0.0"), _NEGATIVE),
    **dict.fromkeys(("-1", "-1.0"), _UNCERTAIN),
    **dict.fromkeys(("1", "1.0"), _POSITIVE),
}


@dataclass(frozen=True)
class Labelled:
    """What one labeller says of a study."""

    positive: tuple[str, ...] | None
    """Empty: `No Finding`. None: neither a finding nor that there is none."""
    uncertain: tuple[str, ...]
    negative: tuple[str, ...]


NOT_LABELLED: Final = Labelled(None, (), ())


@dataclass
class StudyLabels:
    """One table of labels: two bits a finding, by study."""

    codes: dict[int, int] = field(default_factory=dict)

    def read(self, folder: ArchiveFolder, table: str) -> Iterator[Rejection]:
        """Take in a table; yields the rows that are not taken.

        Raises `UserError` where the table has no column of studies or of findings.
        """
        columns = {
            column: _ORDER.index(name)
            for column in columns_of(folder, table, ["study_id"])
            if (name := _OTHER_NAMES.get(column, column)) in _ORDER
        }
        if not columns:
            raise UserError(
                f"{folder.described(table)} has no column of findings", f"such as {FINDINGS[0]!r}"
            )
        for row in csv_rows(folder, table, ["study_id", *columns]):
            if isinstance(row, Rejection):
                yield row
            elif not is_number(row["study_id"]):
                yield Rejection(described(table, row.line), "", "wrong_type", "study_id is no number")
            else:
                yield from self._take(table, row, columns)

    def of(self, study_id: str) -> Labelled | None:
        """What the table says of a study; None where it has no row."""
        code = self.codes.get(int(study_id))
        return None if code is None else _labelled(code)

    def _take(self, table: str, row: CsvRow, columns: dict[str, int]) -> Iterator[Rejection]:
        packed = 0
        for column, place in columns.items():
            code = _CODES.get(row[column].strip().lower())
            if code is None:
                where = described(table, row.line)
                yield Rejection(where, "", "wrong_type", f"column {column} is none of 1, 0, -1 and empty")
                return
            packed |= code << 2 * place
        self.codes.setdefault(int(row["study_id"]), packed)


@dataclass
class StudySplits:
    """The publisher's split, by study."""

    of_study: dict[int, str] = field(default_factory=dict)
    of_image: dict[str, str] = field(default_factory=dict)
    """Of the images whose study has another."""

    def read(self, folder: ArchiveFolder, table: str) -> Iterator[Rejection]:
        """Take in the table; yields the rows that are not taken.

        Raises `UserError` where it lacks a column.
        """
        for row in csv_rows(folder, table, ["dicom_id", "study_id", "split"]):
            if isinstance(row, Rejection):
                yield row
                continue
            split = as_split(row["split"])
            if not is_number(row["study_id"]):
                yield Rejection(described(table, row.line), "", "wrong_type", "study_id is no number")
            elif split is None:
                yield Rejection(described(table, row.line), row["dicom_id"], "unknown_split")
            elif self.of_study.setdefault(int(row["study_id"]), split) != split:
                self.of_image[row["dicom_id"]] = split

    def of(self, image_id: str, study_id: str) -> str | None:
        """The split of an image; None where the table does not have its study."""
        return self.of_image.get(image_id) or self.of_study.get(int(study_id))


def is_number(text: str) -> bool:
    """Whether an id is a number of some digits, as all of the publisher's are."""
    return text.isascii() and text.isdigit() and len(text) <= 18


@lru_cache(maxsize=4096)
def _labelled(packed: int) -> Labelled:
    codes = [packed >> 2 * place & 3 for place in range(len(_ORDER))]
    named = {
        wanted: tuple(name for name, code in zip(FINDINGS, codes, strict=False) if code == wanted)
        for wanted in (_NEGATIVE, _UNCERTAIN, _POSITIVE)
    }
    said_nothing = codes[_ORDER.index(NO_FINDING)] != _POSITIVE
    positive = None if said_nothing and not named[_POSITIVE] else named[_POSITIVE]
    return Labelled(positive, named[_UNCERTAIN], named[_NEGATIVE])
