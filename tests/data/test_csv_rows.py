"""Publishers' tables, row by row: whole rows in order, the others named by their line."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Rejection
from mpma.data.sources.csv_rows import (
    MAX_CELL_CHARACTERS,
    MAX_LINE_CHARACTERS,
    CsvRow,
    _Lines,
    columns_of,
    csv_rows,
)
from mpma.errors import UserError


def read(folder: Path, content: bytes | str, name: str = "t.csv") -> list[CsvRow | Rejection]:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(csv_rows(ArchiveFolder.open(folder), name, ["id", "report"], ["view"]))


def told(rows: list[CsvRow | Rejection]) -> list[tuple[int, str] | str]:
    """Line and id of whole rows; path of the others."""
    return [row.path if isinstance(row, Rejection) else (row.line, row["id"]) for row in rows]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            *[st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)] * 3
        ),
        max_size=8,
    )
)
def test_whatever_a_csv_writer_wrote_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]
) -> None:
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(("report", "id", "view"))
    table.writerows(rows)
    found = read(tmp_path_factory.mktemp("csv"), out.getvalue())
    assert [row.cells for row in found if isinstance(row, CsvRow)] == [
        {"report": report, "id": name, "view": view} for report, name, view in rows
    ]
    assert len(found) == len(rows)


def test_a_row_is_named_by_the_line_it_starts_on(tmp_path: Path) -> None:
    found = read(tmp_path, 'id,report\n1,"a\nb"\n\n2,c,d\n3,e\n4\n')
    assert told(found) == [(2, "1"), "t.csv, line 5", (6, "3"), "t.csv, line 7"]
    assert [(r.reason, r.detail) for r in found if isinstance(r, Rejection)] == [
        ("unreadable_row", "3 cells, the header has 2"),
        ("unreadable_row", "1 cells, the header has 2"),
    ]


def test_a_column_that_is_not_there_is_empty_and_others_are_not_read(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "secret,report,id\nx,b,1\n")
    assert isinstance(row, CsvRow)
    assert row.cells == {"id": "1", "report": "b", "view": ""}


def test_a_byte_order_mark_windows_lines_and_gzip_are_read(tmp_path: Path) -> None:
    content = "\ufeffid,report\r\n1,ñ\r\n2,b\r\n".encode()
    assert told(read(tmp_path, content)) == [(2, "1"), (3, "2")]
    assert told(read(tmp_path, gzip.compress(content), "t.csv.gz")) == [(2, "1"), (3, "2")]


def test_torn_rows_are_named_and_the_rows_beside_them_kept(tmp_path: Path) -> None:
    long = "x" * (MAX_CELL_CHARACTERS + 1)
    content = f'id,report\n1,a\n2,"b"c\n3,d\n4,\0\n5,{long}\n6,e\n7,"f\n'
    assert told(read(tmp_path, content)) == [
        (2, "1"),
        "t.csv, line 3",
        (4, "3"),
        "t.csv, line 5",
        "t.csv, line 6",
        (7, "6"),
        "t.csv, line 8",
    ]
    assert told(read(tmp_path, f"id,report\n1,{long[:-1]}\n")) == [(2, "1")]


def test_a_quote_that_never_closes_costs_its_own_row_alone(tmp_path: Path) -> None:
    sound = "".join(f"{number},plain\n" for number in range(3, 20_000))
    found = told(read(tmp_path, f'id,report\n1,a\n2,"torn\n{sound}'))
    assert found[:3] == [(2, "1"), "t.csv, line 3", (4, "3")]
    assert len(found) == 19_999
    assert found[-1] == (20_000, "19999")
    quoted = 'id,report\n1,"torn\n2,b\n3,"c\nd"\n4,"e, f"\n'
    assert told(read(tmp_path, quoted)) == ["t.csv, line 2", (3, "2"), (4, "3"), (6, "4")]


def test_a_line_without_an_end_is_passed_over_in_pieces(tmp_path: Path) -> None:
    endless = b"0" * (MAX_LINE_CHARACTERS * 3 + 7)
    content = b"id,report\n1,a\n" + endless + b'\n2,b\n3,"' + endless + b'"\n4,c\n' + endless
    assert told(read(tmp_path, content)) == [
        *((2, "1"), "t.csv, line 3", (4, "2"), "t.csv, line 5", (6, "4"), "t.csv, line 7"),
    ]
    with pytest.raises(UserError, match="has no column"):
        read(tmp_path, endless)


def test_no_table_of_torn_quotes_has_its_lines_read_over_and_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    plain = _Lines.__next__

    def counted(lines: _Lines) -> str:
        nonlocal taken
        taken += 1
        return plain(lines)

    monkeypatch.setattr(_Lines, "__next__", counted)
    draw = random.Random(5)
    for pieces in (['x,"torn'], ['x,"torn', 'x,""', "x,y"], ['x,"torn', 'x,"a""b"', '"', '""', 'x,"a"b']):
        content = "id,report\n" + "".join(draw.choice(pieces) + "\n" for _ in range(2000))
        assert len(read(tmp_path, content)) > 100
        assert taken < 3 * 2000
        taken = 0
    # One quote stands open over a whole file: all its lines are read again, once.
    read(tmp_path, 'id,report\nx,"torn\n' + "x,y\n" * 2000)
    assert 4000 < taken < 4010


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n1,2\n", "has no header"),
        (b"id,text\n1,canary\n", "has no column 'report'"),
        (b"id,report,id\n1,canary,2\n", "has more than one column 'id'"),
        ("id,report\n1,canarñ\n".encode("latin-1"), "is not UTF-8"),
        ("id,report\n1,canary\n".encode("utf-16"), "is not UTF-8"),
        (b"canary,19\nother,20\n", "has no column 'id'"),
    ],
)
def test_a_table_that_is_another_is_one_line_that_shows_no_cell(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, content)
    assert "\n" not in caught.value.message
    assert "canar" not in f"{caught.value.message} {caught.value.hint}"


def test_the_header_alone_is_read_for_its_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b" id ,report\n" + b"1,a\n" * 100_000 + b"\xff\n")
    assert columns_of(ArchiveFolder.open(tmp_path), "t.csv", ["id"]) == ["id", "report"]
    with pytest.raises(UserError, match="cannot be read"):
        columns_of(ArchiveFolder.open(tmp_path), "absent.csv")
