"""Reports of MIMIC-CXR by study: from the publisher's zip, or from folders of text files.

Decisions: the zip is read as it is, and where both are there it wins, being whole and read in one sweep;
its table of contents is read once and held as numbers by study. In a bucket it is fetched whole (up to a
stated size), since one request a report would take hours. What is no text, such as the pointer that
git-lfs leaves, the web page that an expired login leaves, or a binary file, is refused with a reason and
never becomes a report; single bytes that are not UTF-8 are kept as damaged characters. The text itself is
not touched.

Independent of the images, so that another edition's source can use it:

    reports = find_reports(folder)
    with reports.opened() as reader:
        text = reader.text("10000032", "50414267")
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mpma.data.quality import system_reason
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import UnreadableImage
from mpma.data.sources.mimic_layout import REPORTS_ZIP, MimicLayout, below, find_layout, patient_tree
from mpma.data.sources.paths import lexically_inside
from mpma.data.sources.zip_members import ZipArchive, ZipMember, ZipReader
from mpma.data.storage import shown
from mpma.errors import UserError

MAX_REPORT_BYTES: Final = 1 << 20

_FETCHED_UP_TO: Final = 1 << 29
"""Bytes of the zip that are fetched from a bucket at once and held; the publisher's has a quarter of it."""
_REPORT: Final = re.compile(r"(?:.*/)?p\d+/s(\d{1,18})\.txt")
_LARGEST_SHARE_DAMAGED: Final = 0.1
"""Of the characters of a text, above which it is of another encoding, or no text."""


@dataclass(frozen=True)
class MimicReports:
    """Where the reports are. Picklable; holds no open file."""

    folder: ArchiveFolder
    place: str
    """Path of the zip, or of the folder that holds `p10/` and the others."""
    zipped: bool

    @property
    def described(self) -> str:
        """The place for a message."""
        return self.place or "."

    @contextmanager
    def opened(self) -> Iterator[ReportReader]:
        """The reports, open for many studies. Raises `UserError` where the zip cannot be read."""
        if not self.zipped:
            yield ReportReader(self, None, {})
            return
        with ZipArchive(self.folder, self.place).opened(_FETCHED_UP_TO) as archive:
            members: dict[int, ZipMember] = {}
            for member in archive.members():
                found = _REPORT.fullmatch(member.name)
                if found is not None:
                    members.setdefault(int(found[1]), member)
            yield ReportReader(self, archive, members)


class ReportReader:
    """Open reports; made by `MimicReports.opened`."""

    def __init__(
        self, reports: MimicReports, archive: ZipReader | None, members: dict[int, ZipMember]
    ) -> None:
        self._reports = reports
        self._folder = reports.folder.folder(reports.place)
        self._archive = archive
        self._members = members

    def path(self, patient_id: str, study_id: str) -> str:
        """Where a study's report is, or would be: for the quarantine."""
        if self._archive is not None:
            return f"{self._reports.place}, s{study_id}.txt"
        return below(self._reports.place, _file(patient_id, study_id))

    def text(self, patient_id: str, study_id: str) -> str | None:
        """The report of a study, as it was published; None where there is none.

        Args:
            patient_id: digits of `subject_id`.
            study_id: digits of `study_id`.

        Raises `UnreadableImage` with `unreadable_report` where the file is damaged, too large, no text, or
        leads out of the archive.
        """
        try:
            if self._archive is not None:
                member = self._members.get(int(study_id))
                data = None if member is None else self._archive.read(member, MAX_REPORT_BYTES)
            else:
                data = self._folder.read(_file(patient_id, study_id), MAX_REPORT_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnreadableImage as error:
            raise UnreadableImage("unreadable_report", error.detail) from None
        except OSError as error:
            raise UnreadableImage("unreadable_report", system_reason(error)) from None
        return None if data is None else _as_text(data)


def find_reports(
    folder: ArchiveFolder, layout: MimicLayout | None = None, given: str | None = None
) -> MimicReports | None:
    """The reports of a root: the zip, else a folder of text files; None where there is neither.

    Args:
        layout: what was found below the root, where that is known already.
        given: zip or folder that the user names: relative to the root, or a path or URI of its own.

    Raises `UserError` where `given` is no zip and no folder of reports.
    """
    if given is not None:
        return _given(folder, given)
    layout = layout or find_layout(folder)
    if layout.zips:
        return MimicReports(folder, layout.zips[0], zipped=True)
    trees = [tree.path for tree in layout.trees if tree.reports]
    return MimicReports(folder, trees[0], zipped=False) if trees else None


def _given(folder: ArchiveFolder, given: str) -> MimicReports:
    name = given.rstrip("/")
    if "://" in given:
        address, mark, settings = given.partition("?")
        parent, _, name = address.rstrip("/").rpartition("/")
        folder = ArchiveFolder.open(f"{parent}{mark}{settings}")
    elif folder.is_local:
        # Typed by the user, not named by the archive: it may lie beside the root.
        place = Path(os.path.abspath(Path(folder.root) / Path(name).expanduser()))
        folder, name = ArchiveFolder.open(place.parent), place.name
    elif not lexically_inside(name):
        raise UserError(f"report_files: {given} leads out of {folder.described()}", "give its address")
    if name.lower().endswith(".zip") and folder.has_file(name):
        return MimicReports(folder, name, zipped=True)
    for tree in (name, below(name, "files")):
        if folder.has_folder(tree) and patient_tree(folder, tree).reports:
            return MimicReports(folder, tree, zipped=False)
    raise UserError(
        f"report_files: {shown(given)} is neither a zip nor a folder of reports",
        f"{REPORTS_ZIP}, or the folder that holds p10/ to p19/ with a text file for each study",
    )


def _file(patient_id: str, study_id: str) -> str:
    return f"p{patient_id[:2]}/p{patient_id}/s{study_id}.txt"


def _as_text(data: bytes) -> str:
    if data.startswith(b"version https://git-lfs"):
        raise UnreadableImage("unreadable_report", "a git-lfs pointer")
    if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UnreadableImage("unreadable_report", "a web page")
    text = data.decode("utf-8-sig", errors="replace")
    if "\0" in text or text.count("\ufffd") > _LARGEST_SHARE_DAMAGED * len(text):
        raise UnreadableImage("unreadable_report", "not text in UTF-8")
    return text
