"""Verifying a dataset: a whole one is said to be whole, and each defect is found at its place."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grown_samples import ingested, item, png
from PIL import Image

from mpma.data.dataset import Dataset
from mpma.data.dataset_info import DatasetInfo, fingerprint
from mpma.data.ingest_plan import IngestOptions
from mpma.data.pairs import OPTIONAL_FIELDS
from mpma.data.shard_check import DEFECTS, MOST_TOLD, Findings
from mpma.data.sources.contract import Rejection
from mpma.errors import JobError, UserError
from orchestration.verify_command import execute, verify

SPLIT_OF = ("train", "train", "train", "val", "test")


def entries(count: int = 200) -> list[Any]:
    """Pairs 0 to count - 1; every fifth patient validates, every fifth is tested."""
    return [
        item(number, split=SPLIT_OF[number // 2 % 5], extra={"mask": mask(), "age": number})
        for number in range(count)
    ]


def mask(height: int = 80) -> bytes:
    pixels = np.zeros((height, 96), np.uint8)
    pixels[10:20] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(autouse=True)
def outside_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole") / "set"
    fields = (OPTIONAL_FIELDS["mask"], pa.field("age", pa.int64()))
    refused = [Rejection("x.png", "secret-id", "missing_image"), item(900, report="")]
    options = IngestOptions(pairs_per_shard=64, image_format="png")
    ingested(place, [*entries(), *refused], fields=fields, options=options)
    return place


@pytest.fixture
def own(pristine: Path, tmp_path: Path) -> Path:
    """A copy to be damaged, of the same modes."""
    subprocess.run(["cp", "-a", str(pristine), str(tmp_path / "set")], check=True)
    return tmp_path / "set"


def found(place: Path, cpus: int = 1) -> list[tuple[str, int | None, str]]:
    return [(f.file, f.row, f.reason) for f in verify(str(place), cpus=cpus).findings.in_order()]


def shards(place: Path, split: str = "train") -> list[str]:
    return [shard.path for shard in Dataset.open(place).shards(split)]


def rewrite(
    place: Path, shard: str, change: Callable[[list[dict[str, Any]]], None], schema: Any = None
) -> None:
    """Change rows of a shard and make the marker name the new file, as a tool of one's own might."""
    file = place / shard
    with pq.ParquetFile(file) as old:
        schema = schema or old.schema_arrow
        rows = old.read().to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=64, write_page_checksum=True)
    remark(place, lambda content: named(content, place, shard))


