"""What every source promises: a new layout joins by one entry in `ARCHIVES`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from samples_chexpert_plus import write_chexpert_plus
from samples_covid_chestxray import write_covid_chestxray
from samples_dicom import write_dicom
from samples_mimic import write_mimic
from samples_padchest import write_padchest
from source_samples import (
    checked_items,
    quality_of,
    write_csv,
    write_masks,
    write_nih14,
    write_openi,
    write_parquet,
    write_questions,
    write_vqamed2019,
)

from mpma.data.images import read_grey
from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA, SPLITS, VIEWS
from mpma.data.quality import REASONS, check_item, check_pixels, image_problem
from mpma.data.sources import SOURCES, build_source, parse_options, source_kind
from mpma.data.sources.contract import Item, Rejection, Source
from mpma.errors import UserError

PHANTOM = ("train_pairs=64", "val_pairs=64", "test_pairs=4", "size=64")

ARCHIVES: dict[str, Callable[[Path], Source]] = {
    "openi": lambda folder: build_source("openi", write_openi(folder / "openi")),
    "manifest of paths": lambda folder: build_source("manifest", write_csv(folder / "csv")),
    "manifest of images": lambda folder: build_source("manifest", write_parquet(folder / "parquet")),
    "manifest of questions": lambda folder: build_source(
        "manifest",
        write_questions(folder / "questions"),
        ("questions_table=*-qa.parquet", "reports=optional"),
    ),
    "chexpert_plus": lambda folder: build_source("chexpert_plus", write_chexpert_plus(folder / "plus")),
    "chexpert_plus in zips": lambda folder: build_source(
        "chexpert_plus", write_chexpert_plus(folder / "plus", zipped=True)
    ),
    "covid_chestxray": lambda folder: build_source(
        "covid_chestxray", write_covid_chestxray(folder / "covid")
    ),
    "padchest": lambda folder: build_source("padchest", write_padchest(folder / "padchest")),
    "padchest in zips": lambda folder: build_source(
        "padchest", write_padchest(folder / "padchest", zipped=True)
    ),
    "mimic_cxr, zip of reports": lambda folder: build_source("mimic_cxr", write_mimic(folder / "mimic")),
    "mimic_cxr, folder of reports": lambda folder: build_source(
        "mimic_cxr", write_mimic(folder / "mimic", "folder"), ("labels=negbio",)
    ),
    "mimic_cxr as wget leaves it": lambda folder: build_source(
        "mimic_cxr", write_mimic(folder / "mimic", "wget"), ("views=[PA, AP]", "splits=ignore")
    ),
    "dicom": lambda folder: build_source("dicom", write_dicom(folder / "dicom")),
    "nih14": lambda folder: build_source("nih14", write_nih14(folder / "nih14")),
    "nih14 without lists": lambda folder: build_source("nih14", write_nih14(folder / "nih14", lists=False)),
    "vqamed2019": lambda folder: build_source("vqamed2019", write_vqamed2019(folder / "vqa")),
    "masks": lambda folder: build_source("masks", write_masks(folder / "masks"), ("ignore_value=127",)),
    "phantom": lambda folder: build_source("phantom", None, PHANTOM),
    "phantom, codes": lambda folder: build_source(
        "phantom", None, (*PHANTOM, "kind=codes_in_cells", "cells=16")
    ),
}


@pytest.fixture(params=ARCHIVES, scope="module")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return ARCHIVES[request.param](tmp_path_factory.mktemp("archive"))


@pytest.fixture
def items(source: Source) -> list[Item]:
    return [item for item in source.items() if isinstance(item, Item)]


def some(items: list[Item]) -> list[Item]:
    """Enough to look at, both ends included."""
    return items[:4] + items[-2:]


def test_every_sample_archive_is_listed_whole(source: Source, items: list[Item]) -> None:
    assert len(items) >= 6
    assert list(source.items()) == items


def test_listing_twice_gives_the_same(source: Source) -> None:
    assert list(source.items()) == list(source.items())


def test_pair_ids_are_unique_and_patients_named(items: list[Item]) -> None:
    assert len({item.pair_id for item in items}) == len(items)
    assert all(item.pair_id and item.patient_id and item.study_id for item in items)


def test_values_are_of_the_pairs_own_terms(items: list[Item]) -> None:
    for item in items:
        assert item.view in VIEWS
        assert item.split is None or item.split in SPLITS
        assert item.labels is None or all(isinstance(label, str) and label for label in item.labels)
        assert "normal" not in {label.lower() for label in item.labels or ()}
        assert isinstance(item.report, str)


def test_sound_items_pass_every_check(source: Source, items: list[Item]) -> None:
    assert [check_item(item, quality_of(source)) for item in items] == [None] * len(items)
    assert list(checked_items(source)) == items


def test_no_patient_is_given_to_two_splits(items: list[Item]) -> None:
    splits: dict[str, set[str | None]] = {}
    for item in items:
        splits.setdefault(item.patient_id, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())


def test_a_report_is_there_exactly_where_one_is_expected(source: Source, items: list[Item]) -> None:
    assert {bool(item.report) for item in items} == {source.reports_expected}


def test_truth_is_there_where_no_report_is(source: Source, items: list[Item]) -> None:
    if not source.reports_expected:
        for item in some(items):
            whole = {**item.extra, **source.load_extra(item)}
            assert item.labels is not None or whole.get("mask") or whole.get("questions")


def test_images_decode_and_are_the_same_at_every_load(source: Source, items: list[Item]) -> None:
    for item in some(items):
        data = source.load_image(item)
        pixels = read_grey(data)
        check_pixels(pixels)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 2
        assert source.load_image(item) == data


def test_images_of_different_items_differ(source: Source, items: list[Item]) -> None:
    found = {source.load_image(item) for item in some(items)}
    assert len(found) == len(some(items))


def test_items_load_in_any_order(source: Source, items: list[Item]) -> None:
    forward = [source.load_image(item) for item in some(items)]
    backward = [source.load_image(item) for item in reversed(some(items))]
    assert forward == backward[::-1]


def test_a_source_and_its_items_travel_between_processes(source: Source, items: list[Item]) -> None:
    source.load_image(items[0])
    there = pickle.loads(pickle.dumps(source))
    item = pickle.loads(pickle.dumps(items[-1]))
    assert there.name == source.name
    assert there.load_image(item) == source.load_image(items[-1])
    assert next(iter(there.items())) == items[0]


def test_extra_columns_have_the_types_that_are_promised(source: Source, items: list[Item]) -> None:
    schema = source.extra_schema()
    for name in schema.names:
        assert name not in PAIR_SCHEMA.names
        if name in OPTIONAL_FIELDS:
            assert schema.field(name).type == OPTIONAL_FIELDS[name].type
    for item in some(items):
        whole = {**item.extra, **source.load_extra(item)}
        assert set(whole) <= set(schema.names)
        table = pa.Table.from_pylist([whole], schema=schema)
        for name, value in whole.items():
            assert table.column(name)[0].as_py() == value


def test_assumptions_are_single_lines(source: Source) -> None:
    lines = source.assumptions()
    assert lines
    assert all(line.strip() and "\n" not in line for line in lines)


def test_the_source_bears_the_name_it_is_asked_by(source: Source) -> None:
    assert source.name in SOURCES


# What holds for the registry.


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_builds_its_options_from_nothing(name: str) -> None:
    kind = SOURCES[name]
    assert kind.name == name
    assert kind.description
    assert isinstance(parse_options(kind, []), kind.options)


@pytest.mark.parametrize("name", [name for name, kind in SOURCES.items() if kind.needs_root])
def test_a_root_that_is_absent_or_empty_is_one_line(name: str, tmp_path: Path) -> None:
    for root in (None, tmp_path / "absent", tmp_path):
        with pytest.raises(UserError) as caught:
            build_source(name, root)
        assert "\n" not in caught.value.message


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(UserError, match="manifset") as caught:
        source_kind("manifset")
    assert caught.value.hint == "did you mean manifest?"


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"columns\.patient: manifest has no such option") as caught:
        parse_options(SOURCES["manifest"], ["columns.patient=x"])
    assert "columns.patient_id" in str(caught.value.hint)


def test_options_take_text_lists_truth_and_null() -> None:
    options = parse_options(
        SOURCES["manifest"],
        ["filter=modality == XR", "patient_per_row=true", "nothing_found=[a, b]", "columns.pair_id=007"],
    )
    assert options.filter == "modality == XR"  # type: ignore[attr-defined]
    assert options.patient_per_row is True  # type: ignore[attr-defined]
    assert options.nothing_found == ["a", "b"]  # type: ignore[attr-defined]
    assert options.columns.pair_id == "007"  # type: ignore[attr-defined]
    assert parse_options(SOURCES["manifest"], ["filter=null"]).filter is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["filter", "=x", "splits=maybe", "max_image_bytes=0", "nothing_found=[a"])
def test_a_wrong_option_is_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options(SOURCES["manifest"], [text])
    assert "\n" not in caught.value.message


# What holds for images that are not there.


def test_a_missing_image_is_a_reason_and_never_a_crash(tmp_path: Path) -> None:
    openi, table = write_openi(tmp_path / "openi"), write_csv(tmp_path / "csv")
    for file in [*(openi / "NLMCXR_png").glob("CXR1_*"), tmp_path / "csv" / "images" / "0.png"]:
        file.unlink()
    listed = list(build_source("openi", openi).items())
    refused = [item for item in listed if isinstance(item, Rejection)]
    assert [item.reason for item in refused] == ["missing_image", "missing_image"]
    assert len(listed) == 6
    source = build_source("manifest", table)
    first = next(item for item in source.items() if isinstance(item, Item))
    with pytest.raises(FileNotFoundError) as caught:
        source.load_image(first)
    reason, detail = image_problem(caught.value)
    assert reason == "missing_image"
    assert reason in REASONS
    assert str(tmp_path) not in detail
