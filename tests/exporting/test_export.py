"""An exported folder: equal outputs in three libraries, whole or refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import timm
import torch
from finished_runs import finished_run
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM

import mpma
from mpma.data.dataset import Dataset
from mpma.data.pairs import model_text
from mpma.data.rows import encoded_images
from mpma.data.storage import Storage, open_storage
from mpma.errors import UserError
from mpma.exporting.export import export_run, load_export, verify_export
from mpma.exporting.layout import OWN_FILES, UNFINISHED
from mpma.loading import LoadedModel
from mpma.training.run_directory import RunDirectory

HARD_TEXTS = [
    "The heart is [MASK] normal. [SEP] [CLS] [PAD] [UNK]",
    "XXXX ___ [**Name 12**] xxxx-year-old, é½µ ﬁ İ",
    "",
    " ".join(["effusion"] * 200),
    "no\nnew\tline; 12.5 cm / 3",
]


def _images(dataset: Dataset, count: int = 4) -> list[bytes]:
    table = dataset.read_rows("val", np.arange(1, 1 + count), ["image"])
    return [bytes(image) for image in encoded_images(table)]


def _timm_model(folder: Path) -> torch.nn.Module:
    """As timm's own configuration beside the weights says."""
    what = json.loads((folder / "image_encoder" / "config.json").read_text())
    return timm.create_model(
        what["architecture"],
        checkpoint_path=str(folder / "image_encoder" / "model.safetensors"),
        num_classes=what["num_classes"],
        **what["model_args"],
    ).eval()


def _card(folder: Path) -> str:
    return (folder / "README.md").read_text()


# --- equal outputs ---------------------------------------------------------------------------------


def test_the_export_is_the_runs_model_bit_for_bit(
    exported: Path, model: LoadedModel, dataset: Dataset
) -> None:
    loaded = mpma.load(exported)
    assert loaded.weights_hash == model.weights_hash
    assert (loaded.step, loaded.data_fingerprint) == (20, dataset.fingerprint)
    own, theirs = loaded.model.state_dict(), model.model.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())
    images, texts = _images(dataset), ["clear lungs.", "left effusion.", "x", "cardiomegaly."]
    assert np.array_equal(loaded.embed_images(images), model.embed_images(images))
    assert np.array_equal(loaded.embed_texts(texts), model.embed_texts(texts))
    assert np.array_equal(loaded.embed_pairs(images, texts), model.embed_pairs(images, texts))


@pytest.mark.parametrize(
    ("changes", "target_scale"),
    [
        ({}, 1),
        ({}, 2),
        ({"backbone": "deit3_small_patch16_224"}, 1),
        (
            {"backbone": "vit_small_patch16_224", "width": None, "heads": None, "layers": 1, "patch_size": 8},
            1,
        ),
    ],
    ids=["tiny", "finer target", "class token without position", "the backbone's own width"],
)
def test_timm_gives_the_same_tokens(
    dataset: Dataset, tmp_path: Path, changes: dict[str, Any], target_scale: int
) -> None:
    run = finished_run(tmp_path, dataset, image=changes, target_scale=target_scale)
    export_run(run, open_storage(tmp_path / "export"))
    loaded, encoder = mpma.load(tmp_path / "export"), _timm_model(tmp_path / "export")
    side = loaded.pixel_side
    pixels = torch.randint(0, 256, (3, 1, side, side), dtype=torch.uint8)
    with torch.no_grad():
        view = loaded.model.pixels.encoder_view(loaded.model.pixels(pixels))
        ours = loaded.model.embed_images(pixels)
        tokens = encoder.forward_features(view)
        pooled = encoder(view)
    torch.testing.assert_close(tokens[:, 0], ours.class_token, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[:, 1:], ours.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pooled, ours.mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_positions_that_came_with_weights_reach_timm_the_class_tokens_too(
    dataset: Dataset, tmp_path: Path, backbone: str
) -> None:
    torch.manual_seed(1)
    source = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=0, embed_dim=32, depth=2, num_heads=2
    )
    torch.nn.init.normal_(source.pos_embed)
    weights = source.state_dict()
    if backbone.startswith("deit3"):
        scales = {f"blocks.{n}.ls{k}.gamma": torch.ones(32) for n in range(2) for k in (1, 2)}
        weights = {**weights, **scales}
    save_file(weights, tmp_path / "vit.safetensors")
    run = finished_run(
        tmp_path, dataset, image={"backbone": backbone, "pretrained": str(tmp_path / "vit.safetensors")}
    )
    export_run(run, open_storage(tmp_path / "export"))
    loaded, encoder = mpma.load(tmp_path / "export"), _timm_model(tmp_path / "export")
    assert loaded.model.image_encoder.positions[0].abs().max() > 0.1
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        tokens = encoder.forward_features(loaded.model.pixels(pixels))
        ours = loaded.model.embed_images(pixels)
    torch.testing.assert_close(tokens[:, 0], ours.class_token, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[:, 1:], ours.tokens, atol=1e-5, rtol=1e-5)
    assert "The training did not begin at random: the weight file of an image encoder" in _card(
        tmp_path / "export"
    )


