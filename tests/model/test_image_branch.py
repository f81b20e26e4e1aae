"""The image branch: what it sees, what it reconstructs, and that it is MAE where it says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_samples import PATCHES, small_batch, small_model
from torch import Tensor
from torch.nn import functional
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mpma.model.config import ImageConfig
from mpma.model.image import GreyPixels, ImageTokens, patchify, standardised_patches, unpatchify
from mpma.model.masking import removal_mask, restore_order, take_patches
from mpma.model.positions import resampled_positions, sine_cosine_positions, with_class_position


def _renamed(weights: dict[str, Tensor], prefix: str, renamed_prefix: str) -> dict[str, Tensor]:
    """timm's block names -> those of ViTMAE, the joint qkv cut in three."""
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    result = {}
    for key, value in weights.items():
        if not key.startswith(prefix):
            continue
        number, rest = key.removeprefix(prefix).split(".", 1)
        module, kind = rest.rsplit(".", 1)
        if module == "attn.qkv":
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                result[f"{renamed_prefix}{number}.attention.{part}_proj.{kind}"] = piece
        else:
            result[f"{renamed_prefix}{number}.{names[module]}.{kind}"] = value
    return result


def _as_vit_mae(model: torch.nn.Module) -> ViTMAEForPreTraining:
    reference = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            image_size=32,
            patch_size=8,
            num_channels=1,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=128,
            mask_ratio=0.75,
            norm_pix_loss=True,
            layer_norm_eps=1e-6,
        )
    )
    ours = model.state_dict()
    vit, decoder = "image_encoder.vit.", "image_decoder."
    theirs = {
        "vit.embeddings.cls_token": ours[vit + "cls_token"],
        "vit.embeddings.patch_embeddings.projection.weight": ours[vit + "patch_embed.proj.weight"],
        "vit.embeddings.patch_embeddings.projection.bias": ours[vit + "patch_embed.proj.bias"],
        "vit.layernorm.weight": ours[vit + "norm.weight"],
        "vit.layernorm.bias": ours[vit + "norm.bias"],
        "decoder.mask_token": ours[decoder + "mask_token"],
        "decoder.decoder_embed.weight": ours[decoder + "embed.weight"],
        "decoder.decoder_embed.bias": ours[decoder + "embed.bias"],
        "decoder.decoder_norm.weight": ours[decoder + "norm.weight"],
        "decoder.decoder_norm.bias": ours[decoder + "norm.bias"],
        "decoder.decoder_pred.weight": ours[decoder + "head.weight"],
        "decoder.decoder_pred.bias": ours[decoder + "head.bias"],
    }
    known = reference.state_dict()
    layers = "vit.layers." if any(key.startswith("vit.layers.") for key in known) else "vit.encoder.layer."
    theirs |= _renamed(ours, vit + "blocks.", layers)
    theirs |= _renamed(ours, decoder + "blocks.", "decoder.decoder_layers.")
    # The fixed positions are theirs: that they agree with ours is part of what is tested. Not every
    # release fills them in for an untrained model; encoder and decoder have the same width here.
    reference.decoder.initialize_weights(PATCHES)
    reference.vit.embeddings.position_embeddings.data.copy_(reference.decoder.decoder_pos_embed)
    missing, unexpected = reference.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert all("pos" in key for key in missing), missing
    return reference.eval()


