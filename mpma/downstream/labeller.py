"""Findings that a report's text affirms, doubts, denies or does not name; by rules, for the clinical F1.

Decisions:
- Rules instead of a model: they need no weights, run in milliseconds and say why. What they get wrong is
  measured on reports whose findings are known (docs/labeller.md).
- Only findings and impression are read: an indication (`rule out pneumonia`) says nothing of the image.
- Of several mentions the strongest decides: present, then uncertain, then absent.
- An uncertain finding counts as positive: a report that doubts it has seen something, and the phantom's
  hedged findings are in the image. The other choice is measured in docs/labeller.md as well.
- `No Finding` is present where a text says something and no finding other than support devices is present
  or uncertain.
- The side of a sided finding is the nearest one named in its sentence, both where it says `bilateral`.
  Without a side, an affirmed finding belongs to no label, and a denied one is denied on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from mpma.data.sections import parse_sections
from mpma.downstream.assertion import STRENGTH, Mention, Sentence, sentences
from mpma.downstream.finding_rules import (
    CHEST,
    CHEST_NAMES,
    NO_FINDING,
    PHANTOM,
    PHANTOM_NAMES,
    SUPPORT_DEVICES,
    FindingRule,
)

__all__ = ["Labeller", "Mention", "labeller"]

_POSITIVE: Final = frozenset({Mention.PRESENT, Mention.UNCERTAIN})
_SIDE: Final = re.compile(r"\b(?:(left)|(right)|bilateral(?:ly)?|both|bibasilar)\b")
_FLAT_HEADING: Final = re.compile(
    r"\b(?:(?P<read>findings?|impressions?|conclusions?|opinion)"
    r"|(?:clinical )?(?:indications?|history)|comparisons?|technique"
    r"|reason for (?:the )?(?:exam|study)\w*)\s*:",
    re.IGNORECASE,
)
"""Headings as a decoder of lower-case text writes them, in one line."""

_KEPT_SENTENCES: Final = 65_536

Claims = tuple[tuple[str, Mention], ...]


class Labeller:
    """Reads findings from the text of reports; `labeller(kind)` makes one."""

    def __init__(self, names: Sequence[str], rules: Sequence[FindingRule]) -> None:
        self.names = tuple(names)
        """Labels, in the order of the arrays' columns."""
        self._rules = tuple(rules)
        # Reports repeat their sentences.
        self._claims = lru_cache(maxsize=_KEPT_SENTENCES)(self._claims_of)

    def label(self, text: str) -> dict[str, Mention]:
        """What the text says of each of `names`."""
        found = dict.fromkeys(self.names, Mention.NOT_MENTIONED)
        said_something = False
        for sentence in sentences(_described(text)):
            said_something = True
            for name, mention in self._claims(sentence):
                if STRENGTH[mention] > STRENGTH[found[name]]:
                    found[name] = mention
        if NO_FINDING in found and said_something:
            others = (found[name] for name in self.names if name not in (NO_FINDING, SUPPORT_DEVICES))
            abnormal = any(mention in _POSITIVE for mention in others)
            found[NO_FINDING] = Mention.ABSENT if abnormal else Mention.PRESENT
        return found

    def positives(self, texts: Sequence[str], *, uncertain: bool = True) -> NDArray[np.bool_]:
        """bool [n, L]: findings that each of n texts affirms, or doubts where `uncertain`."""
        positive = _POSITIVE if uncertain else frozenset({Mention.PRESENT})
        rows = [[mention in positive for mention in self.label(text).values()] for text in texts]
        return np.array(rows, dtype=np.bool_).reshape(len(rows), len(self.names))

    def _claims_of(self, text: str) -> Claims:
        """What one sentence says, strongest or not, of the labels it names."""
        sentence: Sentence | None = None
        claims: list[tuple[str, Mention]] = []
        for rule in self._rules:
            if rule.normal is not None and rule.normal.search(text):
                claims += [(label, Mention.ABSENT) for label in rule.labels]
            for match in rule.mention.finditer(text):
                sentence = sentence or Sentence(text)
                mention = sentence.claim(*match.span())
                claims += [(label, mention) for label in _labels_of(rule, text, match, mention)]
        return tuple(claims)


def labeller(kind: Literal["chest", "phantom"]) -> Labeller:
    """`chest`: 14 observations in CheXpert's naming. `phantom`: the labels of the synthetic pairs.

    Raises ValueError for another kind.

    Example:
        >>> labeller("phantom").label("No pneumothorax. Possible small left effusion.")["left_effusion"]
        <Mention.UNCERTAIN: 'uncertain'>
    """
    if kind == "chest":
        return Labeller(CHEST_NAMES, CHEST)
    if kind == "phantom":
        return Labeller(PHANTOM_NAMES, PHANTOM)
    raise ValueError(f"no labeller of {kind!r}: chest or phantom")


def _described(text: str) -> str:
    """Findings and impression, or all of a text without headings."""
    parsed = parse_sections(text)
    named = any(section.name in ("findings", "impression") for section in parsed.sections)
    flat = any(heading["read"] for heading in _FLAT_HEADING.finditer(text))
    if parsed.has_headings and (named or not flat):
        text = f"{parsed.findings}\n\n{parsed.impression}"
    return "\n\n".join(_read_parts(text))


def _read_parts(text: str) -> Iterator[str]:
    start, read = 0, True
    for heading in _FLAT_HEADING.finditer(text):
        if read:
            yield text[start : heading.start()]
        start, read = heading.end(), heading["read"] is not None
    if read:
        yield text[start:]


def _labels_of(rule: FindingRule, text: str, match: re.Match[str], mention: Mention) -> tuple[str, ...]:
    if not rule.sided:
        return rule.labels
    sides = list(_SIDE.finditer(text))
    if not sides:
        return rule.labels if mention is Mention.ABSENT else ()
    nearest = min(sides, key=lambda side: max(side.start() - match.end(), match.start() - side.end(), 0))
    left, right = rule.labels
    if nearest[1]:
        return (left,)
    return (right,) if nearest[2] else (left, right)
