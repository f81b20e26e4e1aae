"""Visual question answering: a question and an image in, one of the known answers out.

Decisions:
- Answers are classes: the most frequent first answers of the training questions. At test an answer is right
  where it is among the accepted ones; a question whose answers were never learned counts as wrong.
- With `vqa.freeze_encoders` only the head is trained; else a copy of all that reads image and question.
- Chance is what the questions alone tell: the most frequent training answer to the same question, else to its
  topic, else of all. It sees no image, but it is far above guessing.

Sources: answers as classes, and open, closed and overall accuracy, as in M3AE (Chen et al., MICCAI 2022).
Shapes: m judged questions · C answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from mpma.data.counter_hash import text_hash
from mpma.data.questions import normalised_answer
from mpma.downstream import fitting
from mpma.downstream.asked_questions import AskedQuestions, QuestionPrior, answer_classes, read_questions
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Example, Job, Judged, NotPossible, Predictions
from mpma.downstream.features import FeatureStore, autocast, centre_views
from mpma.downstream.labelled import LabelledData, Rows
from mpma.downstream.vqa_fitting import QuestionFit, QuestionTexts
from mpma.downstream.vqa_model import AnswerHead, QuestionReader
from mpma.loading import LoadedModel
from mpma.metrics.outcomes import Figure, Outcomes, identity_of, numbered_patients

_HEAD_WIDTH: Final = 512
_MOST_TOPICS: Final = 20
_QUESTIONS_AT_ONCE: Final = 1024


@dataclass(frozen=True, kw_only=True)
class JudgedQuestions(Judged):
    """Training questions, the answers that can be learned, and what is judged."""

    train: AskedQuestions
    judged: AskedQuestions
    classes: Sequence[str]
    """[C]: normalised answers."""
    topics: Sequence[str]
    """Topics with a figure of their own."""


@dataclass(frozen=True)
class FittedAnswers:
    """What answers."""

    reader: QuestionReader
    head: AnswerHead


class QuestionTask:
    """See the module."""

    name = "vqa"

    def __init__(self, config: EvaluationConfig) -> None:
        self._config = config

    def jobs(self) -> list[Job]:
        """One job a seed."""
        return [Job(self.name, seed=seed) for seed in range(self._config.resolved_fit_seeds)]

    def prepare(self, data: LabelledData) -> JudgedQuestions:
        """Raises `NotPossible` where train or the judged split has no usable question."""
        split = data.judged_split
        train, left_out_of_training = read_questions(data, "train")
        judged, problems = read_questions(data, split)
        for name, questions in (("train", train), (split, judged)):
            if not len(questions):
                raise NotPossible(
                    f"the {name} split has no question with an answer",
                    "ingest a set with questions, such as VQA-Med",
                )
        classes = answer_classes(train, self._config.vqa.max_answers)
        known = set(classes)
        rare = sum(answers[0] not in known for answers in train.accepted)
        unknown = sum(known.isdisjoint(answers) for answers in judged.accepted)
        for text, count in left_out_of_training.items():
            problems[f"training {text}"] = count
        if rare:
            problems[f"training questions whose answer is not among the {len(classes)} learned"] = rare
        if unknown:
            problems["questions whose accepted answers were not learned, counted as wrong"] = unknown
        patients = data.patients(split)[judged.rows]
        return JudgedQuestions(
            split=split,
            rows=judged.rows,
            patients=patients,
            problems=problems,
            train=train,
            judged=judged,
            classes=classes,
            topics=self._figured_topics(judged.topics, patients),
        )

    def fit(
        self, model: LoadedModel, features: FeatureStore, prepared: JudgedQuestions, job: Job
    ) -> FittedAnswers:
        """Train the head, and the encoders unless they are frozen. Raises `JobError`."""
        settings = self._config.vqa
        frozen = settings.freeze_encoders or settings.fit.encoder_learning_rate_factor == 0
        reader = QuestionReader(model.model, own_copy=not frozen).to(model.device).eval()
        class_of = {answer: number for number, answer in enumerate(prepared.classes)}
        fit = QuestionFit(
            model,
            reader,
            features.data,
            prepared.train,
            np.array([class_of.get(answers[0], -1) for answers in prepared.train.accepted], np.int64),
            settings.fit,
            frozen=frozen,
            seed=job.seed,
            cache_bytes=self._config.image_cache_bytes // 2,
        )
        mean, deviation = fit.standardisation()
        head = fitting.seeded(
            job.seed, lambda: AnswerHead(mean, deviation, _HEAD_WIDTH, len(prepared.classes))
        )
        assert isinstance(head, AnswerHead)
        fitting.fit(
            model,
            head,
            None if frozen else reader,
            settings.fit,
            fit.batches(),
            lambda batch: fit.loss(head, batch),
        )
        return FittedAnswers(reader, head)

    @torch.no_grad()
    def predict(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: JudgedQuestions,
        job: Job,
        fitted: FittedAnswers,
    ) -> Predictions:
        """`answers`: a text for each judged question."""
        texts = QuestionTexts(model, prepared.judged.texts)
        reader, head = fitted.reader.eval(), fitted.head.eval()
        said = np.empty(len(prepared.judged), np.int64)
        for rows, questions, image in _by_images(prepared.judged.rows, self._config.batch_size):
            with autocast(model):
                patches = reader.images(centre_views(model, features.data, prepared.split, rows))
                for part in np.array_split(
                    np.arange(len(questions)), -(-len(questions) // _QUESTIONS_AT_ONCE)
                ):
                    logits = head(texts.fused(reader, patches, image[part], questions[part]))
                    if not bool(torch.isfinite(logits).all()):
                        raise NotPossible("the model's scores are not finite")
                    said[questions[part]] = logits.argmax(dim=1).cpu().numpy()
        return {"answers": [prepared.classes[number] for number in said.tolist()]}

    def score(self, prepared: JudgedQuestions, predictions: Predictions) -> Outcomes:
        """`accuracy`, `open_accuracy`, `closed_accuracy`, and `accuracy/TOPIC`."""
        judged = prepared.judged
        correct = np.array(
            [
                float(normalised_answer(said) in accepted)
                for said, accepted in zip(predictions["answers"], judged.accepted, strict=True)
            ]
        )
        topics = np.array(judged.topics, dtype=np.str_)
        shares = {"open_accuracy": ~judged.closed, "closed_accuracy": judged.closed}
        shares |= {f"accuracy/{topic}": topics == topic for topic in prepared.topics}
        arrays = {"accuracy": correct}
        arrays |= {name: np.where(belongs, correct, np.nan) for name, belongs in shares.items()}
        truth = [
            text_hash("\n".join([text, *accepted]))
            for text, accepted in zip(judged.texts, judged.accepted, strict=True)
        ]
        return Outcomes(
            patient=numbered_patients(prepared.patients),
            arrays=arrays,
            figures={name: Figure("mean", {"value": name}) for name in arrays},
            headline=("accuracy", "open_accuracy", "closed_accuracy"),
            identity=identity_of(prepared.patients, prepared.rows, np.array(truth, np.int64)),
            problems=dict(prepared.problems),
        ).checked()

    def perfect(self, prepared: JudgedQuestions) -> Predictions:
        """The plainest accepted answer."""
        return {"answers": [accepted[0] for accepted in prepared.judged.accepted]}

    def constant(self, prepared: JudgedQuestions) -> Predictions:
        """The answer that the question alone makes likeliest."""
        prior = QuestionPrior(prepared.train)
        judged = prepared.judged
        return {
            "answers": [
                prior.answer(text, topic) for text, topic in zip(judged.texts, judged.topics, strict=True)
            ]
        }

    def examples(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: JudgedQuestions,
        job: Job,
        fitted: FittedAnswers,
        predictions: Predictions,
        count: int,
    ) -> list[Example]:
        """Image, question, answer and what was given."""
        count = min(count, len(prepared.judged))
        if not count:
            return []
        pixels = centre_views(model, features.data, prepared.split, prepared.rows[:count])
        judged = prepared.judged
        return [
            Example(
                title="question",
                image=pixels[place, 0].cpu().numpy(),
                texts={
                    "question": judged.texts[place],
                    "answer": judged.written[place],
                    "given": predictions["answers"][place],
                },
            )
            for place in range(count)
        ]

    def _figured_topics(self, topics: Sequence[str], patients: NDArray[np.str_]) -> list[str]:
        names = np.array(topics, dtype=np.str_)
        sizes = {str(name): len(np.unique(patients[names == name])) for name in np.unique(names)}
        enough = [name for name, size in sizes.items() if size >= self._config.breakdown_least_patients]
        return sorted(enough, key=lambda name: (-sizes[name], name))[:_MOST_TOPICS]


def build(config: EvaluationConfig) -> QuestionTask:
    """The task of that configuration."""
    return QuestionTask(config)


def _by_images(rows: Rows, images: int) -> Iterator[tuple[Rows, NDArray[np.int64], NDArray[np.int64]]]:
    """(rows of some images, their questions, place of each one's image) of questions by ascending row."""
    distinct = np.unique(rows)
    for start in range(0, len(distinct), images):
        part = distinct[start : start + images]
        questions = np.flatnonzero((rows >= part[0]) & (rows <= part[-1]))
        yield part, questions, np.searchsorted(part, rows[questions])
