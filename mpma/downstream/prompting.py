"""Prompt files: what is said of an image that shows a label, and of one that does not.

Decisions:
- A label has positive and negative sentences. A sentence may hold fields in braces: `{label}` is the label in
  words, every other field takes the values listed under `words`, of the label or else of the file; each
  combination is a prompt of its own.
- A label without an entry takes the file's templates. Names match whatever their case and separators, so
  `Pleural_Thickening` finds `pleural thickening`.
- Files are read strictly: an unknown key, a field without values, an empty list is one line that names file
  and key.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError

from mpma.config_tree import read_yaml
from mpma.errors import UserError
from mpma.strict import StrictConfig

SHIPPED: Final = {name: Path(__file__).parent / "prompts" / f"{name}.yaml" for name in ("chest", "phantom")}
"""Prompt files of the package: `chest` for radiographs' labels, `phantom` in the synthetic reports' words."""

_MOST_PROMPTS: Final = 512
"""Prompts of one sign of one label: more are a mistake in the fields."""

_FIELD: Final = re.compile(r"\{(\w+)\}")

Sentences = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class LabelPrompts(StrictConfig):
    """What is said of one label."""

    positive: Sentences | None = None
    """Sentences of an image that shows it. None: the file's templates."""
    negative: Sentences | None = None
    """Sentences of an image that does not. None: the file's templates."""
    words: dict[str, Sentences] = Field(default={})
    """Values of the sentences' fields; `label` here replaces the label in words."""


class Templates(StrictConfig):
    """Sentences of labels that have none of their own."""

    positive: Sentences = Field(default=["{label}."])
    """Of an image that shows the label."""
    negative: Sentences = Field(default=["no {label}."])
    """Of an image that does not."""


class PromptFile(StrictConfig):
    """The whole file."""

    templates: Templates = Templates()
    """Sentences of labels that have none of their own."""
    words: dict[str, Sentences] = Field(default={})
    """Values of fields, for all labels."""
    labels: dict[str, LabelPrompts] = Field(default={})
    """Prompts by label."""


@dataclass(frozen=True)
class Prompts:
    """Filled prompts of one label."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    own: bool
    """Whether the label has an entry of its own."""


class PromptBook:
    """Prompt files, of which the first that knows a label serves it."""

    def __init__(self, files: Mapping[str, PromptFile]) -> None:
        """`files` by the name that errors call them. Raises `UserError` where a label cannot be filled."""
        self._files = dict(files)
        self._entries: dict[str, tuple[str, str]] = {}
        for name, file in self._files.items():
            mine: dict[str, str] = {}
            for label in file.labels:
                if (plain := plain_name(label)) in mine:
                    raise UserError(f"{name}: labels.{label}: the same label as labels.{mine[plain]}")
                mine[plain] = label
                self._entries.setdefault(plain, (name, label))
                _filled(name, file, label)

    def of(self, label: str) -> Prompts:
        """Prompts of a label: its own, or the first file's templates."""
        plain = plain_name(label)
        if plain in self._entries:
            name, entry = self._entries[plain]
            return _filled(name, self._files[name], entry)
        name, file = next(iter(self._files.items()))
        return _filled(name, file, label)


def prompt_book(path: str | None, *, synthetic: bool) -> PromptBook:
    """The user's file alone, or the shipped ones: the phantom's first for synthetic pairs.

    Raises `UserError` naming file and key.
    """
    if path is not None:
        return PromptBook({path: read_prompts(Path(path))})
    order = ("phantom", "chest") if synthetic else ("chest",)
    return PromptBook({f"prompts/{name}.yaml": read_prompts(SHIPPED[name]) for name in order})


def read_prompts(path: Path) -> PromptFile:
    """A file, strictly. Raises `UserError` naming file and key."""
    tree = read_yaml(path)
    try:
        return PromptFile.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: {key}: unknown key", _known_keys(first["loc"])) from None
        message = first["msg"]
        raise UserError(
            f"{path}: {key}: {message[:1].lower()}{message[1:]}",
            "positive and negative are lists of sentences; see docs/evaluation.md",
        ) from None


def plain_name(label: str) -> str:
    """A label in lower-case words: `Pleural_Thickening` -> `pleural thickening`."""
    return " ".join(re.split(r"[\s_/,-]+", label.strip().lower()))


def _filled(name: str, file: PromptFile, label: str) -> Prompts:
    entry = file.labels.get(label)
    words = {"label": [plain_name(label)], **file.words, **(entry.words if entry else {})}
    signs = {}
    for sign in ("positive", "negative"):
        own = getattr(entry, sign) if entry else None
        where = f"{name}: labels.{label}.{sign}" if own else f"{name}: templates.{sign}"
        signs[sign] = tuple(_expanded(own or getattr(file.templates, sign), words, where))
    return Prompts(signs["positive"], signs["negative"], entry is not None)


def _expanded(sentences: Sequence[str], words: Mapping[str, Sequence[str]], where: str) -> list[str]:
    made: dict[str, None] = {}
    for sentence in sentences:
        fields = list(dict.fromkeys(_FIELD.findall(sentence)))
        for unknown in (one for one in fields if one not in words):
            raise UserError(f"{where}: the field {{{unknown}}} has no values", f"list them: words.{unknown}")
        if re.search(r"[{}]", _FIELD.sub("", sentence)):
            raise UserError(f"{where}: a brace that belongs to no field", "fields are like {label}")
        for values in itertools.product(*(words[one] for one in fields)):
            given = dict(zip(fields, values, strict=True))
            made[_FIELD.sub(lambda match, given=given: given[match[1]], sentence)] = None  # type: ignore[misc]
            if len(made) > _MOST_PROMPTS:
                raise UserError(
                    f"{where}: more than {_MOST_PROMPTS} prompts", "give fewer values of its fields"
                )
    return list(made)


def _known_keys(where: Sequence[int | str]) -> str:
    known: type[StrictConfig] = PromptFile
    if len(where) > 1:
        known = Templates if where[0] == "templates" else LabelPrompts
    return f"known here: {', '.join(known.model_fields)}"
