"""By what a DICOM file and its report find each other: tried on the archive itself, not guessed from names.

Decisions: a column called `study_id` may hold accession numbers, study UIDs or the names of folders, so every
column with a usual name is compared with everything that some hundred headers say of themselves; what is met
most often is taken, and of two that are met equally the one that names a smaller thing (an image before
its examination). What was found is printed with its count. Nothing is folded but paths: `007` and `7` are two
accession numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from mpma.data.sources.dicom_headers import DicomHeader
from mpma.data.sources.paths import forward

Join = Literal[
    "sop_instance_uid",
    "path",
    "file_name",
    "series_instance_uid",
    "study_instance_uid",
    "accession_number",
    "folder_name",
]
"""What of a file is compared: from what names an image to what names an examination."""

JOINS: Final[tuple[Join, ...]] = get_args(Join)

MEANINGS: Final[dict[Join, str]] = {
    "sop_instance_uid": "SOPInstanceUID",
    "path": "the file's path",
    "file_name": "the file's name",
    "series_instance_uid": "SeriesInstanceUID",
    "study_instance_uid": "StudyInstanceUID",
    "accession_number": "AccessionNumber",
    "folder_name": "the name of the file's folder",
}

KEY_COLUMNS: Final = frozenset(
    (
        *("sopinstanceuid", "sopuid", "instanceuid", "imageuid", "dicomid", "imageid", "pairid", "id", "uid"),
        *("key", "seriesinstanceuid", "seriesuid", "seriesid", "studyinstanceuid", "studyuid", "studyid"),
        *("study", "accessionnumber", "accession", "accessionno", "accno", "acc", "examid", "exam"),
        *("examinationid", "requestid", "orderid", "ordernumber", "path", "filepath", "dicompath"),
        *("imagepath", "filename", "file", "image", "dicomfile", "folder", "foldername"),
    )
)
"""Usual names of columns that may join, in lower case without spaces and signs."""

_ENDINGS: Final = (".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ChosenJoin:
    """The column of the table, and what of a file it is compared with."""

    column: str
    """Empty where reports are files, whose names are the keys."""
    join: Join
    met: int
    """Headers looked at that the table has a report for."""
    seen: int
    """Headers looked at."""


def key_of(header: DicomHeader, join: Join) -> str:
    """What a file says of itself; empty where it says nothing."""
    if join == "path":
        return plain_path(header.name)
    if join == "file_name":
        return plain_path(header.name).rpartition("/")[2]
    if join == "folder_name":
        return header.name.rpartition("/")[0].rpartition("/")[2]
    return {
        "sop_instance_uid": header.image_uid,
        "series_instance_uid": header.series_uid,
        "study_instance_uid": header.study_uid,
        "accession_number": header.accession,
    }[join]


def key_of_cell(text: str, join: Join) -> str:
    """The same of a table's cell, or of a report's file name."""
    if join == "path":
        return plain_path(text)
    return plain_path(text).rpartition("/")[2] if join == "file_name" else text


def plain_path(text: str) -> str:
    """A path with forward slashes, relative to the root, without the ending of an image file."""
    path = forward(text).removeprefix("./").lstrip("/")
    ending = next((ending for ending in _ENDINGS if path.lower().endswith(ending)), "")
    return path[: len(path) - len(ending)]


def choose_join(
    headers: Sequence[DicomHeader], cells: Iterable[dict[str, str]], wanted: Join | None
) -> ChosenJoin | None:
    """The column and kind that join most headers to a row.

    Args:
        headers: some of the archive's.
        cells: every row's cells of the columns that may join, by column.
        wanted: the kind, where the user gave it.

    Returns:
        None where no column meets any header.
    """
    joins = JOINS if wanted is None else (wanted,)
    places: dict[Join, dict[str, list[int]]] = {join: {} for join in joins}
    for place, header in enumerate(headers):
        for join in joins:
            key = key_of(header, join)
            if key:
                places[join].setdefault(key, []).append(place)
    met: dict[tuple[Join, str], set[int]] = {}
    for row in cells:
        for column, text in row.items():
            for join in joins if text else ():
                found = places[join].get(key_of_cell(text, join))
                if found:
                    met.setdefault((join, column), set()).update(found)
    if not met:
        return None
    # The order of joins, then that of the table's columns, decides between equals.
    join, column = max(met, key=lambda pair: (len(met[pair]), -joins.index(pair[0])))
    return ChosenJoin(column, join, len(met[join, column]), len(headers))
