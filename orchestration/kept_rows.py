"""A worker's share of the split kept whole: encoded images and reports by row number.

Decisions: a batch is picked from lists by row number, so no table is cut and joined, which
held the interpreter's lock, and no image copied. Images stay where Arrow has read them. A
report stays text until its row is first needed, since the first batch waits for the whole share.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from mpma.data.report_tokens import ReportMemory, Reports
from mpma.data.rows import encoded_images
from mpma.data.sample_order import SampleOrder, StepRows
from mpma.data.tokenizer import ReportTokenizer
from orchestration.reading import Piece


class KeptRows:
    """Rows that have been read, for as long as the stream lives."""

    def __init__(self, order: SampleOrder, lanes: range, tokenizer: ReportTokenizer, max_tokens: int) -> None:
        share = range(order.lane_rows(lanes[0]).start, order.lane_rows(lanes[-1]).stop)
        self._order, self._lanes, self._first = order, lanes, share.start
        self._images: list[memoryview | None] = [None] * len(share)
        self._reports = ReportMemory(tokenizer, max_tokens, share)
        self._step = -1
        self._numbers: StepRows

    def add(self, piece: Piece, rows: pa.Table) -> None:
        """Take the rows of a piece, in file order."""
        first = piece.chunk.first_row
        self._images[first - self._first : first - self._first + len(rows)] = encoded_images(rows)
        self._reports.add(first, rows)

    def lacks(self, step: int) -> bool:
        """Whether a row that `step` draws has not come yet."""
        first = self._first
        return any(self._images[row - first] is None for row in self.numbers(step).row.tolist())

    def numbers(self, step: int) -> StepRows:
        """Rows, epochs and positions of `step`, in batch order."""
        if step != self._step:
            world = self._order.lanes // len(self._lanes)
            self._numbers = self._order.rows(step, self._lanes[0] // len(self._lanes), world)
            self._step = step
        return self._numbers

    def images(self, step: int) -> list[memoryview]:
        """The encoded images of `step`, in batch order."""
        found = (self._images[row - self._first] for row in self.numbers(step).row.tolist())
        return [image for image in found if image is not None]

    def reports(self, step: int) -> Callable[[], Reports]:
        """What gives the reports of `step`, in batch order."""
        row = self.numbers(step).row
        return lambda: self._reports.encode(row)
