"""Weights from elsewhere: the same function of a grey image, and errors that name what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from model_samples import VOCABULARY, small_batch, small_model
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM

from mpma.errors import UserError
from mpma.model.image import patchify
from mpma.model.positions import resampled_positions
from mpma.model.pretrained import IMAGENET_MEAN, IMAGENET_STD, fold_kernel


def _three_channel_vit(size: int = 32, **sizes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, **sizes}
    return timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=0, **settings)


def _grey_in_three_channels(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((pixels.float() / 255).expand(-1, 3, -1, -1) - mean) / std


def test_the_folded_kernel_is_the_same_function_of_the_grey_image() -> None:
    torch.manual_seed(0)
    kernel, bias = torch.randn(6, 3, 8, 8), torch.randn(6)
    pixels = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    expected = functional.conv2d(_grey_in_three_channels(pixels), kernel, bias, stride=8)
    folded, shifted = fold_kernel(
        kernel,
        bias,
        channel_mean=IMAGENET_MEAN,
        channel_std=IMAGENET_STD,
        grey_mean=0.4,
        grey_std=0.2,
    )
    ours = functional.conv2d((pixels.float() / 255 - 0.4) / 0.2, folded, shifted, stride=8)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain.safetensors", "mae.pth", "prefixed.pt"])
def test_a_file_gives_the_tokens_that_the_three_channel_model_gave(kind: str, tmp_path: Path) -> None:
    source = _three_channel_vit()
    weights = {name: value.clone() for name, value in source.state_dict().items()}
    path = tmp_path / kind
    if kind == "plain.safetensors":
        save_file(weights, path)
    elif kind == "mae.pth":
        torch.save({"model": {**weights, "mask_token": torch.zeros(1, 1, 8)}, "epoch": 1}, path)
    else:
        torch.save({"state_dict": {f"module.encoder.{name}": value for name, value in weights.items()}}, path)
    model = small_model(image={"pretrained": str(path)})
    batch = small_batch(2)
    with torch.no_grad():
        expected = source.forward_features(_grey_in_three_channels(batch.pixels))
        ours = model.embed_images(batch.pixels)
    torch.testing.assert_close(ours.class_token, expected[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.tokens, expected[:, 1:], atol=1e-4, rtol=1e-4)


def test_positions_of_another_grid_are_resampled(tmp_path: Path) -> None:
    source = _three_channel_vit(size=64)
    save_file(
        {name: value.clone() for name, value in source.state_dict().items()}, tmp_path / "fine.safetensors"
    )
    model = small_model(image={"pretrained": str(tmp_path / "fine.safetensors")})
    expected = resampled_positions(source.pos_embed.detach().squeeze(0), 4)
    assert torch.equal(model.image_encoder.positions, expected)


def test_positions_that_came_with_weights_are_handed_on_by_our_own_weights(tmp_path: Path) -> None:
    first = _three_channel_vit(size=64)
    save_file({name: value.clone() for name, value in first.state_dict().items()}, tmp_path / "a.safetensors")
    second = small_model(image={"pretrained": str(tmp_path / "a.safetensors")})
    save_file(second.state_dict(), tmp_path / "b.safetensors")
    third = small_model(seed=2, image={"pretrained": str(tmp_path / "b.safetensors")})
    assert torch.equal(third.image_encoder.positions, second.image_encoder.positions)
    assert not torch.equal(third.image_encoder.positions, small_model().image_encoder.positions)


def test_our_own_weights_start_a_model_of_another_grey_normalisation(tmp_path: Path) -> None:
    source = small_model(seed=1)
    source.pixels.grey_mean.fill_(0.3)
    source.pixels.grey_std.fill_(0.4)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = small_model(seed=2, image={"pretrained": str(tmp_path / "model.safetensors")})
    batch = small_batch(2)
    with torch.no_grad():
        ours, theirs = model.embed_images(batch.pixels), source.embed_images(batch.pixels)
    torch.testing.assert_close(ours.tokens, theirs.tokens, atol=1e-4, rtol=1e-4)
    assert model.pixels.grey_mean.item() == pytest.approx(0.47)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"patch_size": 16}, "has patches of 16 pixels, image.patch_size is 8"),
        ({"depth": 1}, "has no blocks.1."),
        ({"depth": 3}, "has blocks.2."),
        ({"embed_dim": 48}, "the configured backbone needs"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(
    sizes: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: value.clone() for name, value in _three_channel_vit(**sizes).state_dict().items()}, path)
    with pytest.raises(UserError) as caught:
        small_model(image={"pretrained": str(path)})
    assert message in str(caught.value)
    assert "other.safetensors" in str(caught.value)


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_unreadable_files_are_one_line_and_nothing_in_them_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / "page.pth").write_text("<html>")
    torch.save({"model": _Hostile()}, tmp_path / "hostile.pth")
    save_file({"weight": torch.zeros(2)}, tmp_path / "stranger.safetensors")
    for name in ("absent.pth", "torn.safetensors", "page.pth", "hostile.pth", "stranger.safetensors"):
        with pytest.raises(UserError) as caught:
            small_model(image={"pretrained": str(tmp_path / name)})
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def _bert_folder(folder: Path, **sizes: int) -> tuple[str, BertForMaskedLM]:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        **sizes,
    }
    torch.manual_seed(0)
    bert = BertForMaskedLM(BertConfig(**settings))
    bert.cls.predictions.bias.data.normal_()
    bert.save_pretrained(folder)
    return str(folder), bert.eval()


def test_a_local_bert_gives_its_encoder_and_its_head(tmp_path: Path) -> None:
    folder, source = _bert_folder(tmp_path / "bert")
    model, batch = small_model(report={"pretrained": folder}), small_batch(2)
    assert model.report_encoder.bert.config.hidden_dropout_prob == 0.0
    assert model.report_encoder.bert.config._attn_implementation == "sdpa"
    model.train()
    with torch.no_grad():
        states = model.report_encoder.encode(
            model.report_encoder.embed(batch.masked_token_ids), batch.attention
        )
        ours = model.report_encoder.negative_log_likelihood(states, batch.masked_rows, batch.masked_targets)
        logits = source(input_ids=batch.masked_token_ids, attention_mask=batch.attention.long()).logits
    labels = torch.where(batch.masked_token_ids != batch.token_ids, batch.token_ids, -100)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 48}, "has 48 where report.width is 24"),
        ({"num_hidden_layers": 2}, "has 2 where report.layers is 1"),
        ({"vocab_size": 99}, "has 99 words, the dataset's tokeniser 60"),
        ({"max_position_embeddings": 8}, "has 8 positions, report.max_tokens is 16"),
    ],
)
def test_a_bert_that_does_not_fit_is_refused_by_key(
    sizes: dict[str, int], message: str, tmp_path: Path
) -> None:
    folder, _ = _bert_folder(tmp_path / "bert", **sizes)
    with pytest.raises(UserError, match=message):
        small_model(report={"pretrained": folder})


def test_a_missing_bert_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        small_model(report={"pretrained": str(tmp_path / "nowhere")})
    assert "report.pretrained" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_patches_and_kernel_agree_on_the_order_of_pixels() -> None:
    pixels, kernel = torch.randn(2, 1, 16, 16), torch.randn(5, 1, 8, 8)
    by_convolution = functional.conv2d(pixels, kernel, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        patchify(pixels, 8) @ kernel.flatten(1).T, by_convolution, atol=1e-4, rtol=1e-5
    )
