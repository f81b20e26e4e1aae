"""Loading a trained model from a run, an export or other weights, and what a notebook does with it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from finished_runs import config_of, finished_run, pairs, rewritten
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

import mpma
from mpma.baselines import baseline, check_spec
from mpma.data.dataset import Dataset
from mpma.data.rows import encoded_images
from mpma.data.storage import open_storage
from mpma.embedding import embed_batch, untrained_kinds, widths
from mpma.errors import JobError, UserError
from mpma.exporting.export import export_run
from mpma.loading import LoadedModel, load_run, untrained
from mpma.training.run_directory import RunDirectory


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return pairs(tmp_path_factory.mktemp("loading") / "data")


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("loading-runs"), dataset)


@pytest.fixture(scope="module")
def model(run: RunDirectory) -> LoadedModel:
    return mpma.load(run.folder.root)


def _rows(dataset: Dataset, count: int = 7) -> tuple[list[bytes], list[str]]:
    table = dataset.read_rows("val", np.arange(1, 1 + count), ["image", "report"])
    texts = [text or "no finding." for text in table["report"].to_pylist()]
    return [bytes(image) for image in encoded_images(table)], texts


def test_importing_mpma_brings_no_torch() -> None:
    code = "import sys, mpma; print([m for m in ('torch', 'transformers', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = mpma.lode


def test_a_run_is_loaded_at_its_newest_checkpoint_or_at_the_one_asked_for(run: RunDirectory) -> None:
    newest, earlier = mpma.load(run.folder.root), load_run(run, step=10)
    assert (newest.step, earlier.step) == (20, 10)
    for loaded in (newest, earlier):
        stored = load_file(Path(run.checkpoints.root) / f"step_{loaded.step:08d}" / "model.safetensors")
        own = loaded.model.state_dict()
        assert stored.keys() == own.keys()
        assert all(torch.equal(value, own[name]) for name, value in stored.items())
    assert newest.weights_hash != earlier.weights_hash
    with pytest.raises(UserError, match="no checkpoint of step 11") as refused:
        load_run(run, step=11)
    assert refused.value.hint == "those kept are of step 10, 20"


def test_a_torn_newest_checkpoint_gives_way_to_the_one_before(dataset: Dataset, tmp_path: Path) -> None:
    run = finished_run(tmp_path, dataset)
    torn = Path(run.checkpoints.root) / "step_00000020" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    assert mpma.load(run.folder.root).step == 10
    with pytest.raises(UserError, match=r"model\.safetensors does not match its hash"):
        load_run(run, step=20)


def test_what_is_neither_a_run_nor_an_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither an exported model nor a run"):
        mpma.load(tmp_path)
    with pytest.raises(UserError, match="precision 'fp16' is unknown"):
        mpma.load(tmp_path, precision="fp16")


def test_weights_that_are_not_of_the_runs_configuration_are_refused_by_name(
    dataset: Dataset, tmp_path: Path
) -> None:
    run = finished_run(tmp_path, dataset)
    rewritten(run, config_of(dataset, image={"layers": 3}))
    with pytest.raises(UserError, match=r"do not fit this configuration: the checkpoint lacks .*blocks\.2"):
        mpma.load(run.folder.root)


def test_a_run_loads_without_the_file_that_its_training_began_with(dataset: Dataset, tmp_path: Path) -> None:
    began = tmp_path / "vit.safetensors"
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=0, embed_dim=32, depth=2, num_heads=2
    )
    save_file(vit.state_dict(), began)
    run = finished_run(tmp_path, dataset, image={"pretrained": str(began)})
    before = mpma.load(run.folder.root).weights_hash
    began.unlink()
    assert mpma.load(run.folder.root).weights_hash == before


def test_images_give_the_vectors_that_the_model_gives_for_their_centre_views(
    model: LoadedModel, dataset: Dataset
) -> None:
    images, _ = _rows(dataset)
    places = np.arange(len(images))
    with torch.no_grad():
        pixels = model.cropper()(images, np.zeros_like(places), places, augment=False)
        expected = model.model.embed_images(pixels).aligned.numpy()
    found = model.embed_images(images)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)
    np.testing.assert_allclose(model.embed_images(images, batch_size=3), expected, atol=1e-6)
    assert model.embed_images([]).shape == (0, 16)


def test_bytes_arrays_and_pillow_images_of_one_picture_give_one_vector(
    model: LoadedModel, dataset: Dataset
) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (80, 70), dtype=np.uint8)
    png = io.BytesIO()
    Image.fromarray(grey).save(png, "PNG")
    deep = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 257).save(deep, "PNG")
    given = [
        png.getvalue(),
        memoryview(png.getvalue()),
        grey,
        grey[:, :, None],
        np.stack([grey] * 3, axis=2),
        Image.fromarray(grey),
        Image.fromarray(grey).convert("RGB"),
        Image.fromarray(grey).convert("RGBA"),
        deep.getvalue(),
    ]
    vectors = model.embed_images(given)
    assert np.array_equal(vectors, np.repeat(vectors[:1], len(given), axis=0))
    assert not np.array_equal(vectors[0], model.embed_images([255 - grey])[0])


def test_a_turned_photograph_is_set_upright(model: LoadedModel) -> None:
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    grey.save(turned, "PNG", exif=exif)
    upright = grey.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(*model.embed_images([turned.getvalue(), upright]))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "image 1 of 2 cannot be read: empty file"),
        (b"<html>", "image 1 of 2 cannot be read: html page"),
        (np.zeros((4, 4), np.float32), r"image 1 of 2 cannot be read: unsupported pixels \(float32 \[4, 4\]"),
        (np.zeros((2, 4, 4), np.uint8), r"uint8 \[2, 4, 4\]; uint8 \[H,W\] or \[H,W,3\] is expected"),
        ("picture.png", "image 1 of 2 is a str"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_by_its_place(
    model: LoadedModel, image: object, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        model.embed_images([np.zeros((8, 8), np.uint8), image])  # type: ignore[list-item]


def test_texts_and_pairs_give_the_models_own_vectors(model: LoadedModel, dataset: Dataset) -> None:
    images, texts = _rows(dataset)
    ids, attention, words = model.tokens(texts)
    places = np.arange(len(images))
    with torch.no_grad():
        pixels = model.cropper()(images, np.zeros_like(places), places, augment=False)
        expected = model.model.embed_reports(ids, attention).numpy()
        fused = model.model.embed_pairs(pixels, ids, attention, words).numpy()
    assert np.array_equal(model.embed_texts(texts), expected)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1.0, atol=1e-5)
    found = model.embed_pairs(images, texts)
    assert np.array_equal(found, fused)
    assert found.shape == (7, 24 + 32)
    np.testing.assert_allclose(model.embed_pairs(images, texts, batch_size=2), fused, atol=1e-5)


def test_texts_that_cannot_be_embedded_are_refused(model: LoadedModel) -> None:
    with pytest.raises(UserError, match="text 1 of 2 is empty"):
        model.embed_texts(["clear lungs.", "  "])
    with pytest.raises(UserError, match="a list of texts is expected"):
        model.embed_texts("clear lungs.")
    with pytest.raises(UserError, match="1 images and 2 texts"):
        model.embed_pairs([np.zeros((8, 8), np.uint8)], ["a", "b"])


def test_a_pair_without_text_has_image_vectors_alone_and_changes_no_other(
    model: LoadedModel, dataset: Dataset
) -> None:
    images, texts = _rows(dataset, 4)
    whole = embed_batch(model, images, texts)
    holed = embed_batch(model, images, [texts[0], "", texts[2], texts[3]])
    kept = np.array([0, 2, 3])
    for kind, width in widths(model).items():
        assert whole[kind].shape == (4, width)
        np.testing.assert_allclose(holed[kind][kept], whole[kind][kept], atol=1e-5)
    assert np.isnan(holed["text"][1]).all()
    assert np.isnan(holed["fused"][1]).all()
    assert np.array_equal(holed["image"], whole["image"])


def test_a_vector_that_is_not_finite_is_an_error_and_not_a_nan(run: RunDirectory, dataset: Dataset) -> None:
    loaded = mpma.load(run.folder.root)
    with torch.no_grad():
        loaded.model.global_report.output.bias[0] = float("nan")
    with pytest.raises(JobError, match="the text vectors of a batch are not finite"):
        loaded.embed_texts(["clear lungs."])
    assert np.isfinite(loaded.embed_images(_rows(dataset, 1)[0])).all()


def test_what_no_loss_trained_is_known(dataset: Dataset, tmp_path: Path, model: LoadedModel) -> None:
    assert untrained_kinds(model) == {}
    weights = {"report_reconstruction": 0.0, "global_alignment": 0.0}
    other = mpma.load(finished_run(tmp_path, dataset, loss_weights=weights).folder.root)
    assert set(untrained_kinds(other)) == {"image", "text", "fused"}


# --- baselines -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm", "unknown form"),
        ("a=run", "unknown form"),
        ("a=run:", "unknown form"),
        ("a=timm:x", "unknown form"),
        ("a=torch:x", "unknown form"),
        ("=timm", "a name is letters, digits and dashes"),
        ("a b=timm", "a name is letters, digits and dashes"),
        ("../a=timm", "a name is letters, digits and dashes"),
        ("pretrained=timm", "has a meaning of its own"),
        ("untrained=run:x", "has a meaning of its own"),
    ],
)
def test_a_malformed_baseline_is_refused(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_spec(spec)


def test_a_run_and_an_export_are_baselines_of_their_own_architecture(
    model: LoadedModel, dataset: Dataset, tmp_path: Path
) -> None:
    other = finished_run(tmp_path, dataset, "other", seed=5, image={"layers": 1}, alignment={"width": 24})
    export_run(other, open_storage(tmp_path / "export"))
    expected = mpma.load(other.folder.root)
    for spec in ("before=run:other", "before=export:export"):
        found = baseline(spec, model, tmp_path)
        assert (found.name, found.weights_hash) == ("before", expected.weights_hash)
    assert check_spec("before=run:other") == "before"
    with pytest.raises(UserError, match="neither an exported model nor a run"):
        baseline("before=run:nowhere", model, tmp_path)


def test_an_image_file_fills_the_encoder_and_leaves_the_rest_untrained(
    model: LoadedModel, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, in_chans=1, num_classes=0, embed_dim=32, depth=2, num_heads=2
    )
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    found = baseline("imagenet-vit=image:vit.safetensors", model, tmp_path)
    start = untrained(model)
    assert found.name == "imagenet-vit"
    for name, value in found.model.state_dict().items():
        part = name.removeprefix("image_encoder.vit.")
        if part != name:
            torch.testing.assert_close(value, vit.state_dict()[part], atol=1e-6, rtol=1e-5)
        elif name != "image_encoder.positions":
            assert torch.equal(value, start.model.state_dict()[name]), name


def test_an_image_file_of_another_architecture_is_refused_in_one_line(
    model: LoadedModel, tmp_path: Path
) -> None:
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=0, embed_dim=48, depth=2, num_heads=2
    )
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=r"--baseline a=image:.*vit\.safetensors has .* of shape"):
        baseline("a=image:vit.safetensors", model, tmp_path)
    with pytest.raises(UserError, match="neither `timm` nor a file"):
        baseline("a=image:nothing.pth", model, tmp_path)


def test_the_timm_file_of_an_export_is_no_baseline_since_it_does_not_know_its_greys(
    run: RunDirectory, model: LoadedModel, tmp_path: Path
) -> None:
    export_run(run, open_storage(tmp_path / "export"))
    with pytest.raises(UserError, match="does not say how its pixels were normalised"):
        baseline("a=image:export/image_encoder/model.safetensors", model, tmp_path)
    found = baseline("a=image:export/model.safetensors", model, tmp_path)
    for name, value in model.model.image_encoder.state_dict().items():
        torch.testing.assert_close(found.model.image_encoder.state_dict()[name], value, atol=1e-6, rtol=1e-5)


def _bert(folder: Path, model: LoadedModel, **changes: int) -> BertForMaskedLM:
    torch.manual_seed(9)
    sizes = {
        "vocab_size": model.tokenizer.vocabulary_size,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    bert = BertForMaskedLM(BertConfig(**(sizes | changes)))
    bert.save_pretrained(folder)
    return bert


def test_a_bert_fills_the_report_encoder(model: LoadedModel, tmp_path: Path) -> None:
    bert = _bert(tmp_path / "bert", model)
    found = baseline("bert=hf:bert", model, tmp_path)
    for name, value in bert.bert.state_dict().items():
        assert torch.equal(found.model.report_encoder.bert.state_dict()[name], value), name
    assert found.embed_texts(["clear lungs."]).shape == (1, 16)


def test_a_bert_that_does_not_fit_is_refused_in_one_line(model: LoadedModel, tmp_path: Path) -> None:
    _bert(tmp_path / "deep", model, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"--baseline a=hf:deep: .* has 3 where report.layers is 2"):
        baseline("a=hf:deep", model, tmp_path)
    with pytest.raises(UserError, match="no folder there"):
        baseline("a=hf:nothing", model, tmp_path)
    _bert(tmp_path / "words", model)
    other = json.loads(model.tokenizer.to_bytes())
    entries = list(other["model"]["vocab"])
    entries[-1], entries[-2] = entries[-2], entries[-1]
    other["model"]["vocab"] = {entry: number for number, entry in enumerate(entries)}
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match="its vocabulary is not that of"):
        baseline("a=hf:words", model, tmp_path)
