"""What is refused for its cost is never what an ordinary encoder writes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from bad_files import jpeg_2000, scan_bomb
from PIL import Image
from source_samples import encoded, grey_pixels

from mpma.data.decoding_cost import MAX_SCANS, count_scans, refuse_costly
from mpma.data.images import DEFAULT_MAX_PIXELS
from mpma.data.sources.contract import UnreadableImage

GREY = grey_pixels(3, 700, 900)


def judge(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        refuse_costly(data, image, DEFAULT_MAX_PIXELS)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("JPEG2000", {}),
        ("JPEG2000", {"irreversible": True, "num_resolutions": 7}),
        ("JPEG2000", {"tile_size": (128, 128), "codeblock_size": (32, 32), "precinct_size": (128, 128)}),
        ("PNG", {}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
@pytest.mark.parametrize("colour", [False, True])
def test_ordinary_pictures_pass(image_format: str, options: dict[str, Any], colour: bool) -> None:
    judge(encoded(np.dstack([GREY] * 3) if colour else GREY, image_format, **options))


def test_the_largest_picture_passes_as_ordinary_encoders_write_it() -> None:
    for options in ({"block": 4}, {"block": 3}, {"block": 4, "precinct": 7}):
        judge(jpeg_2000(8_192, 8_192, **options))
    judge(encoded(np.zeros((8_192, 8_192), np.uint8), "JPEG", progressive=True, quality=10))


def test_scans_are_counted_and_those_of_a_thumbnail_are_not() -> None:
    plain, progressive = encoded(GREY, "JPEG"), encoded(GREY, "JPEG", progressive=True)
    assert count_scans(plain) == 1
    assert count_scans(progressive) == 6
    assert count_scans(scan_bomb(64, 200)) == 206
    exif = Image.Exif()
    exif[0x010E] = "x"
    thumbnails = b"Exif\0\0" + plain[:20_000] * 3
    inside = plain[:2] + b"\xff\xe1" + (len(thumbnails[:60_000]) + 2).to_bytes(2, "big") + thumbnails[:60_000]
    assert count_scans(inside + plain[2:]) == 1


@pytest.mark.parametrize(
    "data",
    [
        scan_bomb(64, MAX_SCANS),
        jpeg_2000(2_048, 2_048, precinct=1),
        jpeg_2000(2_048, 2_048, precinct=1, in_tile=True),
        jpeg_2000(8_000, 8_000, block=0),
        jpeg_2000(255, 1),
    ],
)
def test_what_multiplies_the_declared_size_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableImage) as caught:
        judge(data)
    assert caught.value.reason == "too_large"
