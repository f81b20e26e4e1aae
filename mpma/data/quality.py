"""What makes a candidate unfit for a dataset, and the code that says so in the quarantine.

Decisions: nothing is dropped silently, every refused row gets one code of `REASONS` and a detail of numbers
and names, never report text; checks are pure functions of one row, so they run anywhere; the two checks
that need all rows (an id given twice, a patient in two given splits) look at identifiers alone, in a
first pass. A patient in two given splits loses all rows: keeping either side would be a guess, and
keeping both would let a test patient be trained on. A damaged character (U+FFFD) is counted, not
refused: the sentence around it still describes the picture.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mpma.data.pairs import SPLITS, VIEWS, model_text
from mpma.data.quality_info import DEFAULT_DRIFT_EFFECT
from mpma.data.sections import collapse_marks, parse_sections
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.strict import StrictConfig

REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # the image
        "missing_image": "the table, report, question or mask names an image that is not there",
        "empty_file": "the image file has no bytes",
        "truncated_image": "the image file ends before its pixels do",
        "unreadable_image": "the image file is damaged",
        "not_an_image": "the file holds no known image format",
        "git_lfs_pointer": "the file is a git-lfs pointer: the archive was cloned without its large files",
        "html_page": "the file is a web page, as saved by a download that needed a login",
        "unsupported_pixels": "the pixels have no known range of grey, or no known layout",
        "unsupported_compression": "the DICOM file is compressed in a way that no installed decoder reads",
        "multiple_frames": "the DICOM file holds several frames, not one radiograph",
        "no_pixels": "the DICOM file holds no picture (a report, a presentation state, a directory)",
        "burned_in_annotation": "the DICOM header says that text is burned into the pixels",
        "other_modality": "the DICOM file is of a modality that was not asked for",
        "too_large": "the file declares more pixels, or has more bytes, than allowed",
        "too_small": "the image's shorter side is below the threshold",
        "constant_image": "every pixel has the same value",
        # the mask and the questions
        "missing_mask": "the image has no mask, or the table names one that is not there",
        "unreadable_mask": "the mask's file is damaged, lossy, or has more than one channel",
        "mask_size": "the mask has another size than its image",
        "incomplete_question": "a question without words or without an answer",
        # the report
        "empty_report": "the report is empty, NaN or holds no word",
        "too_short_report": "the report has fewer words than the threshold",
        "too_long_report": "the report has more characters than the threshold",
        "nothing_described": "the report has headings, but no findings, impression or other description",
        "unreadable_report": "the report's file is damaged, too large or not safe to parse",
        "missing_report": "no report belongs to the image",
        "several_reports": "the table has different reports for the image",
        # the identity
        "missing_id": "the row has no id",
        "missing_patient": "the row has no patient",
        "conflicting_patient": "the table and the image's header name different patients",
        "duplicate_id": "another row had this id before",
        "patient_in_two_splits": "the patient's rows are given to more than one split",
        "unknown_split": "the row's split is none of train, val, test",
        "unreadable_row": "the row of the table has another number of cells than its header",
        "wrong_type": "a value of the row is not of the kind its column promises",
        # the place
        "outside_root": "the path leads out of the archive's folder",
    }
)
"""Every code that a quarantine may hold, with its meaning in one line."""

_MISSING_WORDS: Final = frozenset({"", "nan", "none", "null", "n/a", "na", "<na>", "nat", "#n/a"})
_NOT_WORD: Final = re.compile(r"[\W_]+")
_WORD: Final = re.compile(r"[^\W_]+")


_parsed: Final = lru_cache(maxsize=2)(parse_sections)
"""A row is asked for its sections up to three times in a row."""


class QualityConfig(StrictConfig):
    """Thresholds of the checks."""

    min_report_words: int = Field(default=1, ge=0, le=1000)
    """Fewest words (de-identification marks not counted) of the text that the model reads. 0: pairs without
    a report are kept, for labelled sets."""
    max_report_characters: int = Field(default=50_000, ge=100, le=10_000_000)
    """Most characters of a report; beyond it the row is more likely a whole record than a report."""
    require_description: bool = True
    """Refuse a report that has headings but describes nothing (an indication alone, say)."""
    min_side_pixels: int = Field(default=64, ge=1, le=4096)
    """Fewest pixels of the shorter side of the image as it came."""
    max_pixels: int = Field(default=64 * 1024 * 1024, ge=4096, le=178_956_970)
    """Most pixels that an image may declare; looked at before it is decoded."""
    drift_effect: float = Field(default=DEFAULT_DRIFT_EFFECT, gt=0, le=5)
    """Difference between a split and train, as an effect size, above which it is told; refuses nothing."""


def is_missing(value: object) -> bool:
    """Whether a table's value stands for nothing: None, NaN, blank, or pandas' and Excel's words for it."""
    if value is None:
        return True
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return isinstance(value, str) and value.strip().lower() in _MISSING_WORDS


def normalised_report(text: str) -> str:
    """The text by which two reports count as the same: case, form, marks, spaces and punctuation folded."""
    folded = unicodedata.normalize("NFKC", collapse_marks(text)).lower()
    return _NOT_WORD.sub(" ", folded).strip()


