"""An archive's folder: what is listed, what is read, and what is never read."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import UnreadableImage
from mpma.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    (root / "files" / "p11" / "s2").mkdir(parents=True)
    (root / "files" / "p10").mkdir()
    (root / "files" / "p11" / "s2" / "b.jpg").write_bytes(b"b")
    (root / "files" / "p11" / "s2" / "a.JPG").write_bytes(b"a" * 10)
    (root / "files" / "p10" / "c.txt").write_bytes(b"c")
    (root / "files" / ".hidden.jpg").write_bytes(b"h")
    (root / "table.csv.gz").write_bytes(gzip.compress("id,näme\n1,x\n".encode()))
    (tmp_path / "secret.jpg").write_bytes(b"outside")
    return root


@pytest.fixture(params=["local", "wrapped"])
def archive(request: pytest.FixtureRequest, folder: Path) -> ArchiveFolder:
    """The same folder as a disk and as a filesystem that is only known through pyarrow."""
    if request.param == "local":
        return ArchiveFolder.open(folder)
    return ArchiveFolder(pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()), "/", "s3://bucket")


def test_files_are_listed_in_one_order_and_hidden_ones_are_not(archive: ArchiveFolder) -> None:
    assert list(archive.files("files")) == ["files/p10/c.txt", "files/p11/s2/a.JPG", "files/p11/s2/b.jpg"]
    assert list(archive.files("files", (".jpg",))) == ["files/p11/s2/a.JPG", "files/p11/s2/b.jpg"]
    assert archive.folders("files") == ["p10", "p11"]
    assert archive.names("files/p11/s2") == ["a.JPG", "b.jpg"]
    assert archive.names("absent") == archive.folders("absent") == list(archive.files("absent")) == []


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.csv.gz", "files/p1?/*", "*/*/*/*.jpg", "files/p10/c.txt", "**/*.jpg", "files/**/[ac]*"],
)
def test_a_pattern_fits_the_files_that_a_shell_would_find(
    archive: ArchiveFolder, folder: Path, pattern: str
) -> None:
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and path.name[0] != ".")
    assert archive.matching(pattern) == [path.relative_to(folder).as_posix() for path in found]
    assert found


def test_a_pattern_leads_to_hidden_files_only_where_it_says_so(archive: ArchiveFolder) -> None:
    assert archive.matching("files/.h*") == ["files/.hidden.jpg"]
    assert archive.matching("") == archive.matching("files") == archive.matching("absent/*") == []


def test_a_file_is_a_root_by_its_folder_and_its_name(folder: Path) -> None:
    for place in (folder / "table.csv.gz", (folder / "table.csv.gz").as_uri()):
        archive, name = ArchiveFolder.at(place)
        assert (archive.root, name) == (str(folder), "table.csv.gz")
        assert archive.described(name) == str(place)
    assert ArchiveFolder.at(folder) == (ArchiveFolder.open(folder), "")


def test_a_file_below_the_root_is_read_whole(archive: ArchiveFolder) -> None:
    assert archive.read("files/p11/s2/a.JPG", 10) == b"a" * 10
    assert archive.read("files\\p11\\s2\\b.jpg", 10) == b"b"
    assert archive.size("files/p11/s2/a.JPG") == 10
    assert archive.first_file("absent.csv", "table.csv.gz") == "table.csv.gz"
    assert archive.first_file("absent.csv") is None
    assert archive.has_folder("files")
    assert not archive.has_file("files")


def test_what_is_too_large_or_absent_or_outside_is_told_apart(archive: ArchiveFolder) -> None:
    with pytest.raises(UnreadableImage) as caught:
        archive.read("files/p11/s2/a.JPG", 9)
    assert caught.value.reason == "too_large"
    for path in ("../secret.jpg", "/etc/passwd", "files/../../secret.jpg", "s3://other/x", ""):
        with pytest.raises(UnreadableImage) as caught:
            archive.read(path, 100)
        assert caught.value.reason == "outside_root"
        assert not archive.has_file(path)
    for path in ("absent.jpg", "files/p11/absent/x.jpg"):
        with pytest.raises(FileNotFoundError):
            archive.read(path, 100)


def test_a_link_that_leads_out_or_in_circles_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "files" / "again").symlink_to(folder / "files")
    os.mkfifo(folder / "pipe.jpg")
    archive = ArchiveFolder.open(folder)
    with pytest.raises(UnreadableImage) as caught:
        archive.read("out.jpg", 100)
    assert caught.value.reason == "outside_root"
    for name in ("loop.jpg", "pipe.jpg"):
        with pytest.raises(UnreadableImage) as caught:
            archive.read(name, 100)
        assert caught.value.reason == "unreadable_image"
    assert len(list(archive.files("files"))) == 3
    # A link that leads nowhere is listed, so that what is not there is told by its name.
    (folder / "files" / "p10" / "gone.jpg").symlink_to("nowhere.jpg")
    assert list(archive.files("files/p10")) == ["files/p10/c.txt", "files/p10/gone.jpg"]
    assert "loop.jpg" in list(archive.files())
    with pytest.raises(FileNotFoundError):
        archive.read("files/p10/gone.jpg", 100)


def test_a_table_is_unpacked_as_it_is_read(archive: ArchiveFolder) -> None:
    with archive.stream("table.csv.gz") as stream:
        assert io.TextIOWrapper(stream, encoding="utf-8", newline="").read() == "id,näme\n1,x\n"


def test_a_torn_table_and_a_pointer_are_one_line(archive: ArchiveFolder, folder: Path) -> None:
    (folder / "torn.csv.gz").write_bytes(gzip.compress(b"id\n" * 100_000)[:-20])
    with pytest.raises(UserError, match="cannot be read to its end"), archive.stream("torn.csv.gz") as stream:
        list(iter(lambda: stream.read(1 << 16), b""))
    (folder / "pointer.csv").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(UserError, match="git-lfs pointer"), archive.stream("pointer.csv"):
        pass
    with pytest.raises(UserError, match="cannot be read"), archive.stream("absent.csv"):
        pass


def test_a_zip_archive_is_read_from_the_middle(archive: ArchiveFolder, folder: Path) -> None:
    with zipfile.ZipFile(folder / "reports.zip", "w", zipfile.ZIP_DEFLATED) as written:
        for number in range(20):
            written.writestr(f"files/{number}.txt", f"report {number}")
    with archive.seekable("reports.zip") as opened, zipfile.ZipFile(opened) as found:
        assert found.read("files/13.txt") == b"report 13"
    with pytest.raises(UnreadableImage), archive.seekable("../secret.jpg"):
        pass


def test_a_folder_travels_between_processes(folder: Path) -> None:
    archive = ArchiveFolder.open(folder)
    assert pickle.loads(pickle.dumps(archive)) == archive


def test_an_address_with_a_space_says_how_it_is_written(folder: Path) -> None:
    (folder / "my files").mkdir()
    with pytest.raises(UserError, match="my files is no URI") as caught:
        ArchiveFolder.open(f"file://{folder}/my files")
    assert "%20" in str(caught.value.hint)
    assert ArchiveFolder.open((folder / "my files").as_uri()).root == str(folder / "my files")


def test_a_root_that_is_no_folder_is_one_line(folder: Path) -> None:
    for wrong in (folder / "table.csv.gz", folder / "absent", "nosuchscheme://bucket/x"):
        with pytest.raises(UserError) as caught:
            ArchiveFolder.open(wrong)
        assert "\n" not in caught.value.message
