"""The text of tables: whole rows pass to the byte, torn ones go by name, in blocks of any size."""

from __future__ import annotations

import csv
import io
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.data.sources import table_text
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.table_text import WholeRows
from mpma.data.sources.unfolding import ALWAYS_UNFOLDED, UnfoldsTooFarError


def read(data: bytes, block: int, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[bytes, list[int]]:
    class Short(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(block)

    rows = WholeRows(Short(data), ",")
    return rows.readall(), rows.broken


cells = st.lists(
    st.lists(st.text(st.sampled_from('ab",\n\r é'), max_size=6), min_size=2, max_size=3),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(
    cells,
    st.sampled_from(("\n", "\r\n")),
    st.sampled_from((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)),
    st.integers(1, 9),
)
def test_a_table_that_a_csv_writer_wrote_passes_to_the_byte(
    rows: list[list[str]], end: str, quoting: int, block: int
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end, quoting=quoting).writerows([["x", "y"], *rows])
    data = out.getvalue().encode()
    assert read(data, block) == (data, [])


@settings(deadline=None)
@given(st.text(st.sampled_from('ab",\n'), max_size=40), st.integers(1, 9))
def test_the_blocks_a_table_is_read_in_change_nothing(text: str, block: int) -> None:
    assert read(text.encode(), block) == read(text.encode(), 1_000)


def test_a_row_whose_quote_is_never_closed_goes_alone_and_is_named_by_its_line() -> None:
    before, after = b'a,b\n1,"two\nlines"\n', b'3,"the ""next"" one\'s\ntext"\n4,5\n'
    assert read(before + b'2,"never closed\n' + after, 7) == (before + after, [4])
    assert read(before + b'2,"x\ny","never closed\n' + after, 7) == (before + after, [4])
    assert read(before + after + b'6,"never closed', 7) == (before + after, [7])


def test_quotes_inside_a_line_are_left_as_they_are() -> None:
    data = b'a,b\n1,a 5" tube\n2,"said "no" twice"\n3,""\n'
    assert read(data, 5) == (data, [])


def test_a_row_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_text, "MAX_ROW_BYTES", 1_000)
    with pytest.raises(table_text.RowTooLongError, match="more than 1000 bytes"):
        read(b"a,b\n" + b"x" * 5_000, 100)
    # With a quote before it, it is that quote which was not closed.
    assert read(b'a,b\n1,"' + b"x\n" * 2_000 + b"2,3\n", 100)[1] == [2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_every_encoding_becomes_utf_8_without_a_mark(encoding: str) -> None:
    rows = WholeRows(io.BytesIO("a,b\n1,Ödem\n".encode(encoding)), ",", encoding)
    assert rows.readall().decode() == "a,b\n1,Ödem\n"


def test_what_unfolds_too_far_is_given_up_when_read_and_when_sought(tmp_path: Path) -> None:
    (tmp_path / "bomb").write_bytes(lzma.compress(bytes(1_000_000), preset=0) * 70)
    archive = ArchiveFolder.open(tmp_path)
    with pytest.raises(UnfoldsTooFarError), archive.unfolded("bomb") as bomb:
        bomb.read()
    with pytest.raises(UnfoldsTooFarError), archive.unfolded("bomb") as bomb:
        bomb.seek(ALWAYS_UNFOLDED + 1)
