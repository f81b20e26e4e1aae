"""The row filter: a small language, against its own tree and against plain Python."""

from __future__ import annotations

import operator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpma.data.sources.row_filter import (
    Both,
    Comparison,
    Either,
    Expression,
    Negation,
    check_filter,
    filter_columns,
    filter_mask,
    parse_filter,
)
from mpma.errors import UserError

ROWS = [
    {
        "view": "PA",
        "age": 30,
        "weight": 70.5,
        "labels": ["Edema", "COVID-19"],
        "sure": True,
        "day": "2020-01-31",
    },
    {"view": "AP", "age": 61, "weight": float("nan"), "labels": [], "sure": False, "day": "2020-02-01"},
    {"view": None, "age": None, "weight": None, "labels": None, "sure": None, "day": None},
    {"view": "lateral view", "age": 0, "weight": -1.0, "labels": ["Mass"], "sure": True, "day": "2021-12-31"},
]
TABLE = pa.Table.from_pylist(ROWS)
ORDER = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def keeps(text: str, table: pa.Table = TABLE) -> list[bool]:
    expression = parse_filter(text)
    check_filter(expression, table.schema)
    return filter_mask(expression, table).to_pylist()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("view == PA", [0]),
        ("view != PA", [1, 3]),
        ("not view == PA", [1, 2, 3]),
        ("view in [PA, AP]", [0, 1]),
        ("view in (PA, 'lateral view')", [0, 3]),
        ("not view in [PA]", [1, 2, 3]),
        ("view ~ LATERAL", [3]),
        ("view == 'lateral view'", [3]),
        ("`view` == PA", [0]),
        ("age >= 30", [0, 1]),
        ("age<30", [3]),
        ("age == 30.0", [0]),
        ("age in [0, 61]", [1, 3]),
        ("weight != 70.5", [3]),
        ("weight > -2", [0, 3]),
        ("labels == Edema", [0]),
        ("labels ~ covid", [0]),
        ("labels in [Mass, Edema]", [0, 3]),
        ("not labels ~ a", [1, 2]),
        ("sure == true", [0, 3]),
        ("sure != true", [1]),
        ("day < 2020-02-01", [0]),
        ("view == PA or view == AP and age > 100", [0]),
        ("(view == PA or view == AP) and age > 40", [1]),
        ("NOT (view == PA OR age == 0)", [1, 2]),
    ],
)
def test_a_filter_keeps_these_rows(text: str, rows: list[int]) -> None:
    assert [place for place, kept in enumerate(keeps(text)) if kept] == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("view = PA", "'= PA' cannot be read"),
        ("view ==", "a value is expected where the end stands"),
        ("view == PA AP", "and, or, or the end is expected where AP stands"),
        ("(view == PA", "a closing"),
        ("view in PA", "a list such as"),
        ("view in [PA", r"a closing \]"),
        ("view PA", "one of =="),
        ("", "a column is expected"),
        ("and == 1", "a column is expected where and stands"),
        ("veiw == PA", "no column 'veiw'"),
        ("age == old", "column 'age' holds numbers, and 'old' is none"),
        ("view < 3", "column 'view' holds text"),
        ("sure == maybe", "'maybe' is neither"),
        ("(" * 50 + "view == PA" + ")" * 50, "nested more than 40 deep"),
        (" or ".join(["view == PA"] * 400), "longer than 1000"),
        ("__import__('os').system('true')", "one of =="),
    ],
)
def test_a_wrong_filter_is_one_line_that_says_where(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        keeps(text)
    assert "\n" not in caught.value.message


def test_an_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        keeps("veiw == PA")
    assert caught.value.hint == "the nearest is 'view'"


def test_dates_large_numbers_and_dictionaries_compare_as_themselves() -> None:
    table = pa.table(
        {
            "when": pa.array([0, 86_400_000_000], type=pa.timestamp("us")),
            "big": pa.array([2**53, 2**53 + 1], type=pa.int64()),
            "kind": pa.array(["x", "y"]).dictionary_encode(),
            "nothing": pa.nulls(2),
        }
    )
    assert keeps("when >= 1970-01-02", table) == [False, True]
    assert keeps(f"big == {2**53 + 1}", table) == [False, True]
    assert keeps("kind in [y]", table) == [False, True]
    assert keeps("nothing == 1", table) == [False, False]
    assert keeps("view == PA", TABLE.slice(0, 0)) == []


words = st.text(alphabet="abcXYZ019_.-/", min_size=1, max_size=6).filter(
    lambda word: word.lower() not in ("and", "or", "not", "in")
)
anything = st.text(min_size=0, max_size=8)
comparisons = st.builds(
    Comparison, words, st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "~"]), st.tuples(anything)
) | st.builds(Comparison, words, st.just("in"), st.lists(anything, min_size=1, max_size=3).map(tuple))
expressions = st.recursive(
    comparisons,
    lambda inner: (
        st.builds(Both, inner, inner) | st.builds(Either, inner, inner) | st.builds(Negation, inner)
    ),
    max_leaves=8,
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def written(expression: Expression) -> str:
    match expression:
        case Comparison(column, "in", literals):
            return f"{column} in [{', '.join(map(quoted, literals))}]"
        case Comparison(column, sign, literals):
            return f"{column} {sign} {quoted(literals[0])}"
        case Both(left, right):
            return f"({written(left)}) and ({written(right)})"
        case Either(left, right):
            return f"({written(left)}) or ({written(right)})"
        case Negation(inner):
            return f"not ({written(inner)})"


@settings(max_examples=80, deadline=None)
@given(expressions)
def test_what_is_written_is_what_is_parsed(expression: Expression) -> None:
    parsed = parse_filter(written(expression))
    assert parsed == expression
    assert set(filter_columns(parsed)) == set(filter_columns(expression))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab ()[],=!<>~'\"`\\andornti0.5", max_size=30))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    said = "filter: "
    try:
        parse_filter(text)
    except UserError as error:
        said = error.message
    assert said.startswith("filter: ")
    assert "\n" not in said


numeric = st.builds(
    Comparison, st.just("age"), st.sampled_from(sorted(ORDER)), st.tuples(st.integers(-3, 3).map(str))
)
trees = st.recursive(
    numeric,
    lambda inner: (
        st.builds(Both, inner, inner) | st.builds(Either, inner, inner) | st.builds(Negation, inner)
    ),
    max_leaves=6,
)


def by_hand(expression: Expression, value: int | None) -> Any:
    match expression:
        case Comparison(_, sign, (literal,)):
            return value is not None and ORDER[sign](value, int(literal))
        case Both(left, right):
            return by_hand(left, value) and by_hand(right, value)
        case Either(left, right):
            return by_hand(left, value) or by_hand(right, value)
        case Negation(inner):
            return not by_hand(inner, value)


@settings(max_examples=150, deadline=None)
@given(trees, st.lists(st.integers(-3, 3) | st.none(), max_size=6))
def test_a_filter_agrees_with_plain_python(expression: Expression, values: list[int | None]) -> None:
    table = pa.table({"age": pa.array(values, type=pa.int64())})
    assert filter_mask(expression, table).to_pylist() == [by_hand(expression, value) for value in values]
