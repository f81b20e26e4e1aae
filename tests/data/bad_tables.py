"""Tables, archives and configuration files that a hostile, broken or careless archive holds.

Each says what may come of it: one line of `UserError`, or the sound rows beside refusals by name. Sound
rows are always the same eight, so that whatever is around them they can be compared.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_files import PAGE, POINTER
from source_samples import encoded, grey_pixels, openi_xml, png

ROWS: Final = 8
HEADER: Final = "id,patient_id,path,report,age"
LINES: Final = tuple(
    f'g{number},p{number},{number}.png,"Heart ""size"" {number}, normal.\nLungs {number}.",{40 + number}'
    for number in range(ROWS)
)


SOUND: Final = {"manifest": "csv-sound", "openi": "tgz-sound"}
"""Source to the table of sound rows alone."""


@dataclass(frozen=True)
class BadTable:
    """The files of a root, and what listing it may come to."""

    name: str
    files: dict[str, bytes]
    message: str | None = None
    """Pattern of the one line; None where the sound rows are listed."""
    reasons: tuple[str, ...] = ()
    """Refusals beside the sound rows, in their order."""
    options: tuple[str, ...] = ()
    source: str = "manifest"
    anything: bool = False
    """For flipped bytes: any line, or any rows."""
    whole: bool = field(default=True)
    """Whether the sound rows must all be listed, equal in every field."""


def text(*lines: str, header: str = HEADER, end: str = "\n") -> bytes:
    """A CSV of some lines."""
    return end.join((header, *lines, "")).encode()


def among(*bad: str) -> bytes:
    """The sound rows with others in their middle."""
    return text(*LINES[:3], *bad, *LINES[3:])


def csv_tables() -> Iterator[BadTable]:
    """Text tables."""

    def table(name: str, data: bytes, message: str | None = None, *reasons: str, **more: Any) -> BadTable:
        return BadTable(f"csv-{name}", {more.pop("file", "pairs.csv"): data}, message, reasons, **more)

    row = "unreadable_row"
    yield table("sound", text(*LINES))
    yield table("open-quote", among('bad,p,i.png,"never closed,5'), None, row)
    yield table("open-quotes", among(*['bad,p,i.png,"never closed,5'] * 3), None, row, row, row)
    yield table("open-last", text(*LINES, 'bad,p,i.png,"never closed,5'), None, row)
    yield table("open-last-cell", among('bad,p,i.png,text,"5'), None, row)
    yield table("open-first-cell", among('"bad,p,i.png,text,5'), None, row)
    yield table("open-after-closed", among('bad,p,i.png,"a\nb","5'), None, row)
    yield table(
        "open-crlf", among('bad,p,i.png,"never closed,5').replace(b"\n", b"\r\n"), None, row, whole=False
    )
    yield table("ragged", among("a,b", "a,b,c,d,e,f,g", ","), None, row, row, row)
    yield table("repeated-header", among(HEADER, HEADER), None, row, row)
    yield table("blank-lines", among("", "", ""), None)
    yield table("huge-ragged", among("," * 100_000), None, row)
    yield table("nul", among("bad\0,p,i\0.png,text\0,5"), None, "outside_root")
    yield table("not-a-number", among("NaN,p,i.png,NaN,5"), None, "missing_id")
    yield table("nobody", among("bad,NaN,i.png,text,5"), None, "missing_patient")
    yield table("no-path", among("bad,p,,text,5"), None, "missing_image")
    yield table("endings-mixed", text(*LINES[:4]) + "\r\n".join((*LINES[4:], "")).encode())
    yield table("mark", b"\xef\xbb\xbf" + text(*LINES))
    yield table("quoted-header", text(*LINES, header='"id","patient_id","path","report","age"'))
    yield table("utf-16-said", text(*LINES).decode().encode("utf-16"), options=("encoding=utf-16",))
    yield table("utf-16-le-said", text(*LINES).decode().encode("utf-16-le"), options=("encoding=utf-16-le",))
    yield table("latin-1-said", text(*LINES), options=("encoding=latin-1",))
    yield table("utf-16", text(*LINES).decode().encode("utf-16"), "is UTF-16 text")
    yield table("utf-32", text(*LINES).decode().encode("utf-32"), "is UTF-32 text")
    yield table("utf-16-le", text(*LINES).decode().encode("utf-16-le"), "NUL characters in its header")
    yield table(
        "latin-1", among("bad,p,i.png,Müller,5").decode().encode("latin-1"), "not text in the given encoding"
    )
    yield table(
        "surrogate", among("bad,p,i.png,x,5").replace(b",x,", b",\xed\xa0\x80,"), "not text in the given"
    )
    yield table("overlong", among("bad,p,i.png,x,5").replace(b",x,", b",\xc0\xaf,"), "not text in the given")
    yield table(
        "header-latin-1",
        text(*LINES, header=HEADER + "ä").decode().encode("latin-1"),
        "not text in the given",
    )
    yield table("encoding-unknown", text(*LINES), "is not known", options=("encoding=utf-9",))
    yield table("pointer", POINTER, "is a git-lfs pointer")
    yield table("pointer-gz", POINTER, "is a git-lfs pointer", file="pairs.csv.gz")
    yield table("pointer-tsv", POINTER, "is a git-lfs pointer", file="pairs.tsv")
    yield table("page", PAGE, "is a web page")
    yield table("empty", b"", "is empty")
    yield table("empty-gz", b"", "is empty", file="pairs.csv.gz")
    yield table("empty-packed", gzip.compress(b""), "cannot be read as a table", file="pairs.csv.gz")
    yield table("newlines", b"\n\n\n", "cannot be read as a table")
    yield table("picture", png(), "NUL characters|not text")
    yield table(
        "repeated-column", text(*LINES, header="id,patient_id,path,report,id"), "more than one column 'id'"
    )
    yield table("no-patient", text(*LINES, header="id,person,path,report,age"), "no column of patients")
    yield table("header-only", text(), None, whole=False)
    yield table("packed", gzip.compress(text(*LINES)), file="pairs.csv.gz")
    yield table("packed-misnamed", gzip.compress(text(*LINES)), file="pairs.csv")
    yield table("unpacked-misnamed", text(*LINES), file="pairs.csv.gz")
    yield table("bzip2", bz2.compress(text(*LINES)), file="pairs.csv.gz")
    yield table(
        "packed-twice", gzip.compress(text(*LINES)) + gzip.compress(text()), None, row, file="pairs.csv.gz"
    )
    yield table("packed-tail", gzip.compress(text(*LINES)) + b"tail", "cannot be read", file="pairs.csv.gz")
    yield table("cell", among("bad,," + "x" * 10_000_000 + ",text,5"), None, "missing_patient")
    yield table("cell-of-lines", among('bad,,i.png,"' + "x\n" * 5_000_000 + '",5'), None, "missing_patient")
    yield table("row-without-end", text(*LINES, "x" * 40_000_000 + "\n"), "it is no table")


def packed_tables() -> Iterator[BadTable]:
    """Compressed tables that are cut, or unfold without end."""
    packed = gzip.compress(text(*LINES))
    for length in (1, 2, 5, 9, 10, 12, len(packed) // 2, len(packed) - 9, len(packed) - 8, len(packed) - 1):
        yield BadTable(f"gz-cut-{length}", {"pairs.csv.gz": packed[:length]}, "cannot be read|no column")
    for name, head, tail in (
        ("row", text(*LINES), b"0"),
        ("cell", text(*LINES) + b'bad,p,i.png,"', b"0"),
        ("lines", text(*LINES), b"\n"),
    ):
        yield BadTable(f"bomb-{name}", {"pairs.csv.gz": bomb(head, tail * 1_000_000)}, "it is no table")
    members = lzma.compress(text(*LINES)) + lzma.compress(b"\n" * 1_000_000) * 80
    yield BadTable("bomb-lines-xz", {"pairs.csv.gz": members}, "it is no table")


def bomb(head: bytes, piece: bytes) -> bytes:
    """A gzip file that unfolds to a piece eighty times, and is cut then."""
    packer = zlib.compressobj(wbits=31)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + (packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)) * 80


def parquet(rows: int = 40, row_groups: int = 2, page: int = 2_000) -> bytes:
    """A Parquet file of embedded images."""
    numbers = range(rows)
    values: dict[str, Any] = {
        "id": [f"g{number}" for number in numbers],
        "patient_id": [f"p{number}" for number in numbers],
        "image": pa.array([png(number) for number in numbers], pa.binary()),
        "report": [f"Heart number {number}." for number in numbers],
    }
    out = io.BytesIO()
    options = {"row_group_size": rows // row_groups, "data_page_size": page, "write_batch_size": 10}
    pq.write_table(pa.table(values), out, use_dictionary=False, **options)
    return out.getvalue()


def parquet_tables(seed: int = 0) -> Iterator[BadTable]:
    """Parquet files that are cut, flipped or something else."""
    data = parquet()
    unreadable = "cannot be read as a table|is empty"
    for length in (
        0,
        1,
        4,
        8,
        100,
        len(data) // 2,
        len(data) - 500,
        len(data) - 8,
        len(data) - 4,
        len(data) - 1,
    ):
        yield BadTable(f"parquet-cut-{length}", {"x.parquet": data[:length]}, unreadable)
    for name, content in (
        ("pointer", POINTER),
        ("csv", text(*LINES)),
        ("magic", b"PAR1" + bytes(64) + b"PAR1"),
    ):
        message = "is a git-lfs pointer" if name == "pointer" else unreadable
        yield BadTable(f"parquet-{name}", {"x.parquet": content}, message)
    footer = b"PAR1" + bytes(10) + (2**31 - 1).to_bytes(4, "little") + b"PAR1"
    yield BadTable("parquet-footer", {"x.parquet": footer}, unreadable)
    generator = np.random.default_rng(seed)
    for number in range(50):
        changed = bytearray(data)
        start = len(data) - 2_500 if number % 2 else 0
        for place in generator.integers(start, len(data), 1 + number % 8):
            changed[place] = generator.integers(0, 256)
        yield BadTable(f"parquet-flip-{number}", {"x.parquet": bytes(changed)}, anything=True)
    for number in range(30):
        flipped = bytearray(text(*LINES))
        for place in generator.integers(0, len(flipped), 1 + number % 4):
            flipped[place] = generator.integers(0, 256)
        yield BadTable(f"csv-flip-{number}", {"pairs.csv": bytes(flipped)}, anything=True)
        yield BadTable(f"gz-flip-{number}", {"pairs.csv.gz": gzip.compress(bytes(flipped))}, anything=True)


def tar(*members: tuple[tarfile.TarInfo, bytes], compress: bool = True) -> bytes:
    """A tar file of some members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(out.getvalue(), 1) if compress else out.getvalue()


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a tar file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def report(number: int) -> bytes:
    """One sound Open-I report with one image."""
    return openi_xml(f"CXR{number}", (f"CXR{number}_IM-1",), findings=f"Heart number {number}.").encode()


