"""Open-I as published: the real excerpt's figures, and what goes wrong in folders."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from source_samples import checked_items, openi_xml, png, write_openi

from mpma.data.images import read_grey
from mpma.data.sources.archive import ArchiveFolder
from mpma.data.sources.config import OpeniOptions
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.openi import OpeniSource
from mpma.errors import UserError

LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<eCitation><uId id="CXR9"/><AbstractText Label="FINDINGS">&b;</AbstractText></eCitation>"""


def test_the_published_excerpt_lists_79_images_and_keeps_8(data_root: Path) -> None:
    source = OpeniSource.resolve(data_root / "raw" / "openi")
    listed = list(checked_items(source))
    kept = [item for item in listed if isinstance(item, Item)]
    reasons = Counter(item.reason for item in listed if isinstance(item, Rejection))
    assert len(listed) == 79
    assert len(kept) == 8
    assert reasons == {"missing_image": 71}
    assert len({item.study_id for item in kept}) == 5
    assert all(min(read_grey(source.load_image(item)).shape) > 300 for item in kept)
    assert {item.license for item in kept} == {"CC BY-NC-ND 4.0"}
    assert Counter(item.view for item in kept) == {"unknown": 5, "PA": 2, "lateral": 1}
    assert any("ecgen-radiology" in line and "not read" in line for line in source.assumptions())


def test_the_archive_alone_is_read_without_unpacking(data_root: Path, tmp_path: Path) -> None:
    raw = data_root / "raw" / "openi"
    (tmp_path / "NLMCXR_reports.tgz").symlink_to(raw / "NLMCXR_reports.tgz")
    (tmp_path / "NLMCXR_png").symlink_to(raw / "NLMCXR_png")
    before = sorted(path.name for path in tmp_path.iterdir())
    listed = list(OpeniSource.resolve(tmp_path).items())
    kept = {item.pair_id: item for item in listed if isinstance(item, Item)}
    assert len(listed) == 7470
    assert len(kept) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    unpacked = [item for item in OpeniSource.resolve(raw).items() if isinstance(item, Item)]
    assert {item.pair_id: item.report for item in unpacked} == {
        name: item.report for name, item in kept.items()
    }


def test_reports_and_labels_equal_the_published_text(data_root: Path) -> None:
    table = data_root / "text_only" / "openi_reports.parquet"
    given = {row["id"]: row for row in pq.read_table(table).to_pylist()}
    for item in OpeniSource.resolve(data_root / "raw" / "openi").items():
        if isinstance(item, Item):
            row = given[f"openi/{item.study_id}"]
            assert item.report == row["report"]
            assert item.findings == (row["findings"] or "")
            assert item.impression == (row["impression"] or "")
            assert list(item.labels or ()) == [label for label in row["labels"] if label != "normal"]


