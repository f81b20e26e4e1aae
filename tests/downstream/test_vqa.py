"""Questions: which are judged, when an answer is right, what is learned, and what chance is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from task_samples import PIXELS, Row, tiny_model, written

from mpma.downstream.asked_questions import answer_classes, read_questions, topic_of
from mpma.downstream.config import EvaluationConfig, FitConfig
from mpma.downstream.contract import Job, NotPossible
from mpma.downstream.features import FeatureStore
from mpma.downstream.labelled import LabelledData
from mpma.downstream.vqa import QuestionTask, build
from mpma.downstream.vqa_fitting import MOST_QUESTIONS, QuestionFit
from mpma.downstream.vqa_model import AnswerHead, QuestionReader
from mpma.loading import LoadedModel

JOB = Job("vqa", seed=0)

Asked = tuple[str, Sequence[str], str]


def vqa(**settings: Any) -> QuestionTask:
    return build(EvaluationConfig.model_validate({"vqa": settings, "breakdown_least_patients": 1}))


def with_questions(
    rows: dict[str, list[Row]], path: Path, asked: dict[str, list[list[Asked] | None]]
) -> LabelledData:
    """The first rows of each split, with these questions."""
    return written(
        path,
        {
            split: [
                {
                    **row,
                    "questions": None
                    if own is None
                    else [{"question": q, "answers": list(a), "type": t} for q, a, t in own],
                }
                for row, own in zip(rows[split], given, strict=False)
            ]
            for split, given in asked.items()
        },
    )


def asked_by_hand(rows: dict[str, list[Row]], path: Path) -> LabelledData:
    train: list[list[Asked] | None] = [
        [("Is it large?", ["Yes"], "closed"), ("Where is it?", ["Left lung", "left side"], "open")],
        [("Is it large?", ["yes."], "closed"), ("Where is it?", ["right lung"], "open")],
        [("Is it large?", ["no"], "closed"), ("Where is it?", ["left lung"], "open")],
        [("Is it new?", ["no"], "closed"), ("", ["yes"], "closed"), ("Is it old?", [], "closed")],
    ]
    test: list[list[Asked] | None] = [
        [("is it LARGE", ["YES"], "closed"), ("Where is the mass?", ["left side", "left lung"], "open")],
        None,
        [("Is it new?", ["yes"], "closed"), ("Where is it?", ["in the abdomen"], "open")],
        [("What modality?", ["  ", "no"], ""), ("Why?", ["", None], "open"), ("  ", ["no"], "open")],  # type: ignore[list-item]
    ]
    return with_questions(rows, path, {"train": train, "test": test})


def test_unusable_questions_and_unknown_answers_are_counted(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    prepared = vqa().prepare(asked_by_hand(rows, tmp_path / "d"))
    assert prepared.rows.tolist() == [0, 0, 2, 2, 3]
    assert prepared.classes == ["left lung", "no", "yes", "right lung"]
    assert prepared.problems == {
        "questions without text, left out": 1,
        "questions without an accepted answer, left out": 1,
        "training questions without text, left out": 1,
        "training questions without an accepted answer, left out": 1,
        "questions whose accepted answers were not learned, counted as wrong": 1,
    }


def test_any_accepted_answer_is_right_and_open_and_closed_are_told_apart(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    task = vqa()
    prepared = task.prepare(asked_by_hand(rows, tmp_path / "d"))
    outcomes = task.score(prepared, {"answers": ["yes", "left lung", "no", "left lung", "no"]})
    # Right: large, the mass by its second accepted answer, and the modality, which is closed by its answer.
    assert outcomes.arrays["accuracy"].tolist() == [1, 1, 0, 0, 1]
    assert outcomes.values() == pytest.approx(
        {
            "accuracy": 3 / 5,
            "open_accuracy": 1 / 2,
            "closed_accuracy": 2 / 3,
            "accuracy/location": 1 / 2,
            "accuracy/presence": 1 / 2,
            "accuracy/other": 1.0,
        }
    )
    assert outcomes.patient.tolist() == [0, 0, 1, 1, 2]


def test_a_perfect_predictor_is_right_even_where_no_class_could_be(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    task = vqa()
    prepared = task.prepare(asked_by_hand(rows, tmp_path / "d"))
    assert set(task.score(prepared, task.perfect(prepared)).values().values()) == {1.0}


def test_the_constant_predictor_knows_questions_and_no_images(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    task = vqa()
    prepared = task.prepare(asked_by_hand(rows, tmp_path / "d"))
    # The same question; its topic; the same question; the same question; any (left lung, no and yes: 2 each).
    assert task.constant(prepared)["answers"] == ["yes", "left lung", "no", "left lung", "left lung"]


def test_only_the_most_frequent_answers_become_classes_and_the_rest_is_told(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    task = vqa(max_answers=2)
    prepared = task.prepare(asked_by_hand(rows, tmp_path / "d"))
    assert prepared.classes == ["left lung", "no"]
    assert prepared.problems["training questions whose answer is not among the 2 learned"] == 3
    assert prepared.problems["questions whose accepted answers were not learned, counted as wrong"] == 3


def test_a_type_that_is_more_than_open_or_closed_is_the_topic(
    rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    own: list[list[Asked] | None] = [
        [("Is it CT?", ["no"], "Modality"), ("Where?", ["left"], "closed"), ("Seen?", ["a bit"], "open")]
    ]
    data = with_questions(rows, tmp_path / "d", {"train": own, "test": own})
    questions, _ = read_questions(data, "test")
    assert questions.topics == ["modality", "location", "other"]
    assert questions.closed.tolist() == [True, True, False]
    assert answer_classes(questions, 5) == ["a bit", "left", "no"]


@pytest.mark.parametrize(
    ("question", "topic"),
    [
        ("Is there a left pneumothorax?", "presence"),
        ("On which side is the effusion?", "side"),
        ("Where is the nodule?", "location"),
        ("How large or severe is it?", "size"),
        ("How many nodules are there?", "count"),
        ("What is seen?", "other"),
    ],
)
def test_a_question_s_topic_is_told_by_its_opening(question: str, topic: str) -> None:
    assert topic_of(question) == topic


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_questions_is_named(rows: dict[str, list[Row]], tmp_path: Path, split: str) -> None:
    asked: dict[str, list[list[Asked] | None]] = {
        "train": [[("Is it large?", ["yes"], "closed")]],
        "test": [[("Is it large?", ["yes"], "closed")]],
    }
    asked[split] = [None]
    with pytest.raises(NotPossible, match=f"the {split} split has no question"):
        vqa().prepare(with_questions(rows, tmp_path / "d", asked))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory": {"kind": "none"}},
        {"memory": {"kind": "key_value", "slots": 4}},
        {"fusion": {"kind": "mean_add"}},
        {"fusion": {"kind": "mean_add"}, "memory": {"kind": "none"}},
    ],
    ids=["shared", "none", "key_value", "mean_add", "mean_add without memory"],
)
def test_the_representation_is_the_model_s_own_of_every_pair(
    data: LabelledData, changes: dict[str, Any]
) -> None:
    if changes.get("memory", {}).get("kind") in ("none", "key_value"):
        changes = {**changes, "memory": {"heads": 2, **changes["memory"]}}
    model = tiny_model(data.dataset.tokenizer(), **changes)
    ids, attention, words = model.tokens(["Is there a lung nodule?", "Where?"])
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 1, PIXELS, PIXELS), dtype=torch.uint8, generator=draw)
    image, text = torch.tensor([0, 2, 2, 1]), torch.tensor([1, 1, 0, 0])
    reader = QuestionReader(model.model, own_copy=False)
    with torch.no_grad():
        found = reader(reader.images(pixels), image, ids, attention, words, text)
        expected = model.model.embed_pairs(pixels[image], ids[text], attention[text], words[text])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_every_part_that_reads_learns_in_a_copy_and_the_model_s_own_stay(
    data: LabelledData, model: LoadedModel
) -> None:
    reader = QuestionReader(model.model, own_copy=True)
    ids, attention, words = model.tokens(["Is there a lung nodule?"])
    pixels = torch.randint(0, 256, (2, 1, PIXELS, PIXELS), dtype=torch.uint8)
    image, text = torch.tensor([0, 1]), torch.tensor([0, 0])
    # Random weights: the norms at the end make plain sums constant.
    fused = reader(reader.images(pixels), image, ids, attention, words, text)
    (fused * torch.randn(fused.shape)).sum().backward()
    assert not [name for name, p in reader.named_parameters() if p.requires_grad and p.grad is None]
    assert not any(p.requires_grad for p in reader.report_encoder.head.parameters())
    assert all(p.requires_grad for p in reader.fusion.parameters())
    assert all(parameter.grad is None for parameter in model.model.parameters())


@pytest.fixture(scope="module")
def halves(rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> LabelledData:
    """One half of the image is bright: the answer needs the image, and which answer needs the question."""
    draw = np.random.default_rng(0)
    made: dict[str, list[Row]] = {}
    for split in ("train", "test"):
        made[split] = []
        for row in rows[split]:
            left = bool(draw.random() < 0.5)
            grey = draw.integers(0, 50, (PIXELS, PIXELS))
            grey[:, np.s_[: PIXELS // 2] if left else np.s_[PIXELS // 2 :]] += 180
            out = io.BytesIO()
            Image.fromarray(grey.astype(np.uint8)).save(out, format="PNG")
            questions = [
                {"question": "Where is it?", "answers": ["left" if left else "right"], "type": "open"},
                {"question": "Is it left?", "answers": ["yes" if left else "no"], "type": "closed"},
                {"question": "Is it right?", "answers": ["no" if left else "yes"], "type": "closed"},
            ]
            made[split].append({**row, "image": out.getvalue(), "questions": questions})
    return written(tmp_path_factory.mktemp("halves") / "d", made)


@pytest.mark.parametrize("freeze", [True, False])
def test_what_only_image_and_question_together_tell_is_learned(halves: LabelledData, freeze: bool) -> None:
    fit = {"steps": 60, "batch_size": 16, "learning_rate": 0.003, "augment": False}
    task = vqa(freeze_encoders=freeze, fit=fit)
    model = tiny_model(halves.dataset.tokenizer())
    prepared, features = task.prepare(halves), FeatureStore(model, halves)
    fitted = task.fit(model, features, prepared, JOB)
    found = task.score(prepared, task.predict(model, features, prepared, JOB, fitted)).values()
    chance = task.score(prepared, task.constant(prepared)).values()
    assert chance["accuracy"] < 0.65
    assert min(found[name] for name in ("accuracy", "open_accuracy", "closed_accuracy")) > 0.95


@pytest.mark.parametrize("freeze", [True, False])
def test_the_same_fit_twice_gives_equal_bits_and_another_seed_others(
    data: LabelledData, model: LoadedModel, features: FeatureStore, freeze: bool
) -> None:
    task = vqa(freeze_encoders=freeze, fit={"steps": 3, "batch_size": 8})
    prepared = task.prepare(data)
    first, second, other = (
        [
            *(fitted := task.fit(model, features, prepared, Job("vqa", seed=seed))).head.parameters(),
            *fitted.reader.parameters(),
        ]
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("freeze", [True, False])
def test_only_what_is_not_frozen_moves(
    data: LabelledData, model: LoadedModel, features: FeatureStore, freeze: bool
) -> None:
    task = vqa(freeze_encoders=freeze, fit={"steps": 3, "batch_size": 8})
    reader = task.fit(model, features, task.prepare(data), JOB).reader
    before, after = model.model.image_encoder.state_dict(), reader.image_encoder.state_dict()
    moved = any(not torch.equal(before[name], after[name]) for name in before)
    assert moved is not freeze


def test_an_image_of_many_questions_gives_a_share_of_them_to_each_step(
    rows: dict[str, list[Row]], tmp_path: Path, model: LoadedModel
) -> None:
    many: list[Asked] = [(f"Is it {number}?", ["yes"], "closed") for number in range(40)]
    data = with_questions(rows, tmp_path / "d", {"train": [many, many[:2]], "test": [many]})
    questions, _ = read_questions(data, "train")
    reader = QuestionReader(model.model, own_copy=False)
    fit = QuestionFit(
        model,
        reader,
        data,
        questions,
        np.zeros(len(questions), np.int64),
        FitConfig(),
        frozen=True,
        seed=0,
        cache_bytes=2**30,
    )
    chosen = [fit._questions(epoch, np.array([1, 0])) for epoch in (0, 0, 1)]
    for drawn, image in chosen:
        assert image.tolist() == [0, 0] + [1] * MOST_QUESTIONS
        assert drawn[:2].tolist() == [40, 41]
        assert len(np.unique(drawn)) == MOST_QUESTIONS + 2
    assert chosen[0][0].tolist() == chosen[1][0].tolist() != chosen[2][0].tolist()


def test_the_head_tells_apart_features_that_differ_little() -> None:
    head = AnswerHead(torch.tensor([5.0, -3.0]), torch.tensor([1e-3, 2.0]), 8, 2)
    seen: list[torch.Tensor] = []
    head.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(torch.tensor([[5.001, -1.0]]))
    torch.testing.assert_close(seen[0], torch.tensor([[1.0, 1.0]]), atol=1e-3, rtol=1e-3)


def test_scores_that_are_not_finite_are_refused(
    data: LabelledData, model: LoadedModel, features: FeatureStore
) -> None:
    task = vqa(freeze_encoders=True, fit={"steps": 1, "batch_size": 4})
    prepared = task.prepare(data)
    fitted = task.fit(model, features, prepared, JOB)
    torch.nn.init.constant_(fitted.head.layers[-1].bias, float("nan"))
    with pytest.raises(NotPossible, match="not finite"):
        task.predict(model, features, prepared, JOB, fitted)


def test_predictions_do_not_depend_on_how_images_are_batched(
    data: LabelledData, model: LoadedModel, features: FeatureStore
) -> None:
    settings = {"vqa": {"freeze_encoders": True, "fit": {"steps": 20, "batch_size": 8}}}
    answers = []
    for size in (5, 64):
        task = build(EvaluationConfig.model_validate({**settings, "batch_size": size}))
        prepared = task.prepare(data)
        fitted = task.fit(model, features, prepared, JOB)
        answers.append(task.predict(model, features, prepared, JOB, fitted)["answers"])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 1
