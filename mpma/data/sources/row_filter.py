"""A row filter such as `modality == XR and (view in [PA, AP] or year >= 2015)`, read without eval.

Grammar:

    any        = all {"or" all}
    all        = one {"and" one}
    one        = "not" one | "(" any ")" | column operator literal | column "in" list
    list       = "[" literal {"," literal} "]" | "(" literal {"," literal} ")"
    operator   = "==" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    column     = word | `any text` | "any text"
    literal    = word | "any text" | 'any text'

Decisions: the column's type, not the literal's spelling, says how values are compared: numbers as numbers,
text as text (so ISO dates compare as they should), a list by whether any of its elements fits; `~` is
"contains", in any case. A missing value fits no comparison, `!=` included; `not` turns that round. Types
are checked before a row is read, so that a mistake is one line and not half an ingest.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from mpma.errors import UserError

_MAX_DEPTH: Final = 40
_MAX_TOKENS: Final = 1000
_OPERATORS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<operator>==|!=|<=|>=|<|>|~)
      | (?P<bracket>[()\[\],])
      | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<named>`[^`]+`)
      | (?P<word>[^\s()\[\],=!<>~"'`]+)
    )""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS: Final = ("and", "or", "not", "in")


@dataclass(frozen=True)
class Comparison:
    """`column operator literal`; `in` has any number of literals, the others one."""

    column: str
    operator: str
    literals: tuple[str, ...]


@dataclass(frozen=True)
class Both:
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Either:
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Negation:
    inner: Expression


Expression = Comparison | Both | Either | Negation


def parse_filter(text: str) -> Expression:
    """The expression a filter's text stands for. Raises `UserError` naming where it stops making sense."""
    return _Parser(text).parse()


def filter_columns(expression: Expression) -> tuple[str, ...]:
    """The columns a filter looks at, each once, in order."""
    match expression:
        case Comparison(column=column):
            return (column,)
        case Negation(inner=inner):
            return filter_columns(inner)
        case Both(left=left, right=right) | Either(left=left, right=right):
            return tuple(dict.fromkeys((*filter_columns(left), *filter_columns(right))))


def check_filter(expression: Expression, schema: pa.Schema) -> None:
    """Raise `UserError` where a column is unknown, or cannot be compared in the way that is asked."""
    match expression:
        case Negation(inner=inner):
            check_filter(inner, schema)
        case Both(left=left, right=right) | Either(left=left, right=right):
            check_filter(left, schema)
            check_filter(right, schema)
        case Comparison(column=column):
            if column not in schema.names:
                near = difflib.get_close_matches(column, schema.names, n=1, cutoff=0.5)
                raise UserError(
                    f"filter: the table has no column {column!r}",
                    f"the nearest is {near[0]!r}" if near else f"it has {', '.join(schema.names)}",
                )
            _compare(pa.array([], type=schema.field(column).type), expression)


def filter_mask(expression: Expression, rows: pa.RecordBatch | pa.Table) -> pa.BooleanArray:
    """Which rows fit: bool [rows], never null."""
    match expression:
        case Negation(inner=inner):
            return pc.invert(filter_mask(inner, rows))
        case Both(left=left, right=right):
            return pc.and_(filter_mask(left, rows), filter_mask(right, rows))
        case Either(left=left, right=right):
            return pc.or_(filter_mask(left, rows), filter_mask(right, rows))
        case Comparison(column=column):
            values = rows.column(column)
            if isinstance(values, pa.ChunkedArray):
                values = values.combine_chunks()
            return _compare(values, expression)


def _compare(values: pa.Array, comparison: Comparison) -> pa.BooleanArray:
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _compare(values.cast(kind.value_type), comparison)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        fits = _compare(pc.list_flatten(values), comparison)
        rows = pc.unique(pc.list_parent_indices(values).filter(fits))
        return pc.is_in(pa.array(range(len(values)), type=rows.type), value_set=rows)
    if pa.types.is_null(kind):
        return pa.array([False] * len(values), type=pa.bool_())
    if comparison.operator == "~":
        found = pc.match_substring(_text(values, comparison), comparison.literals[0], ignore_case=True)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        found = _compare_numbers(values, comparison)
    elif pa.types.is_boolean(kind):
        found = _each(values, comparison, [_truth(literal, comparison) for literal in comparison.literals])
    else:
        text = _text(values, comparison)
        if comparison.operator not in ("==", "!=", "in") and _number(comparison.literals[0]) is not None:
            raise UserError(
                f"filter: column {comparison.column!r} holds text, "
                f"which {comparison.operator} {comparison.literals[0]} cannot order as numbers"
            )
        found = _each(text, comparison, list(comparison.literals))
    return pc.fill_null(found, False)


