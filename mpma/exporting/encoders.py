"""The two encoders as other libraries load them: a timm ViT, a transformers BERT with its tokeniser.

Decisions:
- The image encoder's fixed positions are written as timm's learned ones; where a backbone gives its class
  token no position, ours (zero, unless it came with pretrained weights) is added to that token. timm's
  pooling is set to the mean of the normalised patch tokens: calling the model gives our mean patch token.
- BERT's weights are written without the vocabulary head, which was trained on fused tokens and means nothing
  on BERT's own. transformers' pooler, which we do not have, is written as the identity: the library would
  otherwise draw it anew at each load.
- transformers' tokeniser file is ours with the class and end tokens as its template; text that looks like a
  special token stays text.

The maths is nowhere repeated: tests compare outputs of the loaded encoders with ours.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from mpma.errors import UserError
from mpma.exporting.layout import BERT_FILES, TIMM_FILES
from mpma.loading import LoadedModel
from mpma.model.image import ImageEncoder


def timm_arguments(loaded: LoadedModel) -> dict[str, Any]:
    """Keyword arguments of `timm.create_model` beside the backbone's name and the file."""
    image, vit = loaded.config.image, loaded.model.image_encoder.vit
    sizes = {"embed_dim": image.width, "depth": image.layers, "num_heads": image.heads}
    arguments: dict[str, Any] = {
        "in_chans": 1,
        "num_classes": 0,
        "img_size": image.size,
        "patch_size": image.patch_size,
        **{name: value for name, value in sizes.items() if value is not None},
    }
    if not isinstance(vit.norm, nn.Identity):
        # The mean over patches behind the final norm; timm's own default would move the norm behind it.
        arguments |= {"global_pool": "avg", "fc_norm": False}
    return arguments


def image_encoder_files(loaded: LoadedModel) -> dict[str, bytes]:
    """Name in the export -> content."""
    backbone, arguments = loaded.config.image.backbone, timm_arguments(loaded)
    weights = _timm_weights(loaded.model.image_encoder, timm.create_model(backbone, **arguments))
    # timm takes the pooling from here, and the number of classes from the description itself.
    kept = {name: value for name, value in arguments.items() if name != "num_classes"}
    size = loaded.config.image.size
    description = {
        "architecture": backbone,
        "num_classes": 0,
        "num_features": loaded.model.image_encoder.width,
        "global_pool": arguments.get("global_pool", loaded.model.image_encoder.vit.global_pool),
        "model_args": kept,
        "pretrained_cfg": {
            "input_size": [1, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [loaded.facts["grey_mean"]],
            "std": [loaded.facts["grey_std"]],
            "num_classes": 0,
            "pool_size": None,
        },
    }
    return dict(zip(TIMM_FILES, (_json(description), safetensors.torch.save(weights)), strict=True))


def report_encoder_files(loaded: LoadedModel) -> dict[str, bytes]:
    """Name in the export -> content."""
    bert = loaded.model.report_encoder.bert
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in bert.state_dict().items()}
    width = loaded.config.report.width
    weights |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    description = {**bert_description(loaded), "architectures": ["BertModel"]}
    contents = (
        _json(description),
        safetensors.torch.save(weights, metadata={"format": "pt"}),
        _json(_tokenizer(loaded)),
        _json(_tokenizer_description(loaded)),
    )
    return dict(zip(BERT_FILES, contents, strict=True))


def bert_description(loaded: LoadedModel) -> dict[str, Any]:
    """transformers' configuration of the report encoder, without where it was once loaded from."""
    found: dict[str, Any] = json.loads(loaded.model.report_encoder.bert.config.to_json_string(use_diff=False))
    unused = ("id2label", "label2id")
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("_") and name not in unused and value is not None
    }


def _timm_weights(encoder: ImageEncoder, template: nn.Module) -> dict[str, Tensor]:
    wanted = template.state_dict()
    weights = {name: value.detach().cpu().clone() for name, value in encoder.vit.state_dict().items()}
    positions = encoder.positions.detach().cpu()
    if "pos_embed" in wanted:
        if wanted["pos_embed"].shape[1] == positions.shape[0] - 1:
            weights["cls_token"] = weights["cls_token"] + positions[:1]
            positions = positions[1:]
        weights["pos_embed"] = positions.unsqueeze(0).clone()
    different = sorted(
        set(wanted.keys() ^ weights.keys())
        | {name for name in wanted.keys() & weights.keys() if wanted[name].shape != weights[name].shape}
    )
    if different:
        raise UserError(
            f"the image encoder cannot be written as timm's model: {different[0]} does not fit",
            "another image.backbone of the vit_*_patch*_224 family can",
        )
    return {name: weights[name].contiguous() for name in wanted}


def _tokenizer(loaded: LoadedModel) -> dict[str, Any]:
    tokenizer = loaded.tokenizer
    found: dict[str, Any] = json.loads(tokenizer.to_bytes())
    numbers = {tokenizer.token(number): number for number in (tokenizer.class_id, tokenizer.end_id)}
    first, last = numbers

    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 0}}
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special(first), text, special(last)],
        "pair": [special(first), text, special(last), other, special(last)],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]} for token, number in numbers.items()
        },
    }
    found["truncation"] = found["padding"] = None
    return found


def _tokenizer_description(loaded: LoadedModel) -> dict[str, Any]:
    tokenizer = loaded.tokenizer
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": loaded.config.report.max_tokens,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "pad_token": tokenizer.token(tokenizer.pad_id),
        "unk_token": tokenizer.token(tokenizer.unknown_id),
        "cls_token": tokenizer.token(tokenizer.class_id),
        "sep_token": tokenizer.token(tokenizer.end_id),
        "mask_token": tokenizer.token(tokenizer.mask_id),
    }


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
