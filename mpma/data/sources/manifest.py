"""A user's own table: image files or embedded images, reports, and whatever else it holds.

Decisions: as little as possible must be typed, so usual column names, embedded images, splits in a
column or in file names are recognised, and everything that was so assumed is said before work begins;
what cannot be assumed safely (who the patient is) is asked for. Tables are read in batches and never
with their images; an embedded image is fetched by its row group and row when it is loaded. Columns that
are none of a pair's own are kept with their types. A path may not leave the image folder, which the
user names and which may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mpma.data.pairs import OPTIONAL_FIELDS
from mpma.data.quality import is_missing
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import ManifestOptions
from mpma.data.sources.contract import Item, Rejection
from mpma.data.sources.manifest_columns import (
    RECOMPUTED,
    ResolvedColumns,
    describe_columns,
    image_column_path,
    resolve_columns,
)
from mpma.data.sources.manifest_questions import (
    Question,
    QuestionTable,
    describe_questions,
    joined,
    question_tables,
    questions_of_cell,
)
from mpma.data.sources.paths import forward, lexically_inside
from mpma.data.sources.row_filter import Expression, check_filter, filter_columns, filter_mask, parse_filter
from mpma.data.sources.tables import BrokenRow, Rows, Table, find_tables
from mpma.data.sources.values import as_labels, as_split, as_text, as_view, split_in_name
from mpma.errors import UserError


@dataclass(frozen=True)
class ManifestTable:
    """One table of the manifest, its columns understood."""

    table: Table
    columns: ResolvedColumns
    split: str | None
    """The split that its file name gives, where that is used."""

    @property
    def name(self) -> str:
        return self.table.name


@dataclass(frozen=True)
class ManifestSource:
    """Pairs of one or more tables; `resolve` reads their columns."""

    archive: ArchiveFolder
    """The folder of the tables."""
    image_root: ArchiveFolder
    tables: tuple[ManifestTable, ...]
    options: ManifestOptions
    row_filter: Expression | None
    extra: pa.Schema
    questions: tuple[QuestionTable, ...] = ()
    name: str = "manifest"

    @classmethod
    def resolve(cls, root: str | Path, options: ManifestOptions | None = None) -> ManifestSource:
        """Open the tables at a path or a URI.

        Raises `UserError` naming the file, column or option at fault.
        """
        options = options or ManifestOptions()
        archive, single = ArchiveFolder.at(root)
        pattern = options.questions_table
        asking = [] if pattern is None else find_tables(archive, single, pattern)
        files = [file for file in find_tables(archive, single, options.tables) if file not in asking]
        if not files:
            raise UserError(
                f"questions_table: {pattern!r} leaves no table of images in {archive.described(single)}"
            )
        image_root = archive.beside(options.image_root or "")
        if not image_root.is_folder:
            raise UserError(
                f"image_root: {image_root.described()} is not a folder",
                "it is relative to the table's folder",
            )
        row_filter = None if options.filter is None else parse_filter(options.filter)
        opened = [Table.open(archive, file, options.delimiter, options.encoding) for file in files]
        columns = [
            resolve_columns(
                table.place,
                table.schema,
                options.columns,
                options.patient_per_row,
                options.reports == "optional",
            )
            for table in opened
        ]
        if row_filter is not None:
            for table in opened:
                check_filter(row_filter, table.schema)
        splits: list[str | None] = [None] * len(files)
        if options.splits == "keep" and not any("split" in found.of for found in columns):
            named = [split_in_name(table.name.partition(".")[0]) for table in opened]
            # A name for some tables and none for others says too little to draw the rest by.
            splits = list(named) if all(named) else splits
        tables = tuple(map(ManifestTable, opened, columns, splits))
        questions = question_tables(
            (Table.open(archive, file, options.delimiter, options.encoding) for file in asking),
            options.question_columns,
        )
        extra = _extra_schema(tables)
        if questions:
            if "questions" in extra.names:
                raise UserError(
                    "questions_table: the pairs' own table has a column of questions as well",
                    "leave one of them out",
                )
            extra = extra.append(OPTIONAL_FIELDS["questions"])
        return cls(archive, image_root, tables, options, row_filter, extra, questions)

    @property
    def reports_expected(self) -> bool:
        return self.options.reports == "expected"

    def assumptions(self) -> list[str]:
        first, *others = self.tables
        rows = sum(found.table.rows_in_file for found in self.tables)
        lines = [f"{rows} rows in {', '.join(found.name for found in self.tables)}"]
        lines += describe_columns(first.columns, self.options.columns)
        lines += [
            f"{other.name} has other columns: {', '.join(f'{k} = {v}' for k, v in other.columns.of.items())}"
            for other in others
            if other.columns.of != first.columns.of
        ]
        lines += describe_questions(self.questions)
        kept = [name for name in self.extra.names if name not in OPTIONAL_FIELDS]
        if kept:
            lines.append(f"kept as they are: {', '.join(kept)}")
        lines.append(self._about_splits())
        if "patient_id" not in first.columns.of:
            lines.append(
                "EVERY ROW IS TAKEN FOR A PATIENT OF ITS OWN (patient_per_row): "
                "if a patient has two rows, they may stand in two splits"
            )
        if "labels" in first.columns.of and self.options.nothing_found:
            lines.append(f"labels that mean nothing was found: {', '.join(self.options.nothing_found)}")
        if any(name in found.table.schema.names for found in self.tables for name in RECOMPUTED):
            lines.append(f"{' and '.join(RECOMPUTED)} are those of the stored images")
        if "path" in first.columns.of:
            lines.append(f"image paths are relative to {self.image_root.described()}")
        if self.row_filter is not None:
            lines.append(f"the filter {self.options.filter} keeps {self.count_kept()} of {rows} rows")
        return lines

    def extra_schema(self) -> pa.Schema:
        return self.extra

    def count_kept(self) -> int:
        """How many rows the filter keeps, from its own columns alone."""
        if self.row_filter is None:
            return sum(found.table.rows_in_file for found in self.tables)
        columns = filter_columns(self.row_filter)
        kept = 0
        for found in self.tables:
            for rows in found.table.rows(columns):
                if isinstance(rows, Rows):
                    mask = filter_mask(self.row_filter, found.table.typed(rows.batch, columns))
                    kept += pc.sum(mask).as_py() or 0
        return kept

    def items(self) -> Iterator[Item | Rejection]:
        asked, refused = joined(self.questions)
        listed_ids: set[str] = set()
        yield from self._table_items(asked, listed_ids)
        yield from refused
        for pair_id, questions in asked.items():
            if pair_id not in listed_ids:
                detail = f"{len(questions)} questions ask about it"
                yield Rejection(self.questions[0].table.name, pair_id, "missing_image", detail)

    def _table_items(
        self, asked: dict[str, list[Question]], listed_ids: set[str]
    ) -> Iterator[Item | Rejection]:
        for index, found in enumerate(self.tables):
            listed = found.columns.listed
            filtered = () if self.row_filter is None else filter_columns(self.row_filter)
            for rows in found.table.rows(list(dict.fromkeys((*listed, *filtered)))):
                if isinstance(rows, BrokenRow):
                    where = f"{found.name}, line {rows.line}" if rows.line else found.name
                    yield Rejection(where, "", "unreadable_row", rows.detail)
                else:
                    if self.questions:
                        # Rows that a filter leaves out are there all the same.
                        listed_ids.update(_pair_ids(found, rows))
                    yield from self._batch_items(index, found, rows, filtered, asked)

    def load_image(self, item: Item) -> bytes:
        if "path" in item.locator:
            return self.image_root.read(item.locator["path"], self.options.max_image_bytes)
        found = self.tables[item.locator["table"]]
        column = found.columns.of["image"]
        path = image_column_path(column, found.table.schema.field(column).type)
        data = found.table.cell(path, item.locator["row_group"], item.locator["row"])
        if data is None:
            raise FileNotFoundError("the row's image is null")
        return data

    def load_extra(self, item: Item) -> dict[str, Any]:
        found = self.tables[item.locator["table"]]
        row_group, row = item.locator["row_group"], item.locator["row"]
        values: dict[str, Any] = {
            stored: found.table.cell(column, row_group, row) for stored, column in found.columns.large.items()
        }
        if "mask" in item.locator:
            values["mask"] = self.image_root.read(item.locator["mask"], self.options.max_image_bytes)
        return values

    def _batch_items(
        self,
        index: int,
        found: ManifestTable,
        rows: Rows,
        filtered: tuple[str, ...],
        asked: dict[str, list[Question]],
    ) -> Iterator[Item | Rejection]:
        positions = range(rows.batch.num_rows)
        batch = rows.batch
        if self.row_filter is not None:
            mask = filter_mask(self.row_filter, found.table.typed(batch, filtered))
            positions = pc.indices_nonzero(mask).to_pylist()
            batch = batch.filter(mask)
        of = found.columns.of
        cells = {
            field: batch.column(column).to_pylist()
            for field, column in of.items()
            if field != "image" and field not in found.columns.large
        }
        extra = self._extra_cells(found, batch)
        for row, position in enumerate(positions):
            values = {field: column[row] for field, column in cells.items()}
            number = rows.first + position
            place: dict[str, Any] = {
                "table": index,
                "row_group": rows.row_group,
                "row": rows.first_in_group + position,
            }
            others = {name: column[row] for name, column in extra.items()}
            if self.questions:
                others["questions"] = asked.get(_pair_id(found, number, values))
            incomplete = 0
            if "questions" in values:
                try:
                    others["questions"], incomplete = questions_of_cell(values["questions"])
                except ValueError as error:
                    pair_id = _pair_id(found, number, values)
                    yield Rejection(
                        _where(found, number), pair_id, "wrong_type", f"column questions: {error}"
                    )
                    continue
            for _ in range(incomplete):
                yield Rejection(_where(found, number), _pair_id(found, number, values), "incomplete_question")
            yield self._item(found, number, place, values, others)

    def _extra_cells(self, found: ManifestTable, batch: pa.RecordBatch) -> dict[str, list[Any]]:
        """Every extra column of the source by its stored name; null where this table has none of it."""
        cells: dict[str, list[Any]] = {}
        for field in self.extra:
            column = found.columns.extra.get(field.name)
            if field.name in found.columns.large or field.name in found.columns.of:
                continue
            if column is None:
                cells[field.name] = [None] * batch.num_rows
            else:
                cells[field.name] = found.table.typed(batch, [column]).column(0).cast(field.type).to_pylist()
        return cells

    def _item(
        self,
        found: ManifestTable,
        number: int,
        place: dict[str, Any],
        values: dict[str, Any],
        extra: dict[str, Any],
    ) -> Item | Rejection:
        where = _where(found, number)
        embedded = "image" in found.columns.of
        path = forward(as_text(values.get("path"))) if not embedded else ""
        pair_id = _pair_id(found, number, values)
        if not embedded:
            if not path:
                return Rejection(where, pair_id, "missing_image", "the row names no image")
            if not lexically_inside(path):
                return Rejection(path, pair_id, "outside_root", where)
        if not pair_id:
            return Rejection(path or where, "", "missing_id", where)
        patient_id = as_text(values["patient_id"]) if "patient_id" in values else pair_id
        if not patient_id:
            return Rejection(path or where, pair_id, "missing_patient", where)
        split = found.split
        if self.options.splits == "keep" and not is_missing(values.get("split")):
            split = as_split(values["split"])
            if split is None:
                return Rejection(path or where, pair_id, "unknown_split", where)
        mask = forward(as_text(values.get("mask")))
        if mask and not lexically_inside(mask):
            return Rejection(mask, pair_id, "outside_root", where)
        if mask:
            place = {**place, "mask": mask}
        findings, impression = _section(values.get("findings")), _section(values.get("impression"))
        return Item(
            pair_id=pair_id,
            patient_id=patient_id,
            study_id=as_text(values.get("study_id")) or pair_id,
            report=_report(values, findings, impression),
            path=path or where,
            locator=place if embedded else {**place, "path": path},
            findings=findings,
            impression=impression,
            view=as_view(values.get("view")),
            labels=as_labels(values.get("labels"), self.options.label_separators, self.options.nothing_found),
            split=split,
            license=as_text(values.get("license")) or self.options.license,
            source=as_text(values.get("source")),
            extra=extra,
        )

    def _about_splits(self) -> str:
        if self.options.splits == "ignore":
            return "given splits are ignored: patients are drawn"
        by_column = [found for found in self.tables if "split" in found.columns.of]
        if by_column:
            return f"splits are kept from the column {by_column[0].columns.of['split']}"
        if self.tables[0].split is not None:
            pairs = ", ".join(f"{found.name} = {found.split}" for found in self.tables)
            return f"splits are kept from the file names: {pairs}"
        some = [found.name for found in self.tables if split_in_name(found.name.partition(".")[0])]
        if some:
            return f"patients are drawn: of {len(self.tables)} tables only {', '.join(some)} names a split"
        return "no split is given: patients are drawn"


def _where(found: ManifestTable, number: int) -> str:
    return f"{found.name}, row {number + 1}"


def _pair_id(found: ManifestTable, number: int, values: dict[str, Any]) -> str:
    """A row's id: its column's, else the path of its image, else its place."""
    if "pair_id" in values:
        return as_text(values["pair_id"])
    path = "" if "image" in found.columns.of else forward(as_text(values.get("path")))
    return path or f"{found.name}-{number + 1}"


def _pair_ids(found: ManifestTable, rows: Rows) -> Iterator[str]:
    of = found.columns.of
    cells = {field: rows.batch.column(of[field]).to_pylist() for field in ("pair_id", "path") if field in of}
    for place in range(rows.batch.num_rows):
        yield _pair_id(found, rows.first + place, {field: column[place] for field, column in cells.items()})


def _section(value: Any) -> str | None:
    return None if is_missing(value) else as_text(value)


def _report(values: dict[str, Any], findings: str | None, impression: str | None) -> str:
    if "report" in values:
        return as_text(values["report"])
    sections = (("FINDINGS", findings), ("IMPRESSION", impression))
    return "\n".join(f"{name}: {text}" for name, text in sections if text)


def _extra_schema(tables: tuple[ManifestTable, ...]) -> pa.Schema:
    """One type per extra column over all tables: the widest, or text where they do not agree."""
    kinds: dict[str, list[tuple[str, pa.DataType]]] = {}
    for found in tables:
        for stored, column in found.columns.extra.items():
            kind = found.table.schema.field(column).type
            if stored in found.columns.of:
                kind = OPTIONAL_FIELDS[stored].type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            kinds.setdefault(stored, []).append((found.name, kind))
    return pa.schema([pa.field(stored, _common(stored, given)) for stored, given in kinds.items()])


def _common(stored: str, given: list[tuple[str, pa.DataType]]) -> pa.DataType:
    kinds = list(dict.fromkeys(kind for _, kind in given if not pa.types.is_null(kind)))
    if not kinds:
        return pa.string()
    if len(kinds) == 1:
        return kinds[0]
    try:
        unified = pa.unify_schemas([pa.schema([("x", kind)]) for kind in kinds], promote_options="permissive")
        return unified.field(0).type
    except pa.ArrowException:
        if any(pa.types.is_nested(kind) or pa.types.is_binary(kind) for kind in kinds):
            names = ", ".join(f"{kind} in {name}" for name, kind in given)
            raise UserError(f"column {stored!r} has no common type: {names}") from None
        return pa.string()
