"""Files inside the zip archives of a publisher, read in place: nothing is unpacked to disk.

Decisions: the archive's table of contents is read once, by the process that lists, and every member is
described by a few numbers that fit into an item's locator; whoever loads a member goes straight to its place,
in one read, and never needs the table again, which for 200,000 members is 30 MB and seconds in every process.
The open file is kept per thread for the next member. What a member declares is not believed: its header
must bear the name that was listed, it is unpacked up to its declared size and no further, and its checksum is
compared. Refused without being unpacked are encrypted members, links, names that lead out, and more bytes
than the caller allows. Read are the two methods in use, stored and deflated.
"""

from __future__ import annotations

import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

import pyarrow as pa

from mpma.data.sources.archive import DAMAGED, ArchiveFolder
from mpma.data.sources.contract import UnreadableImage
from mpma.data.sources.paths import lexically_inside
from mpma.errors import UserError

UNREADABLE: Final = (
    *DAMAGED,
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    OverflowError,
    struct.error,
)
"""What reading the table of contents of a damaged archive may raise."""

_HEADER: Final = struct.Struct("<4s22xHH")
"""Of a member's own header: signature, length of the name, length of the extra field."""
_SIGNATURE: Final = b"PK\x03\x04"
_USUAL_EXTRA: Final = 128
"""Bytes of extra field that are read along with a member, so that one read is enough."""
_ENCRYPTED: Final = 0x1
_POINTER: Final = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file of an archive: its name and place, as the table of contents gives them."""

    name: str
    """Path inside the archive, as it is written there."""
    start: int
    """Byte of the archive at which the member's own header begins."""
    packed: int
    """Bytes in the archive."""
    size: int
    """Bytes when unpacked, as declared."""
    checksum: int
    """CRC-32 of the unpacked bytes, as declared."""
    method: int
    """0 stored, 8 deflated; others are refused when read."""
    refusal: str = ""
    """Why the member is never read; empty where nothing speaks against it."""

    def locator(self) -> dict[str, Any]:
        """The member as plain values, for `Item.locator`."""
        place = [self.start, self.packed, self.size, self.checksum, self.method]
        return {"member": self.name, "place": place, **({"refusal": self.refusal} if self.refusal else {})}

    @classmethod
    def located(cls, locator: Mapping[str, Any]) -> ZipMember:
        """The member of a `locator()`."""
        start, packed, size, checksum, method = locator["place"]
        return cls(locator["member"], start, packed, size, checksum, method, locator.get("refusal", ""))


@dataclass(frozen=True)
class ZipArchive:
    """A zip archive in a folder. Picklable; holds no open file."""

    folder: ArchiveFolder
    name: str
    """Path of the archive in the folder."""

    def members(self) -> Iterator[ZipMember]:
        """The files of the archive, in the order of its table of contents; its folders are left out.

        Raises `UserError` naming the archive where the table cannot be read.
        """
        with self.opened() as reader:
            yield from reader.members()

    @contextmanager
    def opened(self, fetch_up_to: int = 0) -> Iterator[ZipReader]:
        """The archive, open for many members.

        Args:
            fetch_up_to: an archive in a bucket of at most so many bytes is fetched whole and held in memory,
                for those who read every small member of it: one request instead of one for each.

        Raises `UserError` naming the archive where it is missing, a git-lfs pointer or out of the root.
        """
        described = self.folder.described(self.name)
        if not self.folder.has_file(self.name):
            raise UserError(f"{described} is no file")
        with ExitStack() as stack:
            try:
                opened = cast(Any, stack.enter_context(self.folder.seekable(self.name)))
                if opened.read_at(len(_POINTER), 0) == _POINTER:
                    raise UserError(
                        f"{described} is a git-lfs pointer, not the archive itself",
                        "fetch the archive's large files with `git lfs pull`",
                    )
                if not self.folder.is_local and opened.size() <= fetch_up_to:
                    opened = pa.BufferReader(opened.read_at(opened.size(), 0))
            except UnreadableImage as error:
                raise UserError(f"{described}: {error.detail}") from None
            except DAMAGED as error:
                raise UserError(f"{described} cannot be read ({type(error).__name__})") from None
            yield ZipReader(opened, described)

    def read(self, member: ZipMember, max_bytes: int) -> bytes:
        """The bytes of a member; the archive stays open in this thread for the next one.

        Raises:
            FileNotFoundError: where the archive is gone.
            OSError: where it cannot be reached.
            UnreadableImage: as `ZipReader.read` does.
        """
        kept: list[_Kept] = _THREAD.__dict__.setdefault("kept", [])
        for place, found in enumerate(kept):
            if found.archive == self:
                try:
                    return found.reader.read(member, max_bytes)
                except (UnreadableImage, *DAMAGED):
                    # Another archive may lie under this name by now: look again before judging.
                    kept.pop(place).files.close()
                    break
        while len(kept) >= _KEPT_OPEN:
            kept.pop(0).files.close()
        files = ExitStack()
        opened = files.enter_context(self.folder.seekable(self.name))
        kept.append(_Kept(self, files, ZipReader(opened, self.name)))
        return kept[-1].reader.read(member, max_bytes)


