"""Segmentation: which masks are judged, by what, and that a decoder learns."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from task_samples import PIXELS, Row, tiny_model, written

from mpma.data.decoding import Cropper
from mpma.data.masks import FOREGROUND, IGNORED, encode_mask
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Job, NotPossible
from mpma.downstream.features import FeatureStore
from mpma.downstream.kept_features import KeptFeatures
from mpma.downstream.labelled import LabelledData
from mpma.downstream.mask_decoder import MaskDecoder, mask_loss
from mpma.downstream.mask_views import cut, judged_view, mask_crops
from mpma.downstream.segmentation import SegmentationTask, build
from mpma.downstream.usable_masks import PackedMask, UsualMask
from mpma.loading import LoadedModel

JOB = Job("segmentation", seed=0)


def segmentation(**settings: Any) -> SegmentationTask:
    cache = settings.pop("image_cache_bytes", 2**30)
    return build(EvaluationConfig.model_validate({"segmentation": settings, "image_cache_bytes": cache}))


def png(grey: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(grey).save(out, format="PNG")
    return out.getvalue()


def mask_with(places: tuple[slice, slice], value: int = FOREGROUND) -> np.ndarray:
    mask = np.zeros((PIXELS, PIXELS), np.uint8)
    mask[places] = value
    return mask


def with_masks(rows: dict[str, list[Row]], path: Path, masks: dict[str, list[bytes | None]]) -> LabelledData:
    """The first rows of each split, with these masks."""
    chosen = {
        split: [{**row, "mask": mask} for row, mask in zip(rows[split], given, strict=False)]
        for split, given in masks.items()
    }
    return written(path, chosen)


CORNER = encode_mask(mask_with(np.s_[:8, :8]))


def test_dice_and_iou_are_means_over_images_worked_by_hand(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    true = [mask_with(np.s_[:4, :4]), mask_with(np.s_[10:12, :10])]
    data = with_masks(rows, tmp_path / "d", {"train": [CORNER], "test": [encode_mask(one) for one in true]})
    task = segmentation()
    prepared = task.prepare(data)
    guesses = [mask_with(np.s_[:4, 2:8]) > 0, mask_with(np.s_[10:12, :10]) > 0]
    outcomes = task.score(prepared, {"masks": [PackedMask.of(one) for one in guesses]})
    # First: 16 true, 24 guessed, 8 both; the second is right.
    assert outcomes.values() == pytest.approx({"dice": (16 / 40 + 1) / 2, "iou": (8 / 32 + 1) / 2})
    assert outcomes.arrays["dice"].tolist() == pytest.approx([0.4, 1.0])


def test_ignored_pixels_count_neither_as_hit_nor_as_miss(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    mask = mask_with(np.s_[:4, :4])
    mask[20:40, 20:40] = IGNORED
    data = with_masks(rows, tmp_path / "d", {"train": [CORNER], "test": [encode_mask(mask)]})
    task = segmentation()
    prepared = task.prepare(data)
    for ignored in (False, True):
        guess = mask == FOREGROUND
        guess[20:40, 20:40] = ignored
        outcomes = task.score(prepared, {"masks": [PackedMask.of(guess)]})
        assert outcomes.values() == {"dice": 1.0, "iou": 1.0}
    guess[0, 5] = True
    assert task.score(prepared, {"masks": [PackedMask.of(guess)]}).values()["dice"] == 32 / 33


def test_ignored_pixels_reach_neither_the_loss_nor_its_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 8, 8, generator=draw, requires_grad=True)
    true = torch.rand(2, 8, 8, generator=draw) < 0.5
    judged = torch.rand(2, 8, 8, generator=draw) < 0.7
    loss = mask_loss(logits, true, judged)
    loss.backward()
    assert logits.grad is not None
    assert bool((logits.grad[~judged] == 0).all())
    assert bool((logits.grad[judged] != 0).all())
    moved = torch.where(judged, logits, logits + 3.0).detach()
    assert mask_loss(moved, true ^ ~judged, judged).item() == loss.item()


def test_the_loss_is_cross_entropy_plus_one_minus_soft_dice_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])
    true = torch.tensor([[[True, False], [False, False]]])
    judged = torch.tensor([[[True, True], [True, False]]])
    # Probabilities of a half: entropy ln 2, soft Dice (2 * 0.5 + 1) / (1.5 + 1 + 1).
    assert mask_loss(logits, true, judged).item() == pytest.approx(np.log(2) + 1 - 2 / 3.5, abs=1e-6)


def test_an_empty_mask_is_judged_by_convention_and_counted(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    empty = encode_mask(mask_with(np.s_[:0, :0]))
    data = with_masks(rows, tmp_path / "d", {"train": [CORNER, empty], "test": [empty, empty]})
    task = segmentation()
    prepared = task.prepare(data)
    nothing, something = np.zeros((PIXELS, PIXELS), bool), mask_with(np.s_[:1, :1]) > 0
    outcomes = task.score(prepared, {"masks": [PackedMask.of(nothing), PackedMask.of(something)]})
    assert outcomes.arrays["dice"].tolist() == outcomes.arrays["iou"].tolist() == [1.0, 0.0]
    told = "empty masks: right only where nothing is predicted"
    assert outcomes.problems == {told: 2, f"training {told}": 1}


def test_unusable_masks_are_left_out_and_counted_by_reason(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    other_size = encode_mask(np.zeros((32, 32), np.uint8))
    unjudged = encode_mask(np.full((PIXELS, PIXELS), IGNORED, np.uint8))
    test = [CORNER, other_size, CORNER[:40], None, unjudged, CORNER]
    data = with_masks(rows, tmp_path / "d", {"train": [other_size, CORNER], "test": test})
    prepared = segmentation().prepare(data)
    assert prepared.rows.tolist() == [0, 5]
    assert prepared.train.tolist() == [1]
    assert prepared.problems == {
        "training masks of another size than their image, left out": 1,
        "masks of another size than their image, left out": 1,
        "masks that cannot be read, left out": 1,
        "masks without a judged pixel, left out": 1,
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_a_usable_mask_is_named_with_the_reason(
    rows: dict[str, list[Row]], tmp_path: Path, split: str
) -> None:
    masks: dict[str, list[bytes | None]] = {"train": [CORNER, None], "test": [CORNER, None]}
    masks[split] = [CORNER[:40], None]
    with pytest.raises(NotPossible, match=f"no pair of the {split} split.*1 masks that cannot be read"):
        segmentation().prepare(with_masks(rows, tmp_path / "d", masks))


def test_a_column_that_is_not_there_is_named_by_its_key(data: LabelledData) -> None:
    with pytest.raises(NotPossible, match=r"segmentation\.mask_column: .*'lesion'"):
        segmentation(mask_column="lesion").prepare(data)


def test_the_column_is_the_one_that_is_configured(data: LabelledData) -> None:
    lungs, findings = (segmentation(mask_column=name).prepare(data) for name in ("mask", "finding_mask"))
    assert lungs.true[0].mask().sum() > findings.true[0].mask().sum()


@pytest.mark.parametrize("augment", [False, True])
def test_a_mask_is_cut_like_its_image(augment: bool) -> None:
    draw = np.random.default_rng(0)
    cropper = Cropper(size=48, scale_min=0.4, scale_max=0.9, aspect_max=1.3, flip=True, seed=3)
    masks = [np.kron(draw.random((7, 9)) < 0.5, np.ones((16, 16), bool)) for _ in range(6)]
    files = [png(np.where(mask, 255, 0).astype(np.uint8)) for mask in masks]
    counters = np.arange(6), np.arange(6) + 10
    pixels = cropper(files, *counters, augment=augment)
    foreground, judged = mask_crops(files, cropper, *counters, augment=augment)
    assert bool(judged.all())
    agreement = (foreground == (pixels[:, 0] > 127)).float().mean(dim=(1, 2))
    # Bicubic and nearest neighbour part along the borders alone.
    assert agreement.min() > 0.97


def test_the_judged_view_is_the_largest_central_square_without_a_new_value() -> None:
    foreground = np.zeros((4, 10), bool)
    foreground[:, 3:5] = True
    view, known = judged_view(foreground, np.ones_like(foreground))
    assert view.tolist() == [[True, True, False, False]] * 4
    assert known.all()
    smaller, _ = judged_view(foreground, np.ones_like(foreground), most=2)
    assert smaller.tolist() == [[True, False]] * 2


def test_the_usual_mask_averages_over_the_masks_that_judge_a_place() -> None:
    usual = UsualMask()
    left, right = (mask_with(part) > 0 for part in (np.s_[:, :32], np.s_[:, 32:]))
    everywhere = np.ones((PIXELS, PIXELS), bool)
    for _ in range(4):
        usual.add(left, everywhere)
    usual.add(right, right)
    # The left half in 4 of 4 masks (mean Dice 0.8 alone), the right in 1 of 5 (both halves: 0.73).
    found = usual.mask()
    assert found[:, :64].all()
    assert not found[:, 64:].any()


def test_a_packed_mask_comes_back_whole() -> None:
    mask = np.random.default_rng(0).random((37, 37)) < 0.5
    np.testing.assert_array_equal(PackedMask.of(mask).mask(), mask)


@pytest.fixture(scope="module")
def squares(rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> LabelledData:
    """A bright square at one of 16 places on dark noise; the mask is the square."""
    draw = np.random.default_rng(0)
    made: dict[str, list[Row]] = {}
    for split in ("train", "test"):
        made[split] = []
        for row in rows[split]:
            top, left = 16 * draw.integers(0, 4, 2)
            mask = mask_with(np.s_[top : top + 16, left : left + 16])
            grey = draw.integers(0, 60, mask.shape) + (mask > 0) * 180
            made[split].append({**row, "image": png(grey.astype(np.uint8)), "mask": encode_mask(mask)})
    return written(tmp_path_factory.mktemp("squares") / "d", made)


@pytest.fixture(scope="module")
def square_model(squares: LabelledData) -> LoadedModel:
    return tiny_model(squares.dataset.tokenizer())


@pytest.mark.parametrize("freeze", [True, False])
def test_a_decoder_learns_where_the_bright_square_is(
    squares: LabelledData, square_model: LoadedModel, freeze: bool
) -> None:
    fit = {"steps": 120, "batch_size": 16, "learning_rate": 0.01, "augment": False}
    task = segmentation(freeze_encoder=freeze, decoder_width=32, fit=fit)
    prepared, features = task.prepare(squares), FeatureStore(square_model, squares)
    fitted = task.fit(square_model, features, prepared, JOB)
    found = task.score(prepared, task.predict(square_model, features, prepared, JOB, fitted)).values()
    chance = task.score(prepared, task.constant(prepared)).values()
    assert chance["dice"] < 0.25
    assert found["dice"] > 0.7


@pytest.mark.parametrize(
    "changes", [{"freeze_encoder": False}, {"fit": {"augment": True}}, {"fit": {"augment": False}}]
)
def test_the_same_fit_twice_gives_equal_bits_and_another_seed_others(
    squares: LabelledData, square_model: LoadedModel, changes: dict[str, Any]
) -> None:
    settings = copy.deepcopy(changes)
    settings["fit"] = {"steps": 4, "batch_size": 8, **settings.get("fit", {})}
    task = segmentation(**settings)
    prepared, features = task.prepare(squares), FeatureStore(square_model, squares)
    first, second, other = (
        list(task.fit(square_model, features, prepared, Job("segmentation", seed=seed)).decoder.parameters())
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_kept_features_are_what_would_be_read_each_time() -> None:
    calls: list[int] = []

    def read(places: np.ndarray) -> torch.Tensor:
        calls.append(len(places))
        return torch.from_numpy(places)[:, None].float() / 3

    asked = np.array([4, 1, 4, 0])
    kept, unkept = (KeptFeatures(5, read, budget) for budget in (10, 9))
    expected = torch.tensor([[4.0], [1.0], [4.0], [0.0]]).div(3).half().float()
    for table in (kept, kept, unkept, unkept):
        assert torch.equal(table.get(asked), expected)
    assert calls == [3, 3, 3]
    assert torch.equal(kept.get(np.array([2, 1])), torch.tensor([[2.0], [1.0]]).div(3).half().float())
    assert calls[-1] == 1


def test_the_decoder_gives_any_side_and_meets_tokens_of_any_scale() -> None:
    tokens = torch.randn(2, 16, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    decoder = MaskDecoder(torch.zeros(12), torch.ones(12), 16)
    assert decoder(tokens, 50).shape == (2, 50, 50)
    rescaled = MaskDecoder(torch.full((12,), 7.0), torch.full((12,), 100.0), 16)
    rescaled.load_state_dict(
        {k: v for k, v in decoder.state_dict().items() if k not in ("mean", "scale")}, strict=False
    )
    torch.testing.assert_close(rescaled(tokens * 100 + 7, 20), decoder(tokens, 20), atol=1e-4, rtol=1e-4)


def test_a_cut_at_its_own_size_is_the_mask_itself() -> None:
    from mpma.data.decoding import Box

    mask = np.random.default_rng(1).random((6, 8)) < 0.5
    np.testing.assert_array_equal(cut(mask, Box(2, 1, 4, 4), 4), mask[1:5, 2:6])


def test_a_decoder_whose_scores_are_not_finite_is_refused(
    squares: LabelledData, square_model: LoadedModel
) -> None:
    task = segmentation(fit={"steps": 1, "batch_size": 4})
    prepared, features = task.prepare(squares), FeatureStore(square_model, squares)
    fitted = task.fit(square_model, features, prepared, JOB)
    torch.nn.init.constant_(fitted.decoder.head.bias, float("nan"))
    with pytest.raises(NotPossible, match="not finite"):
        task.predict(square_model, features, prepared, JOB, fitted)
