"""The search for canaries finds a leak that is planted, in every form, and takes nothing else for one."""

from __future__ import annotations

import base64
import gzip
import io
import os
import zipfile
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from canaries import CANARIES, NAMES, found_below, open_to_others
from PIL import Image
from PIL.PngImagePlugin import PngInfo


def _zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", data)
    return out.getvalue()


def _parquet(text: str, column: str = "notes") -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"pair_id": ["1"], column: [[{"inner": text}]]}), out, compression="zstd")
    return out.getvalue()


def _png(text: str) -> bytes:
    out, info = io.BytesIO(), PngInfo()
    info.add_text("Comment", text * 9, zip=True)
    Image.new("L", (4, 4)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


LEAKS: dict[str, Callable[[str], bytes]] = {
    "text": lambda text: f"KeyError: '{text}'".encode(),
    "capitals": lambda text: text.upper().encode(),
    "UTF-16 little": lambda text: text.encode("utf-16-le"),
    "UTF-16 big": lambda text: text.encode("utf-16-be"),
    "hex": lambda text: text.encode().hex().encode(),
    "base64": lambda text: base64.b64encode(f"{{'report': '{text}'}}".encode()),
    "base64, shifted once": lambda text: base64.b64encode(f"x{text}".encode()),
    "base64, shifted twice": lambda text: base64.b64encode(f"xx{text}".encode()),
    "byte values": lambda text: str(list(text.encode())).encode(),
    "an array": lambda text: " ".join(map(str, text.encode())).encode(),
    "gzip": lambda text: gzip.compress(text.encode() * 20),
    "zip": lambda text: _zipped(text.encode() * 20),
    "gzip of zip": lambda text: gzip.compress(_zipped(text.encode() * 20)),
    "parquet": lambda text: _parquet(text),
    "parquet column's name": lambda text: _parquet("", text),
    "png": _png,
    "its beginning alone": lambda text: text[:9].encode(),
    "its end alone": lambda text: text[7:].encode(),
}


@pytest.mark.parametrize("form", sorted(LEAKS))
def test_a_planted_leak_is_found_in_every_form(tmp_path, form):
    (tmp_path / "logs").mkdir()
    for place, canary in enumerate((CANARIES[0], CANARIES[99])):
        file = tmp_path / "logs" / f"worker-{place}.err"
        file.write_bytes(LEAKS[form](canary))
    assert {leak.split("!")[0].split(" (")[0] for leak in found_below(tmp_path)} == {
        "logs/worker-0.err",
        "logs/worker-1.err",
    }


def test_a_planted_leak_is_found_in_names_and_in_columns_that_are_not_meant_for_it(tmp_path):
    (tmp_path / f"{NAMES[0]}.log").write_text("")
    (tmp_path / "made.parquet").write_bytes(_parquet(NAMES[1]))
    assert found_below(tmp_path) == {f"name of {NAMES[0]}.log (text)", "made.parquet!notes (text)"}
    assert found_below(tmp_path, ("made.parquet!notes",)) == {f"name of {NAMES[0]}.log (text)"}
    assert found_below(tmp_path, ("made.parquet!pair_id",)) >= {"made.parquet!notes (text)"}


def test_bytes_without_a_canary_are_not_taken_for_one(tmp_path):
    (tmp_path / "random").write_bytes(os.urandom(1 << 20))
    (tmp_path / "base64").write_bytes(base64.b64encode(os.urandom(1 << 20)))
    (tmp_path / "hex").write_text(os.urandom(1 << 20).hex())
    assert found_below(tmp_path) == set()


def test_a_file_that_others_may_read_is_found(tmp_path):
    tmp_path.chmod(0o700)
    file = tmp_path / "scores.json"
    file.write_text("{}")
    file.chmod(0o600)
    assert open_to_others(tmp_path) == []
    file.chmod(0o640)
    assert open_to_others(tmp_path) == [str(file)]
