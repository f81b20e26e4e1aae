"""DICOM files of every layout and transfer syntax, against the pixels they were made from."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from samples_dicom import (
    compressed_by_gdcm,
    compressed_dicom,
    dicom_dataset,
    dicom_file,
    encoded_dicom,
    encoded_picture,
    lookup_table,
)
from source_samples import encoded, grey_pixels

from mpma.data.dicom import read_dicom, with_prefix
from mpma.data.dicom_elements import looks_like_bare_dicom
from mpma.data.dicom_rle import unpack_rle
from mpma.data.images import read_grey, store_image
from mpma.data.quality import REASONS
from mpma.data.sources.contract import UnreadableImage

GREY = grey_pixels()
MAX = 1 << 22
NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
RLE, JPEG, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (
    f"1.2.840.10008.1.2.{end}" for end in ("5", "4.50", "4.70", "4.80", "4.90")
)


def deep(bits: int, seed: int = 0) -> np.ndarray:
    """uint16 [40, 50] that uses the whole of so many bits."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (40, 50)).astype(np.uint16)
    values[0, :2] = 0, (1 << bits) - 1
    return values


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.floor(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def refusal(data: bytes, max_pixels: int = MAX) -> tuple[str, str]:
    with pytest.raises(UnreadableImage) as caught:
        read_grey(data, max_pixels)
    assert caught.value.reason in REASONS
    return caught.value.reason, caught.value.detail


# How pixels are stored.


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_uncompressed_values_come_back_exactly(syntax: str, bits: int) -> None:
    values = GREY if bits == 8 else deep(bits)
    found = read_grey(dicom_file(values, syntax, BitsStored=bits))
    np.testing.assert_array_equal(found, rounded(values, 0, (1 << bits) - 1))


@pytest.mark.parametrize("syntax", [RLE, JPEG_LOSSLESS, "1.2.840.10008.1.2.4.57", JPEG_LS, JPEG_2000])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_compression_changes_nothing(syntax: str, bits: int, tmp_path: Path) -> None:
    plain = dicom_file(GREY if bits == 8 else deep(bits), BitsStored=bits)
    packed = compressed_by_gdcm(plain, syntax, tmp_path)
    assert syntax.encode() in packed
    np.testing.assert_array_equal(read_grey(packed), read_grey(plain))


@pytest.mark.parametrize("syntax", [JPEG, "1.2.840.10008.1.2.4.51"])
def test_jpeg_of_8_bits_is_what_a_jpeg_file_is(syntax: str) -> None:
    stream = encoded_picture(GREY, "JPEG", quality=90)
    np.testing.assert_array_equal(read_grey(compressed_dicom([stream], GREY, syntax)), read_grey(stream))


def test_a_frame_in_several_fragments_is_put_together() -> None:
    stream = encoded_picture(GREY, "JPEG2000", irreversible=False)
    data = dicom_dataset(GREY)
    half = len(stream) // 4 * 2
    items = [stream[:half], stream[half:] + b"\0" * (len(stream) % 2)]
    data.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0" + b"".join(
        b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item for item in items
    )
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    np.testing.assert_array_equal(read_grey(encoded_dicom(data, JPEG_2000)), GREY)


@pytest.mark.parametrize("syntax", NATIVE[:3])
def test_a_file_without_preamble_or_transfer_syntax_is_read_by_looking(syntax: str) -> None:
    values = deep(12)
    bare = dicom_file(values, syntax, prefix=False, BitsStored=12)
    assert looks_like_bare_dicom(bare)
    assert refusal(bare)[0] == "not_an_image"
    np.testing.assert_array_equal(read_grey(with_prefix(bare)), rounded(values, 0, 4095))


def test_a_wrong_transfer_syntax_of_the_header_is_not_believed() -> None:
    explicit = dicom_file(GREY, ExplicitVRLittleEndian)
    told = explicit.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    assert told != explicit
    np.testing.assert_array_equal(read_grey(told), GREY)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_signed_pixels_lie_around_the_middle(syntax: str) -> None:
    values = (deep(12).astype(np.int32) - 2048).astype(np.int16)
    expected = rounded(values, -2048, 2047)
    np.testing.assert_array_equal(read_grey(dicom_file(values, syntax, BitsStored=12)), expected)


