"""The columns that a batch is made from. Torch-free, so that a read task starts fast."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

COLLATED_COLUMNS: Final = ("image", "report", "findings", "impression", "study_id")
"""Columns that are read for a batch."""

PIXELS_COLUMN: Final = "pixels"
"""Stands in for `image` where the crops were already made: fixed-size binary of S * S bytes, row-major."""


def encoded_images(rows: pa.Table, column: str = "image") -> list[memoryview]:
    """The values of a binary column without a copy."""
    return [memoryview(value.as_buffer()) for value in rows[column]]


def cut_images(rows: pa.Table) -> NDArray[np.uint8]:
    """uint8 [n, S * S]: the values of PIXELS_COLUMN, copied once."""
    bytes_each = rows.schema.field(PIXELS_COLUMN).type.byte_width
    chunks = [
        # One value as a scalar would be a copy already.
        np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, bytes_each)[chunk.offset :][: len(chunk)]
        for chunk in rows[PIXELS_COLUMN].chunks
    ]
    return np.concatenate(chunks)
