"""Starting weights from elsewhere: a ViT by name or file, a BERT by name or folder.

Decisions:
- three-channel patch kernels are folded into one channel WITH the mean and deviation that their
  training normalised by, composed with our own grey normalisation, so that the folded kernel is the
  same function of a grey image;
- files are read as safetensors or by torch's weights-only loader: nothing in them is executed;
- a file's prefix (`module.`, `encoder.`, our own checkpoints') is found by the patch kernel's name;
- positions found with the weights replace the fixed ones and are resampled to the grid;
- whatever does not fit is a one-line error that names the key: weights are never dropped silently,
  save decoders, heads and mask tokens of the source, which have no place here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from mpma.errors import UserError
from mpma.model.config import ImageConfig, ReportConfig
from mpma.model.positions import resampled_positions

if TYPE_CHECKING:
    from mpma.model.image import GreyPixels, ImageEncoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""What files without a word about it are taken to be normalised by: MAE's and MRM's weights are."""

_KERNEL = "patch_embed.proj.weight"


def fold_kernel(
    kernel: Tensor,
    bias: Tensor,
    *,
    channel_mean: tuple[float, ...],
    channel_std: tuple[float, ...],
    grey_mean: float,
    grey_std: float,
) -> tuple[Tensor, Tensor]:
    """Patch kernel [D,C,h,w] and bias [D] for C normalised channels -> [D,1,h,w], [D] for one grey channel.

    For grey g in 0..1 the source computes sum_c W_c (g - m_c)/s_c + b. Ours is given x = (g - m)/s, so
    the kernel is s * sum_c W_c/s_c and the bias gains sum_c (m - m_c)/s_c * (sum of W_c).
    """
    kernel = kernel.double()
    mean = torch.tensor(channel_mean, dtype=torch.float64)[None, :, None, None]
    std = torch.tensor(channel_std, dtype=torch.float64)[None, :, None, None]
    folded = grey_std * (kernel / std).sum(dim=1, keepdim=True)
    shift = (kernel * (grey_mean - mean) / std).sum(dim=(1, 2, 3))
    return folded.float(), (bias.double() + shift).float()


def load_image_encoder(encoder: ImageEncoder, pixels: GreyPixels, image: ImageConfig) -> None:
    """Fill `encoder` from `image.pretrained`: "timm" or a .safetensors, .pth, .pt or .bin file."""
    if image.pretrained is None:
        return
    if image.pretrained == "timm":
        weights, mean, std = _timm_weights(image.backbone)
        named, source = weights, f"timm's {image.backbone}"
    else:
        path = Path(image.pretrained).expanduser()
        weights = _read_weights(path)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        named, source = _without_prefix(weights, path), path.name
    state = _fitted(encoder, pixels, named, image, source, mean, std, weights)
    encoder.vit.load_state_dict(state, strict=True)


def load_bert(report: ReportConfig, *, vocabulary_size: int) -> BertForMaskedLM:
    """A BERT with its prediction head by `report.pretrained`; its sizes must be those of `report`."""
    name = cast(str, report.pretrained)
    try:
        config = BertConfig.from_pretrained(name)
    except Exception as error:  # The library raises many kinds for one mistake: no such name or folder.
        raise UserError(
            f"report.pretrained {name!r} cannot be read as a Hugging Face BERT",
            "give the name of a BERT or a local folder with config.json and model.safetensors",
        ) from error
    if config.model_type != "bert":
        raise UserError(f"report.pretrained {name!r} is a {config.model_type}, not a bert")
    for key, ours, theirs in (
        ("report.width", report.width, config.hidden_size),
        ("report.layers", report.layers, config.num_hidden_layers),
        ("report.heads", report.heads, config.num_attention_heads),
    ):
        if ours != theirs:
            raise UserError(
                f"report.pretrained {name!r} has {theirs} where {key} is {ours}", f"set {key} to {theirs}"
            )
    if config.vocab_size != vocabulary_size:
        raise UserError(
            f"report.pretrained {name!r} has {config.vocab_size} words, "
            f"the dataset's tokeniser {vocabulary_size}",
            "ingest the dataset with that model's own tokeniser",
        )
    if config.max_position_embeddings < report.max_tokens:
        raise UserError(
            f"report.pretrained {name!r} has {config.max_position_embeddings} positions, "
            f"report.max_tokens is {report.max_tokens}"
        )
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.tie_word_embeddings = True
    try:
        return BertForMaskedLM.from_pretrained(
            name, config=config, attn_implementation="sdpa", dtype=torch.float32
        )
    except Exception as error:
        raise UserError(f"the weights of report.pretrained {name!r} cannot be read") from error