def test_normal_is_an_empty_list_and_no_indexing_is_not_labelled(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi", studies=2)
    for number, mesh in ((8, ("No Indexing",)), (9, ())):
        image = f"CXR{number}_IM-0001-1001"
        (root / "ecgen-radiology" / f"{number}.xml").write_text(
            openi_xml(f"CXR{number}", (image,), mesh=mesh)
        )
        (root / "NLMCXR_png" / f"{image}.png").write_bytes(png(number))
    labels = {
        item.study_id: item.labels for item in OpeniSource.resolve(root).items() if isinstance(item, Item)
    }
    assert labels == {"CXR1": (), "CXR2": ("Cardiomegaly/mild", "Opacity/lung"), "CXR8": None, "CXR9": None}


def test_views_come_from_the_table_beside_the_reports(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi")
    views = [item.view for item in OpeniSource.resolve(root).items() if isinstance(item, Item)]
    assert views == ["PA", "lateral", "unknown", "unknown", "unknown", "unknown"]
    (root / "dicom_header_excerpt.csv").unlink()
    (root / "indiana_projections.csv").write_text(
        "uid,filename,projection\n2,2_IM-0001-2001.dcm.png,Lateral\n2,2_IM-0001-1001.dcm.png,Frontal\n"
    )
    views = [item.view for item in OpeniSource.resolve(root).items() if isinstance(item, Item)]
    assert views == ["unknown", "unknown", "unknown", "lateral", "unknown", "unknown"]


def test_a_table_of_views_without_its_columns_is_named(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi")
    (root / "mine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"mine\.csv has no column for the image"):
        OpeniSource.resolve(root, OpeniOptions(views="mine.csv"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_grow(tmp_path: Path, encoding: str) -> None:
    root = write_openi(tmp_path / "openi")
    text = LAUGHS.replace('"1.0"', f'"1.0" encoding="{encoding}"')
    (root / "ecgen-radiology" / "9.xml").write_bytes(text.encode(encoding))
    refused = [item for item in OpeniSource.resolve(root).items() if isinstance(item, Rejection)]
    assert [(item.reason, item.detail) for item in refused] == [
        ("unreadable_report", "declares a document type or entities")
    ]


@pytest.mark.parametrize("content", [b"", b"<eCitation>", b"\x00\xff", b"<eCitation/>", b"not xml"])
def test_a_damaged_report_is_quarantined_and_the_others_are_kept(tmp_path: Path, content: bytes) -> None:
    root = write_openi(tmp_path / "openi")
    (root / "ecgen-radiology" / "2.xml").write_bytes(content)
    listed = list(OpeniSource.resolve(root).items())
    assert [item.reason for item in listed if isinstance(item, Rejection)] == ["unreadable_report"]
    assert len([item for item in listed if isinstance(item, Item)]) == 4


def test_an_image_id_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi", studies=1)
    (root / "secret.png").write_bytes(png(1))
    (root / "ecgen-radiology" / "5.xml").write_text(openi_xml("CXR5", ("../secret", "/etc/x", "..")))
    reasons = [item.reason for item in OpeniSource.resolve(root).items() if isinstance(item, Rejection)]
    assert reasons == ["outside_root", "outside_root", "missing_image"]


def test_a_linked_image_outside_the_folder_is_refused(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi", studies=1)
    (tmp_path / "outside.png").write_bytes(png(1))
    image = root / "NLMCXR_png" / "CXR1_IM-0001-1001.png"
    image.unlink()
    image.symlink_to(tmp_path / "outside.png")
    source = OpeniSource.resolve(root)
    first = next(item for item in source.items() if isinstance(item, Item))
    with pytest.raises(UnreadableImage) as caught:
        source.load_image(first)
    assert caught.value.reason == "outside_root"


def test_a_linked_report_outside_the_folder_is_refused(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi", studies=2)
    (tmp_path / "outside.xml").write_text(openi_xml("CXR9", ()))
    (root / "ecgen-radiology" / "9.xml").symlink_to(tmp_path / "outside.xml")
    (root / "ecgen-radiology" / "8.xml").symlink_to(root / "ecgen-radiology" / "8.xml")
    (root / "ecgen-radiology" / "7.xml").symlink_to(root / "ecgen-radiology" / "6.xml")
    refused = [item for item in OpeniSource.resolve(root).items() if isinstance(item, Rejection)]
    assert ("ecgen-radiology/9.xml", "outside_root") in {(item.path, item.reason) for item in refused}
    assert {item.reason for item in refused} <= {"outside_root", "unreadable_report"}


def test_an_archive_in_a_bucket_is_read_like_one_on_a_disk(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi")
    here = OpeniSource.resolve(root)
    bucket = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
    there = replace(here, root=ArchiveFolder(bucket, "/", "s3://bucket/openi"))
    assert list(there.items()) == list(here.items())
    for item in here.items():
        assert isinstance(item, Item)
        assert there.load_image(item) == here.load_image(item)


def test_a_torn_archive_is_one_line_that_names_it(tmp_path: Path) -> None:
    root = write_openi(tmp_path / "openi")
    with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(root / "ecgen-radiology", "ecgen-radiology")
    shutil.rmtree(root / "ecgen-radiology")
    assert len(list(OpeniSource.resolve(root).items())) == 6
    whole = (root / "NLMCXR_reports.tgz").read_bytes()
    (root / "NLMCXR_reports.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"NLMCXR_reports\.tgz cannot be read to its end"):
        list(OpeniSource.resolve(root).items())


def test_folders_that_are_not_open_i_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither ecgen-radiology/\*\.xml nor NLMCXR_reports\.tgz"):
        OpeniSource.resolve(tmp_path)
    root = write_openi(tmp_path / "openi")
    shutil.rmtree(root / "NLMCXR_png")
    with pytest.raises(UserError, match="holds no PNG images") as caught:
        OpeniSource.resolve(root)
    assert "NLMCXR_png" in str(caught.value.hint)
    with pytest.raises(UserError, match=r"reports: .*nowhere does not exist"):
        OpeniSource.resolve(root, OpeniOptions(reports="nowhere"))