def named(content: dict[str, Any], place: Path, shard: str) -> None:
    data = (place / shard).read_bytes()
    for split in content["splits"].values():
        for entry in split["shards"]:
            if entry["path"] == shard:
                entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def remark(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the marker and give it the fingerprint that fits."""
    marker = place / "dataset.json"
    content = json.loads(marker.read_text())
    change(content)
    info = DatasetInfo.model_validate_json(json.dumps(content | {"history": []}))
    content |= {"history": [], "fingerprint": fingerprint(info.splits, info.tokenizer.sha256)}
    marker.write_text(json.dumps(content))


def test_a_whole_dataset_has_no_defect_and_every_figure_was_compared(pristine):
    checked = verify(str(pristine), cpus=1)
    assert checked.findings.in_order() == []
    assert checked.counted


def test_images_that_were_made_jpeg_pass_too(tmp_path):
    options = IngestOptions(image_format="jpeg")
    assert found(Path(ingested(tmp_path / "set", entries(40), options=options).path)) == []


def test_several_processes_find_what_one_finds(own):
    rewrite(own, shards(own)[0], lambda rows: rows[3].update(image=b"nothing"))
    (own / "notes.txt").write_text("mine")
    one = verify(str(own), cpus=1)
    two = verify(str(own), cpus=2)
    assert one.findings.in_order() == two.findings.in_order()
    assert len(one.findings.in_order()) == 2


def test_a_flipped_byte_is_found_and_the_rows_that_it_costs_are_named(own):
    shard = shards(own)[0]
    with pq.ParquetFile(own / shard) as file:
        names = file.schema_arrow.names
        page = file.metadata.row_group(0).column(names.index("image")).data_page_offset
    content = bytearray((own / shard).read_bytes())
    content[page + 2000] ^= 1
    (own / shard).write_bytes(content)
    assert found(own) == [(shard, None, "wrong_hash"), (shard, 0, "unreadable_rows")]
    assert not verify(str(own), cpus=1).counted


def test_a_hash_that_the_marker_has_wrong_is_found(own):
    shard = shards(own)[1]

    def change(content: dict[str, Any]) -> None:
        content["splits"]["train"]["shards"][1]["sha256"] = "0" * 64
        content["tokenizer"]["sha256"] = "1" * 64

    remark(own, change)
    assert found(own) == [("tokenizer.json", None, "wrong_hash"), (shard, None, "wrong_hash")]


def test_missing_and_cut_files_are_found(own):
    first, second = shards(own)[:2]
    (own / first).unlink()
    (own / second).write_bytes((own / second).read_bytes()[:-100])
    (own / "quarantine.parquet").unlink()
    assert found(own) == [
        ("quarantine.parquet", None, "missing_file"),
        (first, None, "missing_file"),
        (second, None, "unreadable_file"),
        (second, None, "wrong_length"),
    ]


def test_files_that_are_no_part_of_it_are_found_and_what_is_not_ours_is_not_named(own):
    for name in ("patient 7.txt", "b.txt", "train/extra.parquet", "unfinished.json", "val/a.unfinished"):
        (own / name).write_bytes(b"x")
    (own / "train" / "folder").mkdir()
    checked = verify(str(own), cpus=1)
    assert [(f.file, f.reason, f.detail) for f in checked.findings.in_order()] == [
        (".", "foreign_file", "2 in this folder"),
        ("train", "foreign_file", "1 in this folder"),
        ("train/extra.parquet", "leftover_file", ""),
        ("unfinished.json", "leftover_file", ""),
        ("val/a.unfinished", "leftover_file", ""),
    ]


def test_the_page_of_quality_may_be_there_and_the_file_of_near_duplicates_must_be(own):
    (own / "quality.html").write_text("page")
    (own / "quality.html").chmod(0o600)
    assert found(own) == []
    (own / "near_duplicates.parquet").unlink()
    assert found(own) == [("near_duplicates.parquet", None, "missing_file")]


def test_files_and_folders_that_others_can_read_are_found(own):
    shard = shards(own)[0]
    (own / shard).chmod(0o644)
    (own / "val").chmod(0o755)
    own.chmod(0o750)
    assert found(own) == [
        (".", None, "wrong_mode"),
        (shard, None, "wrong_mode"),
        ("val", None, "wrong_mode"),
    ]


def test_a_patient_in_two_splits_is_found_in_the_later_one(own):
    patient = Dataset.open(own).read_rows("train", [0]).column("patient_id").to_pylist()[0]
    shard = shards(own, "test")[0]

    def change(rows: list[dict[str, Any]]) -> None:
        rows[4]["patient_id"] = rows[7]["patient_id"] = patient

    rewrite(own, shard, change)
    assert [entry for entry in found(own) if entry[2] != "wrong_count"] == [
        (shard, 4, "patient_in_two_splits"),
        (shard, 7, "patient_in_two_splits"),
    ]


def test_a_repeated_id_is_found_in_whatever_shard_it_stands(own):
    first, second = shards(own)[:2]
    repeated = Dataset.open(own).read_rows("train", [9]).column("pair_id").to_pylist()[0]
    rewrite(own, first, lambda rows: rows[30].update(pair_id=repeated))
    rewrite(own, second, lambda rows: rows[2].update(pair_id=repeated))
    assert found(own) == [(first, 30, "repeated_id"), (second, 2, "repeated_id")]


def test_wrong_figures_are_found_one_by_one(own):
    def change(content: dict[str, Any]) -> None:
        content["splits"]["train"]["patients"] += 1
        content["splits"]["val"]["label_counts"]["Edema"] += 1
        content["splits"]["test"]["masks"] = 0
        content["images"]["grey_mean"] += 0.01
        content["reports"]["tokens_median"] += 1
        content["sources"] = {"elsewhere": 200}
        content["labels"] = ["Edema", "Mass"]

    remark(own, change)
    checked = verify(str(own), cpus=1)
    assert {finding.reason for finding in checked.findings.told} == {"wrong_count"}
    assert {finding.detail.split(" is ")[0] for finding in checked.findings.told} == {
        "splits.train.patients",
        "splits.val.label_counts",
        "splits.test.masks",
        "images.grey_mean",
        "reports.tokens_median",
        "sources",
        "labels",
    }


def test_images_masks_and_values_that_are_wrong_are_found_row_by_row(own):
    shard = shards(own)[0]

    def change(rows: list[dict[str, Any]]) -> None:
        rows[1]["image"] = b"nothing"
        rows[2]["image"] = png(1)[:-30]
        rows[3]["width"] += 1
        rows[4]["mask"] = mask(79)
        rows[5]["mask"] = b"nothing"
        rows[6]["view"] = "upside down"
        rows[7]["study_id"] = ""

    rewrite(own, shard, change)
    checked = verify(str(own), cpus=1)
    assert [(f.row, f.reason, f.detail) for f in checked.findings.in_order()] == [
        (1, "undecodable_image", "not_an_image"),
        (2, "undecodable_image", "truncated_image"),
        (3, "image_size", "96 x 80, the columns say 97 x 80"),
        (4, "mask_size", "mask 96 x 79, image 96 x 80"),
        (5, "undecodable_mask", "unreadable_mask"),
        (6, "unknown_view", ""),
        (7, "missing_value", "column study_id"),
    ]
    assert {f.file for f in checked.findings.told} == {shard}
    assert not checked.counted


def test_rows_behind_a_damaged_row_group_keep_their_numbers(own, monkeypatch):
    import mpma.data.shard_check as module

    shard = shards(own)[0]
    real = module.read_row_groups
    rewrite(own, shards(own)[1], lambda rows: rows[5].update(pair_id="image-0"))

    def torn(storage: Any, info: Any, groups: list[int], *more: Any) -> Any:
        if info.path == shard:
            raise UserError("damaged")
        return real(storage, info, groups, *more)

    monkeypatch.setattr(module, "read_row_groups", torn)
    rewrite(own, shards(own, "val")[0], lambda rows: rows[8].update(pair_id=rows[2]["pair_id"]))
    assert found(own) == [(shard, 0, "unreadable_rows"), (shards(own, "val")[0], 8, "repeated_id")]


def test_other_columns_types_and_row_groups_are_found(own):
    train, val, tested = shards(own)[0], shards(own, "val")[0], shards(own, "test")[0]
    schema = Dataset.open(own).schema()
    rewrite(own, train, lambda rows: None, pa.schema([f for f in schema if f.name != "license"]))
    aged = [pa.field("age", pa.float64()) if f.name == "age" else f for f in schema]
    rewrite(own, val, lambda rows: None, pa.schema(aged))
    rewrite(own, tested, lambda rows: rows.pop())
    assert [(f.file, f.reason, f.detail) for f in verify(str(own), cpus=1).findings.in_order()] == [
        (tested, "wrong_rows", "1 row groups of 39 rows"),
        (train, "wrong_schema", "columns differ: license"),
        (val, "wrong_schema", "types differ from those of most shards"),
    ]


@pytest.mark.parametrize("damage", ["half", "absent", "fingerprint", "history"])
def test_a_marker_that_is_wrong_is_found(own, damage):
    marker = own / "dataset.json"
    content = json.loads(marker.read_text())
    if damage == "half":
        marker.write_text(marker.read_text()[:300])
    elif damage == "absent":
        marker.unlink()
    elif damage == "fingerprint":
        marker.write_text(json.dumps(content | {"fingerprint": "0" * 32}))
    else:
        content["history"][-1]["fingerprint"] = "0" * 32
        marker.write_text(json.dumps(content))
    assert found(own) == [("dataset.json", None, "marker")]


def test_a_tokeniser_that_does_not_load_and_a_quarantine_that_does_not_fit_are_found(own):
    (own / "tokenizer.json").write_bytes(b"{}")

    def change(content: dict[str, Any]) -> None:
        data = b"{}"
        content["tokenizer"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        content["quarantine"]["reasons"]["missing_image"] += 1

    remark(own, change)
    assert found(own) == [("quarantine.parquet", None, "quarantine"), ("tokenizer.json", None, "tokenizer")]


def test_only_the_first_of_many_are_told_and_all_are_counted():
    findings = Findings()
    for row in range(MOST_TOLD + 50):
        findings.add("train/a", "unknown_view", row)
    assert len(findings.told) == MOST_TOLD
    assert findings.counts == {("train/a", "unknown_view"): MOST_TOLD + 50}


def test_the_command_ends_with_1_where_something_is_wrong_and_names_no_row(own, capsys):
    execute(str(own), as_json=False, address=None, cpus=1)
    said = capsys.readouterr()
    assert "every file, row and figure" in said.out
    assert "fingerprint" in said.out
    rewrite(
        own, shards(own)[0], lambda rows: rows[3].update(pair_id="image-0", image=b"x", report="secret text")
    )
    with pytest.raises(JobError, match="defects in") as caught:
        execute(str(own), as_json=False, address=None, cpus=1)
    assert caught.value.hint
    said = capsys.readouterr()
    assert "undecodable_image" in said.out
    for secret in ("image-0", "secret", "MRN"):
        assert secret not in said.out + said.err
    with pytest.raises(JobError):
        execute(str(own), as_json=True, address=None, cpus=1)
    values = json.loads(capsys.readouterr().out)
    assert values["reasons"]["undecodable_image"] == 1
    assert values["defects"] == sum(values["reasons"].values())
    assert {
        "file": shards(own)[0],
        "row": 3,
        "reason": "undecodable_image",
        "detail": "not_an_image",
    } in values["findings"]


def test_where_no_dataset_is_the_command_says_so(tmp_path):
    with pytest.raises(UserError, match="no dataset there") as caught:
        execute(str(tmp_path / "nowhere"), as_json=False, address=None, cpus=1)
    assert not isinstance(caught.value, JobError)


def test_every_reason_has_a_meaning():
    assert all(meaning and meaning[0].islower() for meaning in DEFECTS.values())


def test_the_program_checks_from_a_terminal(own):
    (own / "notes.txt").write_text("mine")
    command = [sys.executable, "-m", "orchestration.ingest", "--verify", str(own), "--json", "--cpus", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert json.loads(done.stdout)["reasons"] == {"foreign_file": 1}
    assert "Traceback" not in done.stderr
    taken = subprocess.run([*command, "--out", "x", "openi"], capture_output=True, text=True)
    assert taken.returncode == 2
    assert "--verify takes no source" in taken.stderr


@pytest.mark.usefixtures("ray_local")
def test_a_cluster_finds_what_this_machine_finds(own):
    rewrite(own, shards(own)[0], lambda rows: rows[3].update(image=b"nothing"))
    on_ray = verify(str(own), address="auto")
    assert on_ray.findings.in_order() == verify(str(own), cpus=1).findings.in_order()
    assert [(f.row, f.reason) for f in on_ray.findings.told] == [(3, "undecodable_image")]
