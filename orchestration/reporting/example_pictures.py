"""Small pictures of examples: grey pixels, attention laid over them, outlines of masks; as data in the page.

Decisions: a picture is a PNG inside the page, at most `WIDEST` pixels wide, since nothing may be loaded from
elsewhere; its colours are fixed, as a picture has no dark mode; an overlay is scaled to its own highest
value, so that a softmax over many patches is seen at all, and the page says so.

Shapes: S the image's side · h, w an overlay's.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDEST: Final = 256
SMALL: Final = 144
TRUE_COLOUR: Final = (240, 160, 60)
PREDICTED_COLOUR: Final = (70, 165, 255)
ATTENTION_COLOUR: Final = (255, 96, 48)

_STRONGEST: Final = 0.65
"""Opacity of an overlay's highest value."""
_COLOURS: Final = 128
"""Of a picture that is not grey: a third of the bytes, and no difference to be seen."""

_THICK_FROM: Final = 128
"""Side in pixels beyond which an outline is two pixels wide, as the page shows it smaller."""

Grey = NDArray[np.uint8]


def grey_uri(image: Grey, widest: int = WIDEST) -> str:
    """A grey image uint8 [S, S] as a `data:` address."""
    return _uri(_fitted(image, widest))


def attention_uri(image: Grey, overlay: NDArray[np.float32], widest: int = SMALL) -> str:
    """An overlay [h, w] in 0..1, smoothly enlarged, over the image [S, S]."""
    grey = _fitted(image, widest)
    weights = np.clip(np.nan_to_num(np.asarray(overlay, np.float32)), 0.0, 1.0)
    peak = float(weights.max()) if weights.size else 0.0
    if peak <= 0.0:
        return _uri(grey)
    large = Image.fromarray(weights / peak).resize(grey.size, Image.Resampling.BICUBIC)
    opacity = _STRONGEST * np.clip(np.asarray(large), 0.0, 1.0)[..., None]
    pixels = np.asarray(grey, np.float32)[..., None]
    mixed = (1 - opacity) * pixels + opacity * np.array(ATTENTION_COLOUR, np.float32)
    return _uri(_coloured(mixed))


def outlines_uri(image: Grey, masks: Mapping[tuple[int, int, int], Any], widest: int = WIDEST) -> str:
    """Outlines of masks [h, w] (inside where above a half) in their colours over the image [S, S]."""
    grey = _fitted(image, widest)
    pixels = np.repeat(np.asarray(grey, np.float32)[..., None], 3, axis=2)
    for colour, mask in masks.items():
        inside = np.nan_to_num(np.asarray(mask, np.float32)) > 0.5
        large = Image.fromarray(inside.astype(np.uint8) * 255).resize(grey.size, Image.Resampling.NEAREST)
        kept = np.asarray(large) > 127
        edge = outline(kept)
        if max(grey.size) > _THICK_FROM:
            edge |= outline(kept & ~edge)
        pixels[edge] = colour
    return _uri(_coloured(pixels))


def outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask [h, w] with a neighbour outside of it or beyond the edge of the picture."""
    around = np.pad(inside, 1)
    surrounded = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return np.asarray(inside & ~surrounded)


def _fitted(image: Grey, widest: int) -> Image.Image:
    grey = Image.fromarray(np.ascontiguousarray(image, np.uint8))
    side = max(grey.size)
    if side <= widest:
        return grey
    size = (max(1, round(grey.width * widest / side)), max(1, round(grey.height * widest / side)))
    return grey.resize(size, Image.Resampling.LANCZOS)


def _coloured(pixels: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).quantize(_COLOURS)


def _uri(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
