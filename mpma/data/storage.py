"""Files of a dataset on any pyarrow filesystem: written whole or not at all, hashed as they are written.

Decisions: a local file is written under a temporary name, synchronised and renamed, so that a killed
process leaves no half file under a final name; an object store shows an object only when its upload
ends, so there the final name is written directly. Nothing appends and nothing depends on renaming
where a store cannot do it. Local directories get mode 0700 and files 0600: what stands in them is
confidential. The hash is taken of the bytes on their way out, so no file is read again for it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from mpma.data.remote import check_place
from mpma.errors import JobError, UserError

TEMPORARY_SUFFIX = ".unfinished"

_SECRETS = re.compile(r"(?<=://)[^/@]*@|\?.*$", re.DOTALL)
_STORE_ERROR = re.compile(r"AWS Error ([A-Z_]+)")
_REACHED_HINT = "check the address, the name of the bucket, the credentials and the network"


@dataclass(frozen=True)
class WrittenFile:
    """What was written: name relative to the storage's root, length in bytes, hex SHA-256."""

    path: str
    bytes: int
    sha256: str


class HashingSink(io.RawIOBase):
    """A writable file that counts and hashes what passes through it."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self._target = target
        self._hash = hashlib.sha256()
        self._length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._target.write(view)
        self._hash.update(view)
        self._length += len(view)
        return len(view)

    def tell(self) -> int:
        return self._length

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


@dataclass(frozen=True)
class Storage:
    """A directory on a pyarrow filesystem. Picklable, so that tasks on other machines can write into it."""

    filesystem: pafs.FileSystem
    root: str
    location: str
    """As the user wrote it: what opens the place again, on this machine and on others."""

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        return f"{self.root}/{name}" if name else self.root

    def described(self, name: str = "") -> str:
        """The file's name for a message: without what an address may hold of keys and settings."""
        place = shown(self.location)
        return f"{place.rstrip('/')}/{name}" if name else place

    @property
    def name(self) -> str:
        """Last part of the place."""
        return self.root.rsplit("/", 1)[-1]

    def child(self, name: str) -> Storage:
        """The directory `name` inside, as a storage of its own."""
        place, settings = self._split()
        inside = f"{place.rstrip('/')}/{name}{settings}"
        return Storage(self.filesystem, self.path(name), inside)

    def parent(self) -> Storage:
        """The directory that holds this one."""
        place, settings = self._split()
        above = place.rstrip("/").rpartition("/")[0] or "."
        return Storage(self.filesystem, self.root.rpartition("/")[0], f"{above}{settings}")

    def _split(self) -> tuple[str, str]:
        """Where it is, and the settings that an address may end in (`?region=...`), which hold for what is
        beside and inside as well."""
        end = self.location.find("?") if "://" in self.location else -1
        return (self.location, "") if end < 0 else (self.location[:end], self.location[end:])

    def names(self) -> list[str]:
        """Names directly inside, sorted; empty where the directory is absent."""
        return list(self.inside())

    def inside(self) -> dict[str, bool]:
        """Names directly inside, sorted, and whether each is a directory; empty where this one is absent.

        One request for each thousand names, where it is an object store that is asked.
        """
        selector = pafs.FileSelector(self.root, recursive=False, allow_not_found=True)
        with self._reached():
            found = self.filesystem.get_file_info(selector)
        return dict(sorted((item.base_name, item.type == pafs.FileType.Directory) for item in found))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Length in bytes of every file below `folder`, by name relative to the root."""
        selector = pafs.FileSelector(self.path(folder), recursive=True, allow_not_found=True)
        start = len(self.root) + 1
        with self._reached():
            found = self.filesystem.get_file_info(selector)
        return {item.path[start:]: item.size for item in found if item.type == pafs.FileType.File}

    def exists(self, name: str = "") -> bool:
        with self._reached():
            return self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def read(self, name: str) -> bytes:
        """Whole content of a file; OSError where it is missing."""
        with self.filesystem.open_input_stream(self.path(name), compression=None) as stream:
            return stream.read()

    def read_from(self, name: str, start: int) -> bytes | None:
        """Content of a file from byte `start` on; None where it is shorter; OSError where it is missing."""
        with self.filesystem.open_input_file(self.path(name)) as file:
            if file.size() < start:
                return None
            file.seek(start)
            return file.read()

    def hash_file(self, name: str) -> str:
        """Hex SHA-256 of a file, read in blocks of 4 MiB."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path(name), compression=None) as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def make_directory(self, name: str = "") -> None:
        path = self.path(name)
        if self.is_local:
            os.makedirs(path, exist_ok=True)
            os.chmod(path, 0o700)
            _synchronise_directory(os.path.dirname(path))
        else:
            with self._reached():
                self.filesystem.create_dir(path, recursive=True)

    def remove(self, name: str) -> None:
        """Remove a file, or a directory with all that is in it; absent is fine."""
        kind = self.filesystem.get_file_info(self.path(name)).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))
        elif kind == pafs.FileType.File:
            self.filesystem.delete_file(self.path(name))

    @contextmanager
    def new_file(self, name: str) -> Iterator[HashingSink]:
        """A sink whose content appears under `name` when the block ends well, and never otherwise.

        Raises `JobError` where the disk is full or the place cannot be written.
        """
        try:
            with self._new_local_file(name) if self.is_local else self._new_object(name) as sink:
                yield sink
        except OSError as error:
            raise JobError(
                f"cannot write {self.described(name)}: {_said(error)}",
                "make room or choose another place, then run the same command again",
            ) from error

    def write(self, name: str, data: bytes) -> WrittenFile:
        """Write a small file whole."""
        with self.new_file(name) as sink:
            sink.write(data)
        return WrittenFile(name, sink.tell(), sink.sha256)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turns what a store says when it cannot be asked into one line; errors of a disk are left alone."""
        try:
            yield
        except OSError as error:
            if self.is_local:
                raise
            raise UserError(
                f"{self.described()} cannot be reached: {_said(error)}",
                _REACHED_HINT,
            ) from None

    @contextmanager
    def _new_local_file(self, name: str) -> Iterator[HashingSink]:
        final = self.path(name)
        temporary = f"{final}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb", buffering=1 << 20) as file:
                yield HashingSink(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _synchronise_directory(os.path.dirname(final))

    @contextmanager
    def _new_object(self, name: str) -> Iterator[HashingSink]:
        stream = self.filesystem.open_output_stream(self.path(name), compression=None)
        try:
            yield HashingSink(stream)
        except BaseException:
            # Closing is the only way to end an upload, and it publishes what was sent so far.
            stream.close()
            self.remove(name)
            raise
        stream.close()


def open_storage(location: str | os.PathLike[str], filesystem: pafs.FileSystem | None = None) -> Storage:
    """A storage at a local path or a URI that pyarrow can open; nothing is created or read.

    Raises `UserError` where the URI's scheme is unknown, its store cannot be asked, or all stays offline.
    """
    text = os.fspath(location)
    if filesystem is not None:
        return Storage(filesystem, text.rstrip("/"), text)
    check_place(text, shown(text))
    if "://" not in text:
        return Storage(pafs.LocalFileSystem(), str(Path(text).expanduser().absolute()), text)
    try:
        filesystem, root = pafs.FileSystem.from_uri(text)
    except OSError as error:
        # Opening a bucket without a region in its address asks the store for it.
        raise UserError(f"{shown(text)} cannot be reached: {_said(error)}", _REACHED_HINT) from None
    except (pa.ArrowInvalid, NotImplementedError, ValueError) as error:
        if "Cannot parse URI" in str(error):
            raise UserError(f"{shown(text)} is no URI", "a space in one is written as %20") from None
        raise UserError(
            f"{shown(text)}: no filesystem for the scheme '{text.split('://')[0]}'",
            "give a local path or a URI of file://, s3://, gs://, abfs:// or hdfs://",
        ) from error
    return Storage(filesystem, root.rstrip("/"), text)


def shown(location: str) -> str:
    """A place for a message: an address without keys and settings, which may be secret.

    Example:
        >>> shown("s3://key:secret@bucket/set?region=eu-west-1")
        's3://bucket/set'
    """
    return _SECRETS.sub("", location) if "://" in location else location


def _said(error: OSError) -> str:
    """What went wrong in a few words: Arrow's own lines quote whole requests."""
    code = _STORE_ERROR.search(str(error))
    if code is not None:
        return code[1].lower().replace("_", " ")
    if "Bucket" in str(error) and "not found" in str(error):
        return "no such bucket"
    return error.strerror or type(error).__name__


def _synchronise_directory(path: str) -> None:
    # The rename itself is only safe from a power cut once the directory is written too.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
