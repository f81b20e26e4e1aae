"""What the marker says of any file of a dataset."""

from __future__ import annotations

from mpma.strict import StrictConfig


class FileInfo(StrictConfig):
    """One file of the dataset."""

    path: str
    """Name relative to the dataset directory, `train/00000.parquet`."""
    bytes: int
    """Length of the file."""
    sha256: str
    """Hex hash of the file."""
