"""The synthetic pairs on which ways of reading are compared, and what all of them share.

Decisions: grey JPEG of 256 x 256 pixels and about 25 kB, reports of 30 words on average, so that decoding
is most of the work, as it is on radiographs. Every way gives the encoded pairs to the same `Collator`
(decode, crop, tokenise, masks), and counts positions for its draws.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

from mpma.data.batches import Batch, Collator
from mpma.data.dataset_info import ShardInfo
from mpma.data.rows import COLLATED_COLUMNS
from mpma.data.shards import new_shard, read_row_groups, shard_schema
from mpma.data.storage import Storage, open_storage
from mpma.data.tokenizer import ReportTokenizer, train_tokenizer
from mpma.model.config import ImageConfig, ReportConfig

MASKS: Final = (0.75, 0.5)
"""Share of the patches and of the words that is hidden."""

_IMAGE_SIDE: Final = 256
_DISTINCT_IMAGES: Final = 256
_ROWS_PER_SHARD: Final = 1000
_FINDINGS: Final = (
    "the heart is normal in size .",
    "no focal consolidation , pleural effusion or pneumothorax is seen .",
    "there is a small opacity in the left lower lobe , which may be atelectasis .",
    "degenerative changes of the thoracic spine .",
    "the mediastinal contours are unremarkable .",
)


@dataclass
class Split:
    """The part of a dataset that reading needs."""

    storage: Storage
    files: list[ShardInfo]

    def shards(self, split: str) -> list[ShardInfo]:
        """The files, whatever the split is called."""
        return self.files

    def pairs(self) -> Iterator[dict[str, Any]]:
        """The columns that a batch is made from, pair by pair, for the peers' own formats."""
        for shard in self.files:
            for group in range(len(shard.row_group_rows)):
                yield from read_row_groups(self.storage, shard, [group], COLLATED_COLUMNS).to_pylist()


def write_split(folder: str, rows: int, seed: int = 0) -> Split:
    """Shards of `rows` pairs under a folder."""
    generator = np.random.default_rng(seed)
    storage = open_storage(folder)
    storage.make_directory("train")
    images = [_image(generator) for _ in range(min(rows, _DISTINCT_IMAGES))]
    shards = []
    for first in range(0, rows, _ROWS_PER_SHARD):
        with new_shard(storage, f"train/{first // _ROWS_PER_SHARD:05d}.parquet", shard_schema()) as shard:
            for row in range(first, min(rows, first + _ROWS_PER_SHARD)):
                text = " ".join(generator.permutation(_FINDINGS)[: 2 + row % 4])
                ids = dict.fromkeys(("pair_id", "patient_id", "study_id"), f"synthetic-{row}")
                shard.add(
                    ids
                    | {"image": images[row % len(images)], "width": _IMAGE_SIDE, "height": _IMAGE_SIDE}
                    | {"view": "PA", "report": text, "findings": text, "impression": ""}
                    | {"labels": None, "source": "synthetic", "license": ""}
                )
        assert shard.info is not None
        shards.append(shard.info)
    return Split(storage, shards)


def _image(generator: np.random.Generator) -> bytes:
    coarse = Image.fromarray(generator.integers(0, 256, (32, 32)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((_IMAGE_SIDE, _IMAGE_SIDE), Image.Resampling.BICUBIC))
    noisy = smooth + generator.normal(0, 6, smooth.shape)
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_collator(image_size: int, decode_threads: int) -> Collator:
    """The collator of every way; a loader's worker process decodes in one thread."""
    tokenizer = ReportTokenizer.load(train_tokenizer(enumerate(list(_FINDINGS) * 4), 400))
    return Collator(tokenizer, ImageConfig(size=image_size), ReportConfig(), 0, 1, decode_threads)


class CollatePairs:
    """Makes a batch of encoded pairs in a loader's worker process; counts the positions itself. Picklable."""

    def __init__(self, collator: Collator) -> None:
        self._collator, self._position = collator, 0

    def of_rows(self, rows: pa.Table) -> Batch:
        """Of a table with COLLATED_COLUMNS."""
        torch.set_num_threads(1)
        positions: NDArray[np.int64] = np.arange(self._position, self._position + len(rows))
        self._position += len(rows)
        return self._collator.collate(
            rows,
            np.zeros_like(positions),
            positions,
            image_mask_ratio=MASKS[0],
            report_mask_ratio=MASKS[1],
            augment=True,
        )

    def __call__(self, pairs: list[dict[str, Any]]) -> Batch:
        columns = {name: [pair[name] for pair in pairs] for name in COLLATED_COLUMNS}
        return self.of_rows(pa.table(columns))
