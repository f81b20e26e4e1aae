"""DICOM files as grey pictures: what is refused, and how a file's bytes become uint8.

Decisions: a file is recognised by `DICM` behind its first 128 bytes, wherever images are read, so that a
table of `.dcm` paths works like one of PNG files. Only the elements that the picture needs are looked at;
who the patient is, and everything private, is never decoded. A file whose header says that text is burned
into its pixels is refused, since that text is mostly a name; a source whose user wants such files marks
them in the first 128 bytes, which the standard leaves to whoever passes a file on. The modality is the
source's business: a table that lists a CT slice gets one. pydicom is imported at the first file, and
whatever it has to say stays here.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.dicom_elements import FLOAT_PIXELS, PIXEL_DATA, PREFIX, PREFIX_AT, has_prefix, walk_file
from mpma.data.sources.contract import UnreadableImage

_BURNED_IN: Final = 0x00280301
_BURNED_IN_WANTED: Final = b"mpma: burned-in annotation is wanted".ljust(PREFIX_AT, b"\0")
_HEADER_BYTES: Final = 16 * 1024 * 1024

_WANTED: Final = frozenset(
    (
        *(0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011),  # samples, size, frames
        *(0x00280100, 0x00280101, 0x00280102, 0x00280103),  # bits
        *(0x00280120, 0x00280121),  # padding
        _BURNED_IN,
        *(0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056),  # window, rescale, function
        *(0x00281101, 0x00281102, 0x00281103, 0x00281201, 0x00281202, 0x00281203),  # palette
        *(0x00283000, 0x00283010),  # lookup tables
        0x20500020,  # presentation shape
        *(0x60000102 | (plane << 17) for plane in range(16)),  # old overlays
        *FLOAT_PIXELS,
        PIXEL_DATA,
    )
)


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes are DICOM, by its prefix."""
    return has_prefix(data)


def read_dicom(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a DICOM file of one frame.

    Args:
        data: the file's bytes, its prefix included (see `with_prefix`).
        max_pixels: largest accepted width x height as declared in the header.

    Returns:
        uint8 [H, W]; `mpma.data.dicom_grey` says how values become grey.

    Raises:
        UnreadableImage: with a code of `mpma.data.quality.REASONS`.
    """
    from mpma.data.dicom_frame import describe_pixels, stored_values
    from mpma.data.dicom_grey import to_grey
    from mpma.data.dicom_silence import quiet

    load_pydicom()
    with quiet():
        # The largest picture has four bytes a pixel.
        file = walk_file(data, _WANTED, PIXEL_DATA, 4 * max_pixels + _HEADER_BYTES)
        dataset = file.dataset()
        pixels = describe_pixels(file, dataset, max_pixels)
        if not data.startswith(_BURNED_IN_WANTED) and says_burned_in(dataset):
            raise UnreadableImage("burned_in_annotation")
        return to_grey(stored_values(file, pixels), pixels, dataset, file.encoding.little)


def with_prefix(data: bytes, keep_burned_in: bool = False) -> bytes:
    """A file's bytes such that `read_dicom` takes them: prefix put in front where it is missing.

    Args:
        data: the file's bytes, found to be DICOM.
        keep_burned_in: whether it is read though its header says that text is burned in.
    """
    bare = has_prefix(data)
    if bare and not keep_burned_in:
        return data
    front = _BURNED_IN_WANTED if keep_burned_in else bytes(PREFIX_AT)
    return b"".join((front, PREFIX, memoryview(data)[PREFIX_AT + len(PREFIX) if bare else 0 :]))


def says_burned_in(dataset: object) -> bool:
    """Whether a header says that text is burned into the pixels."""
    try:
        return str(getattr(dataset, "BurnedInAnnotation", "") or "").strip().upper() == "YES"
    except Exception:  # pydicom converts when asked
        return False


def load_pydicom() -> None:
    """Import what reading needs, and silence it; takes no time after the first call."""
    global _LOADED
    if not _LOADED:
        import pydicom.filereader
        import pydicom.pixels  # noqa: F401

        from mpma.data.dicom_silence import silence_libraries

        silence_libraries()
        _LOADED = True


_LOADED = False
