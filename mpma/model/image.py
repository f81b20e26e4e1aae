"""Image branch: a ViT that sees only the visible patches, and a decoder for the hidden ones.

Decisions:
- grey, one channel: decoded, encoded and reconstructed as such; pixels are normalised on the device
  from uint8 with the dataset's own grey mean and deviation;
- the patch embedding is a matrix product on the visible patches alone, so hidden pixels cost nothing;
- positions are fixed (see positions.py) and saved with the weights;
- the decoder keeps the shuffled order, so its head runs on the hidden patches only and no gradient
  passes through a gather;
- target patches may be `target_scale` times finer than the encoder's input, on the same grid (MRM);
- a target patch is standardised by its own mean and unbiased variance in fp32, with one grey level
  squared as eps: quantisation noise of a black border is not blown up to unit variance;
- mean squared error over hidden patches only (MAE).

Shape letters: B pairs, S pixels of the crop's side, P patches, V visible, N = P - V hidden, D width,
X pixels of a target patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block, VisionTransformer, init_weights_vit_timm
from torch import Tensor, nn
from torch.nn import functional

from mpma.errors import UserError
from mpma.model.attention import with_short_attention
from mpma.model.config import ImageConfig
from mpma.model.masking import take_patches
from mpma.model.positions import sine_cosine_positions, with_class_position
from mpma.model.recompute import run_blocks
from mpma.model.widening import widened


def patchify(pixels_B1SS: Tensor, side: int) -> Tensor:
    """[B,1,S,S] -> [B,P,side*side], patches row by row, pixels of a patch row by row."""
    batch, _, size, _ = pixels_B1SS.shape
    grid = size // side
    split = pixels_B1SS.reshape(batch, grid, side, grid, side).transpose(2, 3)
    return split.reshape(batch, grid * grid, side * side)


def unpatchify(patches_BPX: Tensor) -> Tensor:
    """[B,P,side*side] -> [B,1,S,S]: the inverse of `patchify`, for a square grid of square patches."""
    batch, count, area = patches_BPX.shape
    grid, side = round(count**0.5), round(area**0.5)
    split = patches_BPX.reshape(batch, grid, grid, side, side).transpose(2, 3)
    return split.reshape(batch, 1, grid * side, grid * side)


def standardised_patches(patches: Tensor, eps: float) -> Tensor:
    """(y - mean) / sqrt(unbiased variance + eps) over the last axis, in fp32."""
    variance, mean = torch.var_mean(widened(patches), dim=-1, keepdim=True)
    return (patches - mean) * torch.rsqrt(variance + eps)


class GreyPixels(nn.Module):
    """uint8 pixels -> normalised fp32 pixels, and the encoder's smaller view of them."""

    def __init__(self, image: ImageConfig, *, grey_mean: float, grey_std: float, target_scale: int) -> None:
        super().__init__()
        self.size = image.size
        self.target_scale = target_scale
        self.register_buffer("grey_mean", torch.tensor(float(grey_mean)))
        self.register_buffer("grey_std", torch.tensor(float(grey_std)))
        # A Python number beside the buffers: reading a device tensor would wait for the device.
        self.one_grey_level_squared = (1.0 / 255.0 / grey_std) ** 2

    grey_mean: Tensor
    grey_std: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B,1,S,S] -> float32 [B,1,S,S] of (value/255 - mean) / std."""
        expected = self.size * self.target_scale
        if pixels.shape[-2:] != (expected, expected) or pixels.shape[1] != 1:
            raise ValueError(
                f"pixels are {tuple(pixels.shape)}, expected [B, 1, {expected}, {expected}] "
                f"(image.size {self.size} times target scale {self.target_scale})"
            )
        scale = 1.0 / (255.0 * self.grey_std)
        return pixels.to(scale.dtype) * scale - self.grey_mean / self.grey_std

    def encoder_view(self, normalised: Tensor) -> Tensor:
        """float32 [B,1,S,S] -> [B,1,size,size]: bicubic with antialiasing; the identity at scale 1."""
        if self.target_scale == 1:
            return normalised
        return functional.interpolate(
            normalised, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        )


@dataclass
class ImageTokens:
    """What the encoder says about an image."""

    class_token: Tensor
    """[B,D]."""
    patches: Tensor
    """[B,V,D] in the order given; after the final norm."""


class ImageEncoder(nn.Module):
    """timm's ViT on the visible patches [code: MAE, MRM]."""

    def __init__(self, image: ImageConfig) -> None:
        super().__init__()
        self.vit = _timm_vit(image)
        with_short_attention(self.vit)
        self.patch_size = image.patch_size
        self.width: int = self.vit.embed_dim
        if self.width % 4:
            raise UserError(f"image.width {self.width} is not a multiple of 4, as positions need")
        grid = image.size // image.patch_size
        self.register_buffer("positions", with_class_position(sine_cosine_positions(grid, self.width)))
        self.gradient_checkpointing = False

    positions: Tensor

    def forward(self, view_B1SS: Tensor, order_BV: Tensor | None = None) -> ImageTokens:
        """Normalised pixels [B,1,size,size] and the patches to see [B,V] (None: all, in order)."""
        patches = patchify(view_B1SS, self.patch_size)
        if order_BV is None:
            positions = self.positions[1:]
        else:
            patches = take_patches(patches, order_BV)
            positions = functional.embedding(order_BV, self.positions[1:])
        kernel = self.vit.patch_embed.proj
        tokens = functional.linear(patches, kernel.weight.flatten(1), kernel.bias) + positions
        class_token = (self.vit.cls_token + self.positions[:1]).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([class_token.to(tokens.dtype), tokens], dim=1)
        tokens = self.vit.norm(run_blocks(self.vit.blocks, tokens, recompute=self.gradient_checkpointing))
        return ImageTokens(class_token=tokens[:, 0], patches=tokens[:, 1:])