def test_timm_loads_the_folder_by_its_own_configuration(exported: Path, model: LoadedModel) -> None:
    encoder = timm.create_model(f"local-dir:{exported / 'image_encoder'}", pretrained=True).eval()
    settings = encoder.pretrained_cfg
    assert (settings["mean"], settings["std"]) == ([model.facts["grey_mean"]], [model.facts["grey_std"]])
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = encoder((pixels / 255 - settings["mean"][0]) / settings["std"][0])
        expected = model.model.embed_images(pixels).mean
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_transformers_gives_the_same_states_and_draws_nothing_anew(
    exported: Path, model: LoadedModel
) -> None:
    encoder, told = AutoModel.from_pretrained(exported / "report_encoder", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(exported / "report_encoder")
    texts = ["clear lungs.", "there is a small left effusion and a nodule in the right upper zone."]
    words = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    ids, attention, _ = model.tokens(texts)
    with torch.no_grad():
        theirs = encoder.eval()(**words)
        own = model.model.report_encoder
        ours = own.encode(own.embed(ids), attention)
    torch.testing.assert_close(theirs.last_hidden_state[attention], ours[attention], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.pooler_output, ours[:, 0].tanh(), atol=1e-5, rtol=1e-5)


def _same_ids(folder: Path, model: LoadedModel, texts: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "report_encoder")
    found = tokenizer(texts, padding=True, truncation=True, return_tensors="np")
    expected = model.tokenizer.encode(texts, model.config.report.max_tokens)
    assert np.array_equal(found["input_ids"], expected.ids)
    assert np.array_equal(found["attention_mask"].astype(bool), expected.attention)


def test_transformers_tokeniser_gives_the_same_ids_on_synthetic_and_on_hard_texts(
    exported: Path, model: LoadedModel, dataset: Dataset
) -> None:
    reports = dataset.read_rows("train", np.arange(dataset.rows("train")), ["report"])["report"].to_pylist()
    _same_ids(exported, model, [*reports, *HARD_TEXTS])
    assert model.tokenizer.encode([HARD_TEXTS[3]], 32).truncated == 1


def test_transformers_tokeniser_gives_the_same_ids_on_real_reports(
    exported: Path, model: LoadedModel, data_root: Path
) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(data_root / "text_only" / "openi_reports.parquet", columns=["report"])
    _same_ids(exported, model, [model_text(text or "", "", "") for text in table["report"].to_pylist()])


def test_a_bert_of_other_details_survives_export_without_its_folder(dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(2)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=dataset.tokenizer().vocabulary_size,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=56,
            max_position_embeddings=48,
            type_vocab_size=2,
            hidden_act="gelu_new",
            layer_norm_eps=1e-6,
        )
    )
    bert.save_pretrained(tmp_path / "bert")
    run = finished_run(tmp_path, dataset, report={"pretrained": str(tmp_path / "bert")})
    expected = mpma.load(run.folder.root)
    export_run(run, open_storage(tmp_path / "export"))
    (tmp_path / "bert").rename(tmp_path / "moved")
    loaded = mpma.load(tmp_path / "export")
    assert loaded.weights_hash == expected.weights_hash
    texts = ["clear lungs.", "left effusion."]
    assert np.array_equal(loaded.embed_texts(texts), expected.embed_texts(texts))
    encoder = AutoModel.from_pretrained(tmp_path / "export" / "report_encoder").eval()
    ids, attention, _ = loaded.tokens(texts)
    own = expected.model.report_encoder
    with torch.no_grad():
        theirs = encoder(input_ids=ids, attention_mask=attention.long()).last_hidden_state
        ours = own.encode(own.embed(ids), attention)
    torch.testing.assert_close(theirs[attention], ours[attention], atol=1e-5, rtol=1e-5)


