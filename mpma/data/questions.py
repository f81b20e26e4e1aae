"""Questions about an image: when two answers are the same, and which questions are closed.

Decisions: answers are compared as reports are, with case, form, spaces and punctuation folded, since
archives write `lemierre's syndrome` and `lemierre’s syndrome.`; a text of signs alone (`+`) stays itself.
A question is closed where every accepted answer is yes or no, whatever its words: that is what published
figures divide by, and the wording (`is this ...`) does not tell it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, Final

from mpma.data.quality import normalised_report

CLOSED_ANSWERS: Final = frozenset({"yes", "no"})


def normalised_answer(text: str) -> str:
    """The text by which two answers count as the same."""
    return normalised_report(text) or " ".join(unicodedata.normalize("NFKC", text).lower().split())


def is_closed(answers: Sequence[str]) -> bool:
    """Whether a question with these accepted answers is one of yes or no; False without an answer."""
    return bool(answers) and all(normalised_answer(answer) in CLOSED_ANSWERS for answer in answers)


def question_row(question: str, answers: Sequence[str], kind: str) -> dict[str, Any] | None:
    """A question as the `questions` column holds it; None where its words or all answers are empty.

    Runs of white space become one space, repeated answers one.
    """
    asked, kind = _tidy(question), _tidy(kind)
    accepted = list(dict.fromkeys(filter(None, map(_tidy, answers))))
    return {"question": asked, "answers": accepted, "type": kind} if asked and accepted else None


def _tidy(text: str) -> str:
    return " ".join(text.split())
