"""An archive's folder on any filesystem that pyarrow opens: one guarded way in for every source.

Decisions: an archive may lie on a disk, on a network mount or in a bucket, and a source should not know
which; names are relative, with forward slashes, and sorted, so that a listing is the same everywhere; what a
table names is read only below the root (by its letters everywhere, by where links lead on a disk) and only
up to a limit of bytes, looked at before anything is read; the tables themselves have names that the layout or
the user gives, so that a link may lead to them from anywhere. Compressed files are opened as streams: nothing
is unpacked to disk. A folder is listed once where many names are asked for, since in a bucket every single
question costs a round trip.
"""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

import pyarrow as pa
import pyarrow.fs as pafs

from mpma.data.sources.contract import UnreadableImage
from mpma.data.sources.paths import forward, lexically_inside, read_inside
from mpma.data.sources.table_text import START_BYTES, refuse_what_begins
from mpma.data.sources.unfolding import DAMAGED as UNPACKING_DAMAGED
from mpma.data.sources.unfolding import Unfolded, UnfoldsTooFarError
from mpma.data.storage import Storage, open_storage
from mpma.errors import UserError

READ_AHEAD_BYTES: Final = 1024 * 1024
"""Of a streamed table: readers ask for a few kB at a time, and in a bucket every question is a round trip."""

DAMAGED: Final = (pa.ArrowException, *UNPACKING_DAMAGED)
"""What reading a damaged or compressed file may raise."""


