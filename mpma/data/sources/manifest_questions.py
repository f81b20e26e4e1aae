"""Questions of a user's own tables: in a column of the pairs' table, or one a row in tables of their own.

Decisions: tables of questions are read whole before the pairs, since nothing says that they stand in the same
order (a question costs some hundred bytes); they are joined by the pair's id alone. A question about an image
that no table lists is a refusal of that image, one line however many questions it has; a question without
words or answer is refused by itself and leaves its image as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mpma.data.quality import is_missing
from mpma.data.questions import question_row
from mpma.data.sources.config import QuestionColumns
from mpma.data.sources.contract import Rejection
from mpma.data.sources.manifest_columns import nearest_column, usual_column
from mpma.data.sources.tables import BrokenRow, Table
from mpma.data.sources.values import as_text
from mpma.errors import UserError

USUAL_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "pair_id": ("pairid", "imageid", "image", "imagename", "dicomid", "filename", "imagepath", "path", "id"),
    "question": ("question", "questiontext", "q"),
    "answers": ("answers", "answer", "answertext", "a"),
    "type": ("type", "questiontype", "category", "kind", "qtype", "contenttype"),
}
"""What a question's column holds: usual names, the more telling first, without case, spaces and signs."""

Question = dict[str, Any]
"""`question`, `answers` (list) and `type`."""


@dataclass(frozen=True)
class QuestionTable:
    """One table of questions, its columns understood."""

    table: Table
    of: Mapping[str, str]
    """What it holds to column; without `type` where there is none."""

    @classmethod
    def resolve(cls, table: Table, given: QuestionColumns) -> QuestionTable:
        """Find the columns. Raises `UserError` naming the one that is not there."""
        names = table.schema.names
        of: dict[str, str] = {}
        for field, candidates in USUAL_NAMES.items():
            column = getattr(given, field)
            if column is not None and column not in names:
                raise UserError(
                    f"question_columns.{field}: {table.place} has no column {column!r}",
                    nearest_column(column, names),
                )
            found = column or usual_column(names, candidates)
            if found is not None:
                of[field] = found
            elif field != "type":
                raise UserError(
                    f"{table.place} has no column that holds the {field.replace('_', ' ')} of a question",
                    f"name it: --set question_columns.{field}=COLUMN "
                    f"(its columns are {', '.join(filter(None, names))})",
                )
        return cls(table, of)

    def rows(self) -> Iterator[tuple[str, Question] | Rejection]:
        """Pair id and question of each row in order."""
        name = self.table.name
        for rows in self.table.rows(list(dict.fromkeys(self.of.values()))):
            if isinstance(rows, BrokenRow):
                where = f"{name}, line {rows.line}" if rows.line else name
                yield Rejection(where, "", "unreadable_row", rows.detail)
                continue
            for place, row in enumerate(rows.batch.to_pylist()):
                where = f"{name}, row {rows.first + place + 1}"
                pair_id = as_text(row[self.of["pair_id"]])
                kind = row[self.of["type"]] if "type" in self.of else ""
                question = _question(row[self.of["question"]], row[self.of["answers"]], kind)
                if not pair_id:
                    yield Rejection(where, "", "missing_id", "a question without its image")
                elif question is None:
                    yield Rejection(where, pair_id, "incomplete_question")
                else:
                    yield pair_id, question


def joined(tables: tuple[QuestionTable, ...]) -> tuple[dict[str, list[Question]], list[Rejection]]:
    """Questions of every pair id in the order of the tables, and the rows that are none."""
    found: dict[str, list[Question]] = {}
    refused: list[Rejection] = []
    for table in tables:
        for entry in table.rows():
            if isinstance(entry, Rejection):
                refused.append(entry)
            else:
                found.setdefault(entry[0], []).append(entry[1])
    return found, refused


def describe_questions(tables: tuple[QuestionTable, ...]) -> list[str]:
    """What was recognised, in lines for the terminal."""
    if not tables:
        return []
    first = tables[0]
    count = sum(found.table.rows_in_file for found in tables)
    names = ", ".join(found.table.name for found in tables)
    columns = ", ".join(f"{field} = {column}" for field, column in first.of.items())
    lines = [f"{count} questions in {names}, joined to the pairs by {first.of['pair_id']} ({columns})"]
    if "type" not in first.of:
        lines.append("no column of question types: figures are not broken down by type")
    return lines


def questions_of_cell(value: Any) -> tuple[list[Question] | None, int]:
    """Questions of a list or JSON text, None where the cell is missing, and how many of it are incomplete.

    Raises `ValueError` where the cell holds something else.
    """
    if isinstance(value, str):
        if is_missing(value):
            return None, 0
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("not JSON") from None
    if value is None:
        return None, 0
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError("not a list of questions")
    found = []
    for entry in value:
        keys = {field: usual_column(list(entry), names) for field, names in USUAL_NAMES.items()}
        if keys["question"] is None or keys["answers"] is None:
            raise ValueError("a question without the fields question and answers")
        kind = entry[keys["type"]] if keys["type"] is not None else ""
        found.append(_question(entry[keys["question"]], entry[keys["answers"]], kind))
    whole = [question for question in found if question is not None]
    return whole, len(found) - len(whole)


def _question(question: Any, answers: Any, kind: Any) -> Question | None:
    listed = answers if isinstance(answers, list) else [answers]
    return question_row(as_text(question), [as_text(answer) for answer in listed], as_text(kind))


def question_tables(tables: Iterable[Table], given: QuestionColumns) -> tuple[QuestionTable, ...]:
    """Tables of questions, their columns found."""
    return tuple(QuestionTable.resolve(table, given) for table in tables)
