"""The sections of a radiology report: where each begins and ends, findings and impression apart.

Decisions: a heading is one of a closed list of names, so that `LUNGS:` or `HEART:` inside the findings
never ends them. It stands at the start of a line (any case, with a colon, a dash in capitals, or alone on
the line) or, in reports flattened to one line, inside it: in capitals with a colon, or capitalised with
a colon, after the end of a sentence or, for the names that mean nothing else, anywhere. Sections are spans
into the unchanged text. Repeated findings or impressions (two studies, an addendum's own) are joined in
order, a literal repetition once; an addendum, a wet read or a notification ends the section before it and
is never part of findings or impression. A report with headings but neither of the two has its findings
in the text that stands under no heading, where there is one: the paragraph after `COMPARISON: None.` in
much hospital text. A report without any heading stays one `body`. De-identification marks (`XXXX`, `___`)
stay in the stored text; the model reads each run of them as one `XXXX`, so that a blacked-out name costs
one token and never looks like several words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MARK: Final = "XXXX"
"""The one form in which the model reads a de-identification mark."""

_HEADINGS: Final[dict[str, str]] = {
    "findings": r"findings?(?:\s*(?:and|/|&)\s*impressions?)?|observations?|description",
    "impression": r"(?:final\s+)?impressions?(?:\s*(?:and|/|&)\s*recommendations?)?|conclusions?|opinion|"
    r"(?:final\s+|radiological\s+)?diagnosis|interpretation|summary|assessment",
    "indication": r"(?:clinical\s+)?indications?(?:\s+for\s+(?:the\s+)?(?:exam(?:ination)?|study))?|"
    r"reason\s+for\s+(?:the\s+)?(?:exam(?:ination)?|study)|clinical\s+(?:information|question|data|statement)|"
    r"history\s+and\s+indication|indication/history",
    "history": r"(?:clinical\s+|patient\s+|relevant\s+|medical\s+)?history",
    "comparisons": r"comparisons?(?:\s+(?:studies|study|exams?|made|films?))?|"
    r"prior\s+(?:studies|study|exams?)",
    "technique": r"techniques?|procedure|protocol|views?|projections?",
    "examination": r"(?:type\s+of\s+)?exam(?:ination)?s?(?:\s+type)?|study|exam\s+date",
    "recommendation": r"recommendations?|advice",
    "addendum": r"addend(?:um|a)(?:\s*(?:#|no\.?|number)?\s*\d+)?",
    "wet_read": r"wet\s+read(?:ing)?|"
    r"preliminary\s+(?:report|read(?:ing)?|interpretation|findings|impression)",
    "notification": r"notifications?|communication|critical\s+results?(?:\s+communication)?",
    "final_report": r"final\s+report",
    "signature": r"(?:electronically\s+)?signed(?:\s+by)?|dictated\s+by|attending|transcriptionist|"
    r"attestation",
}
_CANONICAL: Final = {"comparisons": "comparison"}
_UNMISTAKABLE: Final = frozenset({"findings", "impression", "indication", "comparison", "technique"})
"""Names that, capitalised and with a colon, are headings even where no sentence ended before them."""

SECTION_NAMES: Final = (*(_CANONICAL.get(name, name) for name in _HEADINGS), "body")
"""Every name a section may have; `body` is text under no heading."""

_NAMES: Final = "|".join(f"(?P<{name}>{pattern})" for name, pattern in _HEADINGS.items())
_TITLE: Final = r"[A-Z0-9 ,&/()\-]{0,50}\b(?:CHEST|RADIOGRAPHS?|X-?RAYS?|VIEWS?)\b[A-Z0-9 ,&/()\-]{0,50}"
_AT_LINE_START: Final = re.compile(
    rf"^[ \t]*(?:[*#>_]{{1,3}}[ \t]*)?(?:(?i:{_NAMES}))[ \t]*(?:[*_]{{1,3}})?"
    r"(?:[ \t]*:[*_]{0,3}|(?P<alone>[ \t]*(?=\r?\n|\Z))|(?P<dash>[ \t]+[-\N{EN DASH}\N{EM DASH}]+(?=\s)))",
    re.MULTILINE,
)
_TITLE_AT_LINE_START: Final = re.compile(rf"^[ \t]*{_TITLE}[ \t]*:", re.MULTILINE)
_INSIDE_LINE: Final = re.compile(rf"(?<=[\s.;,)])(?:(?i:{_NAMES}))[ \t]*:")
_SENTENCE_END: Final = re.compile(r"[.;:!?)\]][ \t]*\Z|[ \t]{2}\Z")
_BLANK_LINE: Final = re.compile(r"\n[ \t]*\r?\n")
_ENDS_AT_BLANK_LINE: Final = frozenset(
    {"indication", "history", "comparison", "technique", "examination", "notification", "wet_read"}
)
_MARKS: Final = re.compile(r"\bX{3,}\b|_{3,}|\[\*\*[^\n*]{0,80}\*\*\]")
_MARK_RUNS: Final = re.compile(rf"(?:{_MARKS.pattern})(?:[\s,/]*(?:{_MARKS.pattern}))*")


@dataclass(frozen=True)
class Section:
    """One section: `text[start:end]` is what it says, `text[heading_start:start]` its heading.

    The span is stripped of white space at both ends; offsets are Python's (code points).
    """

    name: str
    start: int
    end: int
    heading_start: int


@dataclass(frozen=True)
class ParsedReport:
    """A report's sections in the order of the text, and the two that the model reads."""

    sections: tuple[Section, ...]
    findings: str
    impression: str

    @property
    def has_headings(self) -> bool:
        """Whether any heading was recognised."""
        return any(section.name != "body" for section in self.sections)

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Name, start and end of every section."""
        return [(section.name, section.start, section.end) for section in self.sections]


def parse_sections(text: str) -> ParsedReport:
    """Find the sections of a report; see the module's docstring for what counts as a heading.

    Example:
        >>> parse_sections("FINDINGS: Clear lungs. IMPRESSION: Normal.").impression
        'Normal.'
    """
    headings = _headings(text)
    describes = any(name in ("findings", "impression") for name, _, _ in headings)
    sections: list[Section] = []
    first = headings[0][1] if headings else len(text)
    _append_body(sections, text, 0, first)
    for index, (name, heading_start, start) in enumerate(headings):
        end = headings[index + 1][1] if index + 1 < len(headings) else len(text)
        if name == "final_report":
            content_end = start  # a frame around the report: what follows it under no heading is body
        elif not describes and name in _ENDS_AT_BLANK_LINE:
            content_end = _paragraph_end(text, start, end)
        else:
            content_end = end
        begin, stop = _stripped(text, start, content_end)
        sections.append(Section(name, begin, stop, heading_start))
        _append_body(sections, text, content_end, end)
    findings = _joined(text, sections, "findings")
    impression = _joined(text, sections, "impression")
    if headings and not findings and not impression:
        findings = _joined(text, sections, "body")
    return ParsedReport(tuple(sections), findings, impression)


def collapse_marks(text: str) -> str:
    """The text with every run of de-identification marks written as one `XXXX`.

    Example:
        >>> collapse_marks("Dated XXXX, XXXX XXXX at ___.")
        'Dated XXXX at XXXX.'
    """
    if "XXX" not in text and "___" not in text and "[**" not in text:
        return text
    return _MARK_RUNS.sub(MARK, text)


def _headings(text: str) -> list[tuple[str, int, int]]:
    """(name, start of the heading, start of its content), in order, none overlapping."""
    found: dict[int, tuple[str, int, int]] = {}
    for match in _AT_LINE_START.finditer(text):
        label = text[match.start() : match.end()]
        if match["dash"] is not None and not _in_capitals(label):
            continue
        if match["alone"] is not None and not _stands_alone(label):
            continue
        start = match.start() + len(label) - len(label.lstrip())
        found[start] = (_name(match), start, match.end())
    for match in _INSIDE_LINE.finditer(text):
        label, name = match.group(), _name(match)
        before = text[max(0, match.start() - 3) : match.start()]
        plain = name in _UNMISTAKABLE or _SENTENCE_END.search(before) is not None
        if _in_capitals(label) or (label[0].isupper() and plain):
            found.setdefault(match.start(), (name, match.start(), match.end()))
    ordered: list[tuple[str, int, int]] = []
    for heading in (found[start] for start in sorted(found)):
        if not ordered or heading[1] >= ordered[-1][2]:
            ordered.append(heading)
    return _with_titles(text, ordered)


def _with_titles(text: str, headings: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Add titles such as `CHEST, TWO VIEWS:` that stand before the first findings or impression.

    Under a title that no findings heading follows stand the findings; further down, `CHEST:` is one
    region among others and ends nothing.
    """
    found_findings = any(name == "findings" for name, _, _ in headings)
    limit = min((at for name, at, _ in headings if name in ("findings", "impression")), default=len(text))
    kept = list(headings)
    titles: list[tuple[str, int, int]] = []
    for match in _TITLE_AT_LINE_START.finditer(text, 0, limit):
        at = match.start() + len(match.group()) - len(match.group().lstrip())
        inside = [heading for heading in kept if at <= heading[1] < match.end()]
        if all(at < other and name == "technique" for name, other, _ in inside):  # the `VIEWS:` of the title
            kept = [heading for heading in kept if heading not in inside]
            titles.append(("examination" if found_findings else "findings", at, match.end()))
    return sorted((*kept, *titles), key=lambda heading: heading[1])


