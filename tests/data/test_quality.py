"""Row checks: each reason is reached by a row, and only by such rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_samples import checked_items

from mpma.data.quality import (
    REASONS,
    QualityConfig,
    check_item,
    check_pixels,
    image_problem,
    is_missing,
    mask_problem,
    normalised_report,
    resolve_sections,
)
from mpma.data.sources.contract import Item, Rejection, UnreadableImage

SOUND = Item("pair", "patient", "study", "FINDINGS: The lungs are clear.\nIMPRESSION: Normal.", path="a.png")


def item(**changes: object) -> Item:
    return dataclasses.replace(SOUND, **changes)  # type: ignore[arg-type]


class Listed:
    """The part of a source that the checks use."""

    reports_expected = True

    def __init__(self, *items: Item | Rejection) -> None:
        self._items = items

    def items(self) -> Iterator[Item | Rejection]:
        yield from self._items


def test_zero_words_keep_a_pair_without_report_but_not_a_report_that_is_at_fault() -> None:
    config = QualityConfig(min_report_words=0)
    for report in ("", " \n", "nan", "XXXX"):
        assert check_item(item(report=report), config) is None
    for report, reason in (("x" * 60_000, "too_long_report"), ("INDICATION: cough", "nothing_described")):
        found = check_item(item(report=report), config)
        assert found is not None
        assert found.reason == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "gone"), "missing_mask"),
        (PermissionError(13, "denied"), "unreadable_mask"),
        (UnreadableImage("unreadable_image", "not a regular file"), "unreadable_mask"),
        (UnreadableImage("outside_root"), "outside_root"),
    ],
)
def test_a_mask_that_cannot_be_read_has_a_reason_of_its_own(error: Exception, reason: str) -> None:
    assert mask_problem(error)[0] == reason
    assert reason in REASONS


def test_a_defect_while_a_mask_is_read_is_raised_again() -> None:
    with pytest.raises(ZeroDivisionError):
        mask_problem(ZeroDivisionError())


def reasons(*items: Item | Rejection) -> list[str]:
    found = checked_items(Listed(*items))  # type: ignore[arg-type]
    return [each.reason if isinstance(each, Rejection) else "kept" for each in found]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"report": ""}, "empty_report"),
        ({"report": " \n\t"}, "empty_report"),
        ({"report": "nan"}, "empty_report"),
        ({"report": "NaN"}, "empty_report"),
        ({"report": float("nan")}, "empty_report"),
        ({"report": None}, "empty_report"),
        ({"report": "None"}, "empty_report"),
        ({"report": "- . -"}, "empty_report"),
        ({"report": "XXXX, XXXX ___."}, "empty_report"),
        ({"report": 7}, "wrong_type"),
        ({"report": "x " * 30_000}, "too_long_report"),
        ({"report": "INDICATION: Cough.\nCOMPARISON: None."}, "nothing_described"),
        ({"report": "FINDINGS: XXXX.\nIMPRESSION:"}, "nothing_described"),
        ({"report": "INDICATION: Cough.", "impression": "Normal.", "findings": ""}, None),
        ({"report": "Clear."}, None),
        ({"report": "Only \N{REPLACEMENT CHARACTER} damaged, not lost"}, None),
        ({"pair_id": ""}, "missing_id"),
        ({"pair_id": "nan"}, "missing_id"),
        ({"patient_id": " "}, "missing_patient"),
        ({"split": "train"}, None),
        ({"split": "training"}, "unknown_split"),
        ({"view": "oblique"}, "wrong_type"),
    ],
)
def test_a_row_is_refused_for_this_reason(changes: dict[str, object], reason: str | None) -> None:
    found = check_item(item(**changes))
    assert (found.reason if found else None) == reason
    if found:
        assert found.reason in REASONS
        assert found.path == "a.png"


def test_thresholds_are_those_of_the_configuration() -> None:
    strict = QualityConfig(min_report_words=6)
    found = check_item(item(), strict)
    assert found is not None
    assert (found.reason, found.detail) == ("too_short_report", "5 words, the least is 6")
    assert check_item(item(), QualityConfig(min_report_words=5)) is None
    bare = item(report="INDICATION: Cough.")
    assert check_item(bare, QualityConfig(require_description=False)) is None


def test_details_never_hold_the_report() -> None:
    for report in ("secretword " * 6000, "INDICATION: secretword", "secretword"):
        found = check_item(item(report=report), QualityConfig(min_report_words=3))
        assert found is not None
        assert "secretword" not in found.detail


def test_a_repeated_id_keeps_its_first_row() -> None:
    assert reasons(item(), item(pair_id="other"), item(), item()) == [
        *("kept", "kept", "duplicate_id", "duplicate_id")
    ]


def test_an_id_is_not_used_up_by_a_row_that_was_refused() -> None:
    assert reasons(item(report=""), item()) == ["empty_report", "kept"]


def test_rejections_of_the_source_pass_through_in_their_place() -> None:
    assert reasons(item(), Rejection("b.png", "b", "missing_image"), item(pair_id="c")) == [
        *("kept", "missing_image", "kept")
    ]


def test_a_patient_in_two_given_splits_loses_every_row() -> None:
    rows = [
        item(pair_id="1", patient_id="P", split="train"),
        item(pair_id="2", patient_id="Q", split="train"),
        item(pair_id="3", patient_id="P", split="test"),
        item(pair_id="4", patient_id="P"),
    ]
    assert reasons(*rows) == [
        *("patient_in_two_splits", "kept", "patient_in_two_splits", "patient_in_two_splits")
    ]


def test_sections_given_by_the_source_win_over_parsed_ones() -> None:
    assert resolve_sections(item()) == ("The lungs are clear.", "Normal.")
    assert resolve_sections(item(findings="Given.")) == ("Given.", "Normal.")
    assert resolve_sections(item(findings="", impression="")) == ("", "")


@pytest.mark.parametrize(
    "value", [None, float("nan"), np.float32("nan"), "", " ", "nan", "NA", "<NA>", "NULL", "n/a"]
)
def test_missing_values_are_seen_as_missing(value: object) -> None:
    assert is_missing(value)


@pytest.mark.parametrize("value", [0, 0.0, "0", "no", "none seen", False, []])
def test_other_values_are_not(value: object) -> None:
    assert not is_missing(value)


def test_reports_that_say_the_same_are_the_same() -> None:
    same = [
        "No acute  disease.",
        "no acute disease",
        "NO ACUTE\nDISEASE!",
        "No acute disease\N{REPLACEMENT CHARACTER}",
    ]
    assert {normalised_report(text) for text in same} == {"no acute disease"}
    assert normalised_report("\N{LATIN SMALL LIGATURE FI}ne, 2\N{SUPERSCRIPT TWO}") == "fine 22"
    assert normalised_report("Dated XXXX, XXXX.") == normalised_report("dated XXXX")
    assert normalised_report("left") != normalised_report("right")


@given(st.text(max_size=80))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalised_report(text)
    assert normalised_report(once) == once
    assert "  " not in once


def test_reports_with_characters_lost_in_an_earlier_conversion_are_kept(data_root: Path) -> None:
    texts: list[str] = []
    for split in ("train", "val", "test"):
        table = pq.read_table(data_root / "pairs" / f"cxr-{split}.parquet", columns=["report"])
        texts += table.column("report").to_pylist()
    damaged = [text for text in texts if "\N{REPLACEMENT CHARACTER}" in text]
    assert len(damaged) == 26
    assert all(check_item(item(report=text)) is None for text in damaged)


def test_images_that_show_nothing_are_refused() -> None:
    ramp = np.tile(np.arange(80, dtype=np.uint8), (70, 1))
    check_pixels(ramp)
    for pixels, reason in (
        (np.full((80, 80), 9, np.uint8), "constant_image"),
        (ramp[:63], "too_small"),
        (ramp[:, :63], "too_small"),
    ):
        with pytest.raises(UnreadableImage) as caught:
            check_pixels(pixels)
        assert caught.value.reason == reason
    check_pixels(ramp[:63], QualityConfig(min_side_pixels=32))


def test_what_loading_raises_becomes_a_reason() -> None:
    assert image_problem(FileNotFoundError("gone")) == ("missing_image", "")
    assert image_problem(KeyError("gone")) == ("missing_image", "")
    assert image_problem(UnreadableImage("html_page", "9 bytes")) == ("html_page", "9 bytes")
    assert image_problem(PermissionError(13, "Permission denied"))[0] == "unreadable_image"
    with pytest.raises(RuntimeError):
        image_problem(RuntimeError("a defect is not a reason"))


def test_reasons_are_codes_with_one_line_each() -> None:
    for code, meaning in REASONS.items():
        assert code == code.lower()
        assert " " not in code
        assert meaning
        assert "\n" not in meaning
