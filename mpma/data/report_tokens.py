"""Reports of rows as tokens and hashes, and a memory of those that come again.

Decisions: a share of the split that is kept in memory keeps the tokens of its reports too. They take under
a kilobyte a pair beside tens for the image, and tokenising anew in every epoch costs a tenth of a batch for
short reports and a third for long ones. Rows are known by their number in the split, never by their text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mpma.data.counter_hash import text_hash
from mpma.data.pairs import model_text
from mpma.data.quality import normalised_report
from mpma.data.tokenizer import EncodedReports, ReportTokenizer

_TEXTS: Final = ("report", "findings", "impression")
_COLUMNS: Final = [*_TEXTS, "study_id"]


class Reports(NamedTuple):
    """The reports of n rows."""

    tokens: EncodedReports
    report_hash: NDArray[np.int64]
    """[n]: equal for rows whose normalised reports are equal."""
    study_hash: NDArray[np.int64]
    """[n]: equal for rows of one study."""


def encode_reports(rows: pa.Table, tokenizer: ReportTokenizer, max_tokens: int) -> Reports:
    """Tokens and hashes of n rows, which have the texts and `study_id`."""
    parts = (rows[name].to_pylist() for name in _TEXTS)
    texts = [model_text(*text) for text in zip(*parts, strict=True)]
    return Reports(
        tokenizer.encode(texts, max_tokens),
        _hashes([normalised_report(text) for text in texts]),
        _hashes(rows["study_id"].to_pylist()),
    )


class ReportMemory:
    """`encode_reports` that encodes a row once.

    Memory: 6 * max_tokens + 18 bytes per row that has been asked for (pages are given when first written).
    """

    def __init__(self, tokenizer: ReportTokenizer, max_tokens: int, rows: range) -> None:
        """`rows`: the numbers, in the split, of all rows that may be asked for."""
        self._tokenizer, self._max_tokens, self._first = tokenizer, max_tokens, rows.start
        self._ids = np.zeros((len(rows), max_tokens), np.int32)
        self._words = np.zeros((len(rows), max_tokens), np.int16)
        self._length = np.zeros(len(rows), np.int16)
        """0: not encoded yet."""
        self._hashes = np.zeros((len(rows), 2), np.int64)

    def encode(self, rows: pa.Table, numbers: NDArray[np.int64]) -> Reports:
        """Tokens and hashes of n rows with their numbers in the split [n]."""
        place = numbers - self._first
        (new,) = np.nonzero(self._length[place] == 0)
        if len(new):
            self._remember(rows.select(_COLUMNS).take(pa.array(new)), place[new])
        length = self._length[place]
        attention = np.arange(int(length.max(initial=0))) < length[:, None]
        width = attention.shape[1]
        ids, words = (known[place, :width].astype(np.int64) for known in (self._ids, self._words))
        ids[~attention], words[~attention] = self._tokenizer.pad_id, -1
        report_hash, study_hash = self._hashes[place].T.copy()
        return Reports(EncodedReports(ids, words, attention, 0), report_hash, study_hash)

    def _remember(self, rows: pa.Table, place: NDArray[np.int64]) -> None:
        tokens, report_hash, study_hash = encode_reports(rows, self._tokenizer, self._max_tokens)
        width = tokens.ids.shape[1]
        self._ids[place, :width] = tokens.ids
        self._words[place, :width] = tokens.word_index
        self._hashes[place] = np.stack([report_hash, study_hash], axis=1)
        self._length[place] = tokens.attention.sum(axis=1)


def _hashes(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.fromiter(map(text_hash, texts), np.int64, len(texts))