def test_pixels_in_the_upper_bits_of_their_cells_are_shifted_down() -> None:
    values = deep(12)
    shifted = dicom_file(values << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(read_grey(shifted), rounded(values, 0, 4095))


def test_an_old_overlay_in_free_bits_is_cut_away_and_other_strange_bits_are_refused() -> None:
    values = deep(12)
    drawn = values | ((np.arange(50) % 2).astype(np.uint16) << 13)
    assert refusal(dicom_file(drawn, BitsStored=12))[0] == "unsupported_pixels"
    data = dicom_dataset(drawn, BitsStored=12)
    data.add_new(0x60000102, "US", 13)
    np.testing.assert_array_equal(read_grey(encoded_dicom(data)), rounded(values, 0, 4095))


def test_32_bits_are_read_over_their_stored_range() -> None:
    values = np.random.default_rng(1).integers(0, 1 << 24, (70, 30)).astype(np.uint32)
    found = read_grey(dicom_file(values, BitsStored=24))
    np.testing.assert_array_equal(found, rounded(values, 0, (1 << 24) - 1))


def test_what_the_header_leaves_out_is_taken_as_usual() -> None:
    absent = dict.fromkeys(
        ("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit", "PixelRepresentation")
    )
    np.testing.assert_array_equal(read_grey(dicom_file(GREY, **absent)), GREY)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_becomes_grey_as_in_every_other_file(planar: int, bits: int) -> None:
    colours = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    stored = colours if bits == 8 else colours.astype(np.uint16) * 257
    data = dicom_dataset(stored, PlanarConfiguration=planar)
    if planar:
        data.PixelData = np.moveaxis(stored, -1, 0).tobytes()
    np.testing.assert_array_equal(read_grey(encoded_dicom(data)), read_grey(encoded(colours)))


def test_luminance_and_colour_difference_is_read_as_colour(tmp_path: Path) -> None:
    colours = np.random.default_rng(2).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    red, green, blue = np.moveaxis(colours.astype(float), -1, 0)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    other = np.stack([grey, (blue - grey) / 1.772 + 128, (red - grey) / 1.402 + 128], axis=-1)
    data = np.clip(np.round(other), 0, 255).astype(np.uint8)
    plain = dicom_file(data, photometric="YBR_FULL")
    found = read_grey(plain).astype(int)
    assert np.abs(found - read_grey(encoded(colours))).max() <= 2
    packed = compressed_by_gdcm(plain, RLE, tmp_path)
    np.testing.assert_array_equal(read_grey(packed), found)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colours_are_looked_up(bits: int) -> None:
    ramp = np.arange(256, dtype=np.uint16)[::-1] * (1 if bits == 8 else 257)
    tags: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        kind = "u1" if bits == 8 else "<u2"
        tags[f"{colour}PaletteColorLookupTableData"] = ramp.astype(kind).tobytes()
    found = read_grey(dicom_file(GREY, photometric="PALETTE COLOR", **tags))
    np.testing.assert_array_equal(found, 255 - GREY)
    del tags["RedPaletteColorLookupTableData"]
    assert refusal(dicom_file(GREY, photometric="PALETTE COLOR", **tags))[0] == "unsupported_pixels"


# What values mean.


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([8, 10, 12, 14, 16]), seed=st.integers(0, 99), windowed=st.booleans())
def test_monochrome1_is_the_inverse_of_monochrome2(bits: int, seed: int, windowed: bool) -> None:
    window = {"WindowCenter": (1 << bits) / 3, "WindowWidth": (1 << bits) / 2} if windowed else {}
    values = deep(bits, seed)
    bright = read_grey(dicom_file(values, BitsStored=bits, photometric="MONOCHROME2", **window))
    dark = read_grey(dicom_file(values, BitsStored=bits, photometric="MONOCHROME1", **window))
    np.testing.assert_array_equal(dark, 255 - bright)


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([10, 12, 14, 16]), seed=st.integers(0, 99))
def test_bits_stored_scale_as_other_16_bit_files_do(bits: int, seed: int) -> None:
    values = deep(bits, seed)
    np.testing.assert_array_equal(read_grey(dicom_file(values, BitsStored=bits)), read_grey(encoded(values)))


def test_a_dark_image_stays_dark() -> None:
    values = deep(12) // 4
    assert read_grey(dicom_file(values, BitsStored=12)).max() == 64
    # Where a writer claims all 16 bits, the depth is that of the brightest pixel, as in other 16-bit files.
    np.testing.assert_array_equal(read_grey(dicom_file(values, BitsStored=16)), read_grey(encoded(values)))