@dataclass(frozen=True)
class ArchiveFolder:
    """The folder that holds an archive. Picklable; holds no open file."""

    filesystem: pafs.FileSystem
    root: str
    """Path of the folder on its filesystem."""
    location: str
    """As messages name it."""

    @classmethod
    def open(cls, location: str | Path) -> ArchiveFolder:
        """The folder at a local path or a URI. Raises `UserError` where there is no folder."""
        folder, file = cls.at(location)
        if file:
            raise UserError(f"{folder.described(file)} is not a folder")
        return folder

    @classmethod
    def at(cls, location: str | Path) -> tuple[ArchiveFolder, str]:
        """The folder at a local path or a URI, and an empty name; of a file, its folder and its name.

        Raises `UserError` where there is neither.
        """
        storage = open_storage(str(location))
        if not storage.exists():
            raise UserError(f"{storage.described()} does not exist")
        folder = cls._of(storage)
        if folder.is_folder:
            return folder, ""
        if folder.filesystem.get_file_info(folder.root).type != pafs.FileType.File:
            raise UserError(f"{storage.described()} is not a folder")
        root, _, name = folder.root.rpartition("/")
        parent = folder.location.rpartition("/")[0] if "://" in folder.location else Path(location).parent
        return cls(folder.filesystem, root or "/", str(parent)), name

    @classmethod
    def _of(cls, storage: Storage) -> ArchiveFolder:
        return cls(storage.filesystem, storage.root, storage.described().rstrip("/"))

    def beside(self, place: str) -> ArchiveFolder:
        """A folder that the user names: from here, also outside of this one, or by a path or URI of its own.

        Whether it is there is not looked at. Raises `UserError` where a path leads above all buckets.
        """
        if "://" in place or Path(place).is_absolute():
            return self._of(open_storage(place))
        if not place:
            return self
        if self.is_local:
            return ArchiveFolder(
                self.filesystem, os.path.join(self.root, place), os.path.join(self.location, place)
            )
        root = posixpath.normpath(self.path(place))
        if root.startswith(".."):
            raise UserError(f"{self.described(place)} is not a folder", "it leads above the bucket")
        return ArchiveFolder(self.filesystem, root, self.described(place))

    @property
    def is_folder(self) -> bool:
        """Whether there is a folder."""
        return bool(self.filesystem.get_file_info(self.root).type == pafs.FileType.Directory)

    def folder(self, name: str) -> ArchiveFolder:
        """A folder inside as a root of its own, wherever a link of that name leads."""
        return ArchiveFolder(self.filesystem, self.path(name), self.described(name))

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def described(self, name: str = "") -> str:
        """The file's name for a message."""
        return f"{self.location}/{name}" if name else self.location

    def path(self, name: str = "") -> str:
        """The file's path on the filesystem."""
        return f"{self.root}/{name}" if name else self.root

    def has_file(self, name: str) -> bool:
        return self._kind(name) == pafs.FileType.File

    def has_folder(self, name: str) -> bool:
        return self._kind(name) == pafs.FileType.Directory

    def first_file(self, *names: str) -> str | None:
        """The first of several names that is a file; None where none is."""
        return next((name for name in names if self.has_file(name)), None)

    def names(self, folder: str = "") -> list[str]:
        """Names of the files directly in a folder, sorted; empty where it is absent."""
        return sorted(item.base_name for item in self._listed(folder) if item.type == pafs.FileType.File)

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders directly in a folder, sorted; empty where it is absent."""
        return sorted(item.base_name for item in self._listed(folder) if item.type == pafs.FileType.Directory)

    def files(self, folder: str = "", suffixes: tuple[str, ...] = ()) -> Iterator[str]:
        """Paths of all files below a folder, folder by folder, each sorted; hidden names are left out.

        Memory: the listing of one folder and the names of its parents' folders. Links to folders are not
        followed, so that a loop of links ends; a link that leads nowhere is a file that is not there.
        """
        listed = self._listed(folder)
        files = sorted(self._links(folder) - {item.base_name for item in listed})
        inner: list[str] = []
        for item in listed:
            if item.type == pafs.FileType.File:
                files.append(item.base_name)
            elif item.type == pafs.FileType.Directory and not item.base_name.startswith("."):
                inner.append(_below(folder, item.base_name))
        for name in sorted(files):
            if name.lower().endswith(suffixes or ("",)) and not name.startswith("."):
                yield _below(folder, name)
        for path in sorted(inner):
            if not self._is_link(path):
                yield from self.files(path, suffixes)

    def matching(self, pattern: str) -> list[str]:
        """Paths of the files that fit a pattern folder by folder, `**` standing for any folders; sorted.

        Only the folders that the pattern leads to are listed. As in a shell, a hidden name fits only where
        the pattern begins with a dot as well.
        """
        *inner, last = PurePosixPath(pattern).parts or ("",)
        reached = [""]
        for part in inner:
            found = (
                self._all_folders(path) if part == "**" else self._fitting(path, part) for path in reached
            )
            reached = list(dict.fromkeys(path for paths in found for path in paths))
        files = {_below(path, name) for path in reached for name in self.names(path) if _fits(name, last)}
        return sorted(files, key=lambda path: path.split("/"))

    def size(self, name: str) -> int:
        """Length in bytes. Raises FileNotFoundError where there is no such file."""
        info = self.filesystem.get_file_info(self.path(name))
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(name)
        return int(info.size)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of a file that a table names.

        Raises:
            FileNotFoundError: where there is none.
            UnreadableImage: `outside_root` where the name leads out, `unreadable_image` where it is no
                regular file, `too_large` above `max_bytes`.
        """
        if self.is_local:
            return read_inside(Path(self.root), name, max_bytes)
        if not lexically_inside(name):
            raise UnreadableImage("outside_root", "the path leads out of the root")
        # To a bucket, `./a.png` is another name than `a.png`.
        inside = posixpath.normpath(forward(name))
        size = self.size(inside)
        if size > max_bytes:
            raise UnreadableImage("too_large", f"{size} bytes, the limit is {max_bytes}")
        with self.filesystem.open_input_stream(self.path(inside), compression=None) as stream:
            return cast(bytes, stream.read())

    @contextmanager
    def stream(self, name: str) -> Iterator[IO[bytes]]:
        """A table or report file as a stream of bytes, unpacked as it is read where it is compressed.

        Raises `UserError` naming the file where it cannot be read to its end, unfolds like a bomb, or is
        a git-lfs pointer or a web page in place of the file.
        """
        try:
            with self.unfolded(name) as unfolded:
                start = unfolded.read(START_BYTES)
                refuse_what_begins(start, self.described(name))
                unfolded.seek(0)
                yield cast(IO[bytes], unfolded)
        except UnfoldsTooFarError as error:
            raise UserError(f"{self.described(name)} {error}: it is no table", "fetch it again") from None
        except DAMAGED as error:
            raise UserError(
                f"{self.described(name)} cannot be read to its end ({type(error).__name__})",
                "it may be cut short, or of another format than its name says; fetch it again",
            ) from None

    @contextmanager
    def unfolded(self, name: str, largest_read: int | None = None) -> Iterator[Unfolded]:
        """A file as it unpacks, whatever compresses it; reading raises as `Unfolded` does."""
        with self.filesystem.open_input_file(self.path(name)) as opened:
            size = opened.size()
            # Those who unpack ask for a few kB at a time, which in a bucket would each be a request.
            with Unfolded(io.BufferedReader(opened, READ_AHEAD_BYTES), size, largest_read) as unfolded:
                yield unfolded

    @contextmanager
    def seekable(self, name: str) -> Iterator[IO[bytes]]:
        """A file that can be read from any place, such as a zip archive; bytes come as asked for.

        Raises OSError where it is missing, `UnreadableImage` where its name leads out of the root.
        """
        if not lexically_inside(name):
            raise UnreadableImage("outside_root", "the path leads out of the root")
        with self.filesystem.open_input_file(self.path(name)) as opened:
            yield cast(IO[bytes], opened)

    def _kind(self, name: str) -> Any:
        if not lexically_inside(name):
            return pafs.FileType.NotFound
        return self.filesystem.get_file_info(self.path(name)).type

    def _listed(self, folder: str) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.path(folder), recursive=False, allow_not_found=True)
        return list(self.filesystem.get_file_info(selector))

    def _fitting(self, folder: str, part: str) -> list[str]:
        return [_below(folder, name) for name in self.folders(folder) if _fits(name, part)]

    def _all_folders(self, folder: str) -> Iterator[str]:
        yield folder
        for path in self._fitting(folder, "*"):
            if not self._is_link(path):
                yield from self._all_folders(path)

    def _is_link(self, name: str) -> bool:
        return self.is_local and Path(self.path(name)).is_symlink()

    def _links(self, folder: str) -> set[str]:
        """Names of the links directly in a folder; Arrow leaves those that lead nowhere out of a listing."""
        if not (self.is_local and Path(self.path(folder)).is_dir()):
            return set()
        with os.scandir(self.path(folder)) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _fits(name: str, part: str) -> bool:
    return fnmatchcase(name, part) and name.startswith(".") <= part.startswith(".")
