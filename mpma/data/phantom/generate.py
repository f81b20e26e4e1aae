"""One phantom pair, and tables of them.

Decisions: a pair is a pure function of (index, seed, size); its text and labels need no rendering,
so that a listing of thousands is cheap. Images are stored as JPEG of quality 92 at 4:0:0: measured
at 128 px it encodes several times faster than PNG, and film grain makes PNG more than twice as large.
Masks are PNG (lossless, a few hundred bytes).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from mpma.data.pairs import OPTIONAL_FIELDS, PAIR_SCHEMA
from mpma.data.phantom.draws import Draws
from mpma.data.phantom.findings import Description, sample_description
from mpma.data.phantom.questions import Question, ask
from mpma.data.phantom.render import Mask, render
from mpma.data.phantom.wording import write_report

SOURCE: Final = "synthetic phantom"

LICENSE: Final = "Apache-2.0 (synthetic phantom: procedurally generated, shows no patient)"

VIEW: Final = "PA"

PHANTOM_SCHEMA: Final = pa.schema(
    [
        *PAIR_SCHEMA,
        OPTIONAL_FIELDS["mask"],
        OPTIONAL_FIELDS["questions"],
        pa.field("finding_mask", pa.binary()),
    ]
)
"""Pair schema with the lungs (`mask`), the union of all findings (`finding_mask`) and questions."""


@dataclass(frozen=True)
class PhantomText:
    """A pair as far as it is known without drawing it."""

    index: int
    seed: int
    description: Description
    report: str
    findings: str
    impression: str
    questions: tuple[Question, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels present, in the order of `LABELS`; empty: nothing found."""
        return self.description.labels

    @property
    def patient_id(self) -> str:
        """Each pair is a patient of its own."""
        return f"phantom-{self.seed}-{self.index}"


@dataclass(frozen=True)
class PhantomPair(PhantomText):
    """A whole pair; arrays are [size, size]."""

    grey: NDArray[np.uint8]
    lung_mask: Mask
    finding_masks: tuple[Mask, ...]
    """One mask per finding of the description."""

    @property
    def finding_mask(self) -> Mask:
        """Union of the findings' masks."""
        union = np.zeros(self.grey.shape, dtype=np.bool_)
        for mask in self.finding_masks:
            union |= mask
        return union


def generate_text(index: int, seed: int) -> PhantomText:
    """Everything of pair `index` but its pixels."""
    description = sample_description(index, seed)
    draws = Draws(index, seed, "wording")
    report, findings, impression = write_report(description, draws)
    return PhantomText(index, seed, description, report, findings, impression, ask(description, draws))


def generate_pair(index: int, seed: int, size: int) -> PhantomPair:
    """Pair `index` of the phantom of `seed` at `size` x `size` pixels (at least 32); a pure function."""
    text = generate_text(index, seed)
    drawn = render(text.description, index, seed, size)
    return PhantomPair(**vars(text), grey=drawn.grey, lung_mask=drawn.lungs, finding_masks=drawn.findings)


def encode_image(grey: NDArray[np.uint8]) -> bytes:
    """Grey JPEG of uint8 [H, W]."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


def encode_mask(mask: Mask) -> bytes:
    """Single-channel PNG of bool [H, W]: 0 outside, 255 inside."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def question_rows(questions: tuple[Question, ...]) -> list[dict[str, Any]]:
    """Questions as the `questions` column stores them."""
    return [{"question": q.question, "answers": list(q.answers), "type": q.type} for q in questions]


def phantom_rows(first: int, count: int, seed: int, size: int) -> pa.Table:
    """Pairs first..first+count-1 as a table of `PHANTOM_SCHEMA`."""
    rows = []
    for index in range(first, first + count):
        pair = generate_pair(index, seed, size)
        rows.append(
            {
                "pair_id": pair.patient_id,
                "patient_id": pair.patient_id,
                "study_id": pair.patient_id,
                "image": encode_image(pair.grey),
                "width": size,
                "height": size,
                "view": VIEW,
                "report": pair.report,
                "findings": pair.findings,
                "impression": pair.impression,
                "labels": list(pair.labels),
                "source": SOURCE,
                "license": LICENSE,
                "mask": encode_mask(pair.lung_mask),
                "questions": question_rows(pair.questions),
                "finding_mask": encode_mask(pair.finding_mask),
            }
        )
    return pa.Table.from_pylist(rows, schema=PHANTOM_SCHEMA)
