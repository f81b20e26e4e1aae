"""Which view a DICOM header says a radiograph is.

Decisions: the elements made for it come first, in the order of how much they say: the view position, the
view's code, the patient's orientation in the picture, which tells a lateral but not from which side a frontal
was taken. Words of the series description and the protocol's name are the last resort and count only if they
name one view. Where an element names a view that is none of ours (an oblique), nothing weaker is asked.
Codes: DICOM PS3.16, CID 4010 (SNOMED CT, and the older SNOMED RT that files still use).
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from mpma.data.sources.values import as_view

POSITIONS: Final = frozenset(
    (
        *("PA", "AP", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "RAO", "LAO", "RPO", "LPO", "LAT", "LATERAL"),
        *("OBLIQUE", "AXIAL", "LORDOTIC"),
    )
)
"""View positions that are kept as they are written; any other text of that element is not."""

_CODES: Final = {
    **dict.fromkeys(("272479007", "R-10214", "R-40888"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(
        (
            *("399067008", "R-102CD", "399173006", "R-10236", "399198007", "R-10232"),
            *("399352003", "R-10228", "399260004", "R-10226"),
        ),
        "lateral",
    ),
}
_WORDS: Final = {"pa": "PA", "ap": "AP", "lat": "lateral", "lateral": "lateral", "ll": "lateral"}
_DESCRIPTIONS: Final = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")

TAGS: Final = (0x00185101, 0x00540220, 0x00200020, 0x0008103E, 0x00181030, 0x00181400)
"""Elements that are looked at."""


class View(NamedTuple):
    """A view, and the view position where it is one of the known terms."""

    view: str
    """One of `mpma.data.pairs.VIEWS`."""
    position: str


def view_of(dataset: Any) -> View:
    """The view that a header says."""
    position = " ".join(_text(dataset, "ViewPosition").upper().split())
    known = position if position in POSITIONS else ""
    view = as_view(position)
    if view != "unknown" or known:
        return View(view, known)
    code = _code(dataset)
    if code:
        return View(_CODES.get(code, "unknown"), known)
    if _shows_side(dataset):
        return View("lateral", known)
    words = re.findall(r"[a-z]+", " ".join(_text(dataset, name) for name in _DESCRIPTIONS).lower())
    named = {_WORDS[word] for word in words if word in _WORDS}
    return View(named.pop() if len(named) == 1 else "unknown", known)


def _code(dataset: Any) -> str:
    try:
        return str(dataset.ViewCodeSequence[0].CodeValue).strip()
    except Exception:  # absent, empty, or not to be converted
        return ""


def _shows_side(dataset: Any) -> bool:
    """Whether rows run towards the patient's front or back, and columns along the body."""
    try:
        across, down = (str(value).strip().upper() for value in dataset.PatientOrientation)
    except Exception:
        return False
    return across[:1] in ("A", "P") and down[:1] in ("F", "H")


def _text(dataset: Any, keyword: str) -> str:
    try:
        return str(dataset.get(keyword) or "")
    except Exception:
        return ""
