from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.data.resizing import resized

SIDES = st.integers(1, 150)


def plainly(pixels: np.ndarray, size: int) -> np.ndarray:
    whole = torch.nn.functional.interpolate(
        torch.from_numpy(pixels.copy())[None, None],
        (size, size),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    return whole[0, 0].numpy()


@settings(max_examples=150, deadline=None)
@given(SIDES, SIDES, st.sampled_from([4, 8, 30, 33, 64, 96, 112]), st.integers(0, 2**31))
def test_a_picture_of_any_shape_is_resized_to_the_very_pixels_of_torchs_own_resize(
    lines: int, columns: int, size: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (lines, columns), dtype=np.uint8)
    np.testing.assert_array_equal(resized(pixels, size), plainly(pixels, size))


@pytest.mark.parametrize("size", [224, 448])
def test_a_part_of_a_larger_picture_is_resized_like_a_copy_of_it(size: int) -> None:
    whole = np.random.default_rng(size).integers(0, 256, (512, 512), dtype=np.uint8)
    part = whole[7:468, 3:490]
    np.testing.assert_array_equal(resized(part, size), plainly(part, size))


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    np.testing.assert_array_equal(resized(pixels, 64), pixels)
