"""Packed items come back as they were, whatever a table's own columns hold, without running anything."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pytest

from mpma.data.item_packing import pack_items, unpack_items
from mpma.data.sources.contract import Item


def an_item(**changes: Any) -> Item:
    return Item("image-1", "patient", "study", "FINDINGS: \u00e9 \U0001f600 clear.", **changes)


def test_items_come_back_equal_and_in_order() -> None:
    items = [
        an_item(),
        an_item(path="bytes-\udcff\udcfe.png", locator={"table": 0, "row": 7, "path": "bytes-\udcff.png"}),
        an_item(findings="", impression="None.", labels=(), split="val", license="CC0", source="there"),
        an_item(labels=("effusion", "mass"), extra={"age": 61, "score": 0.1, "known": True, "none": None}),
    ]
    assert unpack_items(pack_items(items)) == items
    assert unpack_items(pack_items([])) == []
    (again,) = unpack_items(pack_items([an_item(extra={"score": math.nan})]))
    assert math.isnan(again.extra["score"])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([datetime.date(2020, 2, 29)], pa.date32()),
        ([datetime.datetime(1999, 12, 31, 23, 59, 59, 123456)], pa.timestamp("us")),
        (
            [datetime.datetime(2020, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))],
            pa.timestamp("s", "Europe/Berlin"),
        ),
        ([pd.Timestamp(1_600_000_000_123_456_789)], pa.timestamp("ns")),
        ([pd.Timestamp(1_600_000_000_123_456_789, tz="Asia/Tokyo")], pa.timestamp("ns", "Asia/Tokyo")),
        ([datetime.time(8, 30, 1, 5)], pa.time64("us")),
        ([datetime.timedelta(days=-2, microseconds=3)], pa.duration("us")),
        ([pd.Timedelta(1_234_567_891, "ns")], pa.duration("ns")),
        ([Decimal("12.340")], pa.decimal128(10, 3)),
        ([b"\x00\xff"], pa.binary()),
        ([[{"question": "where?", "answers": ["left", "lower"]}]], None),
        ([2**63 - 1], pa.int64()),
    ],
)
def test_a_column_of_any_kind_is_stored_as_if_it_had_not_been_packed(
    values: list[Any], kind: pa.DataType | None
) -> None:
    column = pa.array(values, kind)
    (listed,) = column.to_pylist()
    (again,) = unpack_items(pack_items([an_item(extra={"own": listed})]))
    assert pa.array([again.extra["own"]], column.type).equals(column)


def test_what_cannot_be_held_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match="cannot hold a set"):
        pack_items([an_item(extra={"own": {1}})])
