"""The text of a table as it is handed to a CSV reader: UTF-8, of bounded size, its quotes closed.

Decisions: what is no table at all (a git-lfs pointer, a web page, no bytes) is told by the first bytes, in
a line that says which. A `.gz` is unpacked as it is read and given up where it unfolds as no table does. A
quote that is opened and not closed would swallow the rows after it, and lay one patient's report beside
another's image; a CSV reader cannot see it, for the next row's opening quote closes the cell. Here it
shows: a quoted cell that crosses the end of its line must be followed by a delimiter or another end of
line. Where it is not, the row is taken out up to the end of the line on which that cell began, is named by
its number, and reading goes on with the next line. Quotes inside a line are left as they are: they harm no
other row, and the count of cells shows them. Publishers' tables go through `csv_rows` instead, which is
stricter and names each row by its line; users' tables are read by Arrow, for their types and its speed.
"""

from __future__ import annotations

import codecs
import io
import re
from typing import IO, Any, Final

from mpma.data.sources.unfolding import COMPRESSED, DAMAGED, UnfoldsTooFarError
from mpma.errors import UserError

MAX_ROW_BYTES: Final = 16 * 1024 * 1024
"""Longest row that is read; a quoted cell over several lines that is longer was never closed."""
LFS_POINTER: Final = b"version https://git-lfs"
START_BYTES: Final = 4096

_BLOCK_BYTES: Final = 1024 * 1024
_QUOTE: Final = b'"'
_QUOTED_REST: Final = re.compile(rb'[^"]*+(?:""[^"]*+)*+"')
"""A quoted cell behind its opening quote; a doubled quote does not close it."""
_WIDE_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class RowTooLongError(Exception):
    """Text that is no table of rows: one of them has no end."""


UNREADABLE: Final = (*DAMAGED, UnicodeDecodeError, UnfoldsTooFarError, RowTooLongError)
"""What reading the text of a table may raise: damage, another encoding, a bomb."""


def why_unreadable(place: str, error: BaseException, recode: str = "save it as UTF-8") -> UserError:
    """One line for one of `UNREADABLE`, without the text that it quotes; `recode` mends an encoding."""
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{place} is not text in the given encoding", recode)
    if isinstance(error, UnfoldsTooFarError | RowTooLongError):
        return UserError(f"{place} {error}: it is no table", "fetch it again")
    return UserError(
        f"{place} cannot be read as a table ({type(error).__name__})",
        "it may be cut short, or of another format than its name says",
    )


def refuse_what_begins(start: bytes, place: str) -> None:
    """Raises `UserError` naming `place` where the first `START_BYTES` of a file are none of a table's."""
    if not start:
        raise UserError(f"{place} is empty", "it holds no byte; fetch it again")
    if start.startswith(LFS_POINTER):
        raise UserError(
            f"{place} is a git-lfs pointer, not the file itself",
            "fetch the archive's large files with `git lfs pull`",
        )
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html", b"<head")):
        raise UserError(
            f"{place} is a web page, not a table", "a download that needed a login saves one; fetch it again"
        )


def refuse_other_encoding(start: bytes, place: str, encoding: str) -> None:
    """Raises `UserError` naming `place` where the first bytes of a text speak for another `encoding`."""
    if start.startswith(COMPRESSED) or codecs.lookup(encoding).name != "utf-8":
        return
    for mark, found in _WIDE_MARKS:
        if start.startswith(mark):
            raise UserError(f"{place} is {found.upper()} text", f"--set encoding={found}")
    if b"\0" in start.partition(b"\n")[0]:
        raise UserError(
            f"{place} has NUL characters in its header",
            "if it is UTF-16 without a mark: --set encoding=utf-16-le",
        )


class WholeRows(io.RawIOBase):
    """The UTF-8 text of a table without a byte order mark, less the rows whose quotes are not closed.

    Memory: some rows. Reading raises one of `UNREADABLE`.
    """

    def __init__(self, stream: IO[bytes], delimiter: str, encoding: str = "utf-8") -> None:
        """`stream` is closed with this one; `delimiter` is one character."""
        super().__init__()
        self.broken: list[int] = []
        """Lines of the file, from 1, on which the rows begin that were taken out so far."""
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        separator = delimiter.encode()
        self._before_opening = frozenset(b"\r\n" + separator[-1:])
        self._after_closing = (separator, b"\r", b"\n", b"")
        self._line_end = b""
        self._ready = io.BytesIO()
        self._waiting = b""
        self._line = 1
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self.readall()
        data = self._ready.read(size)
        while not data and size and not self._ended:
            self._ready = io.BytesIO(self._more())
            data = self._ready.read(size)
        return data

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _more(self) -> bytes:
        """The next whole rows; empty where one is still open, or at the end."""
        # As much as is waiting, so that a long row is not looked through again and again.
        raw = self._stream.read(max(_BLOCK_BYTES, len(self._waiting)))
        self._ended = not raw
        text = self._waiting + self._decoder.decode(raw, final=self._ended).encode()
        if not self._line_end and text:
            text = text.removeprefix(codecs.BOM_UTF8)
            self._line_end = b"\r" if b"\r" in text and b"\n" not in text else b"\n"
        kept: list[bytes] = []
        done = row = at = 0
        while True:
            opened = self._opening(text, at)
            row = 1 + text.rfind(self._line_end, at, opened) or row
            if opened == len(text):
                break
            closing = _QUOTED_REST.match(text, opened + 1)
            closed = closing.end() if closing else None
            undecided = not self._ended and (closed is None or closed == len(text))
            if undecided and len(text) - opened <= MAX_ROW_BYTES:
                break
            crosses = text.find(self._line_end, opened, closed) >= 0
            if closed is not None and not (crosses and text[closed : closed + 1] not in self._after_closing):
                at = closed
                continue
            kept.append(self._passed(text[done:row]))
            self.broken.append(self._line)
            at = (1 + text.find(self._line_end, opened)) or len(text)
            self._passed(text[row:at])
            done = row = at
        if self._ended:
            row = len(text)
        elif len(text) - row > MAX_ROW_BYTES:
            raise RowTooLongError(f"has a row of more than {MAX_ROW_BYTES} bytes")
        kept.append(self._passed(text[done:row]))
        self._waiting = text[row:]
        return b"".join(kept)

    def _opening(self, text: bytes, start: int) -> int:
        """The place of the next quote that opens a cell; the text's length where there is none."""
        at = text.find(_QUOTE, start)
        while at > 0 and text[at - 1] not in self._before_opening:
            at = text.find(_QUOTE, at + 1)
        return len(text) if at < 0 else at

    def _passed(self, text: bytes) -> bytes:
        self._line += text.count(self._line_end) if text else 0
        return text
