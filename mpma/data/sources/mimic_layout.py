"""Where the parts of MIMIC-CXR lie below a root, however they were downloaded.

Decisions: the publisher's tools leave the same files at different depths (`files/p10/` under the root,
under `mimic-cxr-jpg/2.1.0/`, under `physionet.org/files/mimic-cxr-jpg/2.0.0/`), and images and reports are
two projects with a tree of patients each; so the root is searched, a few folders deep and never into the
patients' own, and what a tree holds is told from its first patients. Nothing is told from the name of a
folder alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from mpma.data.sources.archive import ArchiveFolder

REPORTS_ZIP: Final = "mimic-cxr-reports.zip"

_TABLE: Final = re.compile(r"mimic-cxr-(\d+(?:\.\d+)*)-([a-z-]+)\.csv(?:\.gz)?")
_GROUP: Final = re.compile(r"p\d\d")
_PATIENT: Final = re.compile(r"p\d{3,}")
_REPORT: Final = re.compile(r"s\d+\.txt")
_DEPTH: Final = 6
"""Folders below each other that are looked into; `physionet.org/files/mimic-cxr-jpg/2.0.0/files` are five."""
_MOST_FOLDERS: Final = 1000
"""Folders that are looked into; more than that is no download of this archive."""


@dataclass(frozen=True)
class PatientTree:
    """A folder of folders `p10` to `p19` of patients."""

    path: str
    """Relative to the root; empty for the root itself."""
    images: bool
    """Whether its first patients have JPEG files."""
    dicom: bool
    """Whether its first patients have DICOM files."""
    reports: bool
    """Whether its first patients have reports."""


@dataclass(frozen=True)
class MimicLayout:
    """What was found below a root, nearest first."""

    tables: tuple[str, ...]
    """Folders that hold a table of metadata."""
    trees: tuple[PatientTree, ...]
    zips: tuple[str, ...]
    """Paths of zips of reports."""


def find_layout(folder: ArchiveFolder) -> MimicLayout:
    """Search a folder for tables, trees of patients and the zip of reports."""
    tables: list[str] = []
    trees: list[PatientTree] = []
    zips: list[str] = []
    for path, names, inner in islice(_searched(folder), _MOST_FOLDERS):
        if table_named(names, "metadata") is not None:
            tables.append(path)
        if REPORTS_ZIP in names:
            zips.append(below(path, REPORTS_ZIP))
        if any(_GROUP.fullmatch(name) for name in inner):
            trees.append(patient_tree(folder, path))
    return MimicLayout(tuple(tables), tuple(trees), tuple(zips))


def table_named(names: list[str], kind: str) -> str | None:
    """The publisher's table of a kind (`metadata`, `split`, ...) among files; the newest of several."""
    found = [
        (tuple(map(int, match[1].split("."))), name)
        for name in names
        if (match := _TABLE.fullmatch(name)) is not None and match[2] == kind
    ]
    return max(found)[1] if found else None


def patient_tree(folder: ArchiveFolder, path: str) -> PatientTree:
    """What the first patients of a tree have."""
    images = dicom = reports = False
    for patient in islice(_patients(folder, path), 5):
        reports = reports or any(_REPORT.fullmatch(name) for name in folder.names(patient))
        for study in folder.folders(patient)[:2]:
            names = [name.lower() for name in folder.names(f"{patient}/{study}")]
            images = images or any(name.endswith(".jpg") for name in names)
            dicom = dicom or any(name.endswith(".dcm") for name in names)
    return PatientTree(path, images, dicom, reports)


def below(path: str, name: str) -> str:
    """A name inside a folder, which may be the root."""
    return f"{path}/{name}" if path else name


def _searched(folder: ArchiveFolder) -> Iterator[tuple[str, list[str], list[str]]]:
    """Path, files and folders of every folder that may matter, level by level."""
    level = [""]
    for _ in range(_DEPTH):
        following: list[str] = []
        for path in level:
            inner = [name for name in folder.folders(path) if not name.startswith(".")]
            yield path, folder.names(path), inner
            following += [
                below(path, name)
                for name in inner
                if not (_GROUP.fullmatch(name) or _PATIENT.fullmatch(name))
            ]
        level = following


def _patients(folder: ArchiveFolder, path: str) -> Iterator[str]:
    for group in folder.folders(path):
        if _GROUP.fullmatch(group):
            # One of each group at least, should the first hold nothing yet.
            for patient in [name for name in folder.folders(below(path, group)) if _PATIENT.fullmatch(name)][
                :3
            ]:
                yield f"{below(path, group)}/{patient}"