@settings(max_examples=120, deadline=None)
@given(
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID", ""]),
    center=st.integers(-500, 5000),
    width=st.integers(1, 6000),
    slope=st.sampled_from([0.5, 1, 2.25]),
    intercept=st.integers(-1024, 100),
    signed=st.booleans(),
    seed=st.integers(0, 9),
)
def test_windows_are_those_of_pydicom(
    function: str, center: int, width: int, slope: float, intercept: int, signed: bool, seed: int
) -> None:
    values = deep(12, seed)
    if signed:
        values = (values.astype(np.int32) - 2048).astype(np.int16)
    data = dicom_dataset(
        values,
        BitsStored=12,
        WindowCenter=[center, 1],
        WindowWidth=[width, 1],
        RescaleSlope=slope,
        RescaleIntercept=intercept,
    )
    if function:
        data.VOILUTFunction = function
    low, high = (-2048, 2047) if signed else (0, 4095)
    with np.errstate(all="ignore"):
        shown = apply_voi_lut(apply_modality_lut(values, data), data, index=0)
    expected = rounded(shown, low * slope + intercept, high * slope + intercept)
    found = read_grey(encoded_dicom(data))
    # Equal but where a value lies on a rounding edge, which the order of operations moves.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize(("center", "width"), [(100, 0), (100, -5), ("", ""), (None, 100)])
def test_a_window_that_the_standard_does_not_allow_is_none(center: object, width: object) -> None:
    tags = {
        name: value for name, value in (("WindowCenter", center), ("WindowWidth", width)) if value is not None
    }
    np.testing.assert_array_equal(read_grey(dicom_file(GREY, **tags)), GREY)


def test_a_negative_slope_turns_the_greys_around() -> None:
    turned = read_grey(dicom_file(GREY, RescaleSlope=-2, RescaleIntercept=7))
    np.testing.assert_array_equal(turned, 255 - GREY)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_lookup_tables_are_those_of_pydicom(sequence: str, syntax: str) -> None:
    values = deep(12)
    curve = (np.linspace(0, 1, 4000) ** 2 * 1023).astype(np.uint16)
    data = dicom_dataset(values, BitsStored=12)
    setattr(data, sequence, lookup_table(curve, 50, 16 if sequence.startswith("Mod") else 10))
    data.WindowCenter, data.WindowWidth = 200, 300
    read = dcmread(io.BytesIO(encoded_dicom(data)))
    shown = apply_voi_lut(apply_modality_lut(values, read), read, index=0)
    expected = rounded(shown, 0, 1023 if sequence.startswith("VOI") else 65535)
    if syntax == ExplicitVRBigEndian:
        item = data[sequence].value[0]
        item.LUTData = curve.astype(">u2").tobytes()
    found = read_grey(encoded_dicom(data, syntax))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_torn_lookup_table_is_refused() -> None:
    data = dicom_dataset(deep(12), BitsStored=12)
    data.VOILUTSequence = lookup_table(np.arange(100, dtype=np.uint16), 0, 12)
    data.VOILUTSequence[0].LUTDescriptor = [4096, 0, 12]
    assert refusal(encoded_dicom(data)) == (
        "unreadable_image",
        "a lookup table of 12 bits that holds 100 of 4096 values",
    )


def test_the_presentation_shape_inverts_once() -> None:
    for photometric, shape, inverted in (
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
    ):
        found = read_grey(dicom_file(GREY, photometric=photometric, PresentationLUTShape=shape))
        np.testing.assert_array_equal(found, 255 - GREY if inverted else GREY)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(photometric: str) -> None:
    values = (deep(12).astype(np.int32) - 2048).astype(np.int16)
    values[5:9] = -2000
    tags: dict[str, Any] = {"BitsStored": 12, "photometric": photometric}
    plain = read_grey(dicom_file(values, **tags))
    found = read_grey(dicom_file(values, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990, **tags))
    padded = (values >= -2000) & (values <= -1990)
    np.testing.assert_array_equal(found, np.where(padded, 0, plain))


# What is refused.


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"NumberOfFrames": 2}, ("multiple_frames", "2 frames")),
        ({"BurnedInAnnotation": "YES"}, ("burned_in_annotation", "")),
        ({"PixelData": None}, ("no_pixels", "80 rows, 96 columns")),
        ({"Rows": None}, ("no_pixels", "0 rows, 96 columns")),
        (
            {"Rows": 65535, "Columns": 65535},
            ("too_large", f"declares 65535 x 65535, the limit is {MAX} pixels"),
        ),
        ({"Rows": 81}, ("truncated_image", "ValueError")),
        ({"SamplesPerPixel": 3}, ("unsupported_pixels", "3 samples of 8 bits")),
        (
            {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0},
            ("unsupported_pixels", "1 bits from bit 0 in 1"),
        ),
        ({"BitsStored": 9}, ("unsupported_pixels", "9 bits from bit 0 in 8")),
        ({"HighBit": 3}, ("unsupported_pixels", "8 bits from bit -4 in 8")),
        (
            {"PhotometricInterpretation": "HSV"},
            ("unsupported_pixels", "an unknown photometric interpretation"),
        ),
    ],
)
def test_what_is_no_single_picture_is_refused_with_a_reason(tags: dict[str, Any], expected: Any) -> None:
    assert refusal(dicom_file(GREY, **tags)) == expected


