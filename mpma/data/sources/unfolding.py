"""Compressed files read as a stream, given up where they unfold as nothing of their kind does.

Decisions: how a file is compressed is told by its first bytes, not by its name; up to a stated length
anything may unfold, beyond it to a stated multiple of its own size, which tables and reports do not come
near and a bomb needs a thousand of; the limit holds for a place that is sought as well as for bytes that
are read. A library that reads a tar file asks for as many bytes as a header declares, so a single read of
it is bounded too.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from typing import IO, Any, Final, cast

MAX_UNFOLDING: Final = 256
"""Times its size that a compressed file may unfold to; text unfolds to 5 to 50 times."""
ALWAYS_UNFOLDED: Final = 64 * 1024 * 1024
"""Bytes up to which a file may unfold however small it is compressed."""
LARGEST_TAR_HEADER: Final = 16 * 1024
"""Bytes of a member's name and attributes; the library searches them in a time that grows with the square."""

DAMAGED: Final = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a damaged compressed file may raise."""

_BLOCK_BYTES: Final = 1024 * 1024
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"

COMPRESSED: Final = (_GZIP, _BZIP2, _XZ)
"""First bytes of the compressions that are read."""


class UnfoldsTooFarError(Exception):
    """A compressed file that is larger than any of its kind and size; the message says what the bound is."""


class Unfolded(io.RawIOBase):
    """The unpacked bytes of a file, whatever compresses it; an uncompressed file is read as it is.

    Reading and seeking raise `UnfoldsTooFarError`, or one of `DAMAGED`.
    """

    def __init__(self, packed: IO[bytes], size: int, largest_read: int | None = None) -> None:
        """A stream that can be sought, and is closed with this one, as it unpacks.

        Args:
            packed: the file as it lies, at its start.
            size: its length in bytes.
            largest_read: most bytes of a single `read` with a size; None for any.
        """
        super().__init__()
        start = packed.read(6)
        packed.seek(0)
        self._packed = packed
        self._stream: IO[bytes] = packed
        self._limit: int | None = max(ALWAYS_UNFOLDED, MAX_UNFOLDING * size)
        self._largest_read = largest_read
        if start.startswith(_GZIP):
            self._stream = cast(IO[bytes], gzip.GzipFile(fileobj=packed))
        elif start.startswith(_BZIP2):
            self._stream = bz2.BZ2File(packed)
        elif start.startswith(_XZ):
            self._stream = lzma.LZMAFile(packed)  # noqa: SIM115 - closed with this one
        else:
            self._limit = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only places from the start are sought")
        self._check(place)
        return self._stream.seek(place)

    def read(self, size: int | None = -1) -> bytes:
        if self._largest_read is not None and size is not None and size > self._largest_read:
            raise UnfoldsTooFarError(f"declares a header of {size} bytes")
        if size is None or size < 0:
            return self.readall()
        return self.take(size)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.take(_BLOCK_BYTES), b""))

    def take(self, size: int) -> bytes:
        """`read` without the bound of a single read, for those who looked at the size themselves."""
        data = self._stream.read(size)
        self._check(self._stream.tell())
        return data

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._packed.close()
        super().close()

    def _check(self, place: int) -> None:
        if self._limit is not None and place > self._limit:
            raise UnfoldsTooFarError(f"unfolds to more than {MAX_UNFOLDING} times its size")


def open_tar(unfolded: Unfolded) -> tarfile.TarFile:
    """The members of a tar file, to be read with `take` at their `offset_data`; nothing is extracted."""
    return tarfile.TarFile(fileobj=cast(IO[bytes], unfolded))
