"""The sections of a radiology report: where each begins and ends, findings and impression apart.

Decisions: a heading is one of a closed list of names, so that `LUNGS:` or `HEART:` inside the findings
never ends them. It stands at the start of a line (any case, with a colon, a dash in capitals, or alone on
the line) or, in reports flattened to one line, inside it: in capitals with a colon, or capitalised with
a colon, after the end of a sentence or, for the names that mean nothing else, anywhere. A number before it
(`3. FINDINGS:`) belongs to it where it could not be a numbered statement. Sections are spans into the
unchanged text. Repeated findings or impressions (two studies, an addendum's own) are joined in order, a
literal repetition once; an addendum, a wet read or a notification ends the section before it and is never
part of findings or impression. Without a heading of findings, they are the text under no heading: all of it
where there is no impression either (the paragraph after `COMPARISON: None.` in much hospital text), else
what stands right before the impression, unless it is a title in capitals. A summary is the impression only
where there is no other, and never where it is a code (`SUMMARY: 2-ABNORMAL`). A report without any heading
stays one `body`; headings of other languages are text like any other, save the French ones beside those
that French shares with English, without which half of such a report would go unread. De-identification
marks (`XXXX`, `___`) stay in the stored text; the model reads each run of them as one `XXXX`, so that a
blacked-out name costs one token and never looks like several words.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Final

MARK: Final = "XXXX"
"""The one form in which the model reads a de-identification mark."""

_S: Final = r"(?:\(s\))?"
_HEADINGS: Final[dict[str, str]] = {
    "findings": rf"findings?{_S}(?:\s*(?:and|/|&)\s*impressions?{_S})?|observations?|description|"
    r"r[ée]sultats?|constatations?",
    "impression": rf"(?:final\s+)?impressions?{_S}(?:\s*(?:and|/|&)\s*recommendations?{_S})?|conclusions?|"
    r"opinion|(?:final\s+|radiological\s+)?diagnosis|interpretation|assessment",
    "indication": r"(?:clinical\s+)?indications?(?:\s+for\s+(?:the\s+|this\s+)?(?:exam(?:ination)?|study))?|"
    r"reason\s+for\s+(?:the\s+|this\s+)?(?:exam(?:ination)?|study)|"
    r"clinical\s+(?:information|question|data|statement)|history\s+and\s+indication|indication/history",
    "history": r"(?:clinical\s+|patient\s+|relevant\s+|medical\s+)?history|"
    r"(?:underlying\s+)?medical\s+condition",
    "comparisons": r"comparisons?(?:\s+(?:studies|study|exams?|made|films?))?|"
    r"prior\s+(?:studies|study|exams?)",
    "technique": r"techniques?|procedure(?:\s+comments?)?|protocol|views?|projections?",
    "examination": r"(?:type\s+of\s+)?exam(?:ination)?s?(?:\s+type)?|study|exam\s+date|"
    r"accession\s+(?:number|no\.?|\#)",
    "recommendation": rf"recommendations?{_S}|advice",
    "addendum": r"addend(?:um|a)(?:\s*(?:#|no\.?|number)?\s*\d+)?",
    "wet_read": r"wet\s+read(?:ing)?(?:\s+version\s*\#?\d+)?|pfi|"
    r"(?:preliminary|provisional)\s+(?:report|read(?:ing)?|interpretation|findings(?:\s+impression)?|"
    r"impression)(?:\s*\(pfi\))?",
    "summary": r"summary",
    "end_of_impression": r"end\s+of\s+(?:impression|report)",
    "narrative": r"narrative",
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
_NUMBER: Final = r"(?P<number>(?:\d{1,2}|[IVX]{1,4})[.)]{1,2}[ \t]+)?"
_AT_LINE_START: Final = re.compile(
    rf"^[ \t]*{_NUMBER}(?:[*#>_]{{1,3}}[ \t]*)?(?:(?i:{_NAMES}))[ \t]*(?:[*_]{{1,3}})?"
    r"(?:[ \t]*:[*_]{0,3}|(?P<alone>[ \t]*(?=\r?\n|\Z))|(?P<dash>[ \t]+[-\N{EN DASH}\N{EM DASH}]+(?=\s))|"
    r"(?P<gap>[ \t]*(?<=[ \t]{2})(?=\S)))",
    re.MULTILINE,
)
# A colon between digits is a time of day: `AP CHEST, 4:12 A.M.`
_TITLE_AT_LINE_START: Final = re.compile(rf"^[ \t]*{_TITLE}[ \t]*:(?!\d)", re.MULTILINE)
_INSIDE_LINE: Final = re.compile(rf"(?<=[\s.;,)]){_NUMBER}(?:(?i:{_NAMES}))[ \t]*:")
_SENTENCE_END: Final = re.compile(r"[.;:!?)\]][ \t]*\Z|[ \t]{2}\Z")
_BLANK_LINE: Final = re.compile(r"\n[ \t]*\r?\n")
_ENDS_AT_BLANK_LINE: Final = frozenset(
    {"indication", "history", "comparison", "technique", "examination", "notification", "wet_read"}
)
_SHORT: Final = frozenset({"comparison", "technique", "examination"})
"""Of these, the ones that one paragraph ends even where an impression follows."""
_FRAMES: Final = frozenset({"final_report", "narrative"})
"""Headings around a whole report: what follows one under no other heading is body."""
_WITHOUT_COLON: Final = frozenset({"addendum", "wet_read"})
"""In capitals and with two blanks behind, headings without a colon: `WET READ VERSION #1  ___ 8:15 PM`."""
_CODE: Final = re.compile(r"\d{1,2}[ \t]*[-\N{EN DASH}]?[ \t]*[A-Z][^a-z\n]*(?:\n|\Z)")
_WORD: Final = re.compile(r"[^\W\d_]{2,}")
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
    names = {name for name, _, _ in headings}
    if "findings" in names:
        paragraphs: frozenset[str] = frozenset()
    else:
        paragraphs = _SHORT if "impression" in names else _ENDS_AT_BLANK_LINE
    sections: list[Section] = []
    first = headings[0][1] if headings else len(text)
    _append_body(sections, text, 0, first)
    for index, (name, heading_start, start) in enumerate(headings):
        end = headings[index + 1][1] if index + 1 < len(headings) else len(text)
        if name in _FRAMES:
            content_end = start
        elif name in paragraphs:
            content_end = _paragraph_end(text, start, end)
        else:
            content_end = end
        begin, stop = _stripped(text, start, content_end)
        sections.append(Section(name, begin, stop, heading_start))
        _append_body(sections, text, content_end, end)
    findings = _joined(text, sections, "findings")
    impression = _joined(text, sections, "impression")
    if headings and not findings:
        findings = _joined(text, _without_heading(text, sections), "body")
    if not impression:
        impression = _joined(text, [one for one in sections if not _is_code(text, one)], "summary")
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
        if match["gap"] is not None and not (_in_capitals(label) and _name(match) in _WITHOUT_COLON):
            continue
        if match["number"] is not None and not _is_numbered_heading(match):
            continue
        start = match.start() + len(label) - len(label.lstrip())
        found[start] = (_name(match), start, match.end())
    for match in _INSIDE_LINE.finditer(text):
        at, name = match.start(), _name(match)
        ended = _SENTENCE_END.search(text[max(0, at - 3) : at]) is not None
        numbered = ended and text[at - 1].isspace() and _is_numbered_heading(match)
        if match["number"] is not None and not numbered:
            at = match.end("number")  # the number ends the sentence before: `in segment 2. IMPRESSION:`
            ended = True
        label = text[at : match.end()]
        if _in_capitals(label) or (label[0].isupper() and (ended or name in _UNMISTAKABLE)):
            found.setdefault(at, (name, at, match.end()))
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
    ordered = sorted((*kept, *titles), key=lambda heading: heading[1])
    for place, (_, at, start) in enumerate(ordered):
        end = ordered[place + 1][1] if place + 1 < len(ordered) else len(text)
        # Under a title may stand nothing but a date.
        if ordered[place] in titles and not _WORD.search(_MARKS.sub("", text[start:end])):
            ordered[place] = ("examination", at, start)
    return ordered


def _name(match: re.Match[str]) -> str:
    name = next(name for name in _HEADINGS if match[name] is not None)
    return _CANONICAL.get(name, name)


def _is_numbered_heading(match: re.Match[str]) -> bool:
    """Whether `3. FINDINGS:` heads a section; `1. Comparison is made` of a list of statements does not."""
    label = match.string[max(match.start(), match.end("number")) : match.end()].strip(" \t*#>_")
    capitalised = label[:1].isupper() and label.endswith(":") and _name(match) in _UNMISTAKABLE
    return _in_capitals(label) or capitalised


def _without_heading(text: str, sections: list[Section]) -> list[Section]:
    """Sections whose text is the findings where no heading says so."""
    if not any(section.name == "impression" for section in sections):
        return sections
    pairs = itertools.pairwise(sections)
    return [
        one
        for one, after in pairs
        if after.name == "impression" and not _in_capitals(text[one.start : one.end])
    ]


def _is_code(text: str, section: Section) -> bool:
    return _CODE.match(text, section.start, section.end) is not None


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
