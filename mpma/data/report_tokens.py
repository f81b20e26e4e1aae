"""Reports of rows as tokens and hashes, and a memory of those that come again.

Decisions: a share of the split that is kept in memory keeps the tokens of its reports too. They take under
a kilobyte a pair beside tens for the image, and a report is not tokenised anew in every epoch. Rows
are known by their number in the split, never by their text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mpma.data.counter_hash import text_hash
from mpma.data.pairs import model_text
from mpma.data.quality import normalised_report
from mpma.data.tokenizer import EncodedReports, ReportTokenizer


class Reports(NamedTuple):
    """The reports of n rows."""

    tokens: EncodedReports
    report_hash: NDArray[np.int64]
    """[n]: equal for rows whose normalised reports are equal."""
    study_hash: NDArray[np.int64]
    """[n]: equal for rows of one study."""


class Text(NamedTuple):
    """What a row says, as it is stored."""

    report: str
    findings: str
    impression: str
    study_id: str


def texts_of(rows: pa.Table) -> list[Text]:
    """The texts of rows that have the columns of `Text`."""
    return list(map(Text._make, zip(*(rows[name].to_pylist() for name in Text._fields), strict=True)))


def encode_reports(texts: Sequence[Text], tokenizer: ReportTokenizer, max_tokens: int) -> Reports:
    """Tokens and hashes of n rows."""
    read = [model_text(text.report, text.findings, text.impression) for text in texts]
    return Reports(
        tokenizer.encode(read, max_tokens),
        _hashes([normalised_report(text) for text in read]),
        _hashes([text.study_id for text in texts]),
    )


class ReportMemory:
    """`encode_reports` that encodes a row once, when it is first asked for.

    Memory: 6 * max_tokens + 18 bytes per row that has been asked for (pages are given when first written),
    and the texts of those that have not.
    """

    def __init__(self, tokenizer: ReportTokenizer, max_tokens: int, rows: range) -> None:
        """`rows`: the numbers, in the split, of all rows that may be asked for."""
        self._tokenizer, self._max_tokens, self._first = tokenizer, max_tokens, rows.start
        self._texts: list[Text | None] = [None] * len(rows)
        self._ids = np.zeros((len(rows), max_tokens), np.int32)
        self._words = np.zeros((len(rows), max_tokens), np.int16)
        self._length = np.zeros(len(rows), np.int16)
        """0: not encoded yet."""
        self._hashes = np.zeros((len(rows), 2), np.int64)

    def add(self, first: int, rows: pa.Table) -> None:
        """The texts of the rows numbered from `first` on."""
        self._texts[first - self._first : first - self._first + len(rows)] = texts_of(rows)

    def encode(self, numbers: NDArray[np.int64]) -> Reports:
        """Tokens and hashes of the rows with these numbers [n], which have been added."""
        place = numbers - self._first
        new = place[self._length[place] == 0]
        if len(new):
            self._remember(np.unique(new))
        length = self._length[place]
        attention = np.arange(int(length.max(initial=0))) < length[:, None]
        width = attention.shape[1]
        ids, words = (known[place, :width].astype(np.int64) for known in (self._ids, self._words))
        ids[~attention], words[~attention] = self._tokenizer.pad_id, -1
        report_hash, study_hash = self._hashes[place].T.copy()
        return Reports(EncodedReports(ids, words, attention, 0), report_hash, study_hash)

    def _remember(self, place: NDArray[np.int64]) -> None:
        texts = [text for text in (self._texts[one] for one in place.tolist()) if text is not None]
        tokens, report_hash, study_hash = encode_reports(texts, self._tokenizer, self._max_tokens)
        width = tokens.ids.shape[1]
        self._ids[place, :width] = tokens.ids
        self._words[place, :width] = tokens.word_index
        self._hashes[place] = np.stack([report_hash, study_hash], axis=1)
        self._length[place] = tokens.attention.sum(axis=1)
        for one in place.tolist():
            self._texts[one] = None


def _hashes(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(text_hash, texts), np.int64, len(texts))
