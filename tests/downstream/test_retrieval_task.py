"""Retrieval as a task: hand-worked figures, galleries that cannot be, and what examples show."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_samples import Row, tiny_model, written

from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Job, NotPossible
from mpma.downstream.features import FeatureStore, centre_views
from mpma.downstream.labelled import LabelledData
from mpma.downstream.retrieval import PreparedRetrieval, Retrieval, build
from mpma.downstream.word_attention import local_vectors, word_attention
from mpma.loading import LoadedModel
from mpma.metrics.precision import precision_at

JOB = Job("retrieval")


def made_task(**own: Any) -> Retrieval:
    return build(EvaluationConfig.model_validate({"retrieval": own}))


def four_pairs(labels: list[list[float]], classes: list[int]) -> PreparedRetrieval:
    return PreparedRetrieval(
        split="test",
        rows=np.arange(4),
        patients=np.array(["a", "b", "c", "d"]),
        classes=np.array(classes),
        labels=np.array(labels),
    )


def test_the_figures_of_four_pairs_are_those_worked_by_hand() -> None:
    # Reports 1 and 3 are the same. Labels: {x}, {x, y}, not labelled, nothing.
    nan = float("nan")
    prepared = four_pairs([[1, 0], [1, 1], [nan, nan], [0, 0]], classes=[0, 1, 2, 1])
    # Similarity of image q and report g; the report vectors are unit vectors.
    similarity = [[9, 8, 1, 2], [9, 1, 2, 3], [1, 2, 2, 0], [4, 3, 2, 1]]
    predictions = {"image": np.array(similarity, np.float32), "report": np.eye(4, dtype=np.float32)}
    task = made_task(recall_at=[1, 2], precision_at=[1, 2])
    outcomes = task.score(prepared, predictions)
    values, arrays = outcomes.values(), outcomes.arrays
    # Image 0 finds its report first. Image 1: report 0, then 3, which has its report's text: rank 2.
    # Image 2: reports 1 and 2 share the first place: a half. Image 3: report 0, then 1 (same text): rank 2.
    assert arrays["image_to_report/recall_at_1"].tolist() == [1.0, 0.0, 0.5, 0.0]
    assert arrays["image_to_report/recall_at_2"].tolist() == [1.0, 1.0, 1.0, 1.0]
    # Report 0: images 0 and 1 tie at 9. Report 1: 8, 3 (same text), 2, 1: rank 2. Report 2: images 1, 2 and 3
    # tie at 2. Report 3: images 1 (same text) 3, so rank 1.
    assert arrays["report_to_image/recall_at_1"].tolist() == pytest.approx([0.5, 0.0, 1 / 3, 1.0])
    assert arrays["report_to_image/recall_at_2"].tolist() == pytest.approx([1.0, 1.0, 2 / 3, 1.0])
    assert values["mean_recall"] == pytest.approx((1.5 / 4 + 1.0 + (11 / 6) / 4 + (11 / 3) / 4) / 4)
    # Among the labelled, 0, 1 and 3. Image 0 ranks 0, 1, 3: {x} shares x with both; only 0 is equal.
    # Image 1 ranks 0, 3, 1: shares with 0 but not with 3. Image 3 ranks 0, 1, 3: nothing shares nothing.
    sharing = [arrays[f"image_to_report/precision_at_{k}"] for k in (1, 2)]
    np.testing.assert_array_equal(sharing[0], [1.0, 1.0, np.nan, 0.0])
    np.testing.assert_array_equal(sharing[1], [1.0, 0.5, np.nan, 0.0])
    exact = [arrays[f"image_to_report/exact_precision_at_{k}"] for k in (1, 2)]
    np.testing.assert_array_equal(exact[0], [1.0, 0.0, np.nan, 0.0])
    np.testing.assert_array_equal(exact[1], [0.5, 0.0, np.nan, 0.0])
    assert values["image_to_report/precision_at_1"] == pytest.approx(2 / 3)


def test_tied_items_count_by_their_expectation() -> None:
    queries, gallery = torch.ones(1, 1), torch.tensor([[3.0], [2.0], [2.0], [2.0], [1.0]])
    relevant = torch.tensor([[False, True, False, False, True]])
    found = precision_at(queries, gallery, lambda rows: relevant[rows], [1, 2, 3, 4, 5, 9])
    assert found[0].tolist() == pytest.approx([0.0, 1 / 6, 2 / 9, 1 / 4, 2 / 5, 2 / 5])


def test_precision_is_that_of_a_plain_count_without_ties() -> None:
    draw = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(count, 6, generator=draw) for count in (30, 50))
    relevant = torch.rand(30, 50, generator=draw) < 0.2
    found = precision_at(queries, gallery, lambda rows: relevant[rows], [1, 5])
    order = (queries @ gallery.T).argsort(dim=1, descending=True)
    expected = [[relevant[q][order[q, :k]].double().mean().item() for k in (1, 5)] for q in range(30)]
    np.testing.assert_allclose(found, expected)


def test_pairs_without_labels_leave_the_recalls_alone() -> None:
    nan = float("nan")
    prepared = four_pairs([[nan]] * 4, classes=[0, 1, 2, 3])
    vectors = np.eye(4, dtype=np.float32)
    outcomes = made_task().score(prepared, {"image": vectors, "report": vectors})
    assert outcomes.values()["mean_recall"] == 1.0
    assert not any("precision" in name for name in outcomes.figures)
    none = PreparedRetrieval(**{**vars(prepared), "labels": np.zeros((4, 0))})
    assert made_task().score(none, made_task().perfect(none)).values()["mean_recall"] == 1.0


def test_the_gallery_is_one_pair_a_patient_with_a_report(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    changed = {split: [copy.copy(row) for row in found] for split, found in rows.items()}
    for number, row in enumerate(changed["test"]):
        row["patient_id"] = f"patient {number // 2}"
        if number >= 40:
            row |= {"report": "", "findings": "", "impression": ""}
    data = written(tmp_path / "gallery", changed)
    prepared = made_task().prepare(data)
    assert len(set(prepared.patients)) == len(prepared.patients) == 20
    assert (prepared.rows < 40).all()
    assert prepared.problems == {"pairs without a report, left out of the gallery": 12}
    assert len(made_task(gallery_size=8).prepare(data).rows) == 8


def test_patients_without_a_report_take_no_place_from_those_with_a_repeated_one(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    changed = {split: [copy.copy(row) for row in found] for split, found in rows.items()}
    for number, row in enumerate(changed["test"]):
        text = "" if number < 40 else f"Report {number % 3}."
        row |= {"report": text, "findings": "", "impression": ""}
    prepared = made_task(gallery_size=12).prepare(written(tmp_path / "repeated", changed))
    assert len(prepared.rows) == 12
    assert (prepared.rows >= 40).all()
    assert len(set(prepared.classes.tolist())) == 3


def test_a_split_of_one_report_is_a_line(rows: dict[str, list[Row]], tmp_path: Path) -> None:
    changed = {
        split: [{**row, "report": "Clear.", "findings": "Clear.", "impression": ""} for row in found]
        for split, found in rows.items()
    }
    changed["train"] = rows["train"]
    with pytest.raises(NotPossible, match="fewer than two patients whose reports differ"):
        made_task().prepare(written(tmp_path / "same", changed))
    with pytest.raises(NotPossible, match="fewer than two patients"):
        made_task().prepare(written(tmp_path / "one", {**changed, "test": rows["test"][:1]}))


def test_vectors_that_are_not_finite_are_a_line(data: LabelledData) -> None:
    task = made_task()
    prepared = task.prepare(data)
    predictions = {name: np.array(value) for name, value in task.constant(prepared).items()}
    predictions["report"][1] = np.inf
    with pytest.raises(NotPossible, match="aligned vectors are not finite"):
        task.score(prepared, predictions)


def test_examples_show_what_was_found_both_ways(
    data: LabelledData, model: LoadedModel, features: FeatureStore
) -> None:
    task = made_task()
    prepared = task.prepare(data)
    predictions = task.perfect(prepared)
    shown = task.examples(model, features, prepared, JOB, None, predictions, 2)
    texts = data.texts("test", prepared.rows)
    views = centre_views(model, data, "test", prepared.rows)[:, 0].numpy()
    assert [example.title for example in shown] == ["image to report", "report to image"] * 2
    for query, (by_image, by_report) in enumerate(zip(shown[::2], shown[1::2], strict=True)):
        assert by_image.image is not None
        np.testing.assert_array_equal(by_image.image, views[query])
        assert by_image.texts["report"] == by_report.texts["report"] == texts[query]
        assert by_report.image is None
        assert len(by_image.related) == len(by_report.related) == 5
        assert by_image.related[0].hit
        assert by_image.related[0].text == texts[query]
        assert by_report.related[0].image is not None
        np.testing.assert_array_equal(by_report.related[0].image, views[query])
        scores = [found.score for found in by_image.related]
        assert scores == sorted(scores, reverse=True)
        assert by_image.overlays
        assert not by_report.overlays


@pytest.mark.parametrize("local", ["words_to_patches", "within_pair"])
def test_a_word_looks_where_the_softmax_of_its_cosines_says(data: LabelledData, local: str) -> None:
    loaded = tiny_model(data.dataset.tokenizer(), step=3, alignment={"local": local})
    texts = ["There is a small left pneumothorax. Normal heart, small effusion, left nodule."]
    pixels = centre_views(loaded, data, "test", np.arange(1))
    overlays = word_attention(loaded, pixels, texts)[0]
    assert list(overlays) == ["small", "left", "pneumothorax", "normal"]
    ids, attention, word_index = loaded.tokens(texts)
    patches, words = (part[0].detach() for part in local_vectors(loaded, pixels, ids, attention, word_index))
    assert patches.norm(dim=-1).numpy() == pytest.approx(1.0, abs=1e-5)
    # Words: there is a small left pneumothorax, so `small` is number 3.
    weights = torch.exp(10 * patches @ words[3])
    expected = (weights / weights.max()).view(4, 4).numpy()
    np.testing.assert_allclose(overlays["small"], expected, rtol=1e-4)


def test_only_a_model_trained_with_local_alignment_has_words_that_look(data: LabelledData) -> None:
    tokenizer, pixels = data.dataset.tokenizer(), None
    for loaded in (
        tiny_model(tokenizer, step=0),
        tiny_model(tokenizer, step=None),
        tiny_model(tokenizer, step=9, alignment={"local": "none"}),
        tiny_model(tokenizer, step=9, loss_weights={"local_alignment": 0.0}),
    ):
        pixels = centre_views(loaded, data, "test", np.arange(1))
        assert word_attention(loaded, pixels, ["Large left effusion."]) == [{}]
