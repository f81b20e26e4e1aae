from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from mpma.data.counter_hash import uniform
from mpma.data.decoding import Box, Cropper, jpeg_size
from mpma.errors import UserError

CROPPER = Cropper(size=64, scale_min=0.3, scale_max=0.9, aspect_max=1.3, flip=False, seed=5)


def smooth_image(width: int, height: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, image_format: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, image_format, **({"quality": 95} if image_format == "JPEG" else {}))
    return out.getvalue()


def counters(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(count, np.int64), np.arange(count)


def test_crops_keep_the_area_and_the_aspect_that_were_asked_for() -> None:
    draws = np.random.default_rng(1).random((2000, 5))
    boxes = [CROPPER.box(1000, 1000, draw) for draw in draws]
    area = np.array([box.width * box.height for box in boxes]) / 1e6
    aspect = np.array([box.width / box.height for box in boxes])
    assert 0.299 < area.min() < 0.32
    assert 0.87 < area.max() < 0.901
    assert 1 / 1.301 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.301
    assert abs(np.log(aspect).mean()) < 0.02  # symmetric in the logarithm
    assert all(b.left >= 0 and b.top >= 0 for b in boxes)
    assert all(b.left + b.width <= 1000 and b.top + b.height <= 1000 for b in boxes)


def test_a_crop_that_would_stick_out_keeps_its_area() -> None:
    whole = replace(CROPPER, scale_min=0.8, scale_max=0.8, aspect_max=1.0)
    box = whole.box(600, 1000, np.array([0.5, 0.5, 0.9, 0.9, 0.5]))
    assert box == Box(0, int(0.9 * 201), 600, 800)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(80, 70), (150, 90), (400, 700)])
def test_a_crop_shows_what_a_plain_decode_cut_and_resize_shows(
    width: int, height: int, image_format: str
) -> None:
    pixels = smooth_image(width, height)
    data = encoded(pixels, image_format)
    epoch, position = counters(4)
    crops = CROPPER([data] * 4, epoch, position, augment=True)
    assert crops.shape == (4, 1, 64, 64)
    assert crops.dtype == torch.uint8
    draws = uniform(5, "crop", epoch[:, None], position[:, None], np.arange(5))
    for crop, draw in zip(crops, draws, strict=True):
        left, top, wide, high = CROPPER.box(width, height, draw)
        part = Image.fromarray(pixels[top : top + high, left : left + wide])
        expected = np.asarray(part.resize((64, 64), Image.Resampling.BICUBIC)).astype(float)
        assert np.abs(crop[0].numpy() - expected).mean() < 2.0


def test_the_centre_view_is_the_largest_central_square() -> None:
    pixels = smooth_image(200, 100)
    pixels = pixels.copy()
    pixels[:, :50], pixels[:, 150:] = 0, 0
    (view,) = CROPPER([encoded(pixels, "PNG")], *counters(1), augment=False)
    expected = Image.fromarray(pixels[:, 50:150]).resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(view[0].numpy().astype(int) - np.asarray(expected)).max() <= 1


def test_an_image_of_the_right_size_is_left_as_it_is() -> None:
    pixels = smooth_image(64, 64)
    (view,) = CROPPER([encoded(pixels, "PNG")], *counters(1), augment=False)
    np.testing.assert_array_equal(view[0].numpy(), pixels)


def test_the_pixels_do_not_depend_on_threads_or_on_what_is_decoded_beside_them() -> None:
    images = [encoded(smooth_image(90 + 10 * i, 300 - 9 * i, i)) for i in range(13)]
    epoch, position = counters(13)
    alone = torch.cat(
        [CROPPER([image], epoch[:1], position[i : i + 1], augment=True) for i, image in enumerate(images)]
    )
    for threads in (1, 3):
        with ThreadPoolExecutor(threads) as executor:
            shared = CROPPER(images, epoch, position, augment=True, executor=executor, threads=threads)
        assert torch.equal(shared, alone)


def test_epochs_positions_and_seeds_give_other_crops() -> None:
    data = [encoded(smooth_image(128, 128))]
    first = CROPPER(data, np.array([0]), np.array([3]), augment=True)
    assert torch.equal(first, CROPPER(data, np.array([0]), np.array([3]), augment=True))
    assert not torch.equal(first, CROPPER(data, np.array([1]), np.array([3]), augment=True))
    assert not torch.equal(first, CROPPER(data, np.array([0]), np.array([4]), augment=True))
    assert not torch.equal(first, replace(CROPPER, seed=6)(data, np.array([0]), np.array([3]), augment=True))


def test_half_of_the_crops_are_mirrored_when_asked_and_none_otherwise() -> None:
    whole = replace(CROPPER, scale_min=1.0, scale_max=1.0, aspect_max=1.0)
    pixels = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    images = [encoded(pixels, "PNG")] * 60
    plain = whole(images, *counters(60), augment=True)
    assert (plain.numpy() == pixels).all()
    mirrored = replace(whole, flip=True)(images, *counters(60), augment=True)
    count = sum(torch.equal(crop, plain[0].flip(-1)) for crop in mirrored)
    assert 15 < count < 45
    assert count + sum(torch.equal(crop, plain[0]) for crop in mirrored) == 60
    assert torch.equal(replace(whole, flip=True)(images, *counters(60), augment=False), plain)


@pytest.mark.parametrize("damage", ["no image", "cut short"])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_damaged_image_is_one_line_that_names_its_position_and_quotes_nothing(
    damage: str, image_format: str
) -> None:
    good = encoded(smooth_image(90, 90), image_format)
    bad = b"patient Jane Doe" if damage == "no image" else good[: len(good) // 2]
    with pytest.raises(UserError, match=r"position 41\)") as refused:
        CROPPER([good, bad], np.zeros(2, np.int64), np.array([40, 41]), augment=True)
    assert "Jane" not in refused.value.message
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(("width", "height"), [(80, 70), (301, 97)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 300}, {"dpi": (72, 72)}])
def test_a_jpegs_size_is_read_from_its_header(width: int, height: int, options: dict[str, object]) -> None:
    out = io.BytesIO()
    Image.fromarray(smooth_image(width, height)).save(out, "JPEG", **options)
    assert jpeg_size(out.getvalue()) == (width, height)
    assert jpeg_size(memoryview(out.getvalue())) == (width, height)


def test_what_has_no_frame_header_has_no_size() -> None:
    whole = encoded(smooth_image(80, 70))
    assert jpeg_size(encoded(smooth_image(80, 70), "PNG")) is None
    assert all(jpeg_size(whole[:length]) is None for length in range(40))
    assert jpeg_size(b"\xff\xd8\xff" + bytes(100)) is None


def test_crops_are_the_pixels_of_torchvisions_decoding_and_torchs_resize() -> None:
    data = [encoded(smooth_image(100 + index, 90 - index, index)) for index in range(8)]
    epoch, position = counters(8)
    crops = CROPPER(data, epoch, position, augment=True)
    draws = uniform(5, "crop", epoch[:, None], position[:, None], np.arange(5))
    for index, draw in enumerate(draws):
        with warnings.catch_warnings(action="ignore"):
            whole = decode_jpeg(torch.frombuffer(bytearray(data[index]), dtype=torch.uint8))
        left, top, wide, high = CROPPER.box(100 + index, 90 - index, draw)
        part = whole[None, :, top : top + high, left : left + wide]
        plain = torch.nn.functional.interpolate(
            part, (64, 64), mode="bicubic", antialias=True, align_corners=False
        )
        assert torch.equal(crops[index], plain[0])