def openi_archives(seed: int = 0) -> Iterator[BadTable]:
    """Archives of reports with members that lead elsewhere, and reports that unfold without end."""
    sound = [member(f"ecgen-radiology/{number}.xml", report(number)) for number in range(ROWS)]
    images = {f"NLMCXR_png/CXR{number}_IM-1.png": encoded(grey_pixels(number)) for number in range(ROWS)}

    def archive(name: str, data: bytes, message: str | None = None, *reasons: str, **more: Any) -> BadTable:
        files = {"NLMCXR_reports.tgz": data, **images}
        return BadTable(f"tgz-{name}", files, message, reasons, source="openi", **more)

    def beside(name: str, bad: tuple[tarfile.TarInfo, bytes], reason: str) -> BadTable:
        return archive(name, tar(*sound[:3], bad, *sound[3:]), None, reason)

    yield archive("sound", tar(*sound))
    yield archive("plain", tar(*sound, compress=False))
    for number, name in enumerate(
        ("../x.xml", "/etc/x.xml", "a/../../x.xml", "C:\\x.xml", "file:///x.xml", "x\n.xml")
    ):
        yield beside(f"name-{number}", member(name, report(99)), "outside_root")
    for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
        yield beside(name, member("x.xml", b"", kind, "/etc/passwd"), "unreadable_report")
    for name, kind in (("pipe", tarfile.FIFOTYPE), ("device", tarfile.CHRTYPE), ("block", tarfile.BLKTYPE)):
        yield beside(name, member("x.xml", b"", kind), "unreadable_report")
    yield beside("large", member("x.xml", bytes(5_000_000)), "unreadable_report")
    laughs = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {chr(98 + step)} "{f"&{chr(97 + step)};" * 10}">' for step in range(9)
    )
    for name, content in (
        ("laughs", laughs + "]><l>&j;</l>"),
        ("outer", '<?xml version="1.0"?><!DOCTYPE l SYSTEM "file:///etc/passwd"><l/>'),
        ("deep", "<a>" * 200_000),
        ("unclosed", report(99).decode()[:-200]),
        ("encoding", '<?xml version="1.0" encoding="utf-9"?><a/>'),
        ("page", PAGE.decode()),
        ("pointer", POINTER.decode()),
        ("empty", ""),
        ("nul", "\0" * 500),
    ):
        yield beside(name, member("x.xml", content.encode()), "unreadable_report")
    attributes = member("x.xml", report(99))
    attributes[0].pax_headers = {"comment": "x" * 20_000_000}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as packed:
        packed.addfile(attributes[0], io.BytesIO(attributes[1]))
    yield archive("attributes", gzip.compress(out.getvalue(), 1), "cannot be read to its end")
    digits = io.BytesIO()
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 4_000_000
    digits.write(info.tobuf() + b"1" * 4_000_000)
    yield archive("digits", gzip.compress(digits.getvalue(), 1), "cannot be read to its end")
    zeros = tarfile.TarInfo("zeros.bin")
    zeros.size = 80_000_000
    yield archive("bomb", bomb(zeros.tobuf(), bytes(1_000_000)), "cannot be read to its end")
    data = tar(*sound)
    for length in (0, 1, 5, 10, 100, len(data) // 2, len(data) - 9, len(data) - 1):
        # Behind the last member stand zeros, which are not missed.
        message = (
            "is empty" if not length else "cannot be read to its end" if length < len(data) - 9 else None
        )
        yield archive(f"cut-{length}", data[:length], message)
    for name, content in (("pointer", POINTER), ("page", PAGE)):
        yield archive(f"is-{name}", content, "is a git-lfs pointer|is a web page")
    yield archive("is-text", b"no archive" * 100, "cannot be read to its end")
    generator = np.random.default_rng(seed)
    plain = tar(*sound, compress=False)
    for number in range(30):
        changed = bytearray(plain)
        for place in generator.integers(0, 512 * (3 if number % 2 else ROWS * 4), 1 + number % 6):
            changed[place] = generator.integers(0, 256)
        yield archive(f"flip-{number}", gzip.compress(bytes(changed), 1), anything=True)


def yaml_texts() -> dict[str, str]:
    """Configuration files that no loader may trust."""
    laughs = "a0: &a0 {x: ha, y: ha}\n" + "".join(
        f"a{step}: &a{step} {{{', '.join(f'k{key}: *a{step - 1}' for key in range(9))}}}\n"
        for step in range(1, 10)
    )
    return {
        "laughs": laughs,
        "laughing lists": "a: &a [x, x]\n"
        + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
        ),
        "itself": "a: &a [*a]",
        "deep lists": "[" * 1_000,
        "deep mappings": "a: " + "{a: " * 1_000,
        "no such day": "a: 2020-13-45",
        "digits": "a: " + "1" * 6_000,
        "a list as key": "? [a, b]\n: c",
        "an object": "a: !!python/object/apply:os.system [id]",
        "NUL": "a: \0",
        "an open quote": 'a: "never closed',
        "a tab": "a:\n\t- b",
        "an unknown alias": "a: *b",
        "not text": "\udcff",
    }


def bad_tables(seed: int = 0) -> list[BadTable]:
    """All tables and archives."""
    found = [*csv_tables(), *packed_tables(), *parquet_tables(seed), *openi_archives(seed)]
    assert len({table.name for table in found}) == len(found)
    return found
