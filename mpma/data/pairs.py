"""The pair: one row of every dataset, and the Arrow schema that all rooms share.

Decisions: the image is kept encoded (grey JPEG or PNG), so a row is small and decoding is the
reader's choice; `patient_id` is a keyed hash from the first day; `labels` null means "not
labelled", empty means "nothing found"; `mask` and `questions` are optional parts of version 1, and
any extra column of a source is kept behind these.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from mpma.data.sections import collapse_marks

SCHEMA_VERSION: Final = 1

SPLITS: Final = ("train", "val", "test")

VIEWS: Final = ("PA", "AP", "lateral", "unknown")

PAIR_SCHEMA: Final = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("view", pa.string(), nullable=False),
        pa.field("report", pa.string(), nullable=False),
        pa.field("findings", pa.string(), nullable=False),
        pa.field("impression", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=True),
        pa.field("source", pa.string(), nullable=False),
        pa.field("license", pa.string(), nullable=False),
    ]
)
"""Required columns of version 1. `report` is the whole text; `findings` and `impression` are its
parsed sections, empty where absent; `license` is empty where unknown."""

QUESTION_TYPE: Final = pa.struct(
    [("question", pa.string()), ("answers", pa.list_(pa.string())), ("type", pa.string())]
)

OPTIONAL_FIELDS: Final = {
    "mask": pa.field("mask", pa.binary(), nullable=True),
    "questions": pa.field("questions", pa.list_(QUESTION_TYPE), nullable=True),
}
"""`mask`: single-channel PNG of the image's size; `questions`: question, accepted answers, type."""


def model_text(report: str, findings: str, impression: str) -> str:
    """The text the model reads: findings then impression; without either, the whole body.

    Each run of de-identification marks is one `XXXX` in it; the stored text keeps them as they were.
    """
    text = " ".join(part for part in (findings.strip(), impression.strip()) if part) or report.strip()
    return collapse_marks(text)
