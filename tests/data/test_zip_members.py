"""Members of zip archives: what is read, from where, and what never is."""

from __future__ import annotations

import os
import pickle
import random
import stat
import struct
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import UnreadableImage
from mpma.data.sources.zip_members import ZipArchive, ZipMember
from mpma.errors import UserError

LIMIT = 1 << 20
CONTENT = {
    "files/b.txt": b"second letter first",
    "files/a.txt": b"report " * 500,
    "files/empty.txt": b"",
    "files/näme.txt": b"named",
}


@pytest.fixture(params=["local", "wrapped"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> ArchiveFolder:
    """A folder on the disk, and as a filesystem that is only known through pyarrow."""
    if request.param == "local":
        return ArchiveFolder.open(tmp_path)
    return ArchiveFolder(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "/", "s3://bucket")


def write(file: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("files/", b"")
        for name, data in content.items():
            archive.writestr(name, data)
    return file


def reason(archive: ZipArchive, member: ZipMember, max_bytes: int = LIMIT) -> str:
    with pytest.raises(UnreadableImage) as caught:
        archive.read(member, max_bytes)
    return caught.value.reason


def replaced(member: ZipMember, **changes: object) -> ZipMember:
    return ZipMember(**{**{name: getattr(member, name) for name in ZipMember.__slots__}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_are_listed_in_the_archives_order_and_read_in_any(
    folder: ArchiveFolder, tmp_path: Path, method: int
) -> None:
    write(tmp_path / "a.zip", CONTENT, method)
    archive = ZipArchive(folder, "a.zip")
    members = list(archive.members())
    assert [member.name for member in members] == list(CONTENT)
    for member in reversed(members):
        assert archive.read(member, LIMIT) == CONTENT[member.name]
    for fetch_up_to in (0, 1 << 30):
        with archive.opened(fetch_up_to) as reader:
            assert {m.name: reader.read(m, LIMIT) for m in reader.members()} == CONTENT


def test_a_member_travels_as_plain_values(folder: ArchiveFolder, tmp_path: Path) -> None:
    write(tmp_path / "a.zip", CONTENT)
    archive = pickle.loads(pickle.dumps(ZipArchive(folder, "a.zip")))
    for member in archive.members():
        locator = member.locator()
        assert set(map(type, locator["place"])) == {int}
        assert ZipMember.located(locator) == member
        assert archive.read(ZipMember.located(locator), LIMIT) == CONTENT[member.name]
    refused = replaced(member, refusal="the member is encrypted")
    assert ZipMember.located(refused.locator()) == refused


def test_an_archive_may_stand_behind_other_bytes_and_have_long_extra_fields(
    folder: ArchiveFolder, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.zip", CONTENT)
    file.write_bytes(b"#!/bin/sh\n" * 100 + file.read_bytes())
    archive = ZipArchive(folder, "a.zip")
    assert {member.name: archive.read(member, LIMIT) for member in archive.members()} == CONTENT
    with zipfile.ZipFile(tmp_path / "extra.zip", "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in CONTENT.items():
            entry = zipfile.ZipInfo(name)
            entry.extra = struct.pack("<HH", 0xCAFE, 900) + b"x" * 900
            written.writestr(entry, data, zipfile.ZIP_DEFLATED)
    archive = ZipArchive(folder, "extra.zip")
    assert {member.name: archive.read(member, LIMIT) for member in archive.members()} == CONTENT


def test_a_bomb_is_stopped_at_what_it_declares(folder: ArchiveFolder, tmp_path: Path) -> None:
    write(tmp_path / "a.zip", {"bomb.txt": b"\0" * 5_000_000, "small.txt": b"\0" * 100})
    archive = ZipArchive(folder, "a.zip")
    bomb, small = archive.members()
    assert bomb.packed < 10_000
    assert reason(archive, bomb) == "too_large"
    assert reason(archive, bomb, 4_999_999) == "too_large"
    assert len(archive.read(bomb, 5_000_000)) == 5_000_000
    assert reason(archive, replaced(bomb, size=10_000)) == "unreadable_image"
    assert reason(archive, replaced(small, size=99)) == "unreadable_image"
    assert reason(archive, replaced(small, size=101)) == "truncated_image"
    assert archive.read(small, 100) == b"\0" * 100


def test_what_a_member_declares_is_compared_with_what_is_there(folder: ArchiveFolder, tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip", CONTENT)
    archive = ZipArchive(folder, "a.zip")
    first, second, *_ = archive.members()
    assert reason(archive, replaced(first, checksum=first.checksum ^ 1)) == "unreadable_image"
    assert reason(archive, replaced(first, name="files/c.txt")) == "unreadable_image"
    assert reason(archive, replaced(first, start=second.start)) == "unreadable_image"
    assert reason(archive, replaced(first, start=10**9)) == "truncated_image"
    assert reason(archive, replaced(first, start=-5)) == "unreadable_image"
    assert reason(archive, replaced(first, packed=10**9)) == "unreadable_image"
    assert reason(archive, replaced(first, method=zipfile.ZIP_LZMA)) == "unreadable_image"
    assert reason(archive, replaced(first, method=zipfile.ZIP_STORED)) == "unreadable_image"
    assert archive.read(first, LIMIT) == CONTENT["files/b.txt"]
    data = bytearray(file.read_bytes())
    data[second.start + 45] ^= 0xFF
    file.write_bytes(data)
    assert reason(archive, second) in ("unreadable_image", "truncated_image")
    assert archive.read(first, LIMIT) == CONTENT["files/b.txt"]


def test_links_encrypted_members_and_names_that_lead_out_are_never_read(
    folder: ArchiveFolder, tmp_path: Path
) -> None:
    link = zipfile.ZipInfo("files/link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as written:
        written.writestr(link, "/etc/passwd")
        for name in ("../out.txt", "/etc/out.txt", "files/../../out.txt", "C:/out.txt"):
            written.writestr(name, b"out")
        written.writestr("files/good.txt", b"good")
    archive = ZipArchive(folder, "a.zip")
    first, *others, good = archive.members()
    assert reason(archive, first) == "unreadable_image"
    assert [reason(archive, member) for member in others] == ["outside_root"] * 4
    assert archive.read(good, LIMIT) == b"good"
    data = (tmp_path / "a.zip").read_bytes()
    place = data.rindex(b"PK\x01\x02") + 8
    (tmp_path / "locked.zip").write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    locked = ZipArchive(folder, "locked.zip")
    *_, member = locked.members()
    with pytest.raises(UnreadableImage, match="encrypted"):
        locked.read(member, LIMIT)


def test_an_archive_that_was_replaced_is_opened_again(folder: ArchiveFolder, tmp_path: Path) -> None:
    write(tmp_path / "a.zip", CONTENT)
    archive = ZipArchive(folder, "a.zip")
    (old, *_) = archive.members()
    assert archive.read(old, LIMIT) == CONTENT["files/b.txt"]
    write(tmp_path / "new.zip", {"files/other.txt": b"x", "files/b.txt": b"another"})
    os.replace(tmp_path / "new.zip", tmp_path / "a.zip")
    new = next(member for member in archive.members() if member.name == "files/b.txt")
    assert archive.read(new, LIMIT) == b"another"
    assert reason(archive, old) == "unreadable_image"
    (tmp_path / "a.zip").unlink()
    with pytest.raises(FileNotFoundError):
        ZipArchive(folder, "a.zip").read(old, LIMIT)


def test_an_archive_in_a_bucket_is_fetched_whole_where_it_is_small_enough(
    folder: ArchiveFolder, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.zip", CONTENT)
    archive = ZipArchive(folder, "a.zip")
    (member, *_) = archive.members()
    size = file.stat().st_size
    for fetch_up_to, held in ((size, not folder.is_local), (size - 1, False), (0, False)):
        write(file, CONTENT)
        with archive.opened(fetch_up_to) as reader:
            file.write_bytes(b"")
            if held:
                assert reader.read(member, LIMIT) == CONTENT["files/b.txt"]
            else:
                with pytest.raises(UnreadableImage):
                    reader.read(member, LIMIT)


def test_a_thread_keeps_few_archives_open(folder: ArchiveFolder, tmp_path: Path) -> None:
    archives = []
    for number in range(12):
        write(tmp_path / f"{number}.zip", {"files/x.txt": b"%d" % number})
        archives.append(ZipArchive(folder, f"{number}.zip"))
    members = [next(archive.members()) for archive in archives]
    counts: list[int] = []

    def work() -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            for number, (archive, member) in enumerate(zip(archives, members, strict=True)):
                assert archive.read(member, LIMIT) == b"%d" % number
        counts.append(len(list(Path("/proc/self/fd").iterdir())) - before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert counts == [4]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "not a whole zip archive"),
        (lambda file: file.write_bytes(b""), "not a whole zip archive"),
        (lambda file: file.write_bytes(b"<html>login</html>"), "not a whole zip archive"),
        (
            lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "git-lfs pointer",
        ),
        (lambda file: file.unlink(), "is no file"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "is no file"),
    ],
)
def test_what_is_no_archive_is_one_line_that_names_it(
    folder: ArchiveFolder, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(write(tmp_path / "a.zip", CONTENT))
    with pytest.raises(UserError, match=message) as caught:
        list(ZipArchive(folder, "a.zip").members())
    assert "a.zip" in caught.value.message
    assert "\n" not in caught.value.message


def test_damage_at_any_place_is_a_reason_and_never_another_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.zip", CONTENT)
    whole = file.read_bytes()
    archive = ZipArchive(ArchiveFolder.open(tmp_path), "a.zip")
    draw = random.Random(7)
    outcomes = set()
    for number in range(400):
        data = bytearray(whole)
        if number % 2:
            del data[draw.randrange(len(data)) :]
        for _ in range(draw.randrange(1, 4)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data)
        try:
            members = list(archive.members())
        except UserError:
            outcomes.add("table")
            continue
        for member in members:
            try:
                found = archive.read(member, LIMIT)
            except UnreadableImage as error:
                outcomes.add(error.reason)
            else:
                assert found in CONTENT.values()
                outcomes.add("read")
    assert {"table", "unreadable_image", "read"} <= outcomes
