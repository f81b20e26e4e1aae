"""The files that pydicom's own tests read: what becomes of each, and the greys against pydicom's own steps.

Only the files inside the installed package are used; nothing is fetched.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

from mpma.data.dicom import is_dicom, read_dicom, with_prefix
from mpma.data.dicom_elements import looks_like_bare_dicom
from mpma.data.quality import REASONS
from mpma.data.sources.contract import UnreadableImage

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
MAX = 1 << 24

GREY_FILES = {
    "693_J2KI.dcm": (512, 512),
    "CT_small.dcm": (128, 128),
    "J2K_pixelrep_mismatch.dcm": (512, 512),
    "JPEG2000.dcm": (1024, 256),
    "JPEGLSNearLossless_08.dcm": (45, 10),
    "JPEGLSNearLossless_16.dcm": (50, 10),
    "MR_small.dcm": (64, 64),
    "MR_small_RLE.dcm": (64, 64),
    "MR_small_bigendian.dcm": (64, 64),
    "MR_small_expb.dcm": (64, 64),
    "MR_small_implicit.dcm": (64, 64),
    "MR_small_jp2klossless.dcm": (64, 64),
    "MR_small_jpeg_ls_lossless.dcm": (64, 64),
    "MR_small_padded.dcm": (64, 64),
    "examples_overlay.dcm": (300, 484),
    "image_dfl.dcm": (512, 512),
    "rtdose_1frame.dcm": (10, 10),
    "rtdose_expb_1frame.dcm": (10, 10),
    "rtdose_rle_1frame.dcm": (10, 10),
}
COLOUR_FILES = {
    "ExplVR_BigEnd.dcm": (60, 80),
    "SC_jpeg_no_color_transform.dcm": (256, 256),
    "SC_jpeg_no_color_transform_2.dcm": (256, 256),
    "SC_rgb_dcmtk_+eb+cr.dcm": (100, 100),
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": (100, 100),
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": (100, 100),
    "SC_rgb_dcmtk_+eb+cy+np.dcm": (100, 100),
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": (100, 100),
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": (100, 100),
    "SC_rgb_gdcm_KY.dcm": (100, 100),
    "SC_rgb_jls_lossy_line.dcm": (100, 100),
    "SC_rgb_jls_lossy_sample.dcm": (100, 100),
    "SC_rgb_jpeg.dcm": (256, 256),
    "SC_rgb_jpeg_app14_dcmd.dcm": (256, 256),
    "SC_rgb_jpeg_dcmd.dcm": (256, 256),
    "SC_rgb_jpeg_dcmtk.dcm": (100, 100),
    "SC_rgb_jpeg_gdcm.dcm": (100, 100),
    "SC_rgb_jpeg_lossy_gdcm.dcm": (100, 100),
    "SC_rgb_rle.dcm": (100, 100),
    "SC_rgb_rle_16bit.dcm": (100, 100),
    "SC_rgb_small_odd.dcm": (3, 3),
    "SC_rgb_small_odd_big_endian.dcm": (3, 3),
    "SC_rgb_small_odd_jpeg.dcm": (3, 3),
    "SC_ybr_full_422_uncompressed.dcm": (100, 100),
    "examples_jpeg2k.dcm": (480, 640),
    "examples_palette.dcm": (350, 800),
    "examples_rgb_color.dcm": (240, 320),
}
REFUSED = {
    # No picture in them: plans, reports, structures, waveforms, directories, and headers alone.
    **dict.fromkeys(
        (
            *(
                "ExplVR_BigEndNoMeta.dcm",
                "ExplVR_LitEndNoMeta.dcm",
                "UN_sequence.dcm",
                "empty_charset_LEI.dcm",
            ),
            *("meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm", "no_meta_group_length.dcm", "priv_SQ.dcm"),
            *("reportsi.dcm", "reportsi_with_empty_number_tags.dcm", "rtplan.dcm", "rtstruct.dcm"),
            *("test-SR.dcm", "waveform_ecg.dcm", "dicomdirtests/DICOMDIR", "dicomdirtests/DICOMDIR-implicit"),
            *("dicomdirtests/DICOMDIR-bigEnd", "dicomdirtests/DICOMDIR-empty.dcm"),
        ),
        "no_pixels",
    ),
    **dict.fromkeys(
        (
            *("SC_rgb_rle_16bit_2frame.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_rle_32bit_2frame.dcm"),
            *("examples_ybr_color.dcm", "rtdose.dcm", "rtdose_expb.dcm", "rtdose_rle.dcm"),
        ),
        "multiple_frames",
    ),
    # 12 bits in extended JPEG, which neither Pillow nor pydicom's use of GDCM decodes.
    "JPEG-lossy.dcm": "unsupported_compression",
    "JPGExtended.dcm": "unsupported_compression",
    # One bit a pixel, colours of 32 bits.
    "liver_1frame.dcm": "unsupported_pixels",
    "liver_expb_1frame.dcm": "unsupported_pixels",
    "SC_rgb_rle_32bit.dcm": "unsupported_pixels",
    "MR_truncated.dcm": "truncated_image",
    "rtplan_truncated.dcm": "truncated_image",
    # A codestream that Pillow finds broken, and one whose header says 3,722,445,056 columns.
    "GDCMJ2K_TextGBR.dcm": "truncated_image",
    "JPEG2000-embedded-sequence-delimiter.dcm": "unreadable_image",
}
UNCHECKED = {"badVR.dcm": (10, 10)}
"""Read by us; pydicom's own steps fail on a header element that has nothing to do with the picture."""