class ImageDecoder(nn.Module):
    """From visible tokens to the pixels of the hidden patches [code: MAE]."""

    def __init__(self, image: ImageConfig, *, encoder_width: int, target_side: int) -> None:
        super().__init__()
        width = image.decoder_width
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        norm: Any = LayerNorm
        self.blocks = nn.Sequential(
            *[
                Block(width, image.decoder_heads, qkv_bias=True, norm_layer=norm)
                for _ in range(image.decoder_layers)
            ]
        )
        with_short_attention(self.blocks)
        self.norm = norm(width)
        self.head = nn.Linear(width, target_side**2)
        grid = image.size // image.patch_size
        self.register_buffer("positions", with_class_position(sine_cosine_positions(grid, width)))
        self.apply(init_weights_vit_timm)
        nn.init.normal_(self.mask_token, std=0.02)
        self.gradient_checkpointing = False

    positions: Tensor

    def forward(self, tokens: ImageTokens, order_BP: Tensor) -> Tensor:
        """Tokens of the first V patches of `order_BP` -> [B,N,X] for the hidden rest, in its order."""
        visible = tokens.patches.shape[1]
        seen = self.embed(torch.cat([tokens.class_token.unsqueeze(1), tokens.patches], dim=1))
        positions = functional.embedding(order_BP, self.positions[1:])
        # The class token's own position is zero.
        class_token, seen = seen[:, :1], seen[:, 1:] + positions[:, :visible]
        hidden = self.mask_token + positions[:, visible:]
        states = torch.cat([class_token, seen, hidden.to(seen.dtype)], dim=1)
        states = run_blocks(self.blocks, states, recompute=self.gradient_checkpointing)[:, 1 + visible :]
        predicted: Tensor = self.head(self.norm(states))
        return predicted


def reconstruction_loss(predicted_BNX: Tensor, target_BNX: Tensor) -> Tensor:
    """Mean squared error over the hidden patches and their pixels, fp32 scalar."""
    return functional.mse_loss(widened(predicted_BNX), target_BNX)


def _timm_vit(image: ImageConfig) -> VisionTransformer:
    if not timm.is_model(image.backbone):
        near = timm.list_models("vit_*patch16_224")[:6]
        raise UserError(
            f"image.backbone {image.backbone!r} is no model of timm", f"for example {', '.join(near)}"
        )
    wanted = {"embed_dim": image.width, "depth": image.layers, "num_heads": image.heads}
    sizes = {name: value for name, value in wanted.items() if value is not None}
    try:
        vit = timm.create_model(
            image.backbone,
            pretrained=False,
            img_size=image.size,
            patch_size=image.patch_size,
            in_chans=1,
            num_classes=0,
            pos_embed="none",
            **sizes,
        )
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error) or "its sizes do not fit each other (width must be a multiple of heads)"
        raise UserError(f"image.backbone {image.backbone!r} cannot be built: {reason}") from error
    if not isinstance(vit, VisionTransformer) or vit.num_prefix_tokens != 1 or vit.cls_token is None:
        raise UserError(
            f"image.backbone {image.backbone!r} is not a plain ViT with one class token",
            "choose one of the vit_*_patch*_224 family",
        )
    if not isinstance(vit.norm_pre, nn.Identity):
        raise UserError(
            f"image.backbone {image.backbone!r} normalises before its blocks, which is not supported"
        )
    return vit