def test_the_image_branch_equals_vit_mae_given_the_same_weights_and_mask() -> None:
    torch.manual_seed(1)
    model = small_model()
    for parameter in model.parameters():  # Biases and norms start trivial; give them something to get wrong.
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.pixels.one_grey_level_squared = 1e-6  # MAE's eps, so that the losses can be compared.
    reference = _as_vit_mae(model)
    batch = small_batch(3)
    noise = torch.empty(3, PATCHES).scatter_(
        1, batch.patch_order, torch.arange(PATCHES).float().expand(3, -1)
    )
    normalised = model.pixels(batch.pixels)

    with torch.no_grad():
        expected = reference(normalised, noise=noise)
        encoded = reference.vit(normalised, noise=noise).last_hidden_state
        tokens = model.image_encoder(normalised, batch.patch_order[:, :4])
        hidden = model.image_decoder(tokens, batch.patch_order)
        losses = model.reconstruction_losses(batch)

    torch.testing.assert_close(tokens.class_token, encoded[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens.patches, encoded[:, 1:], atol=1e-5, rtol=1e-5)
    predicted = take_patches(expected.logits, batch.patch_order[:, 4:])
    torch.testing.assert_close(hidden, predicted, atol=1e-5, rtol=1e-5)
    assert torch.equal(removal_mask(batch.patch_order, 4), expected.mask)
    torch.testing.assert_close(losses.image_reconstruction, expected.loss, atol=1e-5, rtol=1e-5)


def test_patches_put_together_again_give_the_picture() -> None:
    pixels = torch.randn(2, 1, 24, 24)
    patches = patchify(pixels, 8)
    assert torch.equal(patches[:, 1], pixels[:, 0, :8, 8:16].flatten(1))
    assert torch.equal(unpatchify(patches), pixels)


def test_restoring_the_order_undoes_the_permutation() -> None:
    values, order = torch.randn(3, 7, 2), torch.rand(3, 7).argsort(1)
    assert torch.equal(restore_order(take_patches(values, order), order), values)


def test_hidden_pixels_reach_no_feature_and_visible_ones_do() -> None:
    model, batch = small_model(), small_batch(2)
    hidden = removal_mask(batch.patch_order, batch.visible)[:, :, None].expand(-1, -1, 64)
    hidden_pixels = unpatchify(hidden).bool()
    assert hidden_pixels.sum() == 2 * (PATCHES - 4) * 64
    other = small_batch(2, seed=9).pixels
    with torch.no_grad():
        before = model.align_features(batch)
        hidden_changed = model.align_features(
            replace(batch, pixels=torch.where(hidden_pixels, other, batch.pixels))
        )
        visible_changed = model.align_features(
            replace(batch, pixels=torch.where(hidden_pixels, batch.pixels, other))
        )
    assert torch.equal(before.image, hidden_changed.image)
    assert torch.equal(before.patches, hidden_changed.patches)
    assert (before.image - visible_changed.image).abs().max() > 1e-3


def test_the_target_is_the_fine_crop_and_the_input_its_antialiased_half() -> None:
    model, batch = small_model(target_scale=2), small_batch(2, target_scale=2)
    normalised = (batch.pixels.float() / 255 - 0.47) / 0.23
    torch.testing.assert_close(model.pixels(batch.pixels), normalised, atol=1e-5, rtol=1e-5)
    expected_view = functional.interpolate(normalised, size=(32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(model.pixels.encoder_view(model.pixels(batch.pixels)), expected_view)
    with torch.no_grad():
        losses = model.reconstruction_losses(batch)
        tokens = model.image_encoder(expected_view, batch.patch_order[:, :4])
        predicted = model.image_decoder(tokens, batch.patch_order)
    target = take_patches(patchify(normalised, 16), batch.patch_order[:, 4:])
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, unbiased=True, keepdim=True)
    eps = (1 / 255 / 0.23) ** 2
    expected = ((predicted - (target - mean) / (variance + eps).sqrt()) ** 2).mean()
    torch.testing.assert_close(losses.image_reconstruction, expected, atol=1e-5, rtol=1e-5)


def test_noise_of_one_grey_level_is_not_blown_up_to_unit_variance() -> None:
    image = ImageConfig(size=32, patch_size=8)
    pixels = GreyPixels(image, grey_mean=0.5, grey_std=0.25, target_scale=1)
    border = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    border[..., ::7, ::3] = 1
    target = standardised_patches(patchify(pixels(border), 8), pixels.one_grey_level_squared)
    assert target.std() < 0.5
    assert standardised_patches(patchify(pixels(border), 8), 1e-9).std() > 0.9


def test_positions_resample_to_another_grid_and_keep_the_class_position() -> None:
    positions = with_class_position(sine_cosine_positions(4, 16))
    positions[0] = 3.0
    assert torch.equal(resampled_positions(positions, 4), positions)
    finer = resampled_positions(positions, 8)
    assert finer.shape == (65, 16)
    assert torch.equal(finer[0], positions[0])
    back = resampled_positions(finer, 4)
    assert (back[1:] - positions[1:]).abs().mean() < 0.1


def test_pixels_of_the_wrong_size_are_refused_with_both_shapes() -> None:
    model = small_model(target_scale=2)
    with pytest.raises(ValueError, match=r"\(2, 1, 32, 32\), expected \[B, 1, 64, 64\]"):
        model.embed_images(small_batch(2).pixels)


def test_pictures_show_the_visible_patches_as_they_are() -> None:
    model, batch = small_model(), small_batch(2)
    with torch.no_grad():
        pictures = model.reconstruct(batch)
        tokens = model.image_encoder(model.pixels(batch.pixels), batch.patch_order[:, :4])
        assert isinstance(tokens, ImageTokens)
        predicted = model.image_decoder(tokens, batch.patch_order)
    grey = batch.pixels.float() / 255
    torch.testing.assert_close(pictures.original, grey, atol=1e-5, rtol=0)
    hidden = unpatchify(pictures.mask[:, :, None].expand(-1, -1, 64)).bool()
    torch.testing.assert_close(pictures.reconstructed[~hidden], grey[~hidden], atol=1e-5, rtol=0)
    torch.testing.assert_close(pictures.masked[hidden], torch.full_like(grey[hidden], 0.47))
    torch.testing.assert_close(take_patches(pictures.patches, batch.patch_order[:, 4:]), predicted)
    # A prediction of 0 in the standardised space is the patch's own mean.
    model.image_decoder.head.weight.data.zero_()
    model.image_decoder.head.bias.data.zero_()
    flat = patchify(model.reconstruct(batch).reconstructed, 8)[pictures.mask.bool()]
    means = patchify(grey, 8).mean(-1, keepdim=True).expand(-1, -1, 64)[pictures.mask.bool()]
    torch.testing.assert_close(flat, means, atol=1e-5, rtol=0)