def read(name: str) -> np.ndarray:
    data = (FOLDER / name).read_bytes()
    if not is_dicom(data):
        assert looks_like_bare_dicom(data)
        data = with_prefix(data)
    return read_dicom(data, MAX)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_radiograph_has_its_reason(name: str) -> None:
    with pytest.raises(UnreadableImage) as caught:
        read(name)
    assert caught.value.reason == REFUSED[name]
    assert REFUSED[name] in REASONS


@pytest.mark.parametrize("name", GREY_FILES)
def test_greys_are_those_of_pydicoms_own_steps(name: str) -> None:
    found = read(name)
    assert (found.dtype, found.shape) == (np.uint8, GREY_FILES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(FOLDER / name)
        values = data.pixel_array
        shown = apply_voi_lut(apply_modality_lut(values, data), data).astype(float)
    count = float(1 << data.BitsStored)
    ends = (-count / 2, count / 2 - 1) if data.PixelRepresentation else (0.0, count - 1)
    if data.BitsStored == 16 and not data.PixelRepresentation and "WindowCenter" not in data:
        depth = next(bits for bits in (8, 10, 12, 14, 16) if values.max() < 1 << bits)
        ends = (0.0, float((1 << depth) - 1))
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    low, high = (end * slope + intercept for end in ends)
    expected = np.floor(np.clip((shown - low) / (high - low), 0, 1) * 255 + 0.5)
    if data.PhotometricInterpretation == "MONOCHROME1":
        expected = 255 - expected
    if "PixelPaddingValue" in data:
        expected = np.where(values == data.PixelPaddingValue, 0, expected)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("name", COLOUR_FILES)
def test_colours_are_those_of_pydicom_weighed_by_luminance(name: str) -> None:
    found = read(name)
    assert (found.dtype, found.shape) == (np.uint8, COLOUR_FILES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(FOLDER / name)
        colours = data.pixel_array
        if data.PhotometricInterpretation == "PALETTE COLOR":
            colours = apply_color_lut(colours, data)[..., :3]
    if colours.dtype != np.uint8:
        colours = np.round(colours / 257).astype(np.uint8)
    expected = np.asarray(Image.fromarray(colours).convert("L")).astype(int)
    # Lossy streams come out a step apart where pydicom tries another decoder first.
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("name", UNCHECKED)
def test_a_header_that_pydicom_cannot_convert_does_not_cost_the_picture(name: str) -> None:
    assert read(name).shape == UNCHECKED[name]


def test_one_picture_in_every_encoding_is_the_same_picture() -> None:
    plain = read("MR_small.dcm")
    for name in GREY_FILES:
        if name.startswith("MR_small_"):
            np.testing.assert_array_equal(read(name), plain, name)


def test_what_is_in_the_package_and_in_no_table_ends_in_pixels_or_a_reason() -> None:
    known = {*GREY_FILES, *COLOUR_FILES, *REFUSED, *UNCHECKED}
    found = {"pixels": 0, "no_pixels": 0, "not DICOM": 0}
    for file in sorted(FOLDER.rglob("*")):
        name = file.relative_to(FOLDER).as_posix()
        if not file.is_file() or name in known or file.suffix in (".json", ".dump", ".txt", ".icc", ".gz"):
            continue
        if not is_dicom(file.read_bytes()):
            found["not DICOM"] += 1
            continue
        try:
            assert read(name).shape == (16, 16)
            found["pixels"] += 1
        except UnreadableImage as error:
            found[error.reason] += 1
    assert found["pixels"] >= 31
    assert found["no_pixels"] >= 54
