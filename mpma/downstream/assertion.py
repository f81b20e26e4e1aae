"""What a sentence of a report claims of something it names: that it is there, is not, or may be.

Decisions:
- A sentence is read by cues and their scopes, after NegEx and ConText: a cue before a mention (`no`, `may
  represent`) reaches forward, a cue after it (`is not seen`, `cannot be excluded`) reaches back, and neither
  beyond a word that turns the sentence (`but`, `there is`) or the end of the sentence.
- A list keeps its negation: after `no A, B or C` all three are denied. Where no `or` follows, a comma,
  `and` or `with` before a word that describes something seen (`small`, `stable`, `left`) or before a clause
  with its own verb ends it: `no pneumothorax, small left effusion` affirms the effusion.
- Denial outweighs doubt: `no opacity to suggest pneumonia` denies both. `Unlikely` and `resolved` deny.
- `No change in` and the like look like denials and are none. What is only looked for or lies in the past
  (`evaluate for`, `history of`) is not claimed at all.

Sources: W. W. Chapman et al., J Biomed Inform 34 (2001), and H. Harkema et al., J Biomed Inform 42 (2009),
for the idea of cues and scopes; the lists of cues are this project's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Mention(Enum):
    """What a text says of a finding."""

    PRESENT = "present"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"
    NOT_MENTIONED = "not mentioned"


STRENGTH: Final = {
    Mention.NOT_MENTIONED: 0,
    Mention.ABSENT: 1,
    Mention.UNCERTAIN: 2,
    Mention.PRESENT: 3,
}
"""Which of several mentions of a finding decides: the strongest."""

_SEEN: Final = (
    r"(?:seen|identified|present|visuali[sz]ed|evident|demonstrated|noted|appreciated|detected|observed|found"
    r"|apparent|visible|suggested|shown|confirmed)"
)
_BE: Final = r"(?:is|are|was|were|be|been|has been|have been)"
_FULLY: Final = (
    r"(?:entirely |completely |definitely |definitively |totally |fully |also |clearly |reliably )*"
)
_DESCRIBED: Final = (
    r"(?:small|mild|mildly|minimal|moderate|moderately|severe|marked|trace|tiny|subtle|borderline|slight|slightly"
    r"|stable|unchanged|persistent|residual|increas\w+|decreas\w+|improv\w+|worsen\w*|prominent|calcified"
    r"|chronic|old|healed|healing|low|left|right|bilateral|bibasilar|basilar|scattered|patchy|diffuse|multiple"
    r"|linear|streaky|again|status|possible|possibly|probable|probably|likely|questionable|suspected)"
)

_CUES: Final = {
    # Look like denials and are none.
    "nothing": r"\bno (?:(?:significant|interval|appreciable|substantial|acute|definite|other|new|major) )*"
    r"(?:changes?|increase|decrease|difference|progression|worsening|improvement)\b(?: (?:in|of|from)\b)?"
    r"|\bnot (?:(?:significantly|appreciably|substantially) )?(?:changed|increased|decreased|improved)\b"
    r"|\bwithout (?:(?:significant|interval|appreciable|substantial) )*change\b"
    r"|\bnot only\b|\bno (?:prior|previous|comparison)\b"
    rf"|\bnot (?:well|optimally|fully|completely|adequately) {_SEEN}",
    # Doubt, after what it doubts.
    "doubt_after": rf"\b(?:can ?not|can't|could not|may not) be {_FULLY}(?:excluded|ruled out)\b"
    rf"|(?:\b{_BE} )?\bnot {_FULLY}(?:excluded|ruled out)\b|\bdifficult to (?:exclude|rule out)\s*$"
    rf"|\b{_BE} (?:also |less )?(?:possible|probable|suspected|questioned|considered|likely"
    r"|a (?:possibility|consideration|concern))(?=\s*(?:$|[,.)]|and\b|or\b|given\b|in\b|but\b))"
    r"|\b(?:should|may|could|might) (?:also )?be considered\b|\b(?:may|might|could) be present\b"
    r"|\b(?:would be|is) difficult to exclude\b",
    # Not looked for well enough, after what might be there.
    "hypothesis_after": rf"\b(?:may|might|could) (?:not be {_SEEN}|be (?:obscured|missed))\b",
    # Doubt, before what it doubts.
    "doubt": rf"\b(?:can ?not|can't|could not|does not|do not|not) {_FULLY}(?:exclude|rule out|excluding)\b"
    r"|\bdifficult to (?:exclude|rule out)\b"
    r"|\b(?:may|might|could|can) (?:\w+ )?(?:be|represent|reflect|indicate|suggest|relate|correspond)\b"
    r"|\bpossibl[ey]\b|\bpossibility of\b|\bprobabl[ey]\b|\bquestion(?:able)?(?: of)?\b|\bequivocal\b"
    r"|\bsuspect(?:ed)?\b|\bsuspicious for\b|\bsuspicion (?:of|for)\b|\bconcern(?:ing)? for\b"
    r"|\bworrisome for\b|\bsuggest(?:s|ed|ing|ive)?(?: of)?\b|\b(?:most |more |less )?likely\b"
    r"|\bpresum(?:ed|ably|ptive)\b"
    r"|\bpotential(?:ly)?\b|\bdifferential (?:diagnos[ie]s )?(?:includes?|considerations?)?",
    "either": r"\bversus\b|\bvs\b",
    # Looked for, or past.
    "hypothesis": r"\b(?:to |for )?(?:evaluat\w*|assess\w*|screening|survey|follow[- ]?up|exam\w*) for\b"
    r"|\b(?:to )?rule out\b|\br/o\b|\bto exclude\b|\bfor exclusion of\b"
    r"|\b(?:history|hx) of\b|\bh/o\b|\bclinical (?:concern|suspicion|question) (?:for|of)\b"
    r"|\b(?:could|may|might|can) obscure\b"
    r"|\bif (?:there is |there are )?(?:\w+ )?(?:concern|suspicion|suspected)\b(?: for| of)?",
    # Denial, after what it denies.
    "denial_after": rf"\b{_BE} (?:\w+ )?(?:not|no longer) (?:\w+ )?{_SEEN}\b"
    rf"|\b(?:not|no longer) (?:\w+ly )?{_SEEN}\b"
    rf"|\b(?:{_BE} |has |have )?(?:\w+ly |now |since |otherwise )*(?:resolved|cleared)(?=\s*(?:$|[,.)]|and\b"
    r"|since\b|in\b|compared\b|from\b|on\b|with\b|now\b))"
    rf"|\b{_BE} (?:\w+ly |now |since )?(?:unlikely|excluded|ruled out|absent|removed|negative|withdrawn)\b"
    r"|\b(?:is|are|appears?|remains?) within (?:normal limits|(?:the )?limits of normal)\b"
    r"|\b(?:unlikely|absent|none seen|none)\s*$|\bno longer\b",
    # Denial of what follows, a few words long.
    "denial_near": r"\bnot\b|\bisn't\b|\baren't\b|\bresolved\b|\bunlikely\b",
    # Denial of what follows.
    "denial": r"\bno\b|\bwithout\b|\b(?:free|clear|devoid) (?:of|from)\b|\bnegative (?:for|of)\b"
    r"|\babsence of\b|\black of\b|\bneither\b|\bnor\b|\bnone of\b|\bexclud(?:es|ing)\b|\brules out\b"
    r"|\b(?:not|n't) (?:show|demonstrate|reveal|have|contain|see|identify|visuali[sz]e|appreciate|suggest)\b"
    r"|\bfail\w* to (?:show|demonstrate|reveal)\b|\b(?:resolution|removal) of\b|\brather than\b|\bdenies\b"
    r"|\b(?:does|do) not appear to (?:be|represent)\b",
    # The sentence turns.
    "turn": r"\bbut\b|\bhowever\b|\balthough\b|\b(?:even )?though\b|\bexcept(?:ing)?\b"
    r"|\b(?:aside|apart) from\b|\bother than\b|\bbesides\b|\bwhereas\b|\bwhile\b|\bnevertheless\b|\byet\b"
    r"|\bwith the exception of\b|\bthere (?:is|are|was|were|has been|have been)\b|[;:]",
    # The sentence turns unless a list goes on.
    "restart": r"(?:,|\band\b|\bwith\b|\s-\s)\s*(?:and |with )*(?:a |an |the |some )?"
    rf"(?=(?:\w+ly )?{_DESCRIBED}\b)"
    r"|(?:,|\band\b)\s*(?:and )?(?=(?:the |these |this )?(?:\w+ ){1,4}?"
    r"(?:is|are|remains?|appears?|has|have|shows?|demonstrates?) "
    rf"(?!not\b|no\b|now\b|been\b|resolved|cleared|absent|unlikely|{_SEEN}))",
}
_CUE: Final = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _CUES.items()))
_LIST_GOES_ON: Final = re.compile(r"\b(?:or|nor)\b")
_VERB: Final = re.compile(r"\b(?:is|are|was|were|remains?|has|have|shows?|demonstrates?|with)\b")
_NEAR_WORDS: Final = 4

_DECIMAL: Final = re.compile(r"(\d) ?\. ?(?=\d)")
_SPACE: Final = re.compile(r"\s+")
_SENTENCE_END: Final = re.compile(
    r"(?<!\bdr)(?<!\bvs)\s*[.!?]+(?=\s|$|[a-z]{2})|\n\s*\n|\n(?=\s*(?:[-*\u2022]|\d+[.)]))"
)


@dataclass(frozen=True)
class _Cue:
    kind: str
    start: int
    end: int


class Sentence:
    """A sentence in lower case, with its cues; says what it claims of a span."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = [_Cue(str(match.lastgroup), *match.span()) for match in _CUE.finditer(text)]
        turns = [cue.start for cue in found if cue.kind == "turn"]
        # `or` after a restart, before the sentence turns, shows that the list goes on.
        self._cues = [cue for cue in found if cue.kind != "restart" or not self._list_goes_on(cue, turns)]
        self._turns = [cue.start for cue in self._cues if cue.kind in ("turn", "restart")]

    def claim(self, start: int, end: int) -> Mention:
        """What is claimed of `text[start:end]`; NOT_MENTIONED where it is only looked for or past."""
        denied = doubted = hypothesised = -1
        for cue in self._cues:
            inside = cue.start < end and start < cue.end
            before = cue.end <= start and not self._turned(cue.end, start)
            after = cue.start >= end and not self._turned(end, cue.start)
            if cue.kind == "denial_near":
                near = before and self.text.count(" ", cue.end, start) <= _NEAR_WORDS
                denied = cue.start if inside or near else denied
            elif (cue.kind == "denial" and (inside or before)) or (
                cue.kind == "denial_after" and (inside or (after and self._reaches_back(end, cue)))
            ):
                denied = cue.start
            elif (
                (cue.kind == "doubt" and (inside or before))
                or (cue.kind == "doubt_after" and (inside or (after and self._reaches_back(end, cue))))
                or (cue.kind == "either" and (before or after))
            ):
                doubted = cue.start
            elif (cue.kind == "hypothesis" and before) or (cue.kind == "hypothesis_after" and after):
                hypothesised = cue.start
        if hypothesised >= 0 and hypothesised > denied:
            return Mention.NOT_MENTIONED
        if denied >= 0:
            return Mention.ABSENT
        return Mention.UNCERTAIN if doubted >= 0 else Mention.PRESENT

    def _list_goes_on(self, cue: _Cue, turns: list[int]) -> bool:
        end = min((turn for turn in turns if turn >= cue.end), default=len(self.text))
        return _LIST_GOES_ON.search(self.text, cue.end, end) is not None

    def _turned(self, start: int, end: int) -> bool:
        return any(start <= turn < end for turn in self._turns)

    def _reaches_back(self, end: int, cue: _Cue) -> bool:
        return _VERB.search(self.text, end, cue.start) is None


def sentences(text: str) -> Iterator[str]:
    """The sentences of a report's text, lower case, white space single, without their full stop.

    A decimal point ends no sentence, even where a decoder wrote `4 . 5`; a line break ends one only
    before an empty line or an item of a list.
    """
    joined = _DECIMAL.sub(r"\1.", text.lower().replace("\r\n", "\n"))
    for part in _SENTENCE_END.split(joined):
        sentence = _SPACE.sub(" ", part).strip(" -*\u2022")
        if sentence:
            yield sentence
