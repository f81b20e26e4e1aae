"""Open-I, the Indiana University chest X-ray collection, as the National Library of Medicine publishes it.

Layout: `NLMCXR_reports.tgz` (one XML per study) or its unpacked folder `ecgen-radiology/`, and the PNG
files of `NLMCXR_png.tgz`, unpacked in `NLMCXR_png/`.

Decisions: unpacked reports win over the archive, which is otherwise read as it is; every image that a
report lists is a candidate, and one that is not there is quarantined as missing; a report is read only
where it is a regular file inside the folder, or of the archive, whose links, devices and names that lead
out are refused; XML with a document type or an entity is refused, since the publisher's has none and it is
how a small file grows without bound. The collection names studies, not patients: each study (`uId`) is
taken for one patient, as everyone does; a person X-rayed twice would be in it twice. Labels are the major
MeSH terms, `normal` alone is the empty list, `No Indexing` means not labelled. The XML does not say which
image is which view, and the numbers in image names (`-1001`, `-2001`) do not reliably either: a table of
views is used where one is there.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

import pyarrow as pa

from mpma.data.quality import system_reason
from mpma.data.sources.archive import DAMAGED, ArchiveFolder
from mpma.data.sources.config import OpeniOptions
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.paths import lexically_inside
from mpma.data.sources.table_text import START_BYTES, refuse_what_begins
from mpma.data.sources.unfolding import LARGEST_TAR_HEADER, Unfolded, UnfoldsTooFarError, open_tar
from mpma.data.sources.values import as_text, as_view
from mpma.errors import UserError

REPORT_FOLDER: Final = "ecgen-radiology"
REPORT_ARCHIVE: Final = "NLMCXR_reports.tgz"
IMAGE_FOLDER: Final = "NLMCXR_png"
VIEW_TABLES: Final = ("dicom_header_excerpt.csv", "indiana_projections.csv")
MAX_REPORT_BYTES: Final = 4 * 1024 * 1024
MAX_IMAGE_BYTES: Final = 256 * 1024 * 1024

_LICENSES: Final = {
    "by": "CC BY",
    "bysa": "CC BY-SA",
    "bync": "CC BY-NC",
    "bynd": "CC BY-ND",
    "byncsa": "CC BY-NC-SA",
    "byncnd": "CC BY-NC-ND",
}
_EXTRA: Final = pa.schema(
    [
        pa.field("caption", pa.string()),
        pa.field("indication", pa.string()),
        pa.field("comparison", pa.string()),
        pa.field("labels_auto", pa.list_(pa.string())),
    ]
)


class _RefusedDeclarationError(Exception):
    """A document type declaration, before any entity of it is read."""


class _GuardedBuilder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise _RefusedDeclarationError


@dataclass(frozen=True)
class OpeniSource:
    """Open-I below `root`; `resolve` finds what the folder holds."""

    root: ArchiveFolder
    reports: str
    """Folder or archive of the reports, relative to the root."""
    image_folder: str
    """Folder of the images, relative to the root; empty where it is the root."""
    views: dict[str, str] = field(repr=False)
    views_table: str = ""
    unpacked_wins: bool = False
    name: str = "openi"
    reports_expected: bool = True

    @classmethod
    def resolve(cls, root: str | Path, options: OpeniOptions | None = None) -> OpeniSource:
        """Find reports, images and views below `root`. Raises `UserError` naming what was looked for."""
        options = options or OpeniOptions()
        base = _opened(root)
        if options.reports is not None:
            reports = _chosen(base, "reports", options.reports)
        elif any(name.endswith(".xml") for name in base.names(REPORT_FOLDER)):
            reports = REPORT_FOLDER
        elif base.has_file(REPORT_ARCHIVE):
            reports = REPORT_ARCHIVE
        else:
            raise UserError(
                f"{base.described()} holds no Open-I reports: neither {REPORT_FOLDER}/*.xml "
                f"nor {REPORT_ARCHIVE}",
                "download NLMCXR_reports.tgz from openi.nlm.nih.gov, or name it: --set reports=FOLDER_OR_TGZ",
            )
        if options.images is not None:
            images = _chosen(base, "images", options.images)
        else:
            images = IMAGE_FOLDER if base.has_folder(IMAGE_FOLDER) else ""
        if not any(name.endswith(".png") for name in base.names(images)):
            raise UserError(
                f"{base.described(images)} holds no PNG images",
                f"unpack NLMCXR_png.tgz into {base.described(IMAGE_FOLDER)}, or name the folder: "
                "--set images=FOLDER",
            )
        table = (
            _chosen(base, "views", options.views)
            if options.views is not None
            else base.first_file(*VIEW_TABLES)
        )
        return cls(
            root=base,
            reports=reports,
            image_folder=images,
            views={} if table is None else _read_views(base, table),
            views_table=table or "",
            unpacked_wins=reports == REPORT_FOLDER and base.has_file(REPORT_ARCHIVE),
        )

    def assumptions(self) -> list[str]:
        lines = [f"reports are read from {self.reports}"]
        if self.unpacked_wins:
            lines[0] += f" (unpacked reports win over {REPORT_ARCHIVE}, which is not read)"
        lines.append("one study is one patient: the collection names no patients")
        lines.append("labels are the major MeSH terms: `normal` is the empty list, `No Indexing` no labels")
        if self.views_table:
            lines.append(f"views are read from {self.views_table} ({len(self.views)} images have one)")
        else:
            lines.append(f"views are unknown: neither {' nor '.join(VIEW_TABLES)} is there")
        return lines

    def extra_schema(self) -> pa.Schema:
        return _EXTRA

    def items(self) -> Iterator[Item | Rejection]:
        present = {name for name in self.root.names(self.image_folder) if name.lower().endswith(".png")}
        for name, data in self._report_files():
            if isinstance(data, UnreadableImage):
                reason = "outside_root" if data.reason == "outside_root" else "unreadable_report"
                yield Rejection(name, "", reason, data.detail)
                continue
            try:
                parser = ElementTree.XMLParser(target=_GuardedBuilder())  # noqa: S314 - it refuses declarations
                study = ElementTree.fromstring(data, parser=parser)  # noqa: S314
            except _RefusedDeclarationError:
                yield Rejection(name, "", "unreadable_report", "declares a document type or entities")
                continue
            except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
                yield Rejection(name, "", "unreadable_report", f"not XML: {type(error).__name__}")
                continue
            yield from self._study_items(name, study, present)

    def load_image(self, item: Item) -> bytes:
        return self.root.folder(self.image_folder).read(item.locator["file"], MAX_IMAGE_BYTES)

    def load_extra(self, item: Item) -> dict[str, Any]:
        return {}

    def _study_items(
        self, name: str, study: ElementTree.Element, present: set[str]
    ) -> Iterator[Item | Rejection]:
        identity = study.find("uId")
        study_id = "" if identity is None else as_text(identity.get("id"))
        if not study_id:
            yield Rejection(name, "", "unreadable_report", "no uId")
            return
        texts = [(_label(part), _text(part)) for part in study.iter("AbstractText")]
        sections = {label: text for label, text in texts if text}
        terms = [_text(term) for term in study.findall("MeSH/major")]
        license_code = as_text(study.findtext("ccLicense")).lower()
        for image in study.iter("parentImage"):
            image_id = as_text(image.get("id"))
            file = f"{image_id}.png"
            path = f"{self.image_folder}/{file}" if self.image_folder else file
            if "/" in image_id or not lexically_inside(file):
                yield Rejection(name, image_id, "outside_root", "an image id that leads elsewhere")
                continue
            if file not in present:
                yield Rejection(path, image_id, "missing_image", f"listed in {name}")
                continue
            yield Item(
                pair_id=image_id,
                patient_id=study_id,
                study_id=study_id,
                report="\n".join(f"{label}: {text}" for label, text in texts if text),
                path=path,
                locator={"file": file},
                findings=sections.get("FINDINGS", ""),
                impression=sections.get("IMPRESSION", ""),
                view=self.views.get(image_id, "unknown"),
                labels=_labels(terms),
                license=_LICENSES.get(license_code, license_code) + _version(study),
                source="openi",
                extra={
                    "caption": _text(image.find("caption")),
                    "indication": sections.get("INDICATION"),
                    "comparison": sections.get("COMPARISON"),
                    "labels_auto": [_text(term) for term in study.findall("MeSH/automatic")],
                },
            )

    def _report_files(self) -> Iterator[tuple[str, bytes | UnreadableImage]]:
        """Name of each report in order of its number, and its bytes or why they are not read."""
        if self.root.has_folder(self.reports):
            folder = self.root.folder(self.reports)
            names = [name for name in folder.names() if name.endswith(".xml")]
            for name in sorted(names, key=_by_number):
                yield f"{self.reports}/{name}", _report_file(folder, name)
            return
        place = self.root.described(self.reports)
        try:
            # Read in the archive's own order: a compressed archive cannot be sought without starting over.
            with self.root.unfolded(self.reports, LARGEST_TAR_HEADER) as unfolded:
                refuse_what_begins(unfolded.read(START_BYTES), place)
                unfolded.seek(0)
                with open_tar(unfolded) as archive:
                    for member in archive:
                        if member.name.endswith(".xml") and not member.isdir():
                            yield f"{self.reports}:{member.name}", _member(unfolded, member)
        except (tarfile.TarError, ValueError, OverflowError, UnfoldsTooFarError, *DAMAGED) as error:
            raise UserError(
                f"{place} cannot be read to its end ({type(error).__name__})", "download it again"
            ) from None


def _report_file(folder: ArchiveFolder, name: str) -> bytes | UnreadableImage:
    try:
        return folder.read(name, MAX_REPORT_BYTES)
    except UnreadableImage as error:
        return error
    except OSError as error:
        return UnreadableImage("unreadable_report", system_reason(error))


def _member(unfolded: Unfolded, member: tarfile.TarInfo) -> bytes | UnreadableImage:
    """The bytes of an archive's member, or why they are not read."""
    if not lexically_inside(member.name):
        return UnreadableImage("outside_root", "the member's name leads out of the archive")
    if not member.isreg() or member.issparse():
        return UnreadableImage("unreadable_report", "no regular file")
    if member.size > MAX_REPORT_BYTES:
        return UnreadableImage("unreadable_report", f"more than {MAX_REPORT_BYTES} bytes")
    unfolded.seek(member.offset_data)
    data = unfolded.take(member.size)
    if len(data) < member.size:
        raise EOFError
    return data


