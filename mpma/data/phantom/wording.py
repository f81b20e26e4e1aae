"""From the truth to a report: varied wording, negations, doubt, and sentences that mean nothing.

Decisions: every finding and trait is told, always with all its facts (side, zone, size), so that
what a report tells is known exactly; wording, order, hedging, negations and irrelevant sentences are
drawn independently of the image given the facts, so that the same facts are rarely the same text.
One sentence speaks of one positive fact; a negation never shares a sentence with one. "XXXX" stands
where a de-identifier took a word away. Findings and impression stay near 20 to 45 words.
"""

from __future__ import annotations

from typing import Final

from mpma.data.phantom.draws import Draws
from mpma.data.phantom.findings import Description, Finding

MOST_WORDS: Final = 44

_NUMBERS: Final = {2: "two", 3: "three"}
_RIBS: Final = {3: "third to fifth", 4: "fourth to sixth", 5: "fifth to seventh", 6: "sixth to eighth"}

_POSITIVE: Final[dict[str, tuple[str, ...]]] = {
    "nodule": (
        "there is a {mm} mm {mass} in the {side} {zone} zone",
        "{side} {zone} zone {mass} measuring {mm} mm",
        "a rounded {mm} mm {mass} projects over the {side} {zone} lung",
        "solitary {mm} mm {mass}, {side} {zone} lung",
    ),
    "nodules": (
        "{n} nodules in the {side} {zone} zone, the largest {mm} mm",
        "there are {n} nodules in the {side} {zone} lung measuring up to {mm} mm",
    ),
    "consolidation": (
        "{grade} {side} {zone} zone consolidation",
        "there is a {grade} airspace consolidation in the {side} {zone} lung",
        "{grade} consolidation is seen in the {side} {zone} zone",
        "a {grade} area of patchy consolidation involves the {side} {zone} zone",
    ),
    "effusion": (
        "{grade} {side} pleural effusion",
        "there is a {grade} pleural effusion on the {side}",
        "a {grade} {side} sided effusion is present",
        "{grade} layering effusion at the {side} base",
    ),
    "pneumothorax": (
        "{grade} {side} pneumothorax",
        "there is a {grade} pneumothorax on the {side}",
        "a {grade} {side} sided pneumothorax with visible pleural line",
        "pleural line indicates a {grade} {side} pneumothorax",
    ),
    "elevated_diaphragm": (
        "elevated {side} hemidiaphragm",
        "the {side} hemidiaphragm is raised",
        "elevation of the {side} diaphragm",
    ),
    "atelectasis": (
        "{grade} band of atelectasis in the {side} {zone} zone",
        "{grade} linear atelectasis, {side} {zone} lung",
        "there is {grade} plate-like atelectasis in the {side} {zone} zone",
    ),
    "rib_fracture": (
        "healing fractures of the {side} {rib} ribs",
        "there are fractures of the lateral {side} {rib} ribs with callus",
        "{side} {rib} rib fractures",
    ),
    "cardiomegaly": (
        "{grade} cardiomegaly",
        "there is {grade} enlargement of the heart",
        "the heart is enlarged, {grade}",
        "{grade} cardiac enlargement",
    ),
    "interstitial_pattern": (
        "{grade} interstitial pattern with {zone} predominance",
        "{grade} reticular interstitial markings, {zone} lungs",
        "there are {grade} bilateral interstitial opacities, {zone} predominant",
    ),
    "endotracheal_tube": (
        "endotracheal tube tip {cm} cm above the carina",
        "the endotracheal tube ends {cm} cm above the carina",
        "an endotracheal tube is in place, tip {cm} cm from the carina",
    ),
    "pacemaker": (
        "{side} chest wall pacemaker",
        "pacemaker with generator over the {side} chest",
        "a {side} sided pacemaker is present",
    ),
    "central_line": (
        "{side} central venous line with tip in the superior vena cava",
        "a {side} sided central line is present",
        "{side} subclavian central line in place",
    ),
}

_HEDGES: Final = ("possible {}", "probable {}", "questionable {}", "suspected {}")

_TRAITS: Final[dict[str, tuple[str, ...]]] = {
    "low_volume": ("low lung volumes", "shallow inspiration", "the lungs are poorly inflated"),
    "high_volume": (
        "the lungs are hyperinflated",
        "marked hyperinflation",
        "large lung volumes",
    ),
    "underpenetrated": ("the film is underpenetrated", "underexposed image", "light exposure"),
    "overpenetrated": ("the film is overpenetrated", "overexposed image", "dark exposure"),
    "scoliosis": (
        "scoliosis convex to the {side}",
        "{side} convex scoliosis of the spine",
        "the spine curves to the {side}",
    ),
    "prominent_aorta": (
        "prominent aortic knob",
        "the aorta is tortuous and ectatic",
        "ectatic thoracic aorta",
    ),
    "gastric_distension": ("gaseous distension of the stomach", "the stomach is distended with gas"),
    "large_habitus": ("large body habitus", "abundant soft tissue overlies the chest"),
    "monitoring_leads": ("monitoring leads overlie the chest", "external leads project over the chest"),
}

