"""What archives write in the cells of their tables, read as the pair's own terms."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from mpma.data.quality import is_missing

_NOT_LETTER_OR_DIGIT: Final = re.compile(r"[^a-z0-9]+")
_ENTRY: Final = r"""(?:'[^'\\]*+'|"[^"\\]*+"|nan|None)"""
_QUOTED_LIST: Final = re.compile(rf"\[\s*+(?:{_ENTRY}\s*+(?:,\s*+{_ENTRY}\s*+)*+)?+\]")
_QUOTED: Final = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_VIEWS: Final = {
    **dict.fromkeys(("pa", "postero anterior", "posteroanterior", "posterior anterior", "frontal pa"), "PA"),
    **dict.fromkeys(
        (
            *("ap", "antero posterior", "anteroposterior", "ap supine", "aps"),
            *("ap erect", "ap semi erect", "ap horizontal", "ap portable", "portable ap"),
        ),
        "AP",
    ),
    **dict.fromkeys(
        (
            *("l", "lat", "lateral", "ll", "rl", "left lateral", "right lateral", "l lateral"),
            *("latero lateral", "lld", "rld"),
        ),
        "lateral",
    ),
}
_SPLITS: Final = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "held out", "heldout"), "test"),
}


def as_text(value: Any) -> str:
    """A cell as text: missing is empty, a whole number in a column of fractions loses its `.0`."""
    if is_missing(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip()
    return str(value).strip()


def as_fraction(value: Any) -> float | None:
    """A number of a cell; None where it is missing or none."""
    try:
        number = float(as_text(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def as_whole(value: Any) -> int | None:
    """A whole number that fits 32 bits, also where it is written `45.0`; None where the cell is none."""
    number = as_fraction(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 1 << 31 else None


def as_view(value: Any) -> str:
    """PA, AP, lateral or unknown, from the usual spellings (DICOM's View Position, tables' words)."""
    return _VIEWS.get(_words(as_text(value)), "unknown")


def as_split(value: Any) -> str | None:
    """train, val or test from the usual spellings; None where it is none of these."""
    return _SPLITS.get(_words(as_text(value)))


def split_in_name(stem: str) -> str | None:
    """The split that a file's name says, such as `cxr-train`; None where it says none, or two."""
    found = {_SPLITS[word] for word in _words(stem).split() if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def as_labels(value: Any, separators: str, nothing_found: Collection[str]) -> tuple[str, ...] | None:
    """Labels of a cell that is a list or separated text: None where missing, empty where nothing was found.

    `nothing_found` are the labels (any case) that mean so. Order is kept, repetitions are not.
    """
    if isinstance(value, list | tuple):
        parts: Iterable[str] = (as_text(part) for part in value)
    elif is_missing(value):
        return None
    else:
        parts = (part.strip() for part in re.split("[" + re.escape(separators) + "]", str(value)))
    nothing = {label.strip().lower() for label in nothing_found}
    return tuple(dict.fromkeys(part for part in parts if part and part.lower() not in nothing))


def as_quoted_list(text: str) -> tuple[str, ...] | None:
    """The list that Python prints of texts, such as `['pleural effusion', "Kerley's lines"]`.

    Blank entries and `nan` are left out, repetitions too. None where the cell is missing or no such list;
    nothing is evaluated.
    """
    if is_missing(text) or not _QUOTED_LIST.fullmatch(text.strip()):
        return None
    parts = (single or double for single, double in _QUOTED.findall(text))
    return tuple(dict.fromkeys(part.strip() for part in parts if not is_missing(part)))


def _words(text: str) -> str:
    return _NOT_LETTER_OR_DIGIT.sub(" ", text.lower()).strip()