def _name(match: re.Match[str]) -> str:
    name = next(name for name in _HEADINGS if match[name] is not None)
    return _CANONICAL.get(name, name)


def _in_capitals(label: str) -> bool:
    return any(letter.isalpha() for letter in label) and label == label.upper()


def _stands_alone(label: str) -> bool:
    """A bare line is a heading in capitals or capitalised, not a word of prose broken onto its own line."""
    return label.strip(" \t*#>_")[:1].isupper()


def _append_body(sections: list[Section], text: str, start: int, end: int) -> None:
    start, end = _stripped(text, start, end)
    if start < end:
        sections.append(Section("body", start, end, start))


def _paragraph_end(text: str, start: int, end: int) -> int:
    """Where the first paragraph of `text[start:end]` ends."""
    begin, stop = _stripped(text, start, end)
    blank = _BLANK_LINE.search(text, begin, stop)
    return end if blank is None else blank.start()


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends; an empty one stays at `start`."""
    content = text[start:end].strip()
    if not content:
        return start, start
    begin = end - len(text[start:end].lstrip())
    return begin, begin + len(content)


def _joined(text: str, sections: list[Section], name: str) -> str:
    parts = (text[section.start : section.end] for section in sections if section.name == name)
    return "\n".join(dict.fromkeys(part for part in parts if part))