class ZipReader:
    """An open archive; made by `ZipArchive.opened`."""

    def __init__(self, opened: Any, described: str) -> None:
        self._opened = opened
        self._described = described

    def members(self) -> Iterator[ZipMember]:
        """The files of the archive; see `ZipArchive.members`."""
        entries = self._entries()
        entries.reverse()
        while entries:
            # Dropped one by one, so that those of the library and ours are never both whole in memory.
            entry = entries.pop()
            if not entry.orig_filename.endswith("/"):
                yield _member(entry)

    def read(self, member: ZipMember, max_bytes: int) -> bytes:
        """The unpacked bytes of a member, checked against its size and checksum.

        Raises:
            OSError: where the archive cannot be read there.
            UnreadableImage: `outside_root` where the member's name leads out, `too_large` above
                `max_bytes`, `truncated_image` where the archive ends before the member does, and
                `unreadable_image` where it is encrypted, a link, damaged, or not what it declares.
        """
        _check(member, max_bytes)
        usual = _HEADER.size + len(member.name.encode()) + _USUAL_EXTRA + member.packed
        try:
            block = self._opened.read_at(usual, member.start)
            if len(block) < _HEADER.size:
                raise UnreadableImage("truncated_image", "the archive ends before the member")
            signature, name_length, extra_length = _HEADER.unpack_from(block)
            data_at = _HEADER.size + name_length + extra_length
            if data_at + member.packed > len(block) == usual:
                block = self._opened.read_at(data_at + member.packed, member.start)
        except pa.ArrowException as error:
            raise UnreadableImage("unreadable_image", type(error).__name__) from None
        name = block[_HEADER.size : _HEADER.size + name_length]
        if signature != _SIGNATURE or member.name not in (
            name.decode("utf-8", "replace"),
            name.decode("cp437"),
        ):
            raise UnreadableImage("unreadable_image", "the archive holds another member at that place")
        packed = block[data_at : data_at + member.packed]
        if len(packed) < member.packed:
            raise UnreadableImage("truncated_image", "the archive ends before the member does")
        data = packed if member.method == zipfile.ZIP_STORED else _inflated(packed, member.size)
        if zlib.crc32(data) != member.checksum:
            raise UnreadableImage("unreadable_image", "the member's checksum is another")
        return data

    def _entries(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self._opened) as found:
                return found.infolist()
        except UNREADABLE as error:
            raise UserError(
                f"{self._described} is not a whole zip archive ({type(error).__name__})",
                "it may be cut short, or of another format than its name says; fetch it again",
            ) from None


class _Kept(NamedTuple):
    archive: ZipArchive
    files: ExitStack
    reader: ZipReader


_KEPT_OPEN: Final = 4
"""Archives that a thread keeps open: large sets come in dozens of zips, read one after the other."""

_THREAD = threading.local()


def _member(entry: zipfile.ZipInfo) -> ZipMember:
    refusal = ""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.flag_bits & _ENCRYPTED:
        refusal = "the member is encrypted"
    elif kind not in (0, stat.S_IFREG):
        refusal = "the member is no regular file"
    return ZipMember(
        entry.orig_filename,
        entry.header_offset,
        entry.compress_size,
        entry.file_size,
        entry.CRC,
        entry.compress_type,
        refusal,
    )


def _check(member: ZipMember, max_bytes: int) -> None:
    """Everything that speaks against a member before a byte of it is read."""
    if not lexically_inside(member.name):
        raise UnreadableImage("outside_root", "the member's name leads out of the archive")
    if member.refusal:
        raise UnreadableImage("unreadable_image", member.refusal)
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnreadableImage("unreadable_image", f"compressed by method {member.method}, which is not read")
    if member.size > max_bytes:
        raise UnreadableImage("too_large", f"{member.size} bytes, the limit is {max_bytes}")
    # Deflate adds an eighth at its very worst.
    if member.packed > 2 * member.size + 64:
        raise UnreadableImage("unreadable_image", "takes more bytes in the archive than unpacked")
    if member.method == zipfile.ZIP_STORED and member.packed != member.size:
        raise UnreadableImage("unreadable_image", "stored with another size than it declares")
    if member.start < 0:
        raise UnreadableImage("unreadable_image", "lies before the archive's beginning")


def _inflated(packed: bytes, size: int) -> bytes:
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more than declared tells a member that goes on; a limit of 0 would mean none.
        data = engine.decompress(packed, size + 1)
    except zlib.error:
        raise UnreadableImage("unreadable_image", "the member's compressed bytes are damaged") from None
    if len(data) > size:
        raise UnreadableImage("unreadable_image", f"unpacks to more than the {size} bytes it declares")
    if len(data) < size or not engine.eof:
        raise UnreadableImage("truncated_image", f"unpacks to {len(data)} of {size} bytes")
    return data
