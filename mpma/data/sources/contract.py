"""What a source is: one archive layout, read as the publisher gives it.

Decisions: a source first lists (reads tables, never pixels) and then loads item by item, so that the
listing stays small and cheap while loading runs on any number of processes; an item that cannot be
kept is returned as a `Rejection` with a reason code, never raised; identifiers are the publisher's
own here and are hashed by the ingest, after the split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa


@dataclass(frozen=True)
class Item:
    """One candidate pair as listed: everything but the pixels."""

    pair_id: str
    """Unique in the source (the publisher's image id)."""
    patient_id: str
    """The publisher's patient id; the unit of the split."""
    study_id: str
    """The publisher's study id."""
    report: str
    """Whole report text as given, UTF-8; may be empty (quality decides)."""
    path: str = ""
    """Image file relative to the source's root, or a description of the row that embeds it."""
    locator: Mapping[str, Any] = field(default_factory=dict)
    """What `load_image` needs to find the bytes: numbers, text, and lists and mappings by text of them."""
    findings: str | None = None
    """Given findings section; None: parse it from the report."""
    impression: str | None = None
    """Given impression section; None: parse it from the report."""
    view: str = "unknown"
    """One of `mpma.data.pairs.VIEWS`."""
    labels: tuple[str, ...] | None = None
    """None: not labelled; empty: nothing found."""
    split: str | None = None
    """`train`, `val` or `test` where the source gives one; None: drawn by patient."""
    license: str = ""
    source: str = ""
    """Where the pair comes from, where the archive itself says so per row; empty: the source's name."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Optional and extra columns (`mask`, `questions`, the table's own), kept as they are: values
    as a table's cells hold them (text, numbers, dates, decimals, bytes, lists and mappings of them)."""
    stored_id: str = ""
    """What the dataset calls the pair where its own id must not stand there; empty: `pair_id`. Filled in by
    the ingest, never by a source."""


@dataclass(frozen=True)
class Rejection:
    """A candidate that is not kept: goes to quarantine.parquet."""

    path: str
    pair_id: str
    reason: str
    """A code of `mpma.data.quality.REASONS`."""
    detail: str = ""
    """Numbers or names only, never report text."""


class Source(Protocol):
    """One archive layout. Instances are picklable; they hold paths and options, no open files.

    A source whose image ids name a person or an examination (the file names or UIDs of a hospital's own
    archive) says so with a further attribute, `pair_ids_are_identifying = True`: they are then stored as
    keyed hashes unless the user decides otherwise.
    """

    @property
    def name(self) -> str:
        """The source's name, as `SOURCES` lists it."""
        ...

    @property
    def reports_expected(self) -> bool:
        """Whether a pair without a report is a defect; False for labelled archives that have none."""
        ...

    def assumptions(self) -> list[str]:
        """What was recognised or assumed, one line each, printed before the work starts."""
        ...

    def items(self) -> Iterable[Item | Rejection]:
        """List every candidate, reading tables and report files but no pixels.

        Raises `UserError` where the root is not this layout (naming what was looked for).
        """
        ...

    def extra_schema(self) -> pa.Schema:
        """Arrow fields of `Item.extra`, in the order they are to be stored; empty where there are none.

        No name of `PAIR_SCHEMA` is among them; a field named as one of `OPTIONAL_FIELDS` has its type.
        """
        ...

    def load_image(self, item: Item) -> bytes:
        """The encoded image file of an item, as stored.

        Raises OSError or KeyError where it is missing, `UnreadableImage` where it is refused.
        """
        ...

    def load_extra(self, item: Item) -> dict[str, Any]:
        """Columns of `extra_schema` that are too large to be listed (masks), by name; empty where none is.

        They win over those of `Item.extra`. Raises OSError where they cannot be read, `UnreadableImage` with
        a code of its own where a mask is refused.
        """
        ...


class UnreadableImage(Exception):  # noqa: N818 - a verdict on a file, part of the contract
    """An image that is refused before or while decoding; `reason` is a quarantine code."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        # Exceptions cross process borders by pickle, which would otherwise rebuild from the message.
        return type(self), (self.reason, self.detail)
