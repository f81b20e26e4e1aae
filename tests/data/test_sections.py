"""Sections of a report: forms of headings, spans, and agreement with what the publisher parsed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.data.pairs import model_text
from mpma.data.sections import (
    SECTION_NAMES,
    collapse_marks,
    parse_sections,
)


def flat(text: str) -> str:
    return text.replace("\n", " ")


def capitalised(text: str) -> str:
    return re.sub(r"(?m)^([A-Z]+):", lambda heading: f"{heading[1].capitalize()}:", text)


def own_lines(text: str) -> str:
    return re.sub(r"(?m)^([A-Z]+): ?", lambda heading: f"{heading[1]}\n", text)


@pytest.fixture(scope="module")
def published(data_root: Path) -> list[dict[str, str | None]]:
    table = data_root / "text_only" / "openi_reports.parquet"
    return pq.read_table(table, columns=["report", "findings", "impression"]).to_pylist()


@pytest.mark.parametrize("form", [str, flat, capitalised, own_lines, lambda text: flat(capitalised(text))])
def test_all_open_i_reports_parse_as_the_publisher_did(
    published: list[dict[str, str | None]], form: Callable[[str], str]
) -> None:
    assert len(published) == 3955
    agree = {"findings": 0, "impression": 0}
    for row in published:
        parsed = parse_sections(form(row["report"] or ""))
        agree["findings"] += flat(parsed.findings) == flat((row["findings"] or "").strip())
        agree["impression"] += flat(parsed.impression) == flat((row["impression"] or "").strip())
    # The two others hold a second report, or a heading, inside a section.
    assert agree == {"findings": 3954, "impression": 3954}


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("FINDINGS: Clear lungs.\nIMPRESSION: Normal.", "Clear lungs.", "Normal."),
        ("Findings: Clear lungs.\nImpression: Normal.", "Clear lungs.", "Normal."),
        ("findings:\nClear lungs.\nimpression:\nNormal.", "Clear lungs.", "Normal."),
        ("FINDINGS\nClear lungs.\n\nIMPRESSION\nNormal.", "Clear lungs.", "Normal."),
        ("Findings\n  Clear lungs.\nConclusion\n  Normal.\n", "Clear lungs.", "Normal."),
        ("FINDINGS - Clear lungs.\nIMPRESSION - Normal.", "Clear lungs.", "Normal."),
        ("**Findings:** Clear lungs.\n**Impression:** Normal.", "Clear lungs.", "Normal."),
        ("FINDINGS: Clear lungs. IMPRESSION: Normal.", "Clear lungs.", "Normal."),
        ("Indication: cough Findings: Clear lungs Impression: Normal.", "Clear lungs", "Normal."),
        ("FINDINGS:\r\nClear lungs.\r\nOPINION:\r\nNormal.\r\n", "Clear lungs.", "Normal."),
        ("IMPRESSION:\n1. No pneumonia.\n2. Old fracture.", "", "1. No pneumonia.\n2. Old fracture."),
        ("FINDINGS AND IMPRESSION: Clear.", "Clear.", ""),
        ("FINDINGS/IMPRESSION: Clear.", "Clear.", ""),
        ("IMPRESSION AND RECOMMENDATION: Nodule, repeat CT.", "", "Nodule, repeat CT."),
        ("FINDINGS:\nIMPRESSION: Normal.", "", "Normal."),
    ],
)
def test_headings_are_found_in_their_usual_forms(text: str, findings: str, impression: str) -> None:
    parsed = parse_sections(text)
    assert (parsed.findings, parsed.impression) == (findings, impression)


@pytest.mark.parametrize(
    "text",
    [
        "The findings are unchanged. My impression is of a normal chest.",
        "Findings were discussed by telephone at 10:30.",
        "Stable findings: none to add to the impression.",
        "There is no history of trauma, and comparison is made.",
        "",
        "   \n ",
    ],
)
def test_prose_that_names_a_section_is_no_heading(text: str) -> None:
    parsed = parse_sections(text)
    assert not parsed.has_headings
    assert (parsed.findings, parsed.impression) == ("", "")


def test_organs_inside_the_findings_do_not_end_them() -> None:
    text = "FINDINGS:\nLUNGS: Clear.\nHEART: Normal.\nCHEST WALL: Intact.\nIMPRESSION: Normal."
    assert parse_sections(text).findings == "LUNGS: Clear.\nHEART: Normal.\nCHEST WALL: Intact."


@pytest.mark.parametrize(
    "heading", ["ADDENDUM", "ADDENDUM #1", "Addendum", "WET READ", "NOTIFICATION", "RECOMMENDATION"]
)
def test_what_follows_the_impression_is_not_swallowed(heading: str) -> None:
    parsed = parse_sections(f"FINDINGS: Clear.\nIMPRESSION: Normal.\n{heading}: Rib fracture added.")
    assert (parsed.findings, parsed.impression) == ("Clear.", "Normal.")


def test_an_addendum_in_front_swallows_nothing() -> None:
    parsed = parse_sections("ADDENDUM: Rib fracture.\nFINAL REPORT\nFINDINGS: Clear.\nIMPRESSION: Normal.")
    assert (parsed.findings, parsed.impression) == ("Clear.", "Normal.")
    assert [section.name for section in parsed.sections] == [
        "addendum",
        "final_report",
        "findings",
        "impression",
    ]


def test_two_findings_are_joined_and_a_repetition_counts_once() -> None:
    text = "FINDINGS: Chest clear.\nIMPRESSION: Normal.\nFINDINGS: Spine bent.\nIMPRESSION: Normal."
    parsed = parse_sections(text)
    assert (parsed.findings, parsed.impression) == ("Chest clear.\nSpine bent.", "Normal.")


def test_a_paragraph_under_no_heading_is_the_findings_where_there_are_none() -> None:
    text = (
        "FINAL REPORT\n EXAMINATION: CHEST (PA AND LAT)\n\n INDICATION: Cough.\n\n"
        " COMPARISON: None.\n\n Lungs are clear.\n\n No effusion.\n"
    )
    parsed = parse_sections(text)
    assert parsed.findings == "Lungs are clear.\n\n No effusion."
    assert parsed.impression == ""
    assert [name for name, _, _ in parsed.spans] == [
        *("final_report", "examination", "indication", "comparison", "body")
    ]


def test_paragraphs_of_an_indication_stay_with_it_where_findings_are_named() -> None:
    parsed = parse_sections("INDICATION: Cough.\n\nFever.\n\nFINDINGS: Clear.")
    assert parsed.findings == "Clear."
    assert [name for name, _, _ in parsed.spans] == ["indication", "findings"]


def test_a_title_of_views_holds_the_findings() -> None:
    parsed = parse_sections("CHEST, TWO VIEWS: Lungs are clear.\n\nIMPRESSION: Normal.")
    assert (parsed.findings, parsed.impression) == ("Lungs are clear.", "Normal.")
    parsed = parse_sections("CHEST, TWO VIEWS: Of today.\nFINDINGS: Clear.\nIMPRESSION: Normal.")
    assert (parsed.findings, parsed.impression) == ("Clear.", "Normal.")


def test_a_report_without_headings_is_one_body() -> None:
    text = "  Lungs are clear.\n\nHeart is normal. "
    parsed = parse_sections(text)
    ((name, start, end),) = parsed.spans
    assert (name, text[start:end]) == ("body", text.strip())
    assert model_text(text, parsed.findings, parsed.impression) == text.strip()


pieces = st.sampled_from(
    [
        *("FINDINGS:", "Findings", "IMPRESSION:", "Impression: ", "CONCLUSION -", "INDICATION:", "HISTORY:"),
        *("COMPARISON:", "ADDENDUM:", "FINAL REPORT", "CHEST, TWO VIEWS:", "WET READ:", "VIEWS:"),
        *(
            "\n",
            "\n\n",
            " ",
            "  \n",
            "\r\n",
            ".",
            "Lungs are clear.",
            "XXXX",
            "1. ",
            "LUNGS:",
            "heart",
            "\N{REPLACEMENT CHARACTER}",
        ),
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=24).map("".join) | st.text(max_size=60))
def test_spans_and_headings_make_up_the_whole_text(text: str) -> None:
    parsed = parse_sections(text)
    at = 0
    for section in parsed.sections:
        assert section.name in SECTION_NAMES
        assert at <= section.heading_start <= section.start <= section.end <= len(text)
        # Between sections stands nothing but white space; every heading belongs to its section.
        assert not text[at : section.heading_start].strip()
        assert text[section.start : section.end] == text[section.start : section.end].strip()
        at = section.end
    assert not text[at:].strip()
    for part in (parsed.findings, parsed.impression):
        assert all(line in text for line in part.splitlines())


def test_long_white_space_and_repeated_headings_take_no_time() -> None:
    for text in (
        "\n" * 50_000,
        " " * 50_000,
        "FINDINGS " * 6_000,
        "INDICATION: x" + "\n \n" * 20_000,
        "X" * 50_000,
    ):
        parse_sections(text)
        collapse_marks(text)


# De-identification marks.


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Dated XXXX, XXXX XXXX at XXXX.", "Dated XXXX at XXXX."),
        ("Seen by ___ on ____/___.", "Seen by XXXX on XXXX."),
        ("chest x-XXXX", "chest x-XXXX"),
        ("[**Hospital 1**] film", "XXXX film"),
        ("No mark, XX and X.", "No mark, XX and X."),
        ("Xray of 4XXXX, _ and __", "Xray of 4XXXX, _ and __"),
        ("MAXXXX", "MAXXXX"),
    ],
)
def test_a_run_of_marks_is_read_as_one(text: str, read: str) -> None:
    assert collapse_marks(text) == read
    assert model_text(text, "", "") == read


def test_most_open_i_reports_hold_marks(data_root: Path) -> None:
    reports = pq.read_table(data_root / "text_only" / "openi_reports.parquet", columns=["report"])
    read = map(collapse_marks, reports.column(0).to_pylist())
    assert sum(re.search(r"\bXXXX\b", text) is not None for text in read) == 3411


def test_the_model_reads_findings_then_impression_else_the_body() -> None:
    assert model_text("whole", " a ", "b") == "a b"
    assert model_text("whole", "", "b") == "b"
    assert model_text(" whole ", "", " ") == "whole"
