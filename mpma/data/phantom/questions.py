"""Questions with known answers: presence, side, location, size and count.

Decisions: closed questions (yes or no) are drawn half from what is there and half from what is not;
open ones only ask what the truth tells. Answers list every accepted form, the plainest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mpma.data.phantom.draws import Draws
from mpma.data.phantom.findings import KINDS, SIDED_KINDS, Description

NAMES: Final = {
    "nodule": "lung nodule",
    "consolidation": "consolidation",
    "effusion": "pleural effusion",
    "pneumothorax": "pneumothorax",
    "elevated_diaphragm": "raised hemidiaphragm",
    "atelectasis": "band of atelectasis",
    "rib_fracture": "rib fracture",
    "cardiomegaly": "enlarged heart",
    "interstitial_pattern": "interstitial pattern",
    "endotracheal_tube": "endotracheal tube",
    "pacemaker": "pacemaker",
    "central_line": "central venous line",
}
"""How questions call each kind."""


@dataclass(frozen=True)
class Question:
    """One question of an image."""

    question: str
    answers: tuple[str, ...]
    """Accepted answers, the plainest first."""
    type: str
    """`closed` (yes or no) or `open`."""
    topic: str
    """`presence`, `side`, `location`, `size` or `count`."""


def ask(description: Description, draws: Draws) -> tuple[Question, ...]:
    """The pair's questions; `draws` is any stream of the pair."""
    questions: list[Question] = []
    present = [kind for kind in KINDS if description.of_kind(kind)]
    absent = [kind for kind in KINDS if not description.of_kind(kind)]
    asked = draws.shuffled(present)[:2] + draws.shuffled(absent)[:2]
    for kind in asked:
        answer = "yes" if kind in present else "no"
        article = "an" if NAMES[kind][0] in "aeiou" else "a"
        questions.append(Question(f"Is there {article} {NAMES[kind]}?", (answer,), "closed", "presence"))
    kind = draws.choice(SIDED_KINDS)
    side = draws.choice(("left", "right"))
    answer = "yes" if any(finding.side == side for finding in description.of_kind(kind)) else "no"
    questions.append(Question(f"Is there a {side} {NAMES[kind]}?", (answer,), "closed", "presence"))
    for finding in description.findings:
        name = NAMES[finding.kind]
        if finding.side:
            questions.append(
                Question(
                    f"On which side is the {name}?", (finding.side, f"{finding.side} side"), "open", "side"
                )
            )
        if finding.kind in ("nodule", "consolidation", "atelectasis"):
            place = f"{finding.side} {finding.zone} zone"
            answers = (place, f"{finding.side} {finding.zone} lung")
            questions.append(Question(f"Where is the {name}?", answers, "open", "location"))
        if finding.kind == "nodule":
            size = finding.millimetres
            questions.append(Question(f"How large is the {name}?", (f"{size} mm",), "open", "size"))
        elif finding.grade:
            questions.append(
                Question(f"How large or severe is the {name}?", (finding.grade,), "open", "size")
            )
    nodules = sum(finding.count for finding in description.of_kind("nodule"))
    words = ("none", "one", "two", "three")[nodules]
    questions.append(Question("How many lung nodules are there?", (str(nodules), words), "open", "count"))
    return tuple(questions)
