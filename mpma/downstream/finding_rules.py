"""The words by which reports name findings: of the chest, and of the synthetic reports.

Decisions:
- A rule is a pattern of mentions and a pattern of sentences that call the organ normal, which deny the
  finding without naming it. Whether a mention affirms or denies is not decided here.
- The 14 observations of the chest bear CheXpert's names, so that figures can be told beside other work's;
  the patterns are this project's own. Calcified granulomas and scars are neither lesions nor opacities, and a
  blunt costophrenic angle alone is no effusion: reports name them as things of their own.
- Support devices are what supports or drains: lines, tubes, drains, shunts, pacemakers, valves, stents.
  Clips, sutures, sternal wires and orthopaedic hardware are none.
- Sided rules serve the synthetic reports, whose labels name the side.

Patterns see lower-case sentences with single spaces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mpma.data.phantom.findings import LABELS, SIDED_KINDS


@dataclass(frozen=True)
class FindingRule:
    """How one finding is named."""

    name: str
    mention: re.Pattern[str]
    normal: re.Pattern[str] | None = None
    """What denies it without naming it."""
    sided: bool = False
    """Whether the labels are `left_NAME` and `right_NAME`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that the rule gives."""
        return (f"left_{self.name}", f"right_{self.name}") if self.sided else (self.name,)


def _rule(name: str, mention: str, normal: str = "", *, sided: bool = False) -> FindingRule:
    return FindingRule(name, re.compile(mention), re.compile(normal) if normal else None, sided)


NO_FINDING: Final = "No Finding"
SUPPORT_DEVICES: Final = "Support Devices"

CHEST_NAMES: Final = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    NO_FINDING,
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    SUPPORT_DEVICES,
)
"""The labels of the chest, in the order of the alphabet."""

_NORMAL: Final = r"(?:\bnormal|\bunremarkable|\bnot enlarged|\bnot widened)\b"
_CLEAR_LUNGS: Final = (
    r"\blungs?\b(?: \w+){0,4}? clear\b|\bclear (?:\w+ )?lungs?\b"
    r"|\blung (?:fields|zones|bases) (?:are )?clear\b"
)

CHEST: Final = (
    _rule(
        "Atelectasis",
        r"\b\w*atelecta\w*|\b(?:lobar|lobe|lung|segmental) collapse\b"
        r"|\bcollapsed? (?:of (?:the )?)?(?:\w+ ){0,3}?(?:lung|lobe)\b",
    ),
    _rule(
        "Cardiomegaly",
        r"\bcardiomegaly\b|\bcardiac enlargement\b"
        r"|\benlarge(?:d|ment)(?: of)?(?: the)? (?:heart|cardiac|cardiopericardial|cardiomediastinal)\b"
        r"|\b(?:heart|cardiac|cardiopericardial|cardiomediastinal silhouette|ventric\w+)\b[^,;]{0,50}?"
        r"\b(?:enlarged|enlargement)\b|\bborderline (?:heart|cardiac)\b"
        r"|\b(?:heart|cardiac silhouette)(?: (?:size|is|remains|appears|again|xxxx|\w+ly))*"
        r" (?:large|borderline)\b",
        rf"\b(?:heart|cardi\w+)\b[^;]{{0,70}}?{_NORMAL}|\bnormal (?:\w+ )?(?:heart|cardi\w+)",
    ),
    _rule("Consolidation", r"\bconsolidat\w*", _CLEAR_LUNGS),
    _rule(
        "Edema",
        r"(?<!tissue )(?<!subcutaneous )(?<!leg )\bo?edema\b|\bcongesti(?:on|ve)\b|\bheart failure\b|\bchf\b"
        r"|\b(?:fluid|volume) overload\b|\bengorge\w+|\bcephali[sz]ation\b"
        r"|\bvascula\w+ (?:redistribution|prominence)\b|\bincreased (?:lung|pulmonary) vascula\w+"
        r"|\bprominen\w+ (?:of the )?(?:central )?(?:pulmonary )?vascula\w+",
        rf"\bpulmonary vascula\w+\b[^;]{{0,60}}?{_NORMAL}",
    ),
    _rule(
        "Enlarged Cardiomediastinum",
        r"\b(?:widen\w*|enlarge\w*|prominen\w+)(?: of)?(?: the)? (?:\w+ )?(?:cardio)?mediastin\w+"
        r"|\b(?:cardio)?mediastin\w+(?: \w+){0,4}? (?:widen\w*|enlarge\w*|prominen\w+)\b",
        rf"\b(?:cardio)?-?mediastin\w+[^;]{{0,70}}?{_NORMAL}|\bnormal (?:\w+ ){{0,3}}(?:cardio)?mediastin\w+",
    ),
    _rule("Fracture", r"\bfractur\w*", r"\b(?:bon\w+|osseous \w+|ribs?)\b[^;]{0,30}? intact\b"),
    _rule(
        "Lung Lesion",
        r"\bnodul\w+|(?<!tissue )(?<!wall )(?<!mediastinal )(?<!thyroid )(?<!pericardial )"
        r"\bmass(?:es)?\b(?! effect)"
        r"|\bneoplas\w+|\bcarcinoma\b|\bmalignan\w+|\btumou?rs?\b|\bmetasta\w+|\bcavit(?:ary|ation)\w*"
        r"|\b(?:lung|pulmonary|parenchymal) lesions?\b",
    ),
    _rule(
        "Lung Opacity",
        r"\b\w*opaci\w+|\binfiltrat\w*|\bair[- ]?space (?:disease|process)\w*|(?<!bone )\bdensit(?:y|ies)\b"
        r"|\binterstitial (?:\w+ )?(?:markings?|disease|pattern|prominence|thickening|changes?)\b",
        _CLEAR_LUNGS,
    ),
    _rule(
        "Pleural Effusion",
        r"(?<!pericardial )(?<!joint )\beffusions?\b|\bpleural (?:\w+ )?fluid\b|\bhydro(?:pneumo)?thorax\b"
        r"|\bha?emo(?:pneumo)?thorax\b|\bempyema\b",
        rf"\bpleural spaces?\b[^;]{{0,40}}?(?:clear|{_NORMAL})",
    ),
    _rule(
        "Pleural Other",
        r"\bpleural[- ](?:\w+ ){0,2}?(?:thickening|plaques?|scar\w*|fibros\w+|calcif\w+|mass\w*|reaction)\b"
        r"|\bapical (?:\w+ )?(?:thickening|capping|cap)\b|\bthickening of the pleura|\bfibrothorax\b"
        r"|\bcalcified pleura\w*|\bpleuroparenchymal scar\w*",
    ),
    _rule("Pneumonia", r"\b(?:broncho)?pneumoni\w+|(?<!granulomatous )\binfecti(?:on|ous)\b"),
    _rule("Pneumothorax", r"\b(?:hydro|ha?emo)?pneumothora(?:x|ces)\b|\bptx\b|\bpleural air collections?\b"),
    _rule(
        SUPPORT_DEVICES,
        r"\bcatheters?\b|\b(?:central|venous|subclavian|jugular|picc|ij|access|arterial) lines?\b|\bpicc\b"
        r"|\b\w*port-?a-?cath\w*|\bmediport\b|\bport\b|\bpace(?:maker|r)s?\b|\bpacing\b|\ba?icd\b"
        r"|\bdefibrillators?\b|\btub(?:es?|ing)\b|\bett\b|\btracheostomy\b|\bintubat\w+|\bswan\b|\bstents?\b"
        r"|\b(?:atrial|ventricular) leads?\b|\bstimulators?\b|\bvalv\w+ (?:replacement|prosthes\w+)\b"
        r"|\bprosthetic (?:\w+ )?valves?\b|\bimplant(?:ed|able)? (?:\w+ )?devices?\b|\bdrains?\b|\bshunt\b"
        r"|\bivc filters?\b|\boccluders?\b",
    ),
)
"""Rules of the chest; `No Finding` follows from the others."""

_PHANTOM_PATTERNS: Final = {
    "nodule": (r"\bnodul\w+|\bmass(?:es)?\b", ""),
    "consolidation": (r"\bconsolidations?\b", _CLEAR_LUNGS),
    "effusion": (r"\beffusions?\b", ""),
    "pneumothorax": (r"\bpneumothora(?:x|ces)\b", ""),
    "elevated_diaphragm": (
        r"\b(?:elevat\w+|raised)\b(?: \w+){0,3}? (?:hemi-?)?diaphragms?\b"
        r"|\b(?:hemi-?)?diaphragms?\b(?: \w+){0,3}? (?:elevat\w+|raised)\b",
        "",
    ),
    "atelectasis": (r"\batelecta\w+", ""),
    "rib_fracture": (r"\bfractures?\b", ""),
    "cardiomegaly": (
        r"\bcardiomegaly\b|\bcardiac enlargement\b|\benlarge(?:d|ment)(?: of)?(?: the)? heart\b"
        r"|\bheart (?:size )?(?:is |appears )?(?:not )?(?:\w+ )?enlarged\b",
        r"\bheart (?:size )?(?:is )?normal\b|\bnormal heart\b",
    ),
    "interstitial_pattern": (
        r"\binterstitial (?:pattern|opacit\w+)|\breticular interstitial markings\b",
        r"\binterstitial markings (?:are )?normal\b",
    ),
    "support_device": (
        r"\bendotracheal tubes?\b|\bpacemakers?\b|\bcentral (?:venous )?(?:line|catheter)s?\b",
        "",
    ),
}

PHANTOM: Final = tuple(
    _rule(name, mention, normal, sided=name in SIDED_KINDS)
    for name, (mention, normal) in _PHANTOM_PATTERNS.items()
)
"""Rules of the synthetic reports, which keep to a few words."""

PHANTOM_NAMES: Final = LABELS
