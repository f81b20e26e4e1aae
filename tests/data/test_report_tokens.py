from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mpma.data import report_tokens
from mpma.data.report_tokens import ReportMemory, Reports, Text, encode_reports, texts_of
from mpma.data.tokenizer import ReportTokenizer, train_tokenizer

COUNT = 30


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    return ReportTokenizer.load(
        train_tokenizer(enumerate(["heart size normal lungs clear effusion"] * 4), 60)
    )


def some_rows() -> pa.Table:
    texts = ["heart size " * (row % 9) + f"row {row % 4}" for row in range(COUNT)]
    studies = [f"s{row // 2}" for row in range(COUNT)]
    return pa.table(
        {"report": texts, "findings": texts, "impression": [""] * COUNT, "study_id": studies, "image": texts}
    )


def assert_same(found: Reports, wanted: Reports) -> None:
    for name in ("ids", "word_index", "attention"):
        np.testing.assert_array_equal(getattr(found.tokens, name), getattr(wanted.tokens, name))
    np.testing.assert_array_equal(found.report_hash, wanted.report_hash)
    np.testing.assert_array_equal(found.study_hash, wanted.study_hash)


def test_remembered_reports_are_those_that_are_encoded_anew(tokenizer: ReportTokenizer) -> None:
    rows, memory = some_rows(), ReportMemory(tokenizer, 12, range(100, 100 + COUNT))
    memory.add(110, rows.slice(10))
    memory.add(100, rows.slice(0, 10))
    generator = np.random.default_rng(0)
    for _ in range(12):
        taken = generator.permutation(COUNT)[:8]
        wanted = encode_reports(texts_of(rows.take(pa.array(taken))), tokenizer, 12)
        assert_same(memory.encode(taken + 100), wanted)


def test_a_row_is_encoded_once(tokenizer: ReportTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def counted(texts: Sequence[Text], *rest: Any) -> Reports:
        encoded.append(len(texts))
        return encode_reports(texts, *rest)

    monkeypatch.setattr(report_tokens, "encode_reports", counted)
    memory = ReportMemory(tokenizer, 12, range(COUNT))
    memory.add(0, some_rows())
    for first in (0, 5, 10, 0):
        memory.encode(np.arange(first, first + 10))
    memory.encode(np.array([29, 29]))
    assert encoded == [10, 5, 5, 1]
