"""CheXpert Plus (Chambon et al., 2024) as Stanford AIMI gives it to those who signed for it.

Layout: `df_chexpert_plus_240401.csv`, one row an image; the PNG files unpacked, in `PNG/train/` and
`PNG/valid/` or the like, or in the publisher's `png_chexpert_plus_chunk_*.zip` as they are downloaded;
CheXbert's labels, in `chexbert_labels/` or `chexbert_labels.zip`.

Decisions: the table names every image `.jpg`, the files are `.png`, so that the ending is looked for; the
publisher's findings and impression are used where there is one of them, and the whole report is parsed where
there is neither. Labels are those of the impression: those of a section say `No Finding` where the section is
empty, so a row whose section is empty is not labelled; an uncertain finding is neither there nor absent, and
stands in a column of its own. The publisher's `valid` is val, and there is no test. Of the demographics age
and sex are kept, and neither race, insurance nor the other columns, which no training here needs. In zips
every image is looked up while listing; unpacked there are 200,000 folders, so that only the patients' folders
are listed, and an image that is missing in one that is there is found when it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pyarrow as pa

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.chexbert_labels import FindingCodes, find_label_file, read_label_file
from mpma.data.sources.config import ChexpertPlusOptions
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.csv_rows import CsvRow, columns_of, csv_rows, described
from mpma.data.sources.paths import forward, lexically_inside
from mpma.data.sources.values import as_split, as_text, as_view, as_whole
from mpma.data.sources.zip_members import ZipArchive, ZipMember
from mpma.errors import UserError

MAX_IMAGE_BYTES: Final = 256 * 1024 * 1024

_TABLE: Final = "df_chexpert_plus"
_CHUNK: Final = "png_chexpert_plus_chunk"
_PARTS: Final = ("train", "valid")
_ENDINGS: Final = (".png", ".jpg")
_REQUIRED: Final = ("path_to_image", "deid_patient_id", "report")
_OPTIONAL: Final = (
    *("frontal_lateral", "ap_pa", "section_findings", "section_impression", "age", "sex", "split"),
)
_EXTRA: Final = pa.schema(
    [
        pa.field("age", pa.int32()),
        pa.field("sex", pa.string()),
        pa.field("labels_uncertain", pa.list_(pa.string())),
        pa.field("labels_negative", pa.list_(pa.string())),
    ]
)
_Zipped = dict[str, tuple[str, ZipMember]]
"""Image (path without its ending) to its zip archive and its place there."""


@dataclass(frozen=True)
class ChexpertPlusSource:
    """CheXpert Plus below a root; `resolve` finds what the folder holds."""

    archive: ArchiveFolder
    table: str
    folders: tuple[str, ...]
    """Folders that hold `train/` or `valid/`; empty where the images are in zips."""
    zips: tuple[str, ...]
    label_file: str | None
    options: ChexpertPlusOptions
    name: str = "chexpert_plus"
    reports_expected: bool = True

    @classmethod
    def resolve(cls, root: str | Path, options: ChexpertPlusOptions | None = None) -> ChexpertPlusSource:
        """Find table, images and labels at a path or a URI. Raises `UserError` naming what was looked for."""
        options = options or ChexpertPlusOptions()
        archive = ArchiveFolder.open(root)
        table = _find_table(archive, options.table)
        columns_of(archive, table, _REQUIRED)
        folders = _image_folders(archive, options.images)
        zips = () if folders else _chunk_zips(archive)
        if not folders and not zips:
            raise UserError(
                f"{root} holds no images: neither PNG/train/ nor {_CHUNK}_0.zip and the like",
                "name the folder that holds train/ and valid/: --set images=FOLDER",
            )
        labels = None
        if options.labels != "none":
            labels = find_label_file(archive, f"{options.labels}_fixed.json")
        return cls(archive, table, folders, zips, labels, options)

    def assumptions(self) -> list[str]:
        lines = ["findings and impression are the publisher's; a report that has neither is parsed"]
        if self.zips:
            lines.append(f"images are read inside {len(self.zips)} zip archives")
        else:
            lines.append(f"images are read from {', '.join(folder or '.' for folder in self.folders)}")
            lines.append(
                "whether a patient's folder is there is seen while listing; a single image that is not, "
                "when it is loaded"
            )
        if self.label_file is not None:
            lines.append(
                f"labels are read from {self.label_file}: uncertain ones stand in a column of their own, "
                "`No Finding` is the empty list"
            )
        else:
            lines.append("nothing is labelled: chexbert_labels/ is absent or left out")
        if self.options.splits == "keep":
            lines.append("splits are the publisher's: valid is val, and there is no test")
        else:
            lines.append("given splits are ignored: patients are drawn")
        return lines

    def extra_schema(self) -> pa.Schema:
        return _EXTRA

    def items(self) -> Iterator[Item | Rejection]:
        labels: Mapping[str, FindingCodes] = {}
        if self.label_file is not None:
            labels = read_label_file(self.archive, self.label_file, f"{self.options.labels}_fixed.json")
        patients = self._patients()
        zipped = self._zipped()
        for row in csv_rows(self.archive, self.table, _REQUIRED, _OPTIONAL):
            yield row if isinstance(row, Rejection) else self._item(row, patients, zipped, labels)

    def load_image(self, item: Item) -> bytes:
        if "zip" in item.locator:
            zipped = ZipArchive(self.archive, item.locator["zip"])
            return zipped.read(ZipMember.located(item.locator), MAX_IMAGE_BYTES)
        places = [
            _below(folder, item.locator["stem"] + ending)
            for folder in item.locator["folders"]
            for ending in _ENDINGS
        ]
        for place in places[:-1]:
            try:
                return self.archive.read(place, MAX_IMAGE_BYTES)
            except FileNotFoundError:
                continue
        return self.archive.read(places[-1], MAX_IMAGE_BYTES)

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    def _patients(self) -> dict[str, tuple[str, ...]]:
        """`train/patient00001` to the folders that hold it: a chunk may end within a patient."""
        found: dict[str, tuple[str, ...]] = {}
        for folder in self.folders:
            for part in _PARTS:
                for patient in self.archive.folders(_below(folder, part)):
                    name = f"{part}/{patient}"
                    found[name] = (*found.get(name, ()), folder)
        return found

    def _zipped(self) -> _Zipped:
        found: _Zipped = {}
        for name in self.zips:
            for member in ZipArchive(self.archive, name).members():
                stem = _stem_in_zip(member.name)
                if stem is not None:
                    found.setdefault(stem, (name, member))
        return found

    def _item(
        self,
        row: CsvRow,
        patients: Mapping[str, tuple[str, ...]],
        zipped: _Zipped,
        labels: Mapping[str, FindingCodes],
    ) -> Item | Rejection:
        where = described(self.table, row.line)
        image = forward(as_text(row["path_to_image"]))
        if not image:
            return Rejection(where, "", "missing_id")
        if not lexically_inside(image):
            return Rejection(image, image, "outside_root", where)
        stem = _stem(image)
        locator = self._place(stem, patients, zipped)
        if locator is None:
            return Rejection(image, image, "missing_image", where)
        path = f"{locator['zip']}/{locator['member']}" if "zip" in locator else image
        patient = as_text(row["deid_patient_id"])
        if not patient:
            return Rejection(path, image, "missing_patient", where)
        split = as_split(row["split"] or image.partition("/")[0])
        if self.options.splits == "keep" and split is None:
            return Rejection(path, image, "unknown_split", where)
        findings, impression = as_text(row["section_findings"]), as_text(row["section_impression"])
        given = bool(findings or impression)
        codes = labels.get(stem)
        if codes is not None and not self._is_described(findings, impression):
            codes = None
        lateral = as_text(row["frontal_lateral"]).lower() == "lateral"
        return Item(
            pair_id=image,
            patient_id=patient,
            study_id=str(PurePosixPath(image).parent),
            report=as_text(row["report"]),
            path=path,
            locator=locator,
            findings=findings if given else None,
            impression=impression if given else None,
            view="lateral" if lateral else as_view(row["ap_pa"]),
            labels=None if codes is None else codes.present(),
            split=split if self.options.splits == "keep" else None,
            license=self.options.license,
            source=self.name,
            extra={
                "age": as_whole(row["age"]),
                "sex": as_text(row["sex"]) or None,
                "labels_uncertain": None if codes is None else codes.uncertain(),
                "labels_negative": None if codes is None else codes.negative(),
            },
        )

    def _place(
        self, stem: str, patients: Mapping[str, tuple[str, ...]], zipped: _Zipped
    ) -> dict[str, Any] | None:
        if self.zips:
            found = zipped.get(stem)
            return None if found is None else {"zip": found[0], **found[1].locator()}
        folders = patients.get("/".join(stem.split("/")[:2]))
        return None if folders is None else {"stem": stem, "folders": list(folders)}

    def _is_described(self, findings: str, impression: str) -> bool:
        """Whether the section that was labelled says anything."""
        if self.options.labels == "report":
            return True
        return bool(findings if self.options.labels == "findings" else impression)


def _find_table(archive: ArchiveFolder, given: str | None) -> str:
    if given is not None:
        if not archive.has_file(given):
            raise UserError(f"table: {archive.described(given)} is no file", "it is relative to the root")
        return given
    found = [
        name
        for name in archive.names()
        if name.startswith(_TABLE) and name.lower().endswith((".csv", ".csv.gz"))
    ]
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{archive.location} holds {'no' if not found else 'more than one'} {_TABLE}_*.csv",
        "the root of chexpert_plus is the folder with the publisher's table; or --set table=FILE",
    )


def _image_folders(archive: ArchiveFolder, given: str | None) -> tuple[str, ...]:
    def holds_parts(folder: str) -> bool:
        return any(archive.has_folder(_below(folder, part)) for part in _PARTS)

    if given is not None:
        if not holds_parts(given):
            raise UserError(f"images: {archive.described(given)} holds neither train/ nor valid/")
        return (given,)
    chunks = [
        _below(above, name)
        for above in ("", "PNG")
        for name in archive.folders(above)
        if name.startswith(_CHUNK)
    ]
    candidates = [
        "",
        "PNG",
        "PNG/PNG",
        "PNGs",
        *(part for chunk in chunks for part in (chunk, f"{chunk}/PNG")),
    ]
    return tuple(folder for folder in candidates if holds_parts(folder))


def _chunk_zips(archive: ArchiveFolder) -> tuple[str, ...]:
    return tuple(
        _below(folder, name)
        for folder in ("", "PNG")
        for name in archive.names(folder)
        if name.startswith(_CHUNK) and name.lower().endswith(".zip")
    )


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _stem(path: str) -> str:
    """The path without the ending of an image file."""
    head, dot, ending = path.rpartition(".")
    return head if dot and f".{ending.lower()}" in (*_ENDINGS, ".jpeg") else path


def _stem_in_zip(name: str) -> str | None:
    """`PNG/train/patient00001/...` from its split on; None where it is no image of one."""
    parts = name.split("/")
    stem = _stem(name)
    first = next((place for place, part in enumerate(parts[:-1]) if part in _PARTS), None)
    return None if first is None or stem == name else "/".join(stem.split("/")[first:])