def _each(values: pa.Array, comparison: Comparison, literals: list[Any]) -> pa.Array:
    if comparison.operator == "in":
        fits = pc.is_in(values, value_set=pa.array(literals, type=values.type))
        return pc.and_(fits, pc.is_valid(values))
    return _OPERATORS[comparison.operator](values, pa.scalar(literals[0], type=values.type))


def _compare_numbers(values: pa.Array, comparison: Comparison) -> pa.Array:
    literals: list[int | float] = []
    for text in comparison.literals:
        number = _number(text)
        if number is None:
            raise UserError(f"filter: column {comparison.column!r} holds numbers, and {text!r} is none")
        literals.append(number)
    fits_int64 = all(isinstance(number, int) and -(2**63) <= number < 2**63 for number in literals)
    if pa.types.is_integer(values.type) and values.type != pa.uint64() and fits_int64:
        return _each(values.cast(pa.int64()), comparison, literals)
    floats = values.cast(pa.float64(), safe=False)
    sound = pc.and_(pc.is_valid(floats), pc.invert(pc.fill_null(pc.is_nan(floats), True)))
    return pc.and_(_each(floats, comparison, [float(number) for number in literals]), sound)


def _text(values: pa.Array, comparison: Comparison) -> pa.Array:
    kind = values.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise UserError(f"filter: column {comparison.column!r} holds {kind}, which cannot be compared")
    try:
        return values.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise UserError(
            f"filter: column {comparison.column!r} holds {kind}, which cannot be compared"
        ) from None


def _truth(literal: str, comparison: Comparison) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return known[literal.lower()]
    except KeyError:
        raise UserError(
            f"filter: column {comparison.column!r} holds true or false, and {literal!r} is neither"
        ) from None


def _number(text: str) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


class _Parser:
    """Recursive descent over the tokens; every error says what was expected and what stands there."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        end = len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None:
                rest = text[at:].strip()
                hint = "equality is written ==" if rest.startswith("=") else None
                raise UserError(f"filter: {rest[:20]!r} cannot be read in {text!r}", hint)
            kind = str(match.lastgroup)
            self._tokens.append((kind, match.group(kind)))
            at = match.end()
        if len(self._tokens) > _MAX_TOKENS:
            raise UserError(
                f"filter: longer than {_MAX_TOKENS} words and signs", "a list says it shorter: in [..]"
            )
        self._text = text
        self._at = 0

    def parse(self) -> Expression:
        found = self._any(0)
        if self._at < len(self._tokens):
            raise self._wrong("and, or, or the end")
        return found

    def _any(self, depth: int) -> Expression:
        if depth > _MAX_DEPTH:
            raise UserError(f"filter: nested more than {_MAX_DEPTH} deep")
        found = self._all(depth)
        while self._take_keyword("or"):
            found = Either(found, self._all(depth))
        return found

    def _all(self, depth: int) -> Expression:
        found = self._one(depth)
        while self._take_keyword("and"):
            found = Both(found, self._one(depth))
        return found

    def _one(self, depth: int) -> Expression:
        negations = 0
        while self._take_keyword("not"):
            negations += 1
        if self._take_bracket("("):
            found = self._any(depth + 1)
            if not self._take_bracket(")"):
                raise self._wrong("a closing )")
        else:
            found = self._comparison()
        return Negation(found) if negations % 2 else found

    def _comparison(self) -> Comparison:
        column = self._value("a column", named=True)
        if self._take_keyword("in"):
            closing = "]" if self._take_bracket("[") else ")" if self._take_bracket("(") else None
            if closing is None:
                raise self._wrong("a list such as [PA, AP]")
            literals = [self._value("a value")]
            while self._take_bracket(","):
                literals.append(self._value("a value"))
            if not self._take_bracket(closing):
                raise self._wrong(f"a closing {closing}")
            return Comparison(column, "in", tuple(literals))
        kind, operator = self._next()
        if kind != "operator":
            raise self._wrong("one of == != < <= > >= in ~")
        self._at += 1
        return Comparison(column, operator, (self._value("a value"),))

    def _value(self, wanted: str, named: bool = False) -> str:
        kind, token = self._next()
        if kind == "quoted":
            self._at += 1
            return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
        if kind == "named" and named:
            self._at += 1
            return token[1:-1]
        if kind == "word" and token.lower() not in _KEYWORDS:
            self._at += 1
            return token
        raise self._wrong(wanted)

    def _next(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "the end")

    def _take_keyword(self, keyword: str) -> bool:
        kind, token = self._next()
        taken = kind == "word" and token.lower() == keyword
        self._at += taken
        return taken

    def _take_bracket(self, bracket: str) -> bool:
        taken = self._next() == ("bracket", bracket)
        self._at += taken
        return taken

    def _wrong(self, wanted: str) -> UserError:
        return UserError(
            f"filter: {wanted} is expected where {self._next()[1]} stands, in {self._text!r}",
            "for example: modality == XR and view in [PA, AP]",
        )
