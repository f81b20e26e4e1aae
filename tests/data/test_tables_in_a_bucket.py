"""Tables, masks and questions that lie in a bucket, and what is read beside them: as on a disk."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from source_samples import (
    parquet_rows,
    png,
    write_csv,
    write_masks,
    write_parquet,
    write_questions,
    write_vqamed2019,
)

from mpma.data.quality import image_problem, mask_problem
from mpma.data.sources import build_source
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.contract import Item, Rejection, Source, UnreadableImage
from mpma.errors import UserError

Building = Callable[..., Source]


@pytest.fixture
def build_in_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Building:
    """`build_source` over a filesystem that is known through pyarrow alone; `tmp_path` is the bucket."""
    bucket = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())

    def at(location: str | Path) -> tuple[ArchiveFolder, str]:
        place = str(location).removeprefix("s3://bucket/")
        if bucket.get_file_info(place).type == pafs.FileType.Directory:
            return ArchiveFolder(bucket, place, f"s3://bucket/{place}"), ""
        folder, _, name = place.rpartition("/")
        return ArchiveFolder(bucket, folder, f"s3://bucket/{folder}"), name

    def build(name: str, root: Path, options: tuple[str, ...] = ()) -> Source:
        with monkeypatch.context() as patch:
            patch.setattr(ArchiveFolder, "at", at)
            return build_source(name, f"s3://bucket/{root.relative_to(tmp_path)}", options)

    return build


ARCHIVES: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...]]] = {
    "paths": ("manifest", lambda folder: write_csv(folder / "set").parent, ()),
    "a single table": ("manifest", lambda folder: write_csv(folder / "set"), ()),
    "images": ("manifest", lambda folder: write_parquet(folder / "set"), ("filter=modality == XR",)),
    "questions": (
        "manifest",
        lambda folder: write_questions(folder / "set"),
        ("questions_table=*-qa.parquet", "reports=optional"),
    ),
    "masks": ("masks", lambda folder: write_masks(folder / "set"), ("ignore_value=127",)),
    "vqamed2019": ("vqamed2019", lambda folder: write_vqamed2019(folder / "set"), ()),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_in_a_bucket_reads_the_same(tmp_path: Path, build_in_bucket: Building, kind: str) -> None:
    name, write, options = ARCHIVES[kind]
    root = write(tmp_path)
    here, there = build_source(name, root, options), build_in_bucket(name, root, options)
    there = pickle.loads(pickle.dumps(there))
    items = list(here.items())
    assert len(items) >= 6
    assert list(there.items()) == items
    assert there.extra_schema() == here.extra_schema()
    said = [line.replace(str(tmp_path), "s3://bucket") for line in here.assumptions()]
    assert there.assumptions() == said
    for item in items:
        assert isinstance(item, Item)
        assert there.load_image(item) == here.load_image(item)
        assert there.load_extra(item) == here.load_extra(item)


def test_an_address_of_a_single_table_is_a_root(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "set")
    here, there = build_source("manifest", table), build_source("manifest", table.as_uri())
    assert list(there.items()) == list(here.items())
    with pytest.raises(UserError, match=r"absent\.csv does not exist"):
        build_source("manifest", (tmp_path / "absent.csv").as_uri())


def paths_beside_the_table(tmp_path: Path) -> Path:
    """A table whose images lie in a folder beside its own."""
    table = write_csv(tmp_path / "set" / "tables")
    shutil.move(table.parent / "images", tmp_path / "set" / "png" / "images")
    return table


def test_the_user_may_name_a_folder_of_images_beside_the_table(
    tmp_path: Path, build_in_bucket: Building
) -> None:
    (tmp_path / "set" / "png").mkdir(parents=True)
    table = paths_beside_the_table(tmp_path)
    for build in (build_source, build_in_bucket):
        for place in ("../png", str(tmp_path / "set" / "png"), (tmp_path / "set" / "png").as_uri()):
            source = build("manifest", table, (f"image_root={place}",))
            images = [source.load_image(item) for item in source.items() if isinstance(item, Item)]
            assert images == [png(number) for number in range(6)]
        with pytest.raises(UserError, match=r"image_root: .*\.\./absent is not a folder"):
            build("manifest", table, ("image_root=../absent",))


def test_a_folder_above_all_buckets_is_one_line(tmp_path: Path) -> None:
    archive = ArchiveFolder(
        pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "b/set", "s3://b/set"
    )
    assert archive.beside("../other").root == "b/other"
    with pytest.raises(UserError, match=r"s3://b/set/\.\./\.\./\.\. is not a folder"):
        archive.beside("../../..")


def test_what_a_table_names_is_read_below_the_folder_of_images_alone(
    tmp_path: Path, build_in_bucket: Building
) -> None:
    table = write_csv(tmp_path / "set")
    (tmp_path / "secret.png").write_bytes(png())
    paths = {"a": "./images/0.png", "b": "images/../images//1.png", "c": "../secret.png", "d": "absent.png"}
    rows = [f"{name},{name},{path},Words." for name, path in paths.items()]
    table.write_text("id,patient,path,text\n" + "\n".join(rows) + "\n", encoding="utf-8")
    for build in (build_source, build_in_bucket):
        source = build("manifest", table)
        a, b, c, d = source.items()
        assert [source.load_image(item) for item in (a, b)] == [png(0), png(1)]
        assert isinstance(c, Rejection)
        assert c.reason == "outside_root"
        with pytest.raises(FileNotFoundError):
            source.load_image(d)
        with pytest.raises(UnreadableImage) as caught:
            source.image_root.read("../secret.png", 10_000)
        assert caught.value.reason == "outside_root"


def test_links_to_tables_are_followed(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked.csv").symlink_to(table)
    (tmp_path / "set" / "images").symlink_to(table.parent / "images")
    assert len(list(build_source("manifest", tmp_path / "set").items())) == 6
    single = build_source("manifest", tmp_path / "set" / "linked.csv", ("image_root=images/..",))
    assert single.load_image(next(iter(single.items()))) == png(0)  # type: ignore[arg-type]


def test_tables_in_folders_are_named_by_a_pattern(tmp_path: Path, build_in_bucket: Building) -> None:
    for place, name in enumerate(("a/x.parquet", "a-b/x.parquet", "a/deep/y.parquet", "x.parquet")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(parquet_rows(2, 2 * place), tmp_path / "set" / name)
    for build in (build_source, build_in_bucket):
        for pattern, firsts in (("*/x.parquet", [0, 2]), ("**/*.parquet", [4, 0, 2, 6]), ("a/*/y.*", [4])):
            source = build("manifest", tmp_path / "set", (f"tables={pattern}",))
            listed = [item.pair_id for item in source.items() if isinstance(item, Item)]
            assert listed == [f"pair-{first + row}" for first in firsts for row in range(2)]
        with pytest.raises(UserError, match="holds no table 'z/\\*'"):
            build("manifest", tmp_path / "set", ("tables=z/*",))


def test_a_table_that_was_replaced_is_read_anew_by_those_who_open_it_anew(tmp_path: Path) -> None:
    file = tmp_path / "set.parquet"
    for first in (0, 10):
        pq.write_table(parquet_rows(4, first), file)
        source = build_source("manifest", file)
        images = [source.load_image(item) for item in source.items() if isinstance(item, Item)]
        assert images == [png(first + number) for number in range(4)]


def test_a_row_group_of_images_is_not_held_whole(tmp_path: Path) -> None:
    rows, length = 256, 50_000
    images = [number.to_bytes(2, "little") * (length // 2) for number in range(rows)]
    ids = [str(number) for number in range(rows)]
    table = pa.table({"id": ids, "patient": ids, "image": pa.array(images, pa.binary()), "text": ids})
    pages = {"data_page_size": 1, "write_batch_size": 4, "use_dictionary": False, "compression": "none"}
    pq.write_table(table, tmp_path / "t.parquet", **pages)
    del table
    source = build_source("manifest", tmp_path / "t.parquet")
    items = [item for item in source.items() if isinstance(item, Item)]
    before, most = pa.total_allocated_bytes(), 0
    for item, image in zip(items, images, strict=True):
        assert source.load_image(item) == image
        most = max(most, pa.total_allocated_bytes() - before)
    # Sixteen rows, those before them that are given back last, and what is read ahead.
    assert 16 * length < most < 64 * length < rows * length / 3


def test_why_a_file_cannot_be_read_is_told_without_its_name() -> None:
    error = PermissionError(13, "Failed to open local file '/archive/Jane Doe.png'. Detail: [errno 13]")
    assert image_problem(error) == ("unreadable_image", "Permission denied")
    assert mask_problem(error) == ("unreadable_mask", "Permission denied")
    assert image_problem(OSError("When reading information for key 'Jane Doe.png'")) == (
        "unreadable_image",
        "OSError",
    )