def resolve_sections(item: Item) -> tuple[str, str]:
    """Findings and impression of an item: as its source gives them, else parsed from the report."""
    if item.findings is not None and item.impression is not None:
        return item.findings, item.impression
    parsed = _parsed(item.report)
    return (
        parsed.findings if item.findings is None else item.findings,
        parsed.impression if item.impression is None else item.impression,
    )


def check_item(item: Item, config: QualityConfig | None = None) -> Rejection | None:
    """Everything that can be said of one row without its pixels and without the other rows.

    Returns the first reason against it, None where there is none.
    """
    config = config or QualityConfig()
    found = _identity_problem(item) or _report_problem(item, config)
    return None if found is None else Rejection(item.path, item.pair_id, *found)


def check_pixels(pixels: NDArray[np.uint8], config: QualityConfig | None = None) -> None:
    """Refuse decoded pixels, uint8 [H, W] at the archive's own size, that show nothing.

    Raises `UnreadableImage` with `too_small` or `constant_image`.
    """
    config = config or QualityConfig()
    height, width = pixels.shape
    if min(height, width) < config.min_side_pixels:
        raise UnreadableImage("too_small", f"{width} x {height}, the least side is {config.min_side_pixels}")
    lowest = int(pixels.min())
    if lowest == int(pixels.max()):
        raise UnreadableImage("constant_image", f"every pixel is {lowest}")


def image_problem(error: Exception) -> tuple[str, str]:
    """Reason code and detail for what `load_image` or the decoding raised; other errors are raised again."""
    if isinstance(error, UnreadableImage):
        return error.reason, error.detail
    if isinstance(error, FileNotFoundError | NotADirectoryError | KeyError):
        return "missing_image", ""
    if isinstance(error, OSError):
        return "unreadable_image", system_reason(error)
    raise error


def system_reason(error: OSError) -> str:
    """Why a file could not be read, in the words of the system or as the error's kind.

    What Arrow writes into an error itself quotes the path, or a whole request to a store.
    """
    return os.strerror(error.errno) if error.errno else type(error).__name__


def mask_problem(error: Exception) -> tuple[str, str]:
    """Reason code and detail for what `load_extra` raised; other errors are raised again."""
    if isinstance(error, UnreadableImage):
        return ("unreadable_mask" if error.reason == "unreadable_image" else error.reason), error.detail
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing_mask", ""
    if isinstance(error, OSError):
        return "unreadable_mask", system_reason(error)
    raise error


class CrossRowChecks:
    """The checks that need all rows, over identifiers alone: observe every item once, then judge each.

        checks = CrossRowChecks()
        for item in items: checks.observe(item)
        for item in items: checks.judge(item)

    `judge` remembers the ids it has passed, so that it must see every item once, in one process.
    """

    def __init__(self) -> None:
        self._split_of: dict[str, str] = {}
        self._torn: set[str] = set()
        self._seen: set[str] = set()

    def observe(self, item: Item) -> None:
        """First pass: note the item's given split."""
        if item.split is not None and self._split_of.setdefault(item.patient_id, item.split) != item.split:
            self._torn.add(item.patient_id)

    def judge(self, item: Item) -> Rejection | None:
        """Second pass: refuse a torn patient's rows, and every later row of an id."""
        if item.patient_id in self._torn:
            return Rejection(item.path, item.pair_id, "patient_in_two_splits")
        name = item.stored_id or item.pair_id
        if name in self._seen:
            return Rejection(item.path, item.pair_id, "duplicate_id")
        self._seen.add(name)
        return None


def _identity_problem(item: Item) -> tuple[str, str] | None:
    if is_missing(item.pair_id):
        return "missing_id", ""
    if is_missing(item.patient_id):
        return "missing_patient", ""
    if item.split is not None and item.split not in SPLITS:
        return "unknown_split", f"not one of {', '.join(SPLITS)}"
    if item.view not in VIEWS:
        return "wrong_type", f"view is not one of {', '.join(VIEWS)}"
    return None


def _report_problem(item: Item, config: QualityConfig) -> tuple[str, str] | None:
    if not isinstance(item.report, str):
        return ("empty_report", "") if is_missing(item.report) else ("wrong_type", "the report is not text")
    if is_missing(item.report) or not _word_count(item.report):
        return ("empty_report", "") if config.min_report_words else None
    if len(item.report) > config.max_report_characters:
        return "too_long_report", f"{len(item.report)} characters, the most is {config.max_report_characters}"
    findings, impression = resolve_sections(item)
    described = f"{findings} {impression}"
    if config.require_description and not _word_count(described) and _parsed(item.report).has_headings:
        return "nothing_described", ""
    words = _word_count(model_text(item.report, findings, impression))
    if words < config.min_report_words:
        return "too_short_report", f"{words} words, the least is {config.min_report_words}"
    return None


def _word_count(text: str) -> int:
    """Words of letters or digits, de-identification marks not counted."""
    return sum(not (len(word) > 2 and set(word) == {"X"}) for word in _WORD.findall(text))
