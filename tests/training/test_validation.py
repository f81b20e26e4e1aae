"""Validation end to end on a small model: right figures, equal for any number of workers, no traces."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from held_out_samples import MemoryDataset, made_config, made_dataset, made_model, made_pair, made_tokenizer
from PIL import Image

from mpma.data.batches import Collator
from mpma.data.rows import COLLATED_COLUMNS
from mpma.errors import JobError
from mpma.metrics.probe import linear_probe
from mpma.metrics.retrieval import retrieval_metrics
from mpma.training.validation import GAIN_RATIOS, Validator

CPU = torch.device("cpu")

LOSSES = ("image_reconstruction", "report_reconstruction", "global_alignment", "local_alignment")
RETRIEVAL = {
    *(f"{way}/recall_at_{k}" for way in ("image_to_report", "report_to_image") for k in (1, 5, 10)),
    *("mean_recall", "rank_score", "chance_mean_recall", "prior_mean_recall", "gallery_size"),
}
PROBE = {"auroc", "labels", "pairs", "fitted_pairs", "minimum_per_class"}


def made_validator(dataset: MemoryDataset, **options: Any) -> Validator:
    validation = options.pop("validation", {})
    return Validator(
        dataset, made_config(**validation), made_tokenizer(dataset), target_scale=1, device=CPU, **options
    )


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    return made_dataset()


@pytest.fixture(scope="module")
def model(dataset: MemoryDataset) -> torch.nn.Module:
    return made_model(made_config(), made_tokenizer(dataset))


@pytest.fixture(scope="module")
def figures(dataset: MemoryDataset, model: torch.nn.Module) -> dict[str, float]:
    return made_validator(dataset).run(model, 0)


def test_every_figure_stands_under_its_name(figures: dict[str, float]) -> None:
    assert set(figures) == {
        *(f"val/retrieval/{name}" for name in RETRIEVAL),
        *(f"val/probe/{name}" for name in PROBE),
        *(f"val/loss/{name}" for name in LOSSES),
        "val/representation_score",
        "val/report_reconstruction/visual_gain",
    }
    assert all(isinstance(value, float) and np.isfinite(value) for value in figures.values())
    assert figures["val/retrieval/gallery_size"] == 50
    assert figures["val/probe/minimum_per_class"] == 5


def test_retrieval_and_probe_are_those_of_whole_reports_and_full_centre_views(
    dataset: MemoryDataset, model: Any, figures: dict[str, float]
) -> None:
    validator, config = made_validator(dataset), made_config()
    collator = Collator(made_tokenizer(dataset), config.image, config.report, seed=9, target_scale=1)

    def embedded(split: str, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        table = dataset.read_rows(split, rows, COLLATED_COLUMNS)
        batch = collator.collate(
            table, rows * 0, rows, image_mask_ratio=0.0, report_mask_ratio=0.0, augment=False
        )
        with torch.no_grad():
            images = model.eval().embed_images(batch.pixels)
            return images.aligned, images.mean, model.embed_reports(batch.token_ids, batch.attention)

    sets = validator.sets
    aligned, _, reports = embedded("val", sets.gallery_rows)
    for name, value in retrieval_metrics(aligned, reports, sets.gallery_class).items():
        assert figures[f"val/retrieval/{name}"] == pytest.approx(value, abs=1e-6)
    assert sets.probe_train is not None
    assert sets.probe_val is not None
    labelled = [row for row in dataset.rows["val"] if row["labels"] is not None]
    assert len(sets.probe_val.rows) == len(labelled) == figures["val/probe/pairs"]
    expected = linear_probe(
        embedded("train", sets.probe_train.rows)[1].numpy(),
        sets.probe_train.labels,
        sets.probe_train.patients,
        embedded("val", sets.probe_val.rows)[1].numpy(),
        sets.probe_val.labels,
        dataset.label_names,
    )
    assert figures["val/probe/auroc"] == pytest.approx(expected.auroc, abs=2e-3)
    assert figures["val/probe/auroc"] > 0.6


def test_the_score_is_the_mean_of_what_lies_above_chance(figures: dict[str, float]) -> None:
    chance = figures["val/retrieval/chance_mean_recall"]
    above = (figures["val/retrieval/mean_recall"] - chance) / (1 - chance)
    assert figures["val/representation_score"] == pytest.approx(
        (above + 2 * figures["val/probe/auroc"] - 1) / 2
    )


def test_figures_do_not_depend_on_how_training_draws_its_hidden_words(
    dataset: MemoryDataset, model: Any, figures: dict[str, float]
) -> None:
    config = made_config()
    report = config.report.model_copy(update={"mask_draw": "independent"})
    validator = Validator(
        dataset,
        config.model_copy(update={"report": report}),
        made_tokenizer(dataset),
        target_scale=1,
        device=CPU,
    )
    assert validator.run(model, 0) == figures


def test_losses_are_the_models_on_the_fixed_pairs_at_the_reference_masks(
    dataset: MemoryDataset, model: Any, figures: dict[str, float]
) -> None:
    config, rows = made_config(), made_validator(dataset).sets.loss_rows
    collator = Collator(made_tokenizer(dataset), config.image, config.report, seed=0, target_scale=1)
    batch = collator.collate(
        dataset.read_rows("val", rows, COLLATED_COLUMNS),
        rows * 0,
        rows,
        image_mask_ratio=0.75,
        report_mask_ratio=0.5,
        augment=False,
    )
    with torch.no_grad():
        terms = model.eval()(batch).terms()
    assert len(rows) == 10
    for name in LOSSES:
        assert figures[f"val/loss/{name}"] == pytest.approx(terms[name].item(), rel=1e-5)


def test_a_validation_leaves_no_trace_in_the_training(dataset: MemoryDataset, model: torch.nn.Module) -> None:
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.LayerNorm))
    frozen.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    made_validator(dataset).run(model, 3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_a_second_validation_gives_the_same_figures_and_decodes_nothing(
    model: torch.nn.Module, figures: dict[str, float]
) -> None:
    own = made_dataset()
    validator = made_validator(own)
    assert not any("image" in columns for _, _, columns in own.reads)
    assert validator.run(model, 0) == figures
    own.reads.clear()
    assert validator.run(model, 100) == figures
    assert own.reads == []


def test_without_room_for_pictures_the_figures_are_the_same(
    model: torch.nn.Module, figures: dict[str, float]
) -> None:
    own = made_dataset()
    validator = made_validator(own, validation={"cache_bytes": 3 * 8 * 32 * 32})
    validator.run(model, 0)
    own.reads.clear()
    assert validator.run(model, 0) == figures
    assert 0 < sum("image" in columns for _, _, columns in own.reads) < 20


def test_the_training_seed_is_not_asked_and_the_validation_seed_is(
    dataset: MemoryDataset, model: torch.nn.Module, figures: dict[str, float]
) -> None:
    other = made_config().model_copy(
        update={"training": made_config().training.model_copy(update={"seed": 77})}
    )
    tokenizer = made_tokenizer(dataset)
    assert Validator(dataset, other, tokenizer, target_scale=1, device=CPU).run(model, 0) == figures
    reseeded = made_validator(dataset, validation={"seed": 4}).run(model, 0)
    assert reseeded["val/loss/image_reconstruction"] != figures["val/loss/image_reconstruction"]


def test_a_tiny_unlabelled_set_is_validated_without_a_probe(model: torch.nn.Module) -> None:
    tiny = made_dataset(train=20, val=12, labelled=False)
    tokenizer = made_tokenizer(made_dataset())
    found = Validator(tiny, made_config(), tokenizer, target_scale=1, device=CPU).run(model, 0)
    assert found["val/retrieval/gallery_size"] == 12
    assert not any(name.startswith("val/probe") for name in found)
    chance = found["val/retrieval/chance_mean_recall"]
    assert found["val/representation_score"] == pytest.approx(
        (found["val/retrieval/mean_recall"] - chance) / (1 - chance)
    )


def test_a_model_that_is_not_finite_ends_the_job_with_one_line(dataset: MemoryDataset) -> None:
    model = made_model(made_config(), made_tokenizer(dataset))
    with torch.no_grad():
        next(model.image_encoder.parameters()).fill_(torch.nan)
    with pytest.raises(JobError, match="validation at step 40: the model's embeddings are not finite"):
        made_validator(dataset).run(model, 40)


class Recogniser(torch.nn.Module):
    """Knows each picture's number by its grey and each report's by its words.

    A pair with its own picture costs 1 nat per hidden word, with another's 3.5.
    """

    wants_report = True

    def __init__(self, numbers: dict[int, int]) -> None:
        super().__init__()
        self.numbers = numbers
        self.met: list[tuple[int, int]] = []

    def embed_images(self, pixels: torch.Tensor) -> Any:
        grey = pixels.float().mean(dim=(1, 2, 3))
        turned = torch.nn.functional.one_hot(grey.round().long(), 256).float()
        return SimpleNamespace(tokens=grey[:, None, None], mean=turned, aligned=turned)

    def embed_reports(self, token_ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(self._number(token_ids), 256).float()

    def report_nll(self, tokens: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        shown, told = tokens[:, 0, 0].round().long(), self._number(batch.token_ids)
        self.met += zip(shown.tolist(), told.tolist(), strict=True)
        real = batch.masked_targets != -100
        pair = batch.masked_rows[real] // batch.token_ids.shape[1]
        words = torch.bincount(pair, minlength=len(batch))
        assert not (batch.masked_token_ids == batch.token_ids).all()
        return torch.where(shown == told, 1.0, 3.5) * words, words

    def forward(self, batch: Any) -> Any:
        return SimpleNamespace(terms=dict)

    def _number(self, token_ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor(
            [next(self.numbers[i] for i in row if i in self.numbers) for row in token_ids.tolist()]
        )


def test_visual_gain_is_what_the_own_picture_saves_per_word() -> None:
    words = [f"{'abcdef'[number // 6]}{'uvwxyz'[number % 6]}" for number in range(35)]
    rows = []
    for number, word in enumerate(words):
        content = io.BytesIO()
        Image.new("L", (32, 32), number).save(content, "PNG")
        rows.append(made_pair(number, report=f"{word} lung field is clear") | {"image": content.getvalue()})
    # A word of one patient alone would be no entry of the vocabulary.
    others = [row | {"patient_id": f"other {row['patient_id']}"} for row in rows]
    tokenizer = made_tokenizer(MemoryDataset({"val": rows + others}))
    numbers = {int(tokenizer.encode([word], 8).ids[0, 1]): number for number, word in enumerate(words)}
    assert len(numbers) == 35
    model = Recogniser(numbers)
    held = MemoryDataset({"train": [], "val": rows}, label_names=[])
    found = Validator(held, made_config(), tokenizer, target_scale=1, device=CPU).run(model, 0)
    assert found["val/report_reconstruction/visual_gain"] == pytest.approx(2.5)
    assert found["val/retrieval/mean_recall"] == 1.0
    # A block of 32 and one of 3; per ratio each pair once with its own picture, once with another's.
    assert len(model.met) == 2 * 35 * len(GAIN_RATIOS)
    assert sum(shown == told for shown, told in model.met) == 35 * len(GAIN_RATIOS)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 8, 17, 24])
def test_items_are_dealt_in_order_and_every_worker_works_as_often(
    dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch, world: int, rows: int
) -> None:
    values = torch.arange(rows, dtype=torch.float64)[:, None]
    parts = values.split(5)
    shares: list[torch.Tensor] = []
    monkeypatch.setattr(
        torch.distributed, "all_gather_into_tensor", lambda out, share: shares.append(share.clone())
    )
    calls = []
    for rank in range(world):
        validator = Validator.__new__(Validator)
        validator._rank, validator._world = rank, world
        done: list[int] = []

        def compute(number: int, done: list[int] = done) -> torch.Tensor:
            done.append(number)
            return parts[number]

        whole = validator._dealt(len(parts), compute, 5)
        calls.append(len(done))
        if world == 1:
            shares.append(whole)
    assert len(set(calls)) == 1
    assert torch.equal(torch.cat(shares)[:rows], values)


def _second_worker(rank: int, port: int, path: str) -> None:
    torch.save(_validated_by(1, port), path)


def _validated_by(rank: int, port: int) -> dict[str, float]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    try:
        held = made_dataset()
        model = made_model(made_config(), made_tokenizer(held))
        return made_validator(held, rank=rank, world_size=2).run(model, 0)
    finally:
        torch.distributed.destroy_process_group()


def test_two_workers_find_the_figures_of_one(figures: dict[str, float], tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The test's own process is the first worker: a second process costs seconds of imports.
    other = tmp_path / "second.pt"
    worker = torch.multiprocessing.spawn(_second_worker, (port, str(other)), nprocs=1, join=False)
    first = _validated_by(0, port)
    worker.join()
    assert first == torch.load(other, weights_only=True)
    assert first == pytest.approx(figures, rel=1e-6, abs=1e-7)