_ABSENT: Final[dict[str, tuple[str, ...]]] = {
    "nodule": ("no pulmonary nodule or mass", "no suspicious nodule"),
    "consolidation": ("no focal consolidation", "the lungs are clear of consolidation"),
    "effusion": ("no pleural effusion", "the pleural spaces are without effusion"),
    "pneumothorax": ("no pneumothorax", "negative for pneumothorax"),
    "atelectasis": ("no atelectasis", "without atelectasis"),
    "rib_fracture": ("no rib fracture", "no displaced fracture"),
    "cardiomegaly": ("heart size is normal", "no cardiomegaly", "the heart is not enlarged"),
    "interstitial_pattern": ("no interstitial pattern", "interstitial markings are normal"),
}

_PAIRED_ABSENT: Final = (
    "no {} or {}",
    "no evidence of {} or {}",
    "negative for {} and {}",
    "without {} or {}",
)

_PLAIN: Final = {
    "nodule": "nodule",
    "consolidation": "consolidation",
    "effusion": "pleural effusion",
    "pneumothorax": "pneumothorax",
    "atelectasis": "atelectasis",
    "rib_fracture": "rib fracture",
}

_IRRELEVANT: Final = (
    "clinical correlation is advised",
    "the patient is XXXX years old",
    "comparison is made with XXXX",
    "no prior study is available for comparison",
    "unchanged since the study of XXXX",
    "stable compared to XXXX",
    "results were discussed with Dr. XXXX",
    "degenerative changes of the shoulders are not assessed",
    "follow-up is at the discretion of the clinician",
    "frontal view of the chest was obtained",
    "the study is of diagnostic quality",
    "the upper abdomen is partly included",
)

_INDICATIONS: Final = (
    "Chest pain.",
    "Cough.",
    "Shortness of breath.",
    "XXXX-year-old with fever.",
    "Preoperative.",
    "Trauma.",
)

_NOTHING: Final = (
    "No acute cardiopulmonary abnormality.",
    "No acute disease.",
    "Negative chest.",
    "Normal chest without acute findings.",
)

_SHORT: Final = {
    "nodule": "{side} lung {mass}",
    "consolidation": "{side} consolidation",
    "effusion": "{side} effusion",
    "pneumothorax": "{side} pneumothorax",
    "elevated_diaphragm": "{side} diaphragm elevation",
    "atelectasis": "{side} atelectasis",
    "rib_fracture": "{side} rib fractures",
    "cardiomegaly": "cardiomegaly",
    "interstitial_pattern": "interstitial pattern",
    "endotracheal_tube": "endotracheal tube in place",
    "pacemaker": "pacemaker",
    "central_line": "central line",
}


def write_report(description: Description, draws: Draws) -> tuple[str, str, str]:
    """(report, findings, impression) of a description; `draws` is the pair's `wording` stream."""
    told = [_tell(finding, draws) for finding in description.findings]
    told += [draws.choice(_TRAITS[name]).format(side=side) for name, side in description.traits]
    impression = _impression(description, draws)
    words = sum(len(sentence.split()) for sentence in told) + len(impression.split())
    absent = [kind for kind in draws.shuffled(tuple(_ABSENT)) if not description.of_kind(kind)]
    while absent and words < MOST_WORDS - 8 and (words < 20 or draws.chance(0.5)):
        sentence = _deny(absent, draws)
        words += len(sentence.split())
        told.append(sentence)
    if words < MOST_WORDS - 5 and draws.chance(0.55):
        told.append(draws.choice(_IRRELEVANT))
    findings = " ".join(_sentence(text) for text in draws.shuffled(told))
    report = f"FINDINGS: {findings} IMPRESSION: {impression}"
    if draws.chance(0.5):
        report = f"INDICATION: {draws.choice(_INDICATIONS)} {report}"
    if draws.chance(0.4):
        report = f"COMPARISON: {draws.choice(('None.', 'XXXX.', 'Chest radiograph of XXXX.'))} {report}"
    return report, findings, impression


def _tell(finding: Finding, draws: Draws) -> str:
    kind = "nodules" if finding.kind == "nodule" and finding.count > 1 else finding.kind
    text = _fill(draws.choice(_POSITIVE[kind]), finding)
    plain = not text.startswith(("there ", "the ", "a ", "an "))
    if plain and finding.kind in _PLAIN and draws.chance(0.3):
        text = draws.choice(_HEDGES).format(text)
    return text


def _fill(template: str, finding: Finding) -> str:
    return template.format(
        side=finding.side,
        zone=finding.zone,
        grade=finding.grade,
        mm=finding.millimetres,
        cm=finding.millimetres // 10,
        n=_NUMBERS.get(finding.count, ""),
        rib=_RIBS.get(finding.rib, ""),
        mass="nodule" if finding.millimetres <= 30 else "mass",
    )


def _deny(absent: list[str], draws: Draws) -> str:
    kind = absent.pop()
    pairable = [other for other in absent if other in _PLAIN]
    if kind in _PLAIN and pairable and draws.chance(0.55):
        other = pairable[-1]
        absent.remove(other)
        return draws.choice(_PAIRED_ABSENT).format(_PLAIN[kind], _PLAIN[other])
    return draws.choice(_ABSENT[kind])


def _impression(description: Description, draws: Draws) -> str:
    if not description.findings:
        return draws.choice(_NOTHING)
    chosen = draws.shuffled(description.findings)[: 2 if draws.chance(0.7) else 1]
    return " ".join(_sentence(_fill(_SHORT[finding.kind], finding)) for finding in chosen)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