def _timm_weights(backbone: str) -> tuple[dict[str, Tensor], tuple[float, ...], tuple[float, ...]]:
    try:
        source = timm.create_model(backbone, pretrained=True, num_classes=0)
    except Exception as error:  # Offline, unknown tag, no weights: the library raises many kinds.
        raise UserError(
            f"timm's weights of image.backbone {backbone!r} could not be fetched",
            "check the connection, or give image.pretrained a local .safetensors or .pth file",
        ) from error
    settings = source.pretrained_cfg
    return dict(source.state_dict()), tuple(settings["mean"]), tuple(settings["std"])


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"image.pretrained {str(path)!r} is neither `timm` nor a file",
            "give `timm` or a local weight file",
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _unreadable(path) from error
    except Exception as error:  # torch raises pickle's own errors for content it refuses to execute.
        raise _unreadable(path) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    weights = (
        {key: value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not weights:
        raise UserError(f"image.pretrained {path.name} holds no tensors by name")
    return weights


def _unreadable(path: Path) -> UserError:
    return UserError(
        f"image.pretrained {path.name} cannot be read as weights",
        "give a .safetensors file, or a torch file that loads with weights_only",
    )


def _without_prefix(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    prefixes = [key.removesuffix(_KERNEL) for key in weights if key.endswith(_KERNEL)]
    if len(prefixes) != 1:
        raise UserError(
            f"image.pretrained {path.name} has {len(prefixes)} keys that end in {_KERNEL}, expected one",
            "the weights of a ViT in timm's naming (as MAE's are) are needed",
        )
    prefix = prefixes[0]
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def _fitted(
    encoder: ImageEncoder,
    pixels: GreyPixels,
    named: dict[str, Tensor],
    image: ImageConfig,
    source: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    everything: dict[str, Tensor],
) -> dict[str, Tensor]:
    named = dict(named)
    kernel = named[_KERNEL]
    if kernel.shape[-1] != image.patch_size:
        raise UserError(
            f"{source} has patches of {kernel.shape[-1]} pixels, image.patch_size is {image.patch_size}"
        )
    if kernel.shape[1] == 1:
        # Ours: the file says by which mean and deviation its one channel was normalised.
        own_mean = _ending(everything, "grey_mean")
        own_std = _ending(everything, "grey_std")
        same = own_mean is None or own_std is None
        mean = (float(pixels.grey_mean) if same else float(cast(Tensor, own_mean)),)
        std = (float(pixels.grey_std) if same else float(cast(Tensor, own_std)),)
    elif kernel.shape[1] != 3:
        raise UserError(f"{source} has {kernel.shape[1]} input channels, expected 1 or 3")
    bias = named.get("patch_embed.proj.bias")
    named[_KERNEL], named["patch_embed.proj.bias"] = fold_kernel(
        kernel,
        torch.zeros(kernel.shape[0]) if bias is None else bias,
        channel_mean=mean,
        channel_std=std,
        grey_mean=float(pixels.grey_mean),
        grey_std=float(pixels.grey_std),
    )
    positions = named.get("pos_embed")
    if positions is None:
        # Ours, as a whole model or as its image encoder alone.
        own = (_ending(everything, "image_encoder.positions"), _ending(everything, "encoder.positions"))
        positions = next((found for found in own if found is not None), None)
    else:
        positions = positions.squeeze(0)
    wanted = encoder.vit.state_dict()
    missing = sorted(wanted.keys() - named.keys())
    if missing:
        raise UserError(f"{source} has no {missing[0]}, which image.layers {len(encoder.vit.blocks)} needs")
    extra_blocks = sorted(key for key in named if key.startswith("blocks.") and key not in wanted)
    if extra_blocks:
        raise UserError(
            f"{source} has {extra_blocks[0]}, for which image.layers {len(encoder.vit.blocks)} has no place"
        )
    for key, ours in wanted.items():
        if named[key].shape != ours.shape:
            raise UserError(
                f"{source} has {key} of shape {tuple(named[key].shape)}, the configured backbone needs "
                f"{tuple(ours.shape)}",
                "make image.backbone and image.width those of the weights",
            )
    if positions is not None:
        grid = image.size // image.patch_size
        if round((positions.shape[0] - 1) ** 0.5) ** 2 + 1 != positions.shape[0]:
            raise UserError(f"{source} has positions of a grid that is not square")
        encoder.positions.copy_(resampled_positions(positions, grid))
    return {key: named[key] for key in wanted}


def _ending(weights: dict[str, Tensor], name: str) -> Tensor | None:
    found = [value for key, value in weights.items() if key == name or key.endswith("." + name)]
    return found[0] if len(found) == 1 else None
