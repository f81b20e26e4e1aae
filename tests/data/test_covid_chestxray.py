"""The COVID-19 image data collection: the real excerpt's figures, and what its rows say."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from samples_covid_chestxray import default_rows, write_covid_chestxray
from source_samples import checked_items, in_a_bucket

from mpma.data.images import read_grey
from mpma.data.quality import check_pixels
from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.errors import UserError


def listed(root: Path, *options: str) -> tuple[list[Item], list[Rejection]]:
    found = list(build_source("covid_chestxray", root, options).items())
    items = [entry for entry in found if isinstance(entry, Item)]
    return items, [entry for entry in found if isinstance(entry, Rejection)]


def one_row(tmp_path: Path, **cells: str) -> Item | Rejection:
    row = {**default_rows()[0], **cells}
    (entry,) = build_source("covid_chestxray", write_covid_chestxray(tmp_path / "clone", [row])).items()
    return entry


def test_the_published_excerpt_lists_45_images_and_keeps_39(data_root: Path) -> None:
    source = build_source("covid_chestxray", data_root / "raw" / "covid-chestxray")
    found = checked_items(source)
    kept = [entry for entry in found if isinstance(entry, Item)]
    assert len(found) == 45
    assert len(kept) == 39
    assert Counter(entry.reason for entry in found if isinstance(entry, Rejection)) == {
        "missing_image": 3,
        "empty_report": 3,
    }
    assert {entry.path for entry in found if isinstance(entry, Rejection) and entry.reason[0] == "m"} == {
        "images/covid-19-pneumonia-14-PA.png",
        "images/parapneumonic-effusion-1-PA.png",
        "images/parapneumonic-effusion-1-L.png",
    }
    assert (len({item.patient_id for item in kept}), len({item.study_id for item in kept})) == (22, 34)
    assert Counter(item.view for item in kept) == {"PA": 22, "lateral": 7, "AP": 5, "unknown": 5}
    assert Counter(item.extra["modality"] for item in kept) == {"X-ray": 34, "CT": 5}
    assert Counter(item.labels for item in kept) == {
        **{("COVID-19",): 24, ("Pneumocystis",): 4, ("Lipoid",): 4, ("Bacterial",): 4},
        **{("ARDS",): 1, ("Klebsiella",): 1, ("Pneumonia",): 1},
    }
    assert Counter(item.license for item in kept) == {
        **{"CC BY-NC-SA": 12, "CC BY-NC-SA 4.0": 12, "CC BY-NC-ND": 4, "CC BY-NC-ND 4.0": 4},
        **{"CC BY 4.0": 4, "CC BY": 2, "CC BY-SA": 1},
    }
    assert all(item.extra["url"] or item.extra["doi"] for item in kept)
    for item in kept:
        check_pixels(read_grey(source.load_image(item)))


def test_a_modality_that_is_asked_for_leaves_out_the_others_and_counts_them(data_root: Path) -> None:
    root = data_root / "raw" / "covid-chestxray"
    source = build_source("covid_chestxray", root, ["modalities=[X-ray]"])
    found = checked_items(source)
    assert Counter(type(entry) if isinstance(entry, Item) else entry.reason for entry in found) == {
        Item: 34,
        "missing_image": 3,
        "empty_report": 3,
    }
    assert "modalities X-ray keep 40 of 45 rows" in source.assumptions()
    assert len(listed(root, "modalities=[x-ray, ct]")[0]) == 42
    assert listed(root, "modalities=[MRI]") == ([], [])


def test_a_row_gives_what_its_cells_say_and_neither_place_nor_date(tmp_path: Path) -> None:
    item = one_row(tmp_path, patientid="331a", offset="-3", age="45.0", view="AP Supine", sex="")
    assert isinstance(item, Item)
    assert (item.pair_id, item.patient_id, item.study_id) == (item.path[7:], "331a", "331a/-3")
    assert item.report == "A note, with commas and a\nnew line, on patient 0."
    assert (item.findings, item.impression, item.split, item.view) == (None, None, None, "AP")
    assert (item.labels, item.license) == (("Pneumonia/Viral/COVID-19",), "CC BY-NC-SA")
    assert item.extra == {
        "modality": "X-ray",
        "offset_days": -3.0,
        "age": 45,
        "sex": None,
        "doi": "10.1000/1",
        "url": "https://example.org/1",
        "other_notes": "Credit to a colleague",
    }
    assert "hospital" not in repr(item)
    assert "2020" not in repr(item)


@pytest.mark.parametrize(
    ("finding", "labels"),
    [
        ("Pneumonia/Bacterial/Streptococcus", ("Pneumonia/Bacterial/Streptococcus",)),
        ("COVID-19, ARDS", ("COVID-19", "ARDS")),
        ("No Finding", ()),
        ("todo", None),
        ("Unknown", None),
        ("", None),
    ],
)
def test_a_finding_that_is_not_decided_is_no_label(
    tmp_path: Path, finding: str, labels: tuple[str, ...] | None
) -> None:
    item = one_row(tmp_path, finding=finding)
    assert isinstance(item, Item)
    assert item.labels == labels


@pytest.mark.parametrize(
    ("view", "told"),
    [
        *(("PA", "PA"), ("AP", "AP"), ("AP Supine", "AP"), ("AP Erect", "AP"), ("AP semi erect", "AP")),
        *(("L", "lateral"), ("L lateral", "lateral"), ("Axial", "unknown"), ("Coronal", "unknown")),
    ],
)
def test_every_view_of_the_table_is_told(tmp_path: Path, view: str, told: str) -> None:
    item = one_row(tmp_path, view=view)
    assert isinstance(item, Item)
    assert item.view == told


def test_images_without_an_offset_are_studies_of_their_own(tmp_path: Path) -> None:
    item = one_row(tmp_path, offset="")
    assert isinstance(item, Item)
    assert item.study_id == item.pair_id


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"folder": "volumes", "filename": "coronacases_001.nii.gz"}, "not_an_image"),
        ({"folder": "volumes", "filename": "case.png"}, "missing_image"),
        ({"folder": "../images"}, "outside_root"),
        ({"filename": "/etc/passwd"}, "missing_image"),
        ({"patientid": ""}, "missing_patient"),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason(tmp_path: Path, cells: dict[str, str], reason: str) -> None:
    refused = one_row(tmp_path, **cells)
    assert isinstance(refused, Rejection)
    assert refused.reason == reason


def test_a_pointer_of_git_lfs_is_no_image_and_no_table(tmp_path: Path) -> None:
    root = write_covid_chestxray(tmp_path / "clone")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    source = build_source("covid_chestxray", root)
    first = next(iter(source.items()))
    assert isinstance(first, Item)
    (root / first.path).write_bytes(pointer)
    with pytest.raises(UnreadableImage) as caught:
        read_grey(source.load_image(first))
    assert caught.value.reason == "git_lfs_pointer"
    (root / "metadata.csv").write_bytes(pointer)
    with pytest.raises(UserError, match="git-lfs pointer"):
        build_source("covid_chestxray", root)


def test_a_clone_in_a_bucket_reads_the_same(tmp_path: Path) -> None:
    here = build_source("covid_chestxray", write_covid_chestxray(tmp_path / "clone"))
    there = in_a_bucket(here)
    assert list(there.items()) == list(here.items())
    for item in here.items():
        assert isinstance(item, Item)
        assert there.load_image(item) == here.load_image(item)


def test_what_a_table_says_of_modalities_is_shown_in_known_words_only(tmp_path: Path) -> None:
    rows = default_rows()
    rows[0]["modality"] = "Mrs Canary of Room 12"
    lines = build_source("covid_chestxray", write_covid_chestxray(tmp_path / "clone", rows)).assumptions()
    assert lines[0] == "8 rows in metadata.csv: 2 CT, 5 X-ray, 1 of another kind"


def test_a_folder_that_is_no_clone_is_one_line(tmp_path: Path) -> None:
    root = write_covid_chestxray(tmp_path / "clone")
    text = (root / "metadata.csv").read_text(encoding="utf-8")
    (root / "metadata.csv").write_text(text.replace("clinical_notes", "notes"), encoding="utf-8")
    with pytest.raises(UserError, match="has no column 'clinical_notes'"):
        build_source("covid_chestxray", root)
    (root / "metadata.csv").write_text(text.replace("modality", "kind"), encoding="utf-8")
    with pytest.raises(UserError, match="has no column 'modality'"):
        build_source("covid_chestxray", root, ["modalities=[CT]"])
    shutil.move(root / "metadata.csv", root / "images" / "metadata.csv")
    with pytest.raises(UserError, match=r"holds no metadata\.csv"):
        build_source("covid_chestxray", root)
