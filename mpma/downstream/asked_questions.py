"""The questions of a labelled split, ready to be learned from or judged.

Decisions:
- Answers are compared in normalised form; the first accepted answer is what is learned.
- A question with empty text or without an accepted answer is left out and counted.
- A question is open or closed as its type says where it says so, else closed where all its accepted answers
  are yes or no. Where the type says no more than that, the topic is told by how the question opens, so that
  a table by topic does not depend on a column that many sets lack.

Shapes: q questions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.questions import is_closed, normalised_answer
from mpma.downstream.labelled import LabelledData, Rows

_OPEN_OR_CLOSED: Final = frozenset({"", "open", "closed"})

_TOPICS: Final = (
    ("side", re.compile(r"(on |in |at )?(which|what) (side|lung)\b")),
    ("location", re.compile(r"(where|(in )?(which|what) (zone|lobe|part|region|area|location))\b")),
    ("size", re.compile(r"(how (large|big|severe|wide|extensive)|what (size|is the size))\b")),
    ("count", re.compile(r"how many\b")),
    ("presence", re.compile(r"(is|are|was|were|do|does|can|has|have)\b")),
)
"""Topics by the opening of a question; the first that fits."""


@dataclass(frozen=True)
class AskedQuestions:
    """Usable questions of one split: by row, and within a row as stored."""

    rows: Rows
    """[q]: row of the image."""
    texts: Sequence[str]
    """[q]: as written."""
    accepted: Sequence[tuple[str, ...]]
    """[q]: accepted answers, normalised, the plainest first."""
    written: Sequence[str]
    """[q]: the plainest answer as written."""
    closed: NDArray[np.bool_]
    """[q]."""
    topics: Sequence[str]
    """[q]: type or topic; `other` where neither is known."""

    def __len__(self) -> int:
        return len(self.texts)


def read_questions(data: LabelledData, split: str) -> tuple[AskedQuestions, dict[str, int]]:
    """Usable questions of a split, and what was left out."""
    rows, texts, accepted, written, closed, topics = [], [], [], [], [], []
    left_out: Counter[str] = Counter()
    for row, asked in enumerate(data.questions(split)):
        for one in asked:
            text = (one["question"] or "").strip()
            answers = [answer for answer in one["answers"] or [] if answer and answer.strip()]
            if not text:
                left_out["questions without text, left out"] += 1
            elif not answers:
                left_out["questions without an accepted answer, left out"] += 1
            else:
                kind = (one["type"] or "").strip().lower()
                rows.append(row)
                texts.append(text)
                accepted.append(tuple(dict.fromkeys(map(normalised_answer, answers))))
                written.append(answers[0])
                closed.append(kind == "closed" if kind in ("open", "closed") else is_closed(answers))
                topics.append(topic_of(text) if kind in _OPEN_OR_CLOSED else kind)
    found = AskedQuestions(
        np.array(rows, np.int64), texts, accepted, written, np.array(closed, np.bool_), topics
    )
    return found, dict(left_out)


def topic_of(question: str) -> str:
    """`presence`, `side`, `location`, `size`, `count` or `other`, by the opening of the question."""
    opening = question.strip().lower()
    return next((topic for topic, pattern in _TOPICS if pattern.match(opening)), "other")


def answer_classes(questions: AskedQuestions, most: int) -> list[str]:
    """The `most` most frequent first answers, most frequent first, equal ones by text."""
    counts = Counter(answers[0] for answers in questions.accepted)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:most]


class QuestionPrior:
    """What a reader of questions who sees no image answers: the most frequent answer, given the question."""

    def __init__(self, questions: AskedQuestions) -> None:
        """Counted on training questions; at least one."""
        self._by_text: dict[str, Counter[str]] = {}
        self._by_topic: dict[str, Counter[str]] = {}
        self._all: Counter[str] = Counter()
        for text, answers, topic in zip(questions.texts, questions.accepted, questions.topics, strict=True):
            self._by_text.setdefault(normalised_answer(text), Counter())[answers[0]] += 1
            self._by_topic.setdefault(topic, Counter())[answers[0]] += 1
            self._all[answers[0]] += 1

    def answer(self, text: str, topic: str) -> str:
        """The most frequent answer to the same question, else to its topic, else to any."""
        counts = self._by_text.get(normalised_answer(text)) or self._by_topic.get(topic) or self._all
        return min(counts, key=lambda answer: (-counts[answer], answer))
