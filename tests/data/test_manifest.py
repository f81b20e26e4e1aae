"""A user's own tables: what is recognised, what is refused, what is kept."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_samples import checked_items, parquet_rows, png, write_csv, write_parquet

from mpma.data.quality import image_problem
from mpma.data.sources import build_source
from mpma.data.sources.contract import Item, Rejection, UnreadableImage
from mpma.data.sources.manifest import ManifestSource
from mpma.data.sources.paths import lexically_inside, read_inside
from mpma.data.sources.values import as_labels, as_split, as_view, split_in_name
from mpma.errors import UserError


def manifest(root: Path, *assignments: str) -> ManifestSource:
    source = build_source("manifest", root, assignments)
    assert isinstance(source, ManifestSource)
    return source


def kept(source: ManifestSource) -> list[Item]:
    return [item for item in source.items() if isinstance(item, Item)]


def refused(source: ManifestSource) -> list[tuple[str, str]]:
    return [(item.path, item.reason) for item in checked_items(source) if isinstance(item, Rejection)]


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.write_bytes(text.encode(encoding))
    return file


# The real pairs.


def test_the_real_pairs_are_kept_in_their_given_splits_as_typed(data_root: Path) -> None:
    source = manifest(data_root / "pairs")
    listed = list(checked_items(source))
    assert Counter(item.split for item in listed if isinstance(item, Item)) == {
        "train": 240,
        "val": 31,
        "test": 36,
    }
    assert not [item for item in listed if isinstance(item, Rejection)]
    said = "\n".join(source.assumptions())
    assert "pair_id = id" in said
    assert "cxr-val.parquet = val" in said
    assert {"caption", "modality", "orig_width", "url"} <= set(source.extra_schema().names)
    assert source.extra_schema().field("orig_width").type == pa.int32()


def test_a_filter_keeps_the_radiographs_of_the_real_pairs(data_root: Path) -> None:
    source = manifest(data_root / "pairs", "filter=modality == XR")
    assert len(kept(source)) == 254
    assert any("keeps 254 of 307 rows" in line for line in source.assumptions())


def test_embedded_images_are_those_of_their_rows(data_root: Path) -> None:
    source = manifest(data_root / "pairs")
    images = {
        row["id"]: row["image"]
        for file in sorted((data_root / "pairs").glob("*.parquet"))
        for row in pq.read_table(file, columns=["id", "image"]).to_pylist()
    }
    assert all(source.load_image(item) == images[item.pair_id] for item in kept(source))


def test_a_real_table_of_paths_reports_its_missing_images_and_notes(data_root: Path) -> None:
    source = manifest(data_root / "raw" / "covid-chestxray" / "metadata.csv", "image_root=images")
    reasons: Counter[str] = Counter()
    for item in checked_items(source):
        if isinstance(item, Rejection):
            reasons[item.reason] += 1
            continue
        try:
            source.load_image(item)
            reasons["kept"] += 1
        except OSError as error:
            reasons[image_problem(error)[0]] += 1
    assert reasons == {"kept": 39, "missing_image": 3, "empty_report": 3}


# What is recognised.


def test_columns_are_recognised_by_their_usual_names(tmp_path: Path) -> None:
    source = manifest(write_csv(tmp_path / "set"))
    first, second = kept(source)[:2]
    assert (first.pair_id, first.patient_id, first.path) == ("000", "00", "images/0.png")
    assert (first.view, first.split, first.labels) == ("AP", "train", ())
    assert second.labels == ("Edema", "Effusion")
    assert first.report == 'FINDINGS: Heart "size" 0, normal.\nIMPRESSION: Number 0.'
    assert first.extra == {"age": 40}
    assert source.extra_schema() == pa.schema([("age", pa.int64())])
    assert source.load_image(first) == png(0)
    assert [item.split for item in kept(source)] == ["train", "train", "val", "val", "test", "test"]


def test_a_given_mapping_wins_over_the_usual_names(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "id,scan,person,where,words,text\n1,A,P,a.png,first,second\n")
    source = manifest(
        file,
        "columns.pair_id=scan",
        "columns.patient_id=person",
        "columns.path=where",
        "columns.report=words",
    )
    (item,) = kept(source)
    assert (item.pair_id, item.patient_id, item.path, item.report) == ("A", "P", "a.png", "first")
    assert item.extra == {"id": 1, "text": "second"}


def test_an_unknown_column_in_the_mapping_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"columns\.report: .*pairs\.csv has no column 'texts'") as caught:
        manifest(write_csv(tmp_path / "set"), "columns.report=texts")
    assert caught.value.hint == "the nearest is 'text'"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("id,patient,text", "no column of images"),
        ("id,patient,path", "no column of reports"),
        ("id,path,text", "no column of patients"),
        ("id,id,patient,path,text", "more than one column 'id'"),
    ],
)
def test_a_table_without_what_is_needed_says_which_option_gives_it(
    tmp_path: Path, header: str, message: str
) -> None:
    cells = ",".join("x" for _ in header.split(","))
    with pytest.raises(UserError, match=message):
        manifest(write(tmp_path / "t.csv", f"{header}\n{cells}\n"))


def test_rows_are_patients_only_when_asked_and_then_loudly(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "id,path,text\na,a.png,one\nb,b.png,two\n")
    source = manifest(file, "patient_per_row=true")
    assert [item.patient_id for item in kept(source)] == ["a", "b"]
    assert any(line.startswith("EVERY ROW IS TAKEN FOR A PATIENT") for line in source.assumptions())


def test_identifiers_stay_as_they_are_written(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t.csv",
        "id,patient,path,text,zip,age,weight,code\n007,01,a.png,one,0815,3,1.5,1e3\n8,2,b.png,two,4711,4,2,x\n",
    )
    source = manifest(file)
    assert [(item.pair_id, item.patient_id) for item in kept(source)] == [("007", "01"), ("8", "2")]
    types = {"zip": pa.string(), "age": pa.int64(), "weight": pa.float64(), "code": pa.string()}
    assert source.extra_schema() == pa.schema(list(types.items()))
    assert kept(source)[0].extra == {"zip": "0815", "age": 3, "weight": 1.5, "code": "1e3"}


def test_types_hang_on_the_whole_file_and_not_on_its_beginning(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n},{n}.png,{'word ' * 40},{n}\n" for n in range(60_000))
    file = write(tmp_path / "t.csv", "id,patient,path,text,mixed\n" + rows + "x,x,x.png,last,no number\n")
    assert file.stat().st_size > 8 * 1024 * 1024
    source = manifest(file)
    assert source.extra_schema() == pa.schema([("mixed", pa.string())])


def test_patients_stored_as_fractions_are_the_same_as_whole_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {"id": ["a", "b"], "subject_id": [10000032.0, None], "path": ["a", "b"], "text": ["x", "y"]}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    listed = list(manifest(tmp_path / "t.parquet").items())
    assert isinstance(listed[0], Item)
    assert listed[0].patient_id == "10000032"
    assert isinstance(listed[1], Rejection)
    assert listed[1].reason == "missing_patient"


def test_tab_separated_and_other_encodings_are_read(tmp_path: Path) -> None:
    text = "id\tpatient\tpath\ttext\na\tb\tc.png\tÖdem, groß\n"
    (item,) = kept(manifest(write(tmp_path / "t.tsv", text)))
    assert item.report == "Ödem, groß"
    file = write(tmp_path / "l.tsv", text, "latin-1")
    with pytest.raises(UserError, match=r"l\.tsv is not text in the given encoding"):
        kept(manifest(file))
    (item,) = kept(manifest(file, "encoding=latin-1"))
    assert item.report == "Ödem, groß"
    (item,) = kept(manifest(write(tmp_path / "p.csv", text.replace("\t", "|")), "delimiter=|"))
    assert item.report == "Ödem, groß"


def test_a_byte_order_mark_and_windows_lines_change_nothing(tmp_path: Path) -> None:
    text = "id,patient,path,text\r\na,b,images\\c.png,one\r\n"
    (item,) = kept(manifest(write(tmp_path / "t.csv", text, "utf-8-sig")))
    assert (item.pair_id, item.path, item.report) == ("a", "images/c.png", "one")


def test_images_in_a_struct_are_embedded_images(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(1), "path": "a"}, {"bytes": png(2), "path": "b"}])
    table = pa.table({"id": ["a", "b"], "patient": ["a", "b"], "image": images, "text": ["x", "y"]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = manifest(tmp_path / "t.parquet")
    assert [source.load_image(item) for item in kept(source)] == [png(1), png(2)]


def test_findings_and_impression_columns_make_a_report(tmp_path: Path) -> None:
    file = write(
        tmp_path / "t.csv", "id,patient,path,findings,impression\na,b,c.png,Clear.,Normal.\nd,e,f.png,,x\n"
    )
    first, second = kept(manifest(file))
    assert first.report == "FINDINGS: Clear.\nIMPRESSION: Normal."
    assert (first.findings, first.impression) == ("Clear.", "Normal.")
    assert (second.findings, second.report) == (None, "IMPRESSION: x")


# Splits.


def test_splits_come_from_file_names_and_can_be_ignored(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "set")
    assert Counter(item.split for item in kept(manifest(root))) == {"train": 10, "val": 10, "test": 10}
    assert {item.split for item in kept(manifest(root, "splits=ignore"))} == {None}


def test_one_file_without_a_split_in_its_name_leaves_all_to_be_drawn(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "set")
    pq.write_table(parquet_rows(3, 50), root / "more.parquet")
    source = manifest(root)
    assert {item.split for item in kept(source)} == {None}
    assert any(line.startswith("patients are drawn: of 4 tables only") for line in source.assumptions())


def test_a_patient_in_two_given_splits_loses_all_rows(tmp_path: Path) -> None:
    rows = ["a,P,a.png,x,train", "b,P,b.png,x,test", "c,Q,c.png,x,train", "d,R,d.png,x,wrong"]
    source = manifest(write(tmp_path / "t.csv", "id,patient,path,text,split\n" + "\n".join(rows) + "\n"))
    assert [item.pair_id for item in checked_items(source) if isinstance(item, Item)] == ["c"]
    assert refused(source) == [
        ("a.png", "patient_in_two_splits"),
        ("b.png", "patient_in_two_splits"),
        ("d.png", "unknown_split"),
    ]


# Rows that are refused.


def test_every_bad_row_has_its_reason_and_the_others_are_kept(tmp_path: Path) -> None:
    rows = [
        "a,P,a.png,text",
        "a,P,b.png,text",
        ",P,c.png,text",
        "d,,d.png,text",
        "e,P,,text",
        "f,P,f.png,",
        "g,P,g.png,NaN",
        "h,P,../h.png,text",
        "i,P,/etc/passwd,text",
        "j,P,https://x.org/j.png,text",
        "k,P,k.png",
        "l,P,l.png,text,more",
        "m,P,m.png,text",
    ]
    source = manifest(write(tmp_path / "t.csv", "id,patient,path,text\n" + "\n".join(rows) + "\n"))
    assert [item.pair_id for item in checked_items(source) if isinstance(item, Item)] == ["a", "m"]
    found = refused(source)
    assert len(found) == 11
    assert Counter(reason for _, reason in found) == {
        "duplicate_id": 1,
        "missing_id": 1,
        "missing_patient": 1,
        "missing_image": 1,
        "empty_report": 2,
        "outside_root": 3,
        "unreadable_row": 2,
    }
    assert ("t.csv, line 12", "unreadable_row") in found


def test_a_null_embedded_image_is_missing(tmp_path: Path) -> None:
    table = parquet_rows(2).set_column(2, "image", pa.array([None, png(1)], type=pa.binary()))
    pq.write_table(table, tmp_path / "t.parquet")
    source = manifest(tmp_path / "t.parquet")
    first, second = kept(source)
    with pytest.raises(FileNotFoundError):
        source.load_image(first)
    assert source.load_image(second) == png(1)


def test_masks_are_loaded_with_the_image_and_not_listed(tmp_path: Path) -> None:
    source = manifest(write_parquet(tmp_path / "set"), "filter=modality == XR")
    items = kept(source)
    assert len(items) == 20
    assert all("mask" not in item.extra for item in items)
    for item in (items[7], items[0], items[-1]):
        number = int(item.pair_id.partition("-")[2])
        assert source.load_image(item) == png(number)
        assert source.load_extra(item) == {"mask": png(100 + number)}


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 64 + b"PAR1", b"id,patient\n"])
def test_an_unreadable_parquet_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.parquet (cannot be read as a table|is empty)"):
        kept(manifest(tmp_path / "broken.parquet"))


def test_an_empty_csv_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.csv is empty"):
        manifest(write(tmp_path / "t.csv", ""))


def test_a_parquet_damaged_in_its_middle_is_one_line_without_its_text(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "set")
    file = root / "set-test.parquet"
    data = bytearray(file.read_bytes())
    data[4 : len(data) - 4000] = bytes(len(data) - 4004)
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"set-test\.parquet cannot be read as a table") as caught:
        kept(manifest(root))
    assert "Report number" not in f"{caught.value.message} {caught.value.hint}"


def test_columns_that_clash_with_a_pairs_own_are_renamed(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "id,pair_id,patient,path,text,width,mask\n1,x,P,a.png,words,7,m.png\n")
    source = manifest(file, "columns.pair_id=id")
    assert source.extra_schema().names == ["table_pair_id", "table_mask"]
    assert kept(source)[0].extra == {"table_pair_id": "x", "table_mask": "m.png"}


def test_tables_of_a_folder_agree_on_the_widest_type(tmp_path: Path) -> None:
    header = "id,patient,path,text,a,b"
    write(tmp_path / "1.csv", f"{header}\n1,1,1.png,x,1,1\n")
    write(tmp_path / "2.csv", f"{header}\n2,2,2.png,x,1.5,word\n")
    source = manifest(tmp_path)
    assert source.extra_schema() == pa.schema([("a", pa.float64()), ("b", pa.string())])
    assert [item.extra for item in kept(source)] == [{"a": 1.0, "b": "1"}, {"a": 1.5, "b": "word"}]


# Paths.


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "inner" / "a.png").write_bytes(b"inside")
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "in.png").symlink_to(root / "inner" / "a.png")
    assert read_inside(root, "in.png", 100) == b"inside"
    assert read_inside(root, "inner/../inner/a.png", 100) == b"inside"
    for path in ("out.png", "up/secret.png", "../secret.png", str(tmp_path / "secret.png"), "", "."):
        with pytest.raises(UnreadableImage) as caught:
            read_inside(root, path, 100)
        assert caught.value.reason == "outside_root"


def test_only_regular_files_of_sane_size_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "large.png").write_bytes(b"x" * 101)
    for name, reason in (
        ("pipe", "unreadable_image"),
        ("folder", "unreadable_image"),
        ("large", "too_large"),
    ):
        with pytest.raises(UnreadableImage) as caught:
            read_inside(tmp_path, f"{name}.png", 100)
        assert caught.value.reason == reason
    with pytest.raises(FileNotFoundError):
        read_inside(tmp_path, "absent.png", 100)


@given(
    st.lists(st.sampled_from(["..", ".", "a", "b.png", "", "..."]), max_size=8).map("/".join)
    | st.text(alphabet="./\\ab:~\x00\n", max_size=12)
)
def test_a_path_that_passes_stays_below_its_root(path: str) -> None:
    if lexically_inside(path):
        root = "/archive/root"
        whole = os.path.normpath(os.path.join(root, path.replace("\\", "/")))
        assert whole.startswith(root + "/")
        assert "\x00" not in path


# What cells say.


def test_views_splits_and_labels_are_read_from_their_usual_spellings() -> None:
    assert [as_view(word) for word in ("PA", "AP Supine", "L", "LL", "Lateral", "AXIAL", "", None)] == [
        *("PA", "AP", "lateral", "lateral", "lateral", "unknown", "unknown", "unknown")
    ]
    assert [as_split(word) for word in ("Training", "valid", "dev", "TEST", "fold 1", None)] == [
        *("train", "val", "val", "test", None, None)
    ]
    assert [split_in_name(name) for name in ("cxr-train", "validate_2", "trainable", "train-test", "x")] == [
        *("train", "val", None, None, None)
    ]
    assert as_labels("a|b; c|a", "|;", ["No Finding"]) == ("a", "b", "c")
    assert as_labels("no finding", "|;", ["No Finding"]) == ()
    assert as_labels(["x", "No Finding"], "|;", ["No Finding"]) == ("x",)
    assert as_labels([], "|;", []) == ()
    assert as_labels(None, "|;", []) is None
    assert as_labels(float("nan"), "|;", []) is None
