"""The part of a model card that says how to load the model: three pieces of code that run as written."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Final

from mpma.exporting.layout import ExportDescription

_WIDTH: Final = 110


_THE_WHOLE: Final = (
    "`DIR` stands for this folder. The whole model, with this project installed; images are given as files' "
    "bytes, uint8 arrays or Pillow images:"
)

_POOLER: Final = (
    "`pooler_output` is not part of this model: the file's pooler is the identity, behind a tanh. Vectors in "
    "the shared space come from the whole model only, which holds the projections."
)


def prose(text: str) -> list[str]:
    """A paragraph as lines; nothing inside backquotes or links is split."""
    return textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def loading(what: ExportDescription, timm_arguments: Mapping[str, Any]) -> list[str]:
    """Lines of the section."""
    return [
        "## Load it in three ways",
        "",
        *_whole(what),
        "",
        *_image_encoder(what, timm_arguments),
        "",
        *_report_encoder(),
    ]


def _whole(what: ExportDescription) -> list[str]:
    aligned, report = what.alignment.width, what.report.width
    return [
        *prose(_THE_WHOLE),
        "",
        "```python",
        "import mpma",
        "",
        'model = mpma.load("DIR")',
        'image = open("radiograph.png", "rb").read()',
        f"images = model.embed_images([image])  # [1, {aligned}]",
        f'texts = model.embed_texts(["no pleural effusion."])  # [1, {aligned}]',
        "cosine = images @ texts.T",
        f'pairs = model.embed_pairs([image], ["no pleural effusion."])  # [1, {report} + image width]',
        "```",
    ]


def _image_encoder(what: ExportDescription, arguments: Mapping[str, Any]) -> list[str]:
    size, mean, std = what.image.size, what.facts.grey_mean, what.facts.grey_std
    crop = size * what.facts.target_scale
    crops = (
        f"The whole model takes crops of {crop} pixels and halves them itself (bicubic, antialiased)."
        if what.facts.target_scale > 1
        else f"The whole model takes the same crops of {crop} pixels."
    )
    call = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return [
        "The image encoder with timm alone:",
        "",
        "```python",
        "import numpy as np",
        "import timm",
        "import torch",
        "from PIL import Image, ImageOps",
        "",
        "encoder = timm.create_model(",
        f"    {what.image.backbone!r},",
        '    checkpoint_path="DIR/image_encoder/model.safetensors",',
        *textwrap.wrap(call + ",", _WIDTH, initial_indent="    ", subsequent_indent="    "),
        ").eval()",
        'image = Image.open("radiograph.png").convert("L")',
        f"image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.BICUBIC)",
        f"pixels = (torch.from_numpy(np.array(image)) / 255 - {mean!r}) / {std!r}",
        "with torch.no_grad():",
        "    tokens = encoder.forward_features(pixels[None, None])  # class token, then the patches",
        "```",
        "",
        *prose(
            f"Pixels are grey, one channel, normalised as `(value / 255 - {mean:.6g}) / {std:.6g}`: the "
            f"figures of the training data. The view is the central square. {crops} "
            "`tokens[:, 1:].mean(1)` is the mean patch token that probes use."
        ),
    ]


def _report_encoder() -> list[str]:
    return [
        "The report encoder with transformers alone:",
        "",
        "```python",
        "import torch",
        "from transformers import AutoModel, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained("DIR/report_encoder")',
        'encoder = AutoModel.from_pretrained("DIR/report_encoder").eval()',
        'words = tokenizer(["no pleural effusion."], padding=True, truncation=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    states = encoder(**words).last_hidden_state  # the first is the class token",
        "```",
        "",
        *prose(_POOLER),
    ]