def test_another_step_is_exported_where_it_is_asked_for(run: RunDirectory, tmp_path: Path) -> None:
    export_run(run, open_storage(tmp_path / "early"), step=10)
    assert mpma.load(tmp_path / "early").step == 10
    assert "| steps | 10 (of 20 that were planned) |" in _card(tmp_path / "early")
    assert "| `val/probe/auroc` | 0.5100 | 0.6100 |" in _card(tmp_path / "early")


# --- places ----------------------------------------------------------------------------------------


def test_files_are_for_their_owner_alone_and_nothing_else_is_left(exported: Path) -> None:
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert files == set(OWN_FILES) - {UNFINISHED}
    for path in (exported, *exported.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    verify_export(open_storage(exported))


def test_another_filesystem_takes_and_gives_the_export(
    run: RunDirectory, model: LoadedModel, tmp_path: Path
) -> None:
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    storage = Storage(store, "bucket/model", "store://bucket/model")
    assert not storage.is_local
    export_run(run, storage)
    assert load_export(storage).weights_hash == model.weights_hash


def test_an_earlier_export_is_replaced_only_when_asked(run: RunDirectory, tmp_path: Path) -> None:
    place = open_storage(tmp_path / "export")
    export_run(run, place, step=10)
    with pytest.raises(UserError, match="holds an exported model already"):
        export_run(run, place)
    assert mpma.load(tmp_path / "export").step == 10
    (tmp_path / "export" / "notes.txt").write_text("mine")
    export_run(run, place, overwrite=True)
    assert mpma.load(tmp_path / "export").step == 20
    assert (tmp_path / "export" / "notes.txt").read_text() == "mine"


def test_foreign_files_are_never_overwritten(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty: notes\.txt is there"):
        export_run(run, open_storage(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for overwrite in (False, True):
        with pytest.raises(UserError):
            export_run(run, open_storage(tmp_path), overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "notes.txt"]
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'


def test_an_interrupted_export_is_no_model_and_is_made_again(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write

    def broken(self: Storage, name: str, data: bytes) -> Any:
        if name == "report_encoder/config.json":
            raise KeyboardInterrupt
        return write(self, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", broken)
        with pytest.raises(KeyboardInterrupt):
            export_run(run, open_storage(tmp_path / "export"))
    assert (tmp_path / "export" / "model.safetensors").exists()
    with pytest.raises(UserError, match="its export was interrupted"):
        mpma.load(tmp_path / "export")
    export_run(run, open_storage(tmp_path / "export"))
    assert mpma.load(tmp_path / "export").step == 20


# --- damage ----------------------------------------------------------------------------------------


@pytest.fixture
def copy(run: RunDirectory, tmp_path: Path) -> Path:
    export_run(run, open_storage(tmp_path / "copy"))
    return tmp_path / "copy"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_or_missing_file_is_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[-3] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is damaged: its hash is not that of config.json"):
        mpma.load(copy)
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        mpma.load(copy)


def test_damage_in_the_other_libraries_folders_is_found_by_verification_and_the_card_may_change(
    copy: Path,
) -> None:
    (copy / "README.md").write_text("my own words")
    verify_export(open_storage(copy))
    file = copy / "report_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"report_encoder/model\.safetensors is damaged"):
        verify_export(open_storage(copy))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, r"another format version \(2; this software reads 1\)"),
        ({"format": "other"}, "neither an exported model nor a run"),
        ({"seed": "x"}, "config.json is damaged: seed"),
        ({"unknown": 1}, "config.json is damaged: unknown"),
        ({"bert": {"hidden_size": "wide"}}, "config.json is damaged: bert"),
    ],
)
def test_a_marker_that_is_not_ours_is_refused(copy: Path, change: dict[str, Any], words: str) -> None:
    marker = copy / "config.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | change))
    with pytest.raises(UserError, match=words):
        mpma.load(copy)


def test_a_marker_of_another_architecture_than_the_weights_is_refused_by_name(copy: Path) -> None:
    marker = copy / "config.json"
    content = json.loads(marker.read_text())
    content["image"]["layers"] = 3
    marker.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"do not fit this configuration: the checkpoint lacks .*blocks\.2"):
        mpma.load(copy)
