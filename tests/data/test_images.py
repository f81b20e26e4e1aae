"""Image files of every kind and damage, against the pixels they were made from."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from source_samples import encoded, grey_pixels

from mpma.data.images import (
    encode_grey,
    read_grey,
    shrink_grey,
    store_image,
)
from mpma.data.jpeg_segments import without_metadata
from mpma.data.quality import REASONS
from mpma.data.sources.contract import UnreadableImage

GREY = grey_pixels()


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_grey(data, **options)
    assert caught.value.reason in REASONS
    return caught.value.reason


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


# Kinds of pixels.


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_grey_pixels_come_back_exactly(image_format: str) -> None:
    np.testing.assert_array_equal(read_grey(encoded(GREY, image_format)), GREY)


def test_webp_is_read() -> None:
    np.testing.assert_array_equal(read_grey(encoded(GREY, "WEBP", lossless=True)), GREY)


def test_equal_colour_channels_are_exactly_the_grey_they_show() -> None:
    np.testing.assert_array_equal(read_grey(encoded(np.stack([GREY] * 3, axis=-1))), GREY)


def test_colour_is_weighed_by_luminance() -> None:
    colour = np.zeros((4, 3, 3), np.uint8)
    colour[:, 0, 0], colour[:, 1, 1], colour[:, 2, 2] = 255, 255, 255
    np.testing.assert_array_equal(read_grey(encoded(colour))[0], [76, 150, 29])


def test_transparency_lies_over_black() -> None:
    alpha = np.full_like(GREY, 255)
    alpha[:40] = 0
    expected = np.where(alpha == 255, GREY, 0)
    np.testing.assert_array_equal(read_grey(encoded(np.dstack([GREY, GREY, GREY, alpha]))), expected)
    np.testing.assert_array_equal(read_grey(encoded(np.dstack([GREY, alpha]))), expected)
    np.testing.assert_array_equal(read_grey(encoded(np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]))), GREY)


def test_palettes_and_single_bits_are_looked_up() -> None:
    out = io.BytesIO()
    palette = Image.fromarray(GREY % 4).convert("P")
    palette.putpalette([value for level in (0, 80, 160, 240) for value in (level,) * 3])
    palette.save(out, format="PNG")
    values = np.array([0, 80, 160, 240], np.uint8)
    np.testing.assert_array_equal(read_grey(out.getvalue()), values[GREY % 4])
    bits = io.BytesIO()
    Image.fromarray(GREY > 128).save(bits, format="PNG")
    np.testing.assert_array_equal(read_grey(bits.getvalue()), np.where(GREY > 128, 255, 0))


@pytest.mark.parametrize(("bits", "top"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_16_bit_files_are_scaled_by_the_depth_in_use(bits: int, top: int) -> None:
    values = np.linspace(0, top * 0.9, 96).astype(np.uint16)
    wide = np.tile(values, (80, 1))
    expected = np.round(values.astype(np.float64) * 255 / top)
    found = read_grey(encoded(wide))
    assert found.dtype == np.uint8
    assert np.abs(found[0] - expected).max() <= 1
    np.testing.assert_array_equal(found, np.tile(found[0], (80, 1)))
    # The same picture as 8 bits: a 16-bit file is neither black nor stretched to its own range.
    assert found.max() == pytest.approx(0.9 * 255, abs=1.5)


def test_16_bit_scaling_is_not_changed_by_one_image_being_darker() -> None:
    bright, dark = np.full((80, 80), 4000, np.uint16), np.full((80, 80), 2100, np.uint16)
    bright[0, 0] = dark[0, 0] = 0
    assert read_grey(encoded(bright))[5, 5] == 249
    assert read_grey(encoded(dark))[5, 5] == 131


def test_floating_point_has_no_known_range() -> None:
    assert reason(encoded(GREY.astype(np.float32), "TIFF")) == "unsupported_pixels"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    turned = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_grey(encoded(GREY, "PNG", exif=exif)), turned)
    stored = store_image(encoded(GREY, "JPEG", exif=exif))
    assert (stored.height, stored.width) == turned.shape
    assert b"Exif" not in stored.data


def test_the_first_frame_of_an_animation_is_read() -> None:
    out = io.BytesIO()
    Image.fromarray(GREY).save(
        out, format="GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)] * 3
    )
    np.testing.assert_array_equal(read_grey(out.getvalue()), GREY)


# What is refused.


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty_file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git_lfs_pointer"),
        (b"<!DOCTYPE html><html>Log in</html>", "html_page"),
        (b"\xef\xbb\xbf \n<HTML><head>", "html_page"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "html_page"),
        (b"\0" * 128 + b"DICM" + b"\0" * 96, "no_pixels"),
        (b"no image at all", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "truncated_image"),
        (b"\xff\xd8\xff", "truncated_image"),
    ],
)
def test_what_is_no_image_is_refused_by_name(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_a_bomb_is_refused_by_its_declared_size_before_it_is_decoded() -> None:
    for width, height in ((60_000, 60_000), (2_000_000_000, 2), (9_000, 9_000)):
        data = png_header(width, height)
        assert len(data) < 200
        assert reason(data) == "too_large"
    assert reason(encoded(GREY), max_pixels=80 * 96 - 1) == "too_large"
    assert read_grey(encoded(GREY), max_pixels=80 * 96).shape == (80, 96)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "JPEG2000"])
def test_a_file_cut_anywhere_is_refused_or_whole(image_format: str) -> None:
    data = encoded(GREY, image_format)
    whole = read_grey(data)
    found: list[str] = []
    for length in range(0, len(data), max(1, len(data) // 60)):
        try:
            pixels = read_grey(data[:length])
        except UnreadableImage as error:
            found.append(error.reason)
        else:
            np.testing.assert_array_equal(pixels, whole)
    assert found.count("truncated_image") > len(found) * 0.5
    assert set(found) <= set(REASONS)


@settings(max_examples=150, deadline=None)
@given(
    image_format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]),
    damage=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8
    ),
)
def test_damage_ends_in_pixels_or_a_reason(image_format: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(GREY[:20, :24], image_format))
    for place, value in damage:
        data[int(place * len(data))] = value
    found: str | np.ndarray
    try:
        found = read_grey(bytes(data), max_pixels=1_000_000)
    except UnreadableImage as error:
        found = error.reason
    assert found in REASONS if isinstance(found, str) else found.dtype == np.uint8


def test_a_refusal_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("too_large", "9 x 9")))
    assert (error.reason, error.detail) == ("too_large", "9 x 9")


# What is stored.


def test_the_shorter_side_shrinks_to_its_size_and_never_grows() -> None:
    tall = grey_pixels(height=300, width=200)
    for side, shape in ((100, (150, 100)), (200, (300, 200)), (512, (300, 200)), (None, (300, 200))):
        data, width, height = encode_grey(tall, side, image_format="png")
        assert (height, width) == shape
        assert read_grey(data).shape == shape
    np.testing.assert_array_equal(read_grey(encode_grey(tall, 512, image_format="png")[0]), tall)


def test_shrinking_averages_fine_lines_and_does_not_drop_them() -> None:
    lines = np.zeros((400, 400), np.uint8)
    lines[:, ::8] = 255
    shrunk = shrink_grey(lines, 50)
    assert shrunk.shape == (50, 50)
    assert abs(float(shrunk[5:-5, 5:-5].mean()) - lines.mean()) < 2
    assert shrunk[5:-5, 5:-5].std() < 8


def test_jpeg_stays_close_to_the_pixels() -> None:
    smooth = np.asarray(Image.fromarray(grey_pixels()).resize((300, 260), Image.Resampling.BICUBIC))
    data, _, _ = encode_grey(smooth, 512, quality=95)
    error = read_grey(data).astype(int) - smooth
    assert np.abs(error).mean() < 2


def test_a_small_grey_jpeg_keeps_its_coded_pixels_and_loses_its_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "patient name"
    data = encoded(GREY, "JPEG", quality=80, exif=exif, comment="ward 7")
    assert b"patient name" in data
    stored = store_image(data + b"appended by someone")
    for private in (b"patient name", b"ward 7", b"appended"):
        assert private not in stored.data
    np.testing.assert_array_equal(read_grey(stored.data), read_grey(data))
    np.testing.assert_array_equal(stored.pixels, read_grey(data))
    assert (stored.width, stored.height) == (96, 80)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_metadata_goes_from_every_kind_of_jpeg(options: dict[str, object]) -> None:
    data = encoded(GREY, "JPEG", comment="private", **options)
    bare = without_metadata(data)
    assert bare is not None
    assert b"private" not in bare
    np.testing.assert_array_equal(read_grey(bare), read_grey(data))
    assert without_metadata(bare) == bare
    assert without_metadata(data[:-2]) is None
    assert without_metadata(encoded(GREY)) is None


def test_other_images_are_encoded_anew() -> None:
    colour = encoded(np.stack([GREY] * 3, axis=-1), "JPEG")
    stored = store_image(colour)
    with Image.open(io.BytesIO(stored.data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (96, 80))
    large = store_image(encoded(grey_pixels(height=700, width=900), "JPEG"), short_side=350)
    assert (large.width, large.height) == (450, 350)
    assert (large.original_width, large.original_height) == (900, 700)
    assert large.pixels.shape == (350, 450)
    exact = store_image(encoded(GREY), image_format="png")
    np.testing.assert_array_equal(read_grey(exact.data), GREY)


def test_storing_is_deterministic() -> None:
    data = encoded(grey_pixels(height=700, width=900))
    assert store_image(data).data == store_image(data).data


# JPEG that is decoded at a fraction of its size.


def shrunk_whole(data: bytes, short_side: int) -> np.ndarray:
    """What is stored by decoding the whole picture first."""
    return shrink_grey(read_grey(data), short_side)


def stored_pixels(data: bytes, short_side: int) -> np.ndarray:
    stored = store_image(data, short_side, image_format="png")
    np.testing.assert_array_equal(read_grey(stored.data), stored.pixels)
    return stored.pixels


def smooth_pixels(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, 256, (12, 10), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(("height", "width"), [(800, 640), (801, 643), (643, 801), (2_047, 511)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_large_jpeg_is_stored_as_if_the_whole_had_been_decoded(
    height: int, width: int, options: dict[str, object]
) -> None:
    data = encoded(smooth_pixels(height, width), "JPEG", quality=95, **options)
    for short_side in (64, 100, 200):
        expected = shrunk_whole(data, short_side).astype(int)
        found = stored_pixels(data, short_side)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 4
        assert np.square(found - expected).mean() < 255**2 / 10**5  # 50 dB
        stored = store_image(data, short_side)
        assert (stored.original_width, stored.original_height) == (width, height)


def test_a_jpeg_that_shrinks_little_is_decoded_whole() -> None:
    data = encoded(smooth_pixels(800, 640), "JPEG")
    for short_side in (640, 639, 500, 214):
        np.testing.assert_array_equal(stored_pixels(data, short_side), shrunk_whole(data, short_side))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_turned_upright_whatever_size_it_is_decoded_at(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth_pixels(640, 900), "JPEG", quality=95, exif=exif)
    stored = store_image(data, 100)
    expected = read_grey(data)
    assert (stored.original_height, stored.original_width) == expected.shape
    assert np.abs(stored.pixels.astype(int) - shrink_grey(expected, 100)).max() <= 4


def test_colour_is_weighed_alike_at_every_size() -> None:
    colour = np.stack([smooth_pixels(800, 640), smooth_pixels(640, 800).T, smooth_pixels(800, 640)[::-1]], -1)
    data = encoded(colour, "JPEG", quality=95, subsampling=0)
    assert np.abs(stored_pixels(data, 100).astype(int) - shrunk_whole(data, 100)).max() <= 5


def test_a_large_jpeg_that_is_cut_is_refused_at_a_fraction_too() -> None:
    data = encoded(smooth_pixels(800, 640), "JPEG")
    for length in (len(data) // 2, len(data) - 200):
        with pytest.raises(UnreadableImage) as caught:
            store_image(data[:length], 100)
        assert caught.value.reason == "truncated_image"


def test_a_picture_longer_than_a_jpeg_may_be_is_refused_and_not_cut() -> None:
    ribbon = np.tile(np.arange(64, dtype=np.uint8), (70_000, 1))
    with pytest.raises(UnreadableImage) as caught:
        store_image(encoded(ribbon), None)
    assert caught.value.reason == "too_large"
    assert store_image(encoded(ribbon), None, image_format="png").height == 70_000
