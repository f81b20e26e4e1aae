"""The columns that a batch is made from. Torch-free, so that a read task starts fast."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

COLLATED_COLUMNS: Final = ("image", "report", "findings", "impression", "study_id")
"""Columns that are read for a batch."""

PIXELS_COLUMN: Final = "pixels"
"""Stands in for `image` where the crops were already made: fixed-size binary of S * S bytes, row-major."""


def encoded_images(rows: pa.Table, column: str = "image") -> list[memoryview]:
    """The values of a binary column without a copy."""
    return [memoryview(value.as_buffer()) for value in rows[column]]
