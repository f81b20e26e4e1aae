"""The synthetic phantom as a source: nothing is read, everything is generated.

Decisions: each split has index numbers of its own (`SPLIT_STRIDE` apart), so that a set of another
size shares its patients and no patient is in two splits; listing makes text and labels only; image
and masks come from one rendering, whichever of `load_image` and `load_extra` asks first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pyarrow as pa

from mpma.data.pairs import OPTIONAL_FIELDS, SPLITS
from mpma.data.phantom.generate import (
    LICENSE,
    SOURCE,
    VIEW,
    encode_image,
    encode_mask,
    generate_pair,
    generate_text,
    question_rows,
)
from mpma.data.phantom.planted import PlantedPair, codes_in_cells, one_sided_attributes
from mpma.data.sources.contract import Item
from mpma.errors import UserError

SPLIT_STRIDE: Final = 2**32

PhantomKind = Literal["chest", "codes_in_cells", "one_sided_attributes"]

_KINDS: Final = ("chest", "codes_in_cells", "one_sided_attributes")


@dataclass
class PhantomSource:
    """Synthetic pairs, one per synthetic patient, in given splits.

    `kind` is `chest` (radiographs with reports) or one of the planted sets of
    `mpma.data.phantom.planted`; `cells`, `copies` and `cues` belong to `codes_in_cells`.
    """

    train_pairs: int
    val_pairs: int
    test_pairs: int
    size: int
    seed: int
    kind: PhantomKind = "chest"
    cells: int = 16
    copies: int = 3
    cues: int = 1
    name: str = "phantom"
    reports_expected: bool = True
    _last: tuple[str, bytes, dict[str, Any]] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UserError(f"phantom kind {self.kind!r} is unknown", f"one of {', '.join(_KINDS)}")
        if self.size < 64:
            raise UserError(f"phantom size {self.size} is too small", "64 pixels or more")
        if self.kind == "codes_in_cells":
            try:
                self._planted(0)
            except ValueError as error:
                raise UserError(
                    str(error), "2 to 64 cells, at least 1 copy, cells of 8 pixels or more"
                ) from None

    def __getstate__(self) -> dict[str, Any]:
        # The last rendering stays behind: a copy in another process renders for itself.
        return {**self.__dict__, "_last": None}

    def assumptions(self) -> list[str]:
        """What is generated, said as synthetic."""
        counts = f"{self.train_pairs} train, {self.val_pairs} val, {self.test_pairs} test"
        return [
            f"synthetic phantom ({self.kind}): {counts} pairs of {self.size} px, seed {self.seed}; "
            "no patient is shown"
        ]

    def items(self) -> Iterator[Item]:
        """Every pair in order of split and index; chest pairs are listed without rendering."""
        for split, count in zip(SPLITS, (self.train_pairs, self.val_pairs, self.test_pairs), strict=True):
            start = SPLITS.index(split) * SPLIT_STRIDE
            for number in range(count):
                yield self._item(split, start + number)

    def extra_schema(self) -> pa.Schema:
        """Lungs (`mask`), questions, and the union of all findings (`finding_mask`)."""
        return pa.schema(
            [OPTIONAL_FIELDS["mask"], OPTIONAL_FIELDS["questions"], pa.field("finding_mask", pa.binary())]
        )

    def load_image(self, item: Item) -> bytes:
        """The pair's grey JPEG."""
        return self._load(item)[0]

    def load_extra(self, item: Item) -> dict[str, Any]:
        """`mask` (PNG of the lungs; None in planted sets) and `finding_mask` (PNG)."""
        return self._load(item)[1]

    def _item(self, split: str, index: int) -> Item:
        if self.kind == "chest":
            text = generate_text(index, self.seed)
            report, findings, impression = text.report, text.findings, text.impression
            labels, questions = text.labels, question_rows(text.questions)
        else:
            planted = self._planted(index)
            report = findings = planted.report
            impression, labels = "", planted.labels
            questions = [{"question": planted.question, "answers": [planted.answer], "type": "open"}]
        name = f"phantom-{self.kind}-{self.seed}-{split}-{index % SPLIT_STRIDE}"
        return Item(
            pair_id=name,
            patient_id=name,
            study_id=name,
            report=report,
            path=f"{SOURCE} {self.kind}, index {index}",
            locator={"index": index},
            findings=findings,
            impression=impression,
            view=VIEW if self.kind == "chest" else "unknown",
            labels=labels,
            split=split,
            license=LICENSE,
            source=SOURCE,
            extra={"questions": questions},
        )

    def _planted(self, index: int) -> PlantedPair:
        if self.kind == "codes_in_cells":
            return codes_in_cells(
                index, self.seed, self.size, cells=self.cells, copies=self.copies, cues=self.cues
            )
        return one_sided_attributes(index, self.seed, self.size)

    def _load(self, item: Item) -> tuple[bytes, dict[str, Any]]:
        last = self._last
        if last is not None and last[0] == item.pair_id:
            return last[1], last[2]
        index = int(item.locator["index"])
        if self.kind == "chest":
            pair = generate_pair(index, self.seed, self.size)
            image, lungs = encode_image(pair.grey), encode_mask(pair.lung_mask)
            finding = encode_mask(pair.finding_mask)
        else:
            planted = self._planted(index)
            image, lungs, finding = encode_image(planted.grey), None, encode_mask(planted.finding_mask)
        extra = {"mask": lungs, "finding_mask": finding}
        self._last = (item.pair_id, image, extra)
        return image, extra
