"""PadChest (Bustos et al., 2020) as BIMCV gives it to those who signed for it.

Layout: `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv`, packed or not, one row an image, and 16-bit
PNG files in `0/` to `54/` or in `0.zip` to `54.zip`, which are read in place.

Decisions: the reports are Spanish, in small letters and cut to stems, and stay so; they have no headings and
are read whole. Images of an unusual projection (ribs, or not a chest at all) and those that the publisher
labelled `exclude` or `suboptimal study` are left out by default, and counted. `normal` is the empty list;
`unchanged` compares with an image that is not named, so alone it is no label. Labels that physicians gave
and those of the publisher's network are told apart by a column. Images whose header said MONOCHROME1 are
stored with bright and dark exchanged, and are turned when they are loaded. Of the dates the age is kept, in
years. Some files of the collection are known to be torn: they are not listed by name here, since the guards
that every image passes refuse them, and take a copy that was mended. The publisher gives no split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from mpma.data.images import read_grey
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import PadchestOptions
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.csv_rows import CsvRow, columns_of, csv_rows, described
from mpma.data.sources.paths import lexically_inside
from mpma.data.sources.values import as_quoted_list, as_text, as_view, as_whole
from mpma.data.sources.zip_members import ZipArchive, ZipMember
from mpma.errors import UserError

MAX_IMAGE_BYTES: Final = 256 * 1024 * 1024
PROJECTIONS: Final = ("PA", "L", "AP", "AP_horizontal", "COSTAL", "EXCLUDE")

_TABLE: Final = "PADCHEST_chest_x_ray_images_labels"
_FOLDERS: Final = ("", "images", "image_zips")
_REQUIRED: Final = ("ImageID", "ImageDir", "PatientID", "Projection", "Report", "Labels")
_OPTIONAL: Final = (
    *("StudyID", "StudyDate_DICOM", "PatientBirth", "PatientSex_DICOM", "MethodLabel", "Localizations"),
    "PhotometricInterpretation_DICOM",
)
_EXTRA: Final = pa.schema(
    [
        pa.field("projection", pa.string()),
        pa.field("method_label", pa.string()),
        pa.field("localizations", pa.list_(pa.string())),
        pa.field("age", pa.int32()),
        pa.field("sex", pa.string()),
    ]
)
_NOT_FINDINGS: Final = frozenset({"normal", "unchanged", "exclude", "suboptimal study"})
_LISTS: Final = ("Labels", "Localizations")


@dataclass(frozen=True)
class PadchestSource:
    """PadChest below a root; `resolve` finds what the folder holds."""

    archive: ArchiveFolder
    table: str
    folder: str
    """Folder of the folders or zips of images, relative to the root."""
    options: PadchestOptions
    name: str = "padchest"
    reports_expected: bool = True

    @classmethod
    def resolve(cls, root: str | Path, options: PadchestOptions | None = None) -> PadchestSource:
        """Find table and images at a path or a URI. Raises `UserError` naming what was looked for."""
        options = options or PadchestOptions()
        archive = ArchiveFolder.open(root)
        table = _find_table(archive, options.table)
        columns_of(archive, table, _REQUIRED)
        return cls(archive, table, _find_folder(archive, options.images), options)

    def assumptions(self) -> list[str]:
        counts: Counter[str] = Counter()
        for row in self._rows():
            if isinstance(row, CsvRow):
                counts["rows"] += 1
                counts[self._left_out(row) or "kept"] += 1
        lines = [f"{counts['rows']} rows in {self.table.rpartition('/')[2]}"]
        if counts["projection"]:
            lines.append(
                f"{counts['projection']} rows of other projections than "
                f"{', '.join(self.options.projections or ())} are left out (projections)"
            )
        if counts["label"]:
            lines.append(
                f"{counts['label']} rows labelled {' or '.join(self.options.leave_out)} are left out "
                "(leave_out)"
            )
        turned = "inverted" if self.options.invert_monochrome1 else "taken as they are"
        lines += [
            "reports are Spanish and have no sections: they are read whole",
            "labels are the publisher's: `normal` is the empty list, `unchanged` alone is no label",
            f"images of MONOCHROME1 are {turned}",
            "the publisher gives no split: patients are drawn",
        ]
        return lines

    def extra_schema(self) -> pa.Schema:
        return _EXTRA

    def items(self) -> Iterator[Item | Rejection]:
        places = _Places(self.archive, self.folder)
        for row in self._rows():
            if isinstance(row, Rejection):
                yield row
            elif self._left_out(row) is None:
                yield self._item(row, places)

    def load_image(self, item: Item) -> bytes:
        if "zip" in item.locator:
            zipped = ZipArchive(self.archive, item.locator["zip"])
            data = zipped.read(ZipMember.located(item.locator), MAX_IMAGE_BYTES)
        else:
            data = self.archive.read(item.locator["file"], MAX_IMAGE_BYTES)
        return inverted(data) if item.locator.get("inverted") else data

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    def _rows(self) -> Iterator[CsvRow | Rejection]:
        return csv_rows(self.archive, self.table, _REQUIRED, _OPTIONAL)

    def _left_out(self, row: CsvRow) -> str | None:
        """What leaves the row out: `projection`, `label` or nothing."""
        wanted = self.options.projections
        if wanted is not None and row["Projection"].strip().lower() not in {name.lower() for name in wanted}:
            return "projection"
        labels = as_quoted_list(row["Labels"])
        unwanted = {label.strip().lower() for label in self.options.leave_out}
        return "label" if any(label.lower() in unwanted for label in labels or ()) else None

    def _item(self, row: CsvRow, places: _Places) -> Item | Rejection:
        where = described(self.table, row.line)
        image, folder = as_text(row["ImageID"]), as_text(row["ImageDir"])
        if not image:
            return Rejection(where, "", "missing_id")
        path = f"{folder}/{image}" if folder else image
        if not lexically_inside(path) or "/" in image:
            return Rejection(path, image, "outside_root", where)
        locator = places.find(folder, image)
        if locator is None:
            return Rejection(path, image, "missing_image", where)
        patient = as_text(row["PatientID"])
        if not patient:
            return Rejection(path, image, "missing_patient", where)
        lists = {name: as_quoted_list(row[name]) for name in _LISTS}
        for name, found in lists.items():
            if found is None and as_text(row[name]):
                return Rejection(path, image, "wrong_type", f"column {name} is not a list")
        photometric = as_text(row["PhotometricInterpretation_DICOM"]).upper()
        if self.options.invert_monochrome1 and photometric == "MONOCHROME1":
            locator["inverted"] = True
        localizations = lists["Localizations"]
        return Item(
            pair_id=image,
            patient_id=patient,
            study_id=as_text(row["StudyID"]) or image,
            report=as_text(row["Report"]),
            path=path,
            locator=locator,
            view=as_view(row["Projection"]),
            labels=_findings(lists["Labels"]),
            license=self.options.license,
            source=self.name,
            extra={
                "projection": as_text(row["Projection"]) or None,
                "method_label": as_text(row["MethodLabel"]) or None,
                "localizations": None if localizations is None else list(localizations),
                "age": _age(row["StudyDate_DICOM"], row["PatientBirth"]),
                "sex": as_text(row["PatientSex_DICOM"]) or None,
            },
        )


class _Places:
    """Where images lie, each folder or zip being listed once, when the table first names it."""

    def __init__(self, archive: ArchiveFolder, base: str) -> None:
        self._archive = archive
        self._base = base
        self._files: dict[str, frozenset[str]] = {}
        self._members: dict[str, Mapping[str, ZipMember]] = {}

    def find(self, folder: str, image: str) -> dict[str, Any] | None:
        """The locator of an image: in its folder, in its zip, or beside them; None where it is nowhere."""
        for place in dict.fromkeys((_below(self._base, folder), self._base)):
            if place not in self._files:
                self._files[place] = frozenset(self._archive.names(place))
            if image in self._files[place]:
                return {"file": _below(place, image)}
        name = f"{folder}.zip"
        # The base was listed above.
        if name in self._files[self._base]:
            zipped = _below(self._base, name)
            if zipped not in self._members:
                members = ZipArchive(self._archive, zipped).members()
                self._members[zipped] = {member.name.rpartition("/")[2]: member for member in members}
            member = self._members[zipped].get(image)
            if member is not None:
                return {"zip": zipped, **member.locator()}
        return None


def inverted(data: bytes) -> bytes:
    """An image file with bright and dark exchanged, as a plain grey file of 8 bits.

    PGM, since it is decoded again at once and packing it would cost as much as all the rest. Raises
    `UnreadableImage` as `read_grey` does.
    """
    pixels = 255 - read_grey(data)
    height, width = pixels.shape
    return b"P5 %d %d 255\n" % (width, height) + pixels.tobytes()


def _find_table(archive: ArchiveFolder, given: str | None) -> str:
    if given is not None:
        if not archive.has_file(given):
            raise UserError(f"table: {archive.described(given)} is no file", "it is relative to the root")
        return given
    names = [name for name in archive.names() if name.startswith(_TABLE)]
    found = [name for name in names if name.endswith(".csv")]
    # The same table packed and unpacked is one.
    found += [name for name in names if name.endswith(".csv.gz") and name.removesuffix(".gz") not in found]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{archive.location} holds {'no' if not found else 'more than one'} {_TABLE}*.csv or .csv.gz",
        "the root of padchest is the folder with the publisher's table; or --set table=FILE",
    )


def _find_folder(archive: ArchiveFolder, given: str | None) -> str:
    def holds_images(folder: str) -> bool:
        names = archive.names(folder)
        return (
            any(name.isdigit() for name in archive.folders(folder))
            or any(name.endswith(".zip") and name.removesuffix(".zip").isdigit() for name in names)
            or any(name.lower().endswith(".png") for name in names)
        )

    for folder in _FOLDERS if given is None else (given,):
        if holds_images(folder):
            return folder
    raise UserError(
        f"{archive.described(given or '')} holds no images: neither 0/ nor 0.zip and the like",
        "name the folder that holds them: --set images=FOLDER",
    )


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _findings(labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    found = tuple(label for label in labels if label.lower() not in _NOT_FINDINGS)
    return found or (() if any(label.lower() == "normal" for label in labels) else None)


def _age(study_date: str, year_of_birth: str) -> int | None:
    """Years at the examination, from a date as `20140915` and a year."""
    date, born = as_whole(study_date), as_whole(year_of_birth)
    if date is None or born is None:
        return None
    age = date // 10_000 - born
    return age if 0 <= age <= 130 else None
