"""Models to stand beside a trained one: the same architecture with weights from elsewhere, or another model.

Decisions: a baseline is named on the command line as NAME=KIND:PLACE, so that every table can carry it;
`timm`, `image:` and `hf:` put weights into the judged model's own encoders through the same loaders that a
recipe's `image.pretrained` and `report.pretrained` use, everything else is as its training began; `run:` and
`export:` bring an architecture of their own. Weights that do not fit are refused, never partly loaded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpma.errors import UserError
from mpma.exporting.layout import IMAGE_ENCODER, MODEL_FILE

if TYPE_CHECKING:
    from mpma.loading import LoadedModel

RESERVED: Final = ("pretrained", "untrained", "chance")

FORMS: Final = "NAME=run:FOLDER, NAME=export:FOLDER, NAME=timm, NAME=image:FILE or NAME=hf:FOLDER"

_WITH_A_PLACE: Final = ("run", "export", "image", "hf")
_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9-]{0,39}$")


def check_spec(spec: str) -> str:
    """The name of a baseline. Raises `UserError` where the text is not of one of the forms."""
    return _parsed(spec)[0]


def baseline(spec: str, like: LoadedModel, root: str | Path = ".") -> LoadedModel:
    """The model that a text such as `before=run:runs/older` stands for, on the device of `like`.

    `root`: where relative places begin. Raises `UserError` where the text is malformed, the place is empty,
    or the weights are of another architecture than `like` and bring none of their own.
    """
    from mpma.loading import load, untrained

    name, kind, place = _parsed(spec)
    if place and "://" not in place:
        place = str(Path(root) / Path(place).expanduser())
    if kind in ("run", "export"):
        found = load(place, device=like.device, precision=like.precision)
        found.name = name
        return found
    config = like.config
    if kind == "hf":
        if not Path(place).is_dir():
            raise UserError(f"--baseline {spec}: no folder there", "a local folder of a Hugging Face BERT")
        _check_vocabulary(spec, Path(place), like)
        report = config.report.model_copy(update={"pretrained": place})
        config = config.model_copy(update={"report": report})
    else:
        _check_normalisation(spec, Path(place))
        image = config.image.model_copy(update={"pretrained": "timm" if kind == "timm" else place})
        config = config.model_copy(update={"image": image})
    try:
        made = untrained(like, name, config)
    except UserError as error:
        raise UserError(f"--baseline {spec}: {error.message}", error.hint) from None
    made.origin = {
        "timm": f"timm's weights of {config.image.backbone} in the image encoder, the rest untrained",
        "image": f"image encoder from {Path(place).name}, the rest untrained",
        "hf": f"report encoder from {Path(place).name}, the rest untrained",
    }[kind]
    return made


def _check_vocabulary(spec: str, folder: Path, like: LoadedModel) -> None:
    """A vocabulary of the same size with other words would load, and read every report wrongly."""
    try:
        theirs = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--baseline {spec}: its tokenizer.json cannot be read") from None
    if theirs != json.loads(like.tokenizer.to_bytes())["model"]["vocab"]:
        raise UserError(
            f"--baseline {spec}: its vocabulary is not that of {like.origin}",
            "ingest the dataset with that model's own tokeniser, and train on it",
        )


def _check_normalisation(spec: str, file: Path) -> None:
    """The timm file of an export does not say by which grey figures its pixels were normalised."""
    whole = file.parent.parent
    if file.parent.name == IMAGE_ENCODER and (whole / MODEL_FILE).is_file():
        raise UserError(
            f"--baseline {spec}: this file does not say how its pixels were normalised",
            f"give {whole / MODEL_FILE}, which does",
        )


def _parsed(spec: str) -> tuple[str, str, str]:
    """(name, kind, place or empty)."""
    name, equals, rest = spec.partition("=")
    kind, colon, place = rest.partition(":")
    if not equals or not ((kind == "timm" and not colon) or (kind in _WITH_A_PLACE and place)):
        raise UserError(f"--baseline {spec}: unknown form", f"give {FORMS}")
    if not _NAME.match(name):
        raise UserError(f"--baseline {spec}: a name is letters, digits and dashes, at most 40")
    if name in RESERVED:
        raise UserError(f"--baseline {spec}: the name {name} has a meaning of its own", "take another")
    return name, kind, place