def test_burned_in_text_is_read_where_the_user_wants_it() -> None:
    data = dicom_file(GREY, BurnedInAnnotation="YES")
    np.testing.assert_array_equal(read_grey(with_prefix(data, keep_burned_in=True)), GREY)
    assert with_prefix(dicom_file(GREY)) == dicom_file(GREY)
    assert refusal(dicom_file(GREY, NumberOfFrames=2, BurnedInAnnotation="YES"))[0] == "multiple_frames"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.102", "1.2.3.4"])
def test_unsupported_compression_is_named_by_its_uid(syntax: str) -> None:
    stream = encoded_picture(GREY, "JPEG2000")
    data = compressed_dicom([stream], GREY, JPEG_2000).replace(
        JPEG_2000.encode().ljust(22, b"\0"), syntax.encode().ljust(22, b"\0")
    )
    if len(syntax) > 22:
        data = compressed_dicom([stream], GREY, syntax)
    assert refusal(data) == ("unsupported_compression", syntax)


def test_compressed_pixels_of_another_size_than_declared_are_never_decoded() -> None:
    bomb = bytearray(encoded_picture(GREY, "JPEG2000", no_jp2=True))
    bomb[8:16] = (60_000).to_bytes(4, "big") * 2
    assert refusal(compressed_dicom([bytes(bomb)], GREY, JPEG_2000)) == (
        "unreadable_image",
        "compressed 60000 x 60000 x 1, declared 96 x 80 x 1",
    )
    jpeg = encoded_picture(GREY[:40], "JPEG")
    assert refusal(compressed_dicom([jpeg], GREY, JPEG))[1] == "compressed 96 x 40 x 1, declared 96 x 80 x 1"


def test_run_lengths_stop_where_the_picture_is_full() -> None:
    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    found = unpack_rle(header + b"\x81\x07" * 1_000_000, 96 * 80, 1, 1)
    assert found.shape == (1, 96 * 80)
    assert (found == 7).all()
    with pytest.raises(UnreadableImage) as caught:
        unpack_rle(header + b"\x81\x07" * 3, 96 * 80, 1, 1)
    assert caught.value.detail == "unpacks to 384 of 7680 bytes"


def test_a_deflated_bomb_is_refused_by_its_size() -> None:
    head = dicom_file(GREY[:2, :2], DeflatedExplicitVRLittleEndian)
    meta = head[: head.index(b"1.2.840.10008.1.2.1.99") + 22]
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = engine.compress(bytes(1 << 20))
    packed = b"".join([block, *(engine.compress(bytes(1 << 20)) for _ in range(63)), engine.flush()])
    assert len(packed) < 1 << 17
    reason, detail = refusal(meta + packed, max_pixels=1 << 20)
    assert (reason, detail) == ("too_large", f"inflates to more than {(4 << 20) + (16 << 20)} bytes")


def test_sequences_nested_without_end_are_refused() -> None:
    deeper = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    data = bytes(128) + b"DICM" + deeper * 100_000
    assert refusal(data) == ("unreadable_image", "sequences nested more than 64 deep")


def test_a_flood_of_elements_is_refused() -> None:
    element = b"\x09\x00\x10\x10LO\x00\x00"
    assert (
        refusal(bytes(128) + b"DICM" + element * 200_001)[1] == "more than 200000 elements before the pixels"
    )


def test_pixels_keep_nothing_of_the_header() -> None:
    data = dicom_dataset(grey_pixels(height=300, width=200), PatientName="CANARY^NAME", PatientID="CANARY-ID")
    stored = store_image(encoded_dicom(data), short_side=100)
    assert (stored.width, stored.height) == (100, 150)
    assert (stored.original_width, stored.original_height) == (200, 300)
    assert b"CANARY" not in stored.data
    exact = store_image(encoded_dicom(data), image_format="png", short_side=None)
    np.testing.assert_array_equal(read_grey(exact.data), grey_pixels(height=300, width=200))


def test_reading_does_not_change_the_bytes_it_is_given() -> None:
    data = dicom_file(GREY, PixelPaddingValue=3, photometric="MONOCHROME1")
    before = bytes(bytearray(data))
    first = read_dicom(data, MAX)
    assert data == before
    np.testing.assert_array_equal(read_dicom(data, MAX), first)
