"""CheXbert's labels as CheXpert Plus publishes them: one JSON object a line, an image and 14 findings.

Decisions: a finding is 1 (there), 0 (said to be absent), -1 (uncertain) or null (not mentioned), and any
other value refuses the file, since a label that is not understood is a wrong label; the file may lie unpacked
or in the publisher's zip. The labels of all images are held while the table is listed, a few small
numbers each.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final, NamedTuple

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import UnreadableImage
from mpma.data.sources.zip_members import ZipArchive
from mpma.errors import UserError

FINDINGS: Final = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
NOTHING: Final = "No Finding"
FOLDERS: Final = ("chexbert_labels", "labels", "")
ARCHIVE: Final = "chexbert_labels.zip"
MAX_LABEL_BYTES: Final = 1 << 30

_MAX_LINE_BYTES: Final = 1 << 16


class FindingCodes(NamedTuple):
    """The findings of one image, a bit each in the order of `FINDINGS`."""

    there: int
    unsure: int
    absent: int
    nothing: bool
    """Whether `No Finding` is 1."""

    def present(self) -> tuple[str, ...] | None:
        """Findings that are there; empty where nothing was found, None where nothing is certain."""
        return tuple(_named(self.there)) or (() if self.nothing else None)

    def uncertain(self) -> list[str]:
        """Findings that may be there."""
        return _named(self.unsure)

    def negative(self) -> list[str]:
        """Findings that are said not to be there."""
        return _named(self.absent)


def find_label_file(archive: ArchiveFolder, name: str) -> str | None:
    """Where the labels lie: unpacked, else in the zip that is to hold them; None where neither is there."""
    places = [f"{folder}/{name}" if folder else name for folder in FOLDERS]
    return archive.first_file(*places, ARCHIVE)


def read_label_file(archive: ArchiveFolder, found: str, name: str) -> dict[str, FindingCodes]:
    """Image (path without its ending) to its findings.

    Args:
        found: what `find_label_file` gave.
        name: the file's own name, by which it is found in the zip.

    Raises `UserError` naming the file, and the line that is not understood.
    """
    labels: dict[str, FindingCodes] = {}
    with _opened(archive, found, name) as stream:
        number = 0
        while line := stream.readline(_MAX_LINE_BYTES):
            number += 1
            if not line.strip():
                continue
            try:
                image, codes = _codes(json.loads(line))
            except (ValueError, RecursionError):
                raise UserError(
                    f"{archive.described(found)}, line {number}: not an image and findings as 1, 0, -1, null",
                    "fetch the file again, or go on without labels: --set labels=none",
                ) from None
            labels[image] = codes
    return labels


def _named(bits: int) -> list[str]:
    return [name for place, name in enumerate(FINDINGS) if bits >> place & 1]


def _codes(record: Any) -> tuple[str, FindingCodes]:
    """Raises ValueError where the record is not as published."""
    image = record.get("path_to_image") if isinstance(record, dict) else None
    if not isinstance(image, str) or not image or NOTHING not in record:
        raise ValueError
    there = unsure = absent = 0
    for bit, finding in enumerate(FINDINGS):
        value = _value(record.get(finding))
        there |= (value == 1) << bit
        unsure |= (value == -1) << bit
        absent |= (value == 0) << bit
    return image.rpartition(".")[0] or image, FindingCodes(
        there, unsure, absent, _value(record[NOTHING]) == 1
    )


def _value(value: Any) -> int | None:
    # JSON as pandas writes it may say NaN, the one number that is not itself.
    if value is None or value != value:
        return None
    if isinstance(value, bool) or value not in (1, 0, -1):
        raise ValueError
    return int(value)


@contextmanager
def _opened(archive: ArchiveFolder, found: str, name: str) -> Iterator[IO[bytes]]:
    if found != ARCHIVE:
        with archive.stream(found) as stream:
            yield io.BufferedReader(stream)  # type: ignore[type-var]
        return
    zipped = ZipArchive(archive, found)
    member = next((member for member in zipped.members() if member.name.rpartition("/")[2] == name), None)
    if member is None:
        raise UserError(
            f"{archive.described(found)} holds no {name}", "go on without labels: --set labels=none"
        )
    try:
        yield io.BytesIO(zipped.read(member, MAX_LABEL_BYTES))
    except UnreadableImage as error:
        raise UserError(f"{archive.described(found)}: {name}: {error.detail}") from None
