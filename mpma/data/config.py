"""Settings of the data: where the pairs are, how they are read. Torch-free, so that it loads fast."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mpma.strict import StrictConfig


class PhantomConfig(StrictConfig):
    """The synthetic pairs that are generated where no dataset is named."""

    train_pairs: int = Field(default=8192, ge=64, le=10_000_000)
    """Pairs of the training split."""
    val_pairs: int = Field(default=640, ge=64, le=1_000_000)
    """Pairs of the validation split; one pair per synthetic patient, so this is also its patients."""
    test_pairs: int = Field(default=512, ge=0, le=1_000_000)
    """Pairs of the test split."""
    size: int = Field(default=128, ge=64, le=1024)
    """Height and width of the generated radiographs, in pixels."""
    seed: int = Field(default=0, ge=0)
    """Seed from which every pair is a pure function."""
    kind: Literal["chest", "codes_in_cells", "one_sided_attributes"] = "chest"
    """`chest`: radiographs with reports; the others are planted sets, whose best settings are known
    beforehand (docs/method.md)."""
    cells: int = Field(default=16, ge=2, le=64)
    """Cells, and codes, of `codes_in_cells`."""
    copies: int = Field(default=3, ge=1, le=64)
    """How often a report of `codes_in_cells` says its code."""
    cues: int = Field(default=1, ge=1, le=64)
    """How often a report of `codes_in_cells` names its cell."""


class DataConfig(StrictConfig):
    """Where the pairs are and how they are streamed."""

    path: str | None = None
    """Dataset directory (a local path or a URI that pyarrow can open). None: phantom pairs are generated."""
    phantom: PhantomConfig = PhantomConfig()
    """The synthetic pairs used when `data.path` is None."""
    lanes: int | None = Field(default=None, ge=1, le=4096)
    """Canonical lanes of the sample order; divides the global batch. None: gcd(64, training.batch_size)."""
    window_row_groups: int = Field(default=2, ge=1, le=64)
    """Row groups of a lane that are shuffled together; memory grows with lanes * window."""
    decode: Literal["auto", "collate", "read"] = "auto"
    """Where images are decoded: in the training process's threads (`collate`) or in Ray Data's read
    tasks (`read`). `auto`: collate on CPU; beside a GPU a trial of a tenth of a second
    decides. The run says which, and why."""
    decode_threads: int = Field(default=2, ge=1, le=128)
    """Threads that decode in the training process where decode is `collate`."""
    prefetch_batches: int = Field(default=2, ge=1, le=64)
    """Batches prepared ahead of the step."""
    cache_bytes: int = Field(default=256_000_000, ge=0, le=2**50)
    """A worker whose share of the training split, encoded, is at most this large keeps it in memory after
    the first epoch, and reads and tokenises no more (decode `collate` only). 0: never."""