def _opened(root: str | Path) -> ArchiveFolder:
    try:
        return ArchiveFolder.open(root)
    except UserError as error:
        raise UserError(
            error.message, "the root of openi is the folder that holds NLMCXR_png/ and the reports"
        ) from None


def _chosen(base: ArchiveFolder, option: str, relative: str) -> str:
    if not (base.has_file(relative) or base.has_folder(relative)):
        raise UserError(
            f"{option}: {base.described(relative)} does not exist",
            f"{option} is relative to {base.described()}",
        )
    return relative


def _read_views(base: ArchiveFolder, name: str) -> dict[str, str]:
    """Image id to view, unknown ones left out."""
    table = base.described(name)
    try:
        with base.stream(name) as stream:
            rows = list(csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"views: {table} is not a readable CSV ({type(error).__name__})") from None
    names = {_plain(name): name for name in (rows[0] if rows else {}) if name}
    image = next((names[key] for key in ("imageid", "image", "filename", "id") if key in names), None)
    view = next((names[key] for key in ("viewposition", "projection", "view") if key in names), None)
    if rows and (image is None or view is None):
        raise UserError(
            f"views: {table} has no column for the {'image' if image is None else 'view'}",
            "columns such as imageid and View Position, or filename and projection, are read",
        )
    found = {_image_id(row[image]): as_view(row[view]) for row in rows if image and view and row[image]}
    return {image_id: view for image_id, view in found.items() if view != "unknown"}


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _image_id(name: str) -> str:
    """An image's id from the forms in use: `CXR1_1_IM-0001-3001`, `1_IM-0001-4001.dcm.png`."""
    stem = name.strip()
    for suffix in (".png", ".dcm"):
        stem = stem.removesuffix(suffix)
    return stem if stem.startswith("CXR") else f"CXR{stem}"


def _labels(terms: list[str]) -> tuple[str, ...] | None:
    found = tuple(dict.fromkeys(term for term in terms if term))
    if not found or found == ("No Indexing",):
        return None
    return tuple(term for term in found if term.lower() not in ("normal", "no indexing"))


def _label(part: ElementTree.Element) -> str:
    return as_text(part.get("Label")).upper()


def _text(part: ElementTree.Element | None) -> str:
    return "" if part is None else "".join(part.itertext()).strip()


def _version(study: ElementTree.Element) -> str:
    """The licence's version, from its address: ` 4.0`."""
    steps = [step for step in as_text(study.findtext("licenseURL")).split("/") if step]
    return f" {steps[-1]}" if steps and steps[-1].replace(".", "").isdigit() else ""


def _by_number(name: str) -> tuple[int, str]:
    stem = name.partition(".")[0]
    return (int(stem) if stem.isdigit() else 1 << 60, name)
