"""Which column of a user's table holds what, by the names in use, and what was assumed in words.

Decisions: names are compared without case, spaces and signs; where several would do, the more
telling one wins (an order per field, below); a name that is typed always wins and must exist; the
kind of the column decides between an embedded image and a path. Nothing is guessed from cells.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA
from mpma.data.sources.config import ColumnMapping
from mpma.errors import UserError

USUAL_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "pair_id": (
        *("pairid", "id", "imageid", "dicomid", "sopinstanceuid", "imageindex", "uid", "key"),
        *("filename", "imagename", "path", "filepath", "imagepath", "imagefile"),
    ),
    "patient_id": ("patientid", "patient", "subjectid", "subject", "patientkey", "pid"),
    "study_id": ("studyid", "study", "studyinstanceuid", "accessionnumber", "accession", "examid"),
    "image": ("image", "imagebytes", "imagedata", "bytes", "jpeg", "jpg", "png", "img", "pixels"),
    "path": (
        *("path", "imagepath", "filepath", "jpgpath", "pngpath", "filename", "imagefile", "imagefilename"),
        *("imagename", "file", "image", "img", "imageindex"),
    ),
    "report": (
        "report",
        "reporttext",
        "radiologyreport",
        "text",
        "clinicalnotes",
        "notes",
        "note",
        "caption",
    ),
    "findings": ("findings", "sectionfindings", "findingssection"),
    "impression": ("impression", "impressions", "sectionimpression", "impressionsection", "conclusion"),
    "labels": ("labels", "label", "findinglabels", "finding", "classes", "diagnosis", "diagnoses", "mesh"),
    "view": ("view", "viewposition", "projection", "viewpositions"),
    "split": ("split", "subset", "partition", "set"),
    "license": ("license", "licence"),
    "source": ("source", "dataset", "collection"),
}
"""Field of a pair: usual column names, the more telling first, in lower case without spaces and signs."""

_REPORT_FIELDS: Final = frozenset({"report", "findings", "impression"})

RECOMPUTED: Final = ("width", "height")
"""Columns that are not kept, since the stored image has its own."""


@dataclass(frozen=True)
class ResolvedColumns:
    """The columns of one table by what they hold."""

    of: dict[str, str]
    """Field of a pair to column."""
    extra: dict[str, str]
    """Stored name to column, for every other column."""

    large: dict[str, str]
    """Stored name to Parquet's name of the binary columns (masks): read with the image, not listed."""

    @property
    def listed(self) -> list[str]:
        """Columns that listing reads: all but embedded images and other binaries."""
        mapped = (column for field, column in self.of.items() if field != "image" and field not in self.large)
        small = (column for stored, column in self.extra.items() if stored not in self.large)
        return list(dict.fromkeys((*mapped, *small)))


def resolve_columns(
    place: str,
    schema: pa.Schema,
    given: ColumnMapping,
    patient_per_row: bool,
    reports_optional: bool = False,
) -> ResolvedColumns:
    """Find each field's column in a table, which messages name as `place`.

    Raises:
        UserError: a given column that is not there (the nearest is named), no image, no report (unless
            `reports_optional`), or no patient (unless `patient_per_row`).
    """
    usual: dict[str, str] = {}
    for name in schema.names:
        usual.setdefault(_plain(name), name)
    of: dict[str, str] = {}
    # Masks and questions have one usual name, that of the stored column; others are only taken when typed.
    for field, candidates in {**USUAL_NAMES, "mask": (), "questions": ()}.items():
        column = getattr(given, field)
        if column is not None:
            if column not in schema.names:
                raise _unknown_column(place, f"columns.{field}", column, schema.names)
            _check_kind(place, field, column, schema.field(column).type)
            of[field] = column
            continue
        if field in ("image", "path") and (given.image or given.path):
            continue
        for candidate in candidates:
            if candidate in usual and _fits(field, schema.field(usual[candidate]).type):
                of[field] = usual[candidate]
                break
    if "image" in of and given.path is None:
        of.pop("path", None)
    _require(place, of, schema.names, patient_per_row, reports_optional)
    extra = _extra(schema, of)
    large = {
        stored: image_column_path(name, schema.field(name).type)
        for stored, name in extra.items()
        if _is_binary(schema.field(name).type)
        or (name == of.get("mask") and _fits("image", schema.field(name).type))
    }
    return ResolvedColumns(of, extra, large)


def image_column_path(column: str, kind: pa.DataType) -> str:
    """What Parquet calls the binary of an image column: the column, or its field `bytes`."""
    return f"{column}.bytes" if pa.types.is_struct(kind) else column


