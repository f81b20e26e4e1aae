"""Listed items as compressed bytes: how a plan holds them and how they reach the tasks that load them.

Decisions: JSON, so that unpacking builds plain values only and runs nothing. What a table's own columns may
hold beyond JSON (dates, times, decimals, bytes) stands there as an object with one key, which names the
kind after a NUL; every value comes back equal, but a tuple as a list and a zone as its offset from UTC.
Lone surrogates (file names that are not UTF-8) survive, since the JSON is ASCII.
"""

from __future__ import annotations

import base64
import datetime
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from typing import Any, Final

from mpma.data.sources.contract import Item

_FIELDS: Final = tuple(field.name for field in fields(Item))
_LABELS: Final = _FIELDS.index("labels")


def pack_items(items: Sequence[Item]) -> bytes:
    """The items as bytes. Raises TypeError naming the type of a value that cannot be held."""
    rows = [[getattr(item, name) for name in _FIELDS] for item in items]
    return zlib.compress(json.dumps(rows, default=_plain, separators=(",", ":")).encode("ascii"), 1)


def unpack_items(packed: bytes) -> list[Item]:
    """The items of `pack_items`, in order."""
    rows = json.loads(zlib.decompress(packed), object_hook=_whole)
    for row in rows:
        if row[_LABELS] is not None:
            row[_LABELS] = tuple(row[_LABELS])
    return [Item(*row) for row in rows]


def _timestamp(text: str) -> Any:
    import pandas as pd

    return pd.Timestamp(text)


def _timedelta(nanoseconds: int) -> Any:
    import pandas as pd

    return pd.Timedelta(nanoseconds, "ns")


_BUILD: Final[Mapping[str, Callable[[Any], Any]]] = {
    "timestamp": _timestamp,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "nanoseconds": _timedelta,
    "duration": lambda parts: datetime.timedelta(*parts),
    "decimal": Decimal,
    "bytes": base64.b64decode,
}


def _plain(value: Any) -> Any:
    """What JSON does not know, as {"\\0kind": text or numbers}."""
    # Arrow gives values in nanoseconds as pandas' subclasses, which the standard types would round.
    if isinstance(value, datetime.datetime):
        kind = "timestamp" if hasattr(value, "nanosecond") else "datetime"
        return {f"\0{kind}": value.isoformat()}
    if isinstance(value, datetime.date):
        return {"\0date": value.isoformat()}
    if isinstance(value, datetime.time):
        return {"\0time": value.isoformat()}
    if isinstance(value, datetime.timedelta):
        nanoseconds = getattr(value, "value", None)
        if nanoseconds is not None:
            return {"\0nanoseconds": int(nanoseconds)}
        return {"\0duration": [value.days, value.seconds, value.microseconds]}
    if isinstance(value, Decimal):
        return {"\0decimal": str(value)}
    if isinstance(value, bytes):
        return {"\0bytes": base64.b64encode(value).decode("ascii")}
    raise TypeError(f"an item cannot hold a {type(value).__name__}")


def _whole(found: dict[str, Any]) -> Any:
    if len(found) == 1:
        ((name, value),) = found.items()
        if name.startswith("\0"):
            return _BUILD[name[1:]](value)
    return found
