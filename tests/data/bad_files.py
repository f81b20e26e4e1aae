"""Image files that a hostile, broken or careless archive holds, made from a seed, with what may come of each.

Decisions: every file says which reasons it may be refused with and whether it may be kept as well: a
flipped bit that leaves a decodable picture is a picture, and a file cut behind its last pixel is whole.
Nothing here is left to chance but the seed's flips.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image
from source_samples import encoded, grey_pixels

GREY: Final = grey_pixels()
HEIGHT, WIDTH = GREY.shape

TORN: Final = ("truncated_image", "unreadable_image", "not_an_image")
DAMAGED: Final = (*TORN, "too_large", "too_small", "unsupported_pixels", "constant_image", "empty_file")

POINTER: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 123456\n"
PAGE: Final = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head><body>Please log in.</body></html>\n"


@dataclass(frozen=True)
class BadFile:
    """One file of an image folder, and what may come of it."""

    name: str
    data: bytes
    reasons: tuple[str, ...]
    """Codes of which one must be given; empty where the file must be kept."""
    may_be_kept: bool = False


def encodings() -> dict[str, bytes]:
    """One picture in every format that is read."""
    return {
        "png": encoded(GREY),
        "jpg": encoded(GREY, "JPEG", comment="a comment", restart_marker_rows=2),
        "progressive.jpg": encoded(GREY, "JPEG", progressive=True),
        "tif": encoded(GREY, "TIFF", compression="tiff_adobe_deflate"),
        "raw.tif": encoded(GREY, "TIFF"),
        "gif": encoded(GREY, "GIF"),
        "bmp": encoded(GREY, "BMP"),
        "jp2": encoded(GREY, "JPEG2000"),
        "webp": encoded(GREY, "WEBP", lossless=True),
        "ppm": encoded(np.dstack([GREY] * 3), "PPM"),
    }


def chunk(name: bytes, content: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int, bits: int = 8, colour: int = 0) -> bytes:
    """The start of a PNG of a declared size."""
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    )


def with_chunks(*chunks: bytes) -> bytes:
    """A sound PNG with chunks of metadata behind its header."""
    png = encoded(GREY)
    return png[:33] + b"".join(chunks) + png[33:]


def tiff(tags: list[tuple[int, int, int, int | None]], blob: bytes = b"") -> bytes:
    """A TIFF directory of (tag, type, count, value), None standing for the place of `blob` behind it."""
    place = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, kind, count, place if value is None else value)
        for tag, kind, count, value in sorted(tags, key=lambda entry: entry[0])
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + blob


def jpeg_with(*segments: bytes) -> bytes:
    """A sound JPEG with raw bytes between its first two markers."""
    data = encoded(GREY, "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def application(number: int, content: bytes) -> bytes:
    """An APPn segment."""
    return bytes((0xFF, 0xE0 + number)) + struct.pack(">H", len(content) + 2) + content


def scan_bomb(side: int, scans: int) -> bytes:
    """A small progressive JPEG that goes over all of its blocks so many times more."""
    data = encoded(np.full((side, side), 128, np.uint8), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def jpeg_2000(
    side: int,
    tile: int,
    block: int = 4,
    precinct: int | None = None,
    components: int = 1,
    in_tile: bool = False,
) -> bytes:
    """A codestream of headers alone: a picture cut into tiles, code blocks and precincts of given sizes."""

    def marker(code: int, body: bytes) -> bytes:
        return struct.pack(">HH", code, len(body) + 2) + body

    size = struct.pack(">H8IH", 0, side, side, 0, 0, tile, tile, 0, 0, components) + b"\7\1\1" * components
    style = bytes((0 if precinct is None else 1, 0, 0, 1, 0, 5, block, block, 0, 1))
    style += b"" if precinct is None else bytes((precinct * 17,)) * 6
    plain = bytes((0, 0, 0, 1, 0, 5, 4, 4, 0, 1))
    coding = marker(0xFF52, plain if in_tile else style)
    steps = marker(0xFF5C, bytes((0x40, *(0x40,) * 16)))
    own = marker(0xFF52, style) if in_tile else b""
    part = (
        struct.pack(">HHHIBB", 0xFF90, 10, 0, 12 + len(own) + 2 + 200, 0, 1) + own + b"\xff\x93" + bytes(200)
    )
    return b"\xff\x4f" + marker(0xFF51, size) + coding + steps + part + b"\xff\xd9"


def boundaries(name: str, data: bytes) -> list[int]:
    """Lengths to cut a file to: inside its header, at and inside each part, and before its last byte."""
    edges = {
        1,
        2,
        4,
        7,
        8,
        12,
        20,
        33,
        len(data) // 3,
        len(data) // 2,
        len(data) - 9,
        len(data) - 2,
        len(data) - 1,
    }
    at = 8
    while name == "png" and at < len(data):
        edges |= {at, at + 4, at + 9}
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    if name.endswith("jpg"):
        for marker in range(len(data) - 1):
            if data[marker] == 0xFF and data[marker + 1] not in (0, *range(0xD0, 0xD8)):
                edges |= {marker, marker + 1, marker + 3}
    return sorted(length for length in edges if 0 < length < len(data))


def truncated() -> Iterator[BadFile]:
    """Files cut at their boundaries."""
    yield BadFile("cut-0.png", b"", ("empty_file",))
    for name, data in encodings().items():
        for length in boundaries(name, data):
            # What lies behind the last pixel is not missed.
            yield BadFile(f"cut-{length}.{name}", data[:length], TORN, may_be_kept=True)


def flipped(seed: int, each: int = 24) -> Iterator[BadFile]:
    """Files with some bytes changed; half of them in their first hundred bytes, where headers are."""
    generator = np.random.default_rng(seed)
    for name, data in encodings().items():
        for number in range(each):
            changed = bytearray(data)
            end = len(data) if number % 2 else min(len(data), 100)
            for place in generator.integers(0, end, 1 + number % 6):
                changed[place] = generator.integers(0, 256)
            yield BadFile(f"flip-{number}.{name}", bytes(changed), DAMAGED, may_be_kept=True)


def bombs() -> Iterator[BadFile]:
    """Small files that ask for much."""
    large = ("too_large",)
    zeros = zlib.compress(bytes(50_000_000), 1)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    for width, height in ((60_000, 60_000), (2**31 - 1, 2), (9_000, 9_000), (1, 2**31 - 1), (8_193, 8_192)):
        yield BadFile(f"declared-{width}-{height}.png", png_header(width, height) + data, large)
    yield BadFile("declared-0.png", png_header(0, 80) + data, DAMAGED)
    yield BadFile(
        "declared.bmp",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 1000, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
        large,
    )
    yield BadFile(
        "declared.gif",
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
        ("too_large", *TORN),
    )
    yield BadFile("declared.ppm", b"P5 100000 100000 255\n", large)
    yield BadFile(
        "declared.tif",
        tiff(
            [
                (256, 4, 1, 90_000),
                (257, 4, 1, 90_000),
                (258, 3, 1, 8),
                (259, 3, 1, 1),
                (262, 3, 1, 1),
                (273, 4, 1, 8),
                (279, 4, 1, 9),
            ]
        ),
        large,
    )
    yield BadFile(
        "more-than-declared.png",
        png_header(WIDTH, HEIGHT) + chunk(b"IDAT", zeros) + chunk(b"IEND", b""),
        DAMAGED,
    )
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iCCP", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")):
        yield BadFile(
            f"{kind.decode()}.png", with_chunks(chunk(kind, head + zeros)), DAMAGED, may_be_kept=True
        )
    many = [chunk(b"zTXt", b"k%d\0\0" % number + zlib.compress(bytes(1_000_000))) for number in range(100)]
    yield BadFile("many-texts.png", with_chunks(*many), DAMAGED)
    yield BadFile("many-chunks.png", with_chunks(*(chunk(b"abCd", b""),) * 150_000), large)
    yield BadFile("scans.jpg", scan_bomb(2_000, 3_000), large)
    yield BadFile("scans-small.jpg", scan_bomb(64, 20_000), large)
    yield BadFile("scans-large.jpg", scan_bomb(7_000, 60), large)
    yield BadFile(
        "segments.jpg",
        jpeg_with(*(b"\xff\xfe\0\2",) * 150_000, *(b"\xff\xda",) * 200),
        DAMAGED,
        may_be_kept=True,
    )
    yield BadFile("precincts.j2k", jpeg_2000(2_048, 2_048, precinct=1), large)
    yield BadFile("precincts-in-tile.j2k", jpeg_2000(4_096, 4_096, precinct=1, in_tile=True), large)
    yield BadFile("blocks.j2k", jpeg_2000(8_000, 8_000, block=0), large)
    yield BadFile("tiles.j2k", jpeg_2000(255, 1), large)
    yield BadFile("size.j2k", jpeg_2000(40_000, 40_000), large)
    yield BadFile("components.j2k", jpeg_2000(255, 255, components=16_384), DAMAGED)
    inner = jpeg_2000(20_000, 20_000)
    box = encoded(GREY, "JPEG2000")
    place = box.index(b"\xff\x4f\xff\x51")
    yield BadFile("inner-size.jp2", box[:place] + inner, ("too_large",))
    flat = zlib.compress(bytes(20_000_000), 1)
    tile = [
        (256, 4, 1, WIDTH),
        (257, 4, 1, HEIGHT),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    yield BadFile(
        "tile.tif",
        tiff(
            [*tile, (322, 4, 1, 17_008), (323, 4, 1, 17_008), (324, 4, 1, None), (325, 4, 1, len(flat))], flat
        ),
        large,
    )
    yield BadFile(
        "samples.tif",
        tiff(
            [*tile[:-1], (277, 3, 1, 60_000), (278, 4, 1, 80), (273, 4, 1, None), (279, 4, 1, len(flat))],
            flat,
        ),
        DAMAGED,
    )
    tags = [(1_000 + number, 7, 1_000_000, None) for number in range(2_000)]
    yield BadFile("tags.tif", tiff(tags, bytes(1_000_000)), DAMAGED)
    jpeg = scan_bomb(1_000, 300)
    strip = [
        (256, 4, 1, 1_000),
        (257, 4, 1, 1_000),
        (258, 3, 1, 8),
        (259, 3, 1, 7),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]
    yield BadFile(
        "scans.tif",
        tiff([*strip, (278, 4, 1, 1_000), (273, 4, 1, None), (279, 4, 1, len(jpeg))], jpeg),
        DAMAGED,
    )
    frames = io.BytesIO()
    Image.fromarray(GREY).save(
        frames, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)] * 200
    )
    yield BadFile("frames.gif", frames.getvalue(), ())


def no_images() -> Iterator[BadFile]:
    """What is no image at all, and images under another's name."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../inside.png", encoded(GREY))
    no_image = ("not_an_image",)
    for name, data, reasons in (
        ("pointer.png", POINTER, ("git_lfs_pointer",)),
        ("pointer.jpg", POINTER[:60], ("git_lfs_pointer",)),
        ("page.png", PAGE, ("html_page",)),
        ("page.jpg", b"\xef\xbb\xbf \r\n" + PAGE.lower(), ("html_page",)),
        ("denied.png", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ("html_page",)),
        (
            "drawing.png",
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            ("html_page",),
        ),
        (
            "laughs.png",
            b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><l>&b;</l>',
            ("html_page",),
        ),
        ("zip.png", packed.getvalue(), no_image),
        ("gzip.png", gzip.compress(encoded(GREY)), no_image),
        ("bzip2.png", bz2.compress(encoded(GREY)), no_image),
        ("xz.png", lzma.compress(encoded(GREY)), no_image),
        ("pdf.png", b"%PDF-1.7\n1 0 obj\n", no_image),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", no_image),
        ("program.png", b"\x7fELF" + bytes(200), no_image),
        ("text.png", b"no image at all", no_image),
        ("blanks.png", b" \n" * 200, no_image),
        ("zeros.png", bytes(5_000), no_image),
        ("ones.png", b"\xff" * 5_000, (*no_image, *TORN)),
        ("utf16.png", "no image".encode("utf-16"), no_image),
        ("array.png", b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", no_image),
        ("pickle.png", b"\x80\4\x95", no_image),
        ("table.png", b"PAR1" + bytes(50) + b"PAR1", no_image),
        ("icon.png", b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0", no_image),
        ("photoshop.png", b"8BPS\0\1" + bytes(60), no_image),
        ("magic.png", b"\x89PNG\r\n\x1a\n", TORN),
        ("magic.jpg", b"\xff\xd8\xff", TORN),
        ("magic.tif", b"II*\0\x08\0\0\0", TORN),
        ("magic.gif", b"GIF89a", TORN),
    ):
        yield BadFile(f"no-{name}", data, reasons)
    for name, data in encodings().items():
        yield BadFile(f"misnamed-{name.replace('.', '-')}.dcm.txt", data, ())


def odd_pixels() -> Iterator[BadFile]:
    """Kinds of pixels that hospitals' software writes; those with a known range of grey are kept."""
    deep = GREY.astype(np.uint16) * 16
    out = io.BytesIO()
    Image.fromarray(np.dstack([GREY] * 4), "CMYK").save(out, "JPEG")
    yield BadFile("cmyk.jpg", out.getvalue(), ())
    bits = io.BytesIO()
    Image.fromarray(GREY > 128).save(bits, "PNG")
    yield BadFile("one-bit.png", bits.getvalue(), ())
    fax = io.BytesIO()
    Image.fromarray(GREY > 128).save(fax, "TIFF", compression="group4")
    yield BadFile("fax.tif", fax.getvalue(), ())
    palette = io.BytesIO()
    Image.fromarray(GREY).convert("P").save(palette, "PNG")
    yield BadFile("palette.png", palette.getvalue(), ())
    clear = io.BytesIO()
    Image.fromarray(GREY).convert("P").save(clear, "PNG", transparency=3)
    yield BadFile("palette-clear.png", clear.getvalue(), ())
    yield BadFile("alpha.png", encoded(np.dstack([GREY] * 4)), ())
    yield BadFile("alpha.webp", encoded(np.dstack([GREY] * 4), "WEBP", lossless=True), ())
    yield BadFile("deep.png", encoded(deep), ())
    yield BadFile("deep.tif", encoded(deep, "TIFF"), ())
    yield BadFile("deep.jp2", encoded(deep, "JPEG2000"), ())
    yield BadFile("integers.tif", encoded(GREY.astype(np.int32), "TIFF"), ())
    yield BadFile(
        "wide-integers.tif", encoded(GREY.astype(np.int32) * 100_000, "TIFF"), ("unsupported_pixels",)
    )
    yield BadFile("negative.tif", encoded(GREY.astype(np.int32) - 100, "TIFF"), ("unsupported_pixels",))
    yield BadFile("float.tif", encoded(GREY.astype(np.float32), "TIFF"), ("unsupported_pixels",))
    nan = np.full(GREY.shape, np.nan, np.float32)
    yield BadFile("nan.tif", encoded(nan, "TIFF"), ("unsupported_pixels",))
    for value in (0, 7, 255):
        yield BadFile(f"constant-{value}.png", encoded(np.full_like(GREY, value)), ("constant_image",))
    yield BadFile("constant-deep.png", encoded(np.full_like(deep, 3_000)), ("constant_image",))
    for height, width in ((1, 1), (63, 200), (200, 63), (1, 5_000)):
        yield BadFile(f"small-{height}-{width}.png", encoded(grey_pixels(1, height, width)), ("too_small",))
    for name, between in (("bytes", b"garbage"), ("fill", b"\xff" * 500), ("zeros", bytes(300))):
        data = encoded(GREY, "JPEG")
        for number, place in enumerate(
            (data.index(b"\xff\xdb"), data.index(b"\xff\xc0"), data.index(b"\xff\xda"))
        ):
            yield BadFile(
                f"between-{name}-{number}.jpg", data[:place] + between + data[place:], TORN, may_be_kept=True
            )
        yield BadFile(f"behind-{name}.jpg", data + between, ())


def absurd_exif() -> Iterator[BadFile]:
    """Metadata that means nothing beside sound pixels, which are kept."""
    for kind in range(14):
        block = tiff(
            [
                (0x0112, kind, 1, 6),
                (0x8769, 4, 1, 8),
                (0x8825, 4, 1, 8),
                (0x010E, 2, 2**32 - 1, 3),
                (0x501B, kind, 70_000, None),
            ],
            b"abc",
        )
        yield BadFile(f"exif-{kind}.jpg", jpeg_with(application(1, b"Exif\0\0" + block)), ())
    for value in (0, 9, 65_535):
        exif = Image.Exif()
        exif[0x0112] = value
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            yield BadFile(f"orientation-{value}.{kind.lower()}", encoded(GREY, kind, exif=exif), ())
    block = tiff([(1_000 + number, 7, 40_000, None) for number in range(1_500)], bytes(40_000))
    yield BadFile("exif-tags.jpg", jpeg_with(application(1, b"Exif\0\0" + block)), ())
    yield BadFile("exif-tags.png", with_chunks(chunk(b"eXIf", block)), ())
    yield BadFile(
        "exif-random.jpg", jpeg_with(application(1, b"Exif\0\0" + np.random.default_rng(1).bytes(9_000))), ()
    )
    yield BadFile("exif-empty.jpg", jpeg_with(application(1, b"Exif\0\0")), ())
    yield BadFile(
        "exif-raw.png", with_chunks(chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 100\n45zz")), ()
    )
    yield BadFile(
        "pictures.jpg",
        jpeg_with(application(2, b"MPF\0" + tiff([(0xB001, 4, 1, 2**31), (0xB002, 7, 99, 0)]))),
        (),
    )
    yield BadFile("profile.jpg", jpeg_with(application(2, b"ICC_PROFILE\0\1\2" + bytes(60_000))), ())
    yield BadFile("vendor.jpg", jpeg_with(*(application(13, b"Photoshop 3.0\0" + bytes(60_000)),) * 30), ())
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>9</tiff:Orientation>" + b"<a>" * 10_000
    yield BadFile("packet.png", with_chunks(chunk(b"iTXt", xmp)), ())


def bad_images(seed: int = 0) -> list[BadFile]:
    """All of them, in an order that mixes nothing up."""
    found = [*truncated(), *bombs(), *no_images(), *odd_pixels(), *absurd_exif(), *flipped(seed)]
    assert len({file.name for file in found}) == len(found)
    return found
