"""A hundred strings that stand nowhere else in the world, and how they are looked for.

Every canary begins and ends with a mark of its own, so that one search finds them all, and finds one of which
an end was cut off. Marks are looked for as text in any case, UTF-16, base64 at each alignment, hex and lists
of byte values, in files, in what is compressed in them, in their names, and in Parquet files by columns.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import stat
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FRONT, BACK = "zqvkxjw", "wjxkvqz"
CANARIES = [f"{FRONT}{number:02d}{BACK}" for number in range(100)]
"""16 characters each, as the shortest elements of DICOM hold."""

NAMES, IDS, WORDS = CANARIES[:40], CANARIES[40:80], CANARIES[80:]


def _base64_of(word: bytes) -> set[bytes]:
    """What must stand in any base64 text of bytes that hold the word, wherever it begins in them."""
    found = set()
    for skipped in range(3):
        whole = word[skipped:]
        found.add(base64.b64encode(whole)[: 8 * len(whole) // 6])
    return found


def _patterns() -> tuple[dict[bytes, str], dict[bytes, str]]:
    """(looked for in any case, looked for as they are), each with the name of its form."""
    folded: dict[bytes, str] = {}
    exact: dict[bytes, str] = {}
    for mark in (FRONT, BACK):
        folded[mark.encode()] = "text"
        folded[mark.encode("utf-16-le")[:-1]] = "UTF-16"
        for word in (mark, mark.upper(), mark.title()):
            plain = word.encode()
            folded[plain.hex().encode()] = "hex"
            for separator in (",", ", ", " "):
                folded[separator.join(map(str, plain)).encode()] = "byte values"
            exact |= dict.fromkeys(_base64_of(plain), "base64")
    return folded, exact


FOLDED, EXACT = _patterns()


def forms(content: bytes) -> set[str]:
    """The forms in which a canary stands in some bytes; empty where there is none."""
    low = content.lower()
    found = {form for pattern, form in FOLDED.items() if pattern in low}
    return found | {form for pattern, form in EXACT.items() if pattern in content}


def contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """(place, bytes) of a file as it lies there and of what is compressed in it; Parquet by columns."""
    if data[:4] == b"PAR1" == data[-4:]:
        yield from _columns(name, data)
        return
    yield name, data
    if data[:2] == b"\x1f\x8b":
        yield from contents(f"{name}!gzip", gzip.decompress(data))
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield f"{name}!name", member.encode()
                yield from contents(f"{name}!{member}", archive.read(member))
    elif data[:4] == b"\x89PNG":
        with Image.open(io.BytesIO(data)) as image:
            yield f"{name}!png text", json.dumps(image.info, default=str).encode()


def _columns(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    file = pq.ParquetFile(pa.BufferReader(data))
    yield f"{name}!metadata", repr((file.metadata.metadata, str(file.schema_arrow))).encode()
    for group in range(file.num_row_groups):
        for number in range(file.metadata.num_columns):
            chunk = file.metadata.row_group(group).column(number)
            if chunk.statistics is not None and chunk.statistics.has_min_max:
                ends = chunk.statistics.min_raw, chunk.statistics.max_raw
                yield f"{name}!{chunk.path_in_schema.partition('.')[0]}", repr(ends).encode()
    table = file.read()
    for column in table.column_names:
        for value in table.column(column).to_pylist():
            if isinstance(value, bytes):
                yield from contents(f"{name}!{column}", value)
            else:
                yield f"{name}!{column}", json.dumps(value, default=str, ensure_ascii=False).encode()


def found_below(root: Path, allowed: tuple[str, ...] = ()) -> set[str]:
    """`place (form)` of every canary below a folder, in names too, save at places that fit a pattern."""
    found = set()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found |= {f"name of {name} ({form})" for form in forms(name.encode())}
        if stat.S_ISREG(path.lstat().st_mode):
            for place, data in contents(name, path.read_bytes()):
                if not any(fnmatch(place, pattern) for pattern in allowed):
                    found |= {f"{place} ({form})" for form in forms(data)}
    return found


def open_to_others(root: Path) -> list[str]:
    """Files and folders below a folder, and itself, that the group or others may read, write or enter."""
    kinds = (stat.S_ISREG, stat.S_ISDIR)
    every = [(path, path.lstat().st_mode) for path in (root, *root.rglob("*"))]
    return [str(p) for p, mode in every if mode & 0o077 and any(kind(mode) for kind in kinds)]
