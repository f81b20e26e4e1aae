"""Masks: what their values mean, which files are masks, and how they follow their images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from source_samples import encoded, grey_pixels, mask_pixels, png, write_masks

from mpma.data.images import store_image
from mpma.data.ingest_plan import IngestOptions
from mpma.data.masks import encode_mask, fitted_mask, is_empty_mask, mask_values, read_mask
from mpma.data.pair_rows import make_row
from mpma.data.quality import REASONS, QualityConfig
from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.masks import stored_values
from mpma.errors import UserError

LIMIT = 10_000_000


def values(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def refused(data: bytes, **options: bool) -> UnreadableImage:
    with pytest.raises(UnreadableImage) as caught:
        mask_values(data, **options)
    return caught.value


def test_zero_is_background_127_is_not_judged_and_the_rest_is_foreground() -> None:
    foreground, judged = read_mask(encode_mask(np.array([[0, 1, 127, 255]], np.uint8)))
    assert foreground.tolist() == [[False, True, False, True]]
    assert judged.tolist() == [[True, True, False, True]]


def test_a_one_bit_mask_reads_as_foreground_and_background() -> None:
    bits = np.array([[0, 255], [255, 0]], np.uint8)
    out = io.BytesIO()
    Image.fromarray(bits).convert("1").save(out, format="PNG")
    assert mask_values(out.getvalue()).tolist() == bits.tolist()


def test_equal_colour_channels_are_one_channel_and_true_colours_are_refused() -> None:
    grey = mask_pixels()
    assert (mask_values(encoded(np.stack([grey] * 3, axis=-1))) == grey).all()
    assert (mask_values(encoded(grey, "BMP")) == grey).all()
    found = refused(encoded(np.stack([grey, grey, 255 - grey], axis=-1)))
    assert (found.reason, found.detail) == ("unreadable_mask", "has colours; a mask has one channel")


def test_a_palette_of_colours_names_structures() -> None:
    mask = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), mode="P")
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    out = io.BytesIO()
    mask.save(out, format="PNG")
    assert mask_values(out.getvalue()).tolist() == [[0, 255], [255, 0]]


def test_sixteen_bits_keep_small_values_and_fold_large_ones() -> None:
    assert mask_values(encoded(np.array([[0, 2]], np.uint16))).tolist() == [[0, 2]]
    assert mask_values(encoded(np.array([[0, 65535]], np.uint16))).tolist() == [[0, 255]]


def test_a_lossy_mask_is_read_only_where_a_threshold_follows() -> None:
    data = encoded(mask_pixels(), "JPEG")
    assert refused(data).reason == "unreadable_mask"
    assert mask_values(data, lossy=True).shape == (80, 96)


@pytest.mark.parametrize(
    "data", [b"", png()[:200], b"no image at all", b"version https://git-lfs.github.com/spec/v1\noid"]
)
def test_what_is_no_mask_is_refused_by_name(data: bytes) -> None:
    assert refused(data).reason == "unreadable_mask"
    assert "unreadable_mask" in REASONS


def test_a_mask_that_declares_too_much_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UnreadableImage, match="declares 96 x 80 pixels"):
        mask_values(png(), max_pixels=100)


def test_a_fitting_single_channel_png_is_kept_to_the_byte() -> None:
    data = encoded(mask_pixels(), optimize=True)
    assert fitted_mask(data, (96, 80), (96, 80), LIMIT) == data


def test_a_mask_shrinks_with_its_image_and_keeps_its_values() -> None:
    whole = mask_pixels()
    stored = store_image(encoded(grey_pixels()), short_side=40)
    assert (stored.width, stored.height) == (48, 40)
    shrunk = values(fitted_mask(encoded(whole), (48, 40), (96, 80), LIMIT))
    assert shrunk.shape == (40, 48)
    assert set(np.unique(shrunk)) == {0, 127, 255}
    # Nearest neighbour of a halved image takes one of the four pixels.
    blocks = whole.reshape(40, 2, 48, 2).transpose(0, 2, 1, 3).reshape(40, 48, 4)
    assert (blocks == shrunk[..., None]).any(axis=-1).all()


def test_a_mask_of_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(UnreadableImage) as caught:
        fitted_mask(encoded(mask_pixels(height=80, width=97)), (48, 40), (96, 80), LIMIT)
    assert (caught.value.reason, caught.value.detail) == ("mask_size", "mask 97 x 80, image 96 x 80")


def test_an_empty_mask_is_told_from_an_ignored_and_a_damaged_one() -> None:
    assert is_empty_mask(encode_mask(np.zeros((4, 4), np.uint8)))
    assert is_empty_mask(encode_mask(np.full((4, 4), 127, np.uint8)))
    assert not is_empty_mask(encode_mask(np.eye(4, dtype=np.uint8)))
    assert not is_empty_mask(b"damaged")


def test_options_say_which_values_are_stored_as_what() -> None:
    row = np.array([[0, 1, 2, 127, 128, 255]], np.uint8)
    assert stored_values(row, None, None).tolist() == [[0, 0, 0, 0, 255, 255]]
    assert stored_values(row, None, 127).tolist() == [[0, 0, 0, 127, 255, 255]]
    assert stored_values(row, 1, None).tolist() == [[0, 255, 0, 0, 0, 0]]
    assert stored_values(row, 1, 2).tolist() == [[0, 255, 127, 0, 0, 0]]


# The source.


def listed(root: Path, *options: str) -> tuple[list[Item], list[Rejection]]:
    found = list(build_source("masks", root, options).items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def test_masks_match_by_folder_and_name_without_ending(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "set")
    source = build_source("masks", root, ["ignore_value=127", "structure=lungs", "license=CC0"])
    items = [entry for entry in source.items() if isinstance(entry, Item)]
    assert [item.pair_id for item in items] == [
        *("0.v1.jpg", "2.v1.jpg", "4.v1.jpg"),
        *("series/1.v1.jpg", "series/3.v1.jpg", "series/5.v1.jpg"),
    ]
    assert (values(source.load_extra(items[3])["mask"]) == mask_pixels(1)).all()
    assert items[3].extra == {"structure": "lungs"}
    assert items[3].license == "CC0"


def test_a_suffix_of_the_masks_names_is_an_option(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "set", images=2)
    (root / "masks" / "0.v1.png").rename(root / "masks" / "0.v1_mask.png")
    (root / "masks" / "series" / "1.v1.png").rename(root / "masks" / "series" / "1.v1_mask.png")
    with pytest.raises(UserError, match="has the name of an image") as caught:
        build_source("masks", root)
    assert "mask_suffix" in str(caught.value.hint)
    assert len(listed(root, "mask_suffix=_mask")[0]) == 2


def test_what_has_no_partner_is_quarantined_on_either_side(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "set")
    (root / "images" / "0.v1.jpg").unlink()
    (root / "masks" / "2.v1.png").unlink()
    items, refusals = listed(root)
    assert len(items) == 4
    assert [(r.reason, r.path) for r in refusals] == [
        ("missing_mask", "images/2.v1.jpg"),
        ("missing_image", "masks/0.v1.png"),
    ]


def test_two_images_of_one_mask_and_two_masks_of_one_image_are_not_guessed(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "set")
    (root / "images" / "0.v1.png").write_bytes(png())
    (root / "masks" / "2.v1.gif").write_bytes(encoded(mask_pixels(), "GIF"))
    items, refusals = listed(root)
    # The mask 0.v1.png bears the whole name of one of the two images.
    assert [item.pair_id for item in items[:2]] == ["0.v1.png", "4.v1.jpg"]
    assert [(r.pair_id, r.reason) for r in refusals] == [
        ("0.v1.jpg", "duplicate_id"),
        ("2.v1.jpg", "unreadable_mask"),
    ]


def test_patients_views_and_splits_come_from_a_table(tmp_path: Path) -> None:
    root = write_masks(tmp_path / "set", images=4)
    table = root / "people.csv"
    table.write_text(
        "filename,patientid,view,split\n0.v1.jpg,7,PA,train\n1.v1.jpg,7,AP,train\n2.v1.jpg,,PA,train\n"
        "3.v1.jpg,8,L,somewhere\nother.jpg,9,PA,test\n",
        encoding="utf-8",
    )
    items, refusals = listed(root, "patients=people.csv")
    assert [(item.pair_id, item.patient_id, item.view, item.split) for item in items] == [
        ("0.v1.jpg", "7", "PA", "train"),
        ("series/1.v1.jpg", "7", "AP", "train"),
    ]
    assert [r.reason for r in refusals] == ["missing_patient", "unknown_split"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["patients=absent.csv"], "absent.csv does not exist"),
        (["patients=people.csv", "patient_column=person"], "no column 'person'"),
        (["patients=people.csv"], "gives one image to two patients"),
        (["images=pictures"], "pictures is not a folder"),
        (["ignore_value=255", "foreground_value=255"], "both 255"),
        (["ignore_value=256"], "ignore_value"),
    ],
)
def test_wrong_options_of_masks_are_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    root = write_masks(tmp_path / "set")
    (root / "people.csv").write_text("filename,patient\n0.v1.jpg,1\n0.v1.jpg,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        build_source("masks", root, options)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (encoded(mask_pixels(height=40)), "mask_size"),
        (png()[:100], "unreadable_mask"),
        (b"", "unreadable_mask"),
        (None, "missing_mask"),
    ],
)
def test_a_bad_mask_costs_its_own_image_with_its_own_code(
    tmp_path: Path, mask: bytes | None, reason: str
) -> None:
    root = write_masks(tmp_path / "set", images=2)
    source = build_source("masks", root)
    first, second = (entry for entry in source.items() if isinstance(entry, Item))
    file = root / "masks" / "0.v1.png"
    file.unlink() if mask is None else file.write_bytes(mask)
    options = IngestOptions(quality=QualityConfig(min_report_words=0))
    bad = make_row(first, source, options, source.extra_schema())
    assert isinstance(bad, Rejection)
    assert bad.reason == reason
    assert not isinstance(make_row(second, source, options, source.extra_schema()), Rejection)


def test_the_published_lung_masks_match_their_images(data_root: Path) -> None:
    options = ["images=covid-chestxray/images", "masks=v7labs-lung-masks/semantic_masks_v7labs_lungs"]
    source = build_source("masks", data_root / "raw", [*options, "ignore_value=127"])
    found = list(source.items())
    items = [entry for entry in found if isinstance(entry, Item)]
    reasons = [entry.reason for entry in found if isinstance(entry, Rejection)]
    assert (len(items), reasons.count("missing_mask"), reasons.count("missing_image")) == (26, 16, 1)
    by_id = {item.pair_id: source.load_extra(item)["mask"] for item in items}
    assert sum(map(is_empty_mask, by_id.values())) == 6
    # PNG data under the name of a JPEG.
    foreground, judged = read_mask(by_id["covid-19-pneumonia-8.jpg"])
    assert (int(foreground.sum()), foreground.shape, bool(judged.all())) == (24270, (512, 512), True)
    patients = build_source(
        "masks", data_root / "raw", [*options, "patients=covid-chestxray/metadata.csv"]
    ).items()
    known = {item.pair_id: item.patient_id for item in patients if isinstance(item, Item)}
    assert len(known) == 26
    assert len(set(known.values())) < 26