def describe_columns(columns: ResolvedColumns, given: ColumnMapping) -> list[str]:
    """What was recognised by name, in lines for the terminal."""
    recognised = [f"{field} = {name}" for field, name in columns.of.items() if getattr(given, field) is None]
    lines = [f"columns recognised by name: {', '.join(recognised)}"] if recognised else []
    absent = [field for field in ("study_id", "view", "labels", "license") if field not in columns.of]
    meaning = {
        "study_id": "every row is its own study",
        "view": "views are unknown",
        "labels": "pairs are not labelled",
        "license": "licences are unknown, unless `license` is set",
    }
    lines += [f"no {field} column: {meaning[field]}" for field in absent]
    if not _REPORT_FIELDS & set(columns.of):
        lines.append("no report column: pairs have no report; this set serves evaluation, not pre-training")
    elif "report" not in columns.of:
        lines.append("no report column: reports are put together from findings and impression")
    if "questions" in columns.extra:
        lines.append(f"questions = {columns.extra['questions']}")
    if "mask" in columns.extra:
        lines.append(
            f"masks = {columns.extra['mask']}: 0 is background, 127 ignored, anything else foreground"
        )
    return lines


def _require(
    place: str, of: dict[str, str], names: Sequence[str], patient_per_row: bool, reports_optional: bool
) -> None:
    has = f"its columns are {', '.join(name for name in names if name)}"
    if "image" not in of and "path" not in of:
        raise UserError(
            f"{place} has no column of images or image paths",
            f"name it: --set columns.path=COLUMN; or choose the tables: --set tables=PATTERN ({has})",
        )
    if not reports_optional and not _REPORT_FIELDS & set(of):
        raise UserError(
            f"{place} has no column of reports",
            "name it: --set columns.report=COLUMN; or, for a labelled set without reports, which serves "
            f"evaluation only: --min-words 0 ({has})",
        )
    if "patient_id" not in of and not patient_per_row:
        raise UserError(
            f"{place} has no column of patients, without whom no split is sound",
            "name it: --set columns.patient_id=COLUMN; or, where every row truly is another patient, "
            f"--set patient_per_row=true ({has})",
        )


def _extra(schema: pa.Schema, of: dict[str, str]) -> dict[str, str]:
    """Stored name to column; names that a pair uses otherwise get `table_` in front."""
    extra: dict[str, str] = {}
    typed = {of[field]: field for field in OPTIONAL_FIELDS if field in of}
    for name in schema.names:
        if name in typed:
            extra[typed[name]] = name
            continue
        if name in of.values() or name in RECOMPUTED or not name:
            continue
        kind = schema.field(name).type
        taken = (
            name in PAIR_SCHEMA.names
            or name in typed.values()
            or (name in OPTIONAL_FIELDS and kind != OPTIONAL_FIELDS[name].type)
        )
        stored = f"table_{name}" if taken else name
        while stored != name and stored in schema.names:
            stored = f"table_{stored}"
        extra[stored] = name
    return extra


def _fits(field: str, kind: pa.DataType) -> bool:
    if field == "image":
        return _is_binary(kind) or (
            pa.types.is_struct(kind)
            and kind.get_field_index("bytes") >= 0
            and _is_binary(kind.field("bytes").type)
        )
    if field in ("mask", "questions") and pa.types.is_null(kind):
        return True
    if field == "mask":
        return _fits("image", kind) or _is_text(kind)
    if field == "questions":
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return _is_text(kind) or (listed and pa.types.is_struct(kind.value_type))
    if field == "labels":
        return (
            _is_text(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_null(kind)
        )
    if field in ("pair_id", "patient_id", "study_id"):
        return _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    # A text column without one filled cell has Arrow's null type.
    return _is_text(kind) or (pa.types.is_null(kind) and field != "path")


def _check_kind(place: str, field: str, column: str, kind: pa.DataType) -> None:
    if not _fits(field, kind) and not (
        pa.types.is_integer(kind) and field not in ("image", "path", "mask", "questions")
    ):
        raise UserError(f"columns.{field}: column {column!r} of {place} holds {kind}, which cannot be that")


def _unknown_column(place: str, option: str, column: str, names: Sequence[str]) -> UserError:
    return UserError(f"{option}: {place} has no column {column!r}", nearest_column(column, names))


def nearest_column(column: str, names: Sequence[str]) -> str:
    """A hint for a column that is not there."""
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    return f"the nearest is {near[0]!r}" if near else f"its columns are {', '.join(filter(None, names))}"


def usual_column(names: Sequence[str], candidates: Sequence[str]) -> str | None:
    """The column that has the first of some plain names, whatever its case, spaces and signs."""
    usual: dict[str, str] = {}
    for name in names:
        usual.setdefault(_plain(name), name)
    return next((usual[candidate] for candidate in candidates if candidate in usual), None)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
