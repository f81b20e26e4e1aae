"""What is kept of each pair while a dataset is made, to find pictures, reports and patients again.

Decisions: 19 words a pair (152 bytes): a hash of the stored image, its 1,024 signs, a hash of the normalised
text that a model reads, and one of the patient's keyed hash. They are taken where the image is decoded, from
the pixels that are there already, and travel with the part's record; what compares them never sees a text or
a picture. They go with the records when the dataset is finished: a hash of a report would confirm a guess at
a short one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mpma.data.counter_hash import text_hash
from mpma.data.images import GreyImage
from mpma.data.pairs import model_text
from mpma.data.picture_signs import WORDS, bytes_hash, picture_signs
from mpma.data.quality import normalised_report

MARK_WORDS: Final = WORDS + 2
REPORT: Final = WORDS
"""Column of the report's hash; 0 where there is no report."""
PATIENT: Final = WORDS + 1

Marks = NDArray[np.uint64]
"""[n, MARK_WORDS]: a picture's fingerprint, report, patient."""

_WORD: Final = np.dtype("<u8")


def pair_mark(row: Mapping[str, Any], grey: GreyImage) -> bytes:
    """Marks of one row of a shard with its stored image's pixels, uint8 [H, W]."""
    mark = np.zeros(MARK_WORDS, _WORD)
    mark[0] = bytes_hash(row["image"])
    mark[1:WORDS] = picture_signs(grey)
    text = normalised_report(model_text(row["report"], row["findings"], row["impression"]))
    mark[REPORT] = _unsigned(text) or 1 if text else 0
    mark[PATIENT] = _unsigned(row["patient_id"])
    return mark.tobytes()


def read_marks(data: bytes) -> Marks:
    """The marks [n, MARK_WORDS] of n times `pair_mark`."""
    return np.frombuffer(data, _WORD).reshape(-1, MARK_WORDS)


def _unsigned(text: str) -> int:
    return text_hash(text) & 0xFFFF_FFFF_FFFF_FFFF
