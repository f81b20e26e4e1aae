"""The headers of an archive's DICOM files, read in threads, in the files' order.

Decisions: of a file only its beginning is read, and more of it only where its header goes on, so that
listing an archive costs a small part of its bytes; of the header only the elements below are looked at.
They serve to join, to refuse and to split, and stay in the listing: names, dates and places are not among
them. Threads wait for disks and buckets, so a few are read ahead, and never more than a stated number.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mpma.data.dicom import load_pydicom, says_burned_in
from mpma.data.dicom_elements import has_prefix, looks_like_bare_dicom, walk_file
from mpma.data.dicom_frame import whole_number
from mpma.data.dicom_silence import quiet
from mpma.data.images import sniff
from mpma.data.sources import dicom_views
from mpma.data.sources.archive import DAMAGED, ArchiveFolder
from mpma.data.sources.contract import Rejection, UnreadableImage
from mpma.data.sources.paths import resolved_inside

FIRST_BYTES: Final = 64 * 1024
MAX_HEADER_BYTES: Final = 32 * 1024 * 1024
"""Bytes of a file among which its header is looked for."""
_GROWTH: Final = 8
_LOCAL_THREADS, _REMOTE_THREADS = 4, 32
_AHEAD: Final = 4

_LAST: Final = 0x00540220
_TAGS: Final = frozenset(
    (
        0x00080005,  # character set
        *(0x00080018, 0x0020000D, 0x0020000E, 0x00080050),  # image, study, series, accession number
        *(0x00100020, 0x00100021),  # patient, issuer
        0x00080060,  # modality
        *(0x00280008, 0x00280010, 0x00280011),  # frames, rows, columns
        0x00280301,  # burned-in annotation
        *(0x00181164, 0x00280030),  # spacing
        *dicom_views.TAGS,
    )
)


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """What the source asks of a file; texts are empty where the header has none."""

    name: str
    """Path of the file in the archive."""
    image_uid: str
    series_uid: str
    study_uid: str
    accession: str
    patient: str
    issuer: str
    modality: str
    view: str
    view_position: str
    has_picture: bool
    frames: int
    burned_in: str
    """`YES`, `NO` or empty."""
    spacing_mm: float | None
    """Distance of two pixels where it is the same both ways."""


def read_headers(archive: ArchiveFolder, names: Iterable[str]) -> Iterator[DicomHeader | Rejection]:
    """The header of every file, in order; a `Rejection` for one that is no DICOM or damaged."""
    load_pydicom()
    threads = _LOCAL_THREADS if archive.is_local else _REMOTE_THREADS
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[DicomHeader | Rejection]] = deque()
    try:
        for name in names:
            waiting.append(pool.submit(read_header, archive, name))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_header(archive: ArchiveFolder, name: str) -> DicomHeader | Rejection:
    """The header of one file, or why it has none."""
    try:
        return _header(archive, name)
    except UnreadableImage as error:
        return Rejection(name, "", error.reason, error.detail)
    except FileNotFoundError:
        return Rejection(name, "", "missing_image")
    except DAMAGED as error:
        return Rejection(name, "", "unreadable_image", type(error).__name__)


def _header(archive: ArchiveFolder, name: str) -> DicomHeader:
    if archive.is_local:
        # Found by walking, not named by the layout: a link in a folder of images leads anywhere.
        resolved_inside(Path(archive.root), name)
    with archive.seekable(name) as stream:
        data = stream.read(FIRST_BYTES)
        sniff(data)
        if not (has_prefix(data) or looks_like_bare_dicom(data)):
            raise UnreadableImage("not_an_image", "not DICOM")
        file = walk_file(data, _TAGS, _LAST, MAX_HEADER_BYTES)
        while not file.complete and len(data) < MAX_HEADER_BYTES:
            more = stream.read(min(_GROWTH * len(data), MAX_HEADER_BYTES - len(data)))
            if not more:
                break
            data += more
            file = walk_file(data, _TAGS, _LAST, MAX_HEADER_BYTES)
    with quiet():
        dataset = file.dataset()
        view = dicom_views.view_of(dataset)
        burned_in = "YES" if says_burned_in(dataset) else _text(dataset, "BurnedInAnnotation").upper()
        return DicomHeader(
            name=name,
            image_uid=_text(dataset, "SOPInstanceUID"),
            series_uid=_text(dataset, "SeriesInstanceUID"),
            study_uid=_text(dataset, "StudyInstanceUID"),
            accession=_text(dataset, "AccessionNumber"),
            patient=_text(dataset, "PatientID"),
            issuer=_text(dataset, "IssuerOfPatientID"),
            modality=_text(dataset, "Modality").upper(),
            view=view.view,
            view_position=view.position,
            has_picture=bool(whole_number(dataset, "Rows") and whole_number(dataset, "Columns")),
            frames=whole_number(dataset, "NumberOfFrames") or 1,
            burned_in=burned_in if burned_in in ("YES", "NO") else "",
            spacing_mm=_spacing(dataset),
        )


def _text(dataset: Any, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts when asked
        return ""
    if value is None:
        return ""
    # A backslash parts values, also where somebody wrote one into an identifier.
    parts = value if isinstance(value, list) or hasattr(value, "append") else [value]
    return "\\".join(str(part) for part in parts).strip("\0 \t\r\n")


def _spacing(dataset: Any) -> float | None:
    for keyword in ("ImagerPixelSpacing", "PixelSpacing"):
        try:
            across, down = (float(value) for value in dataset.get(keyword))
        except Exception:  # absent, or not two numbers
            across = down = math.nan
        if across == down and math.isfinite(across) and across > 0:
            return across
    return None
