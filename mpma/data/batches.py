"""The batch: what the model is given, and how it is made from rows.

Decisions: every random choice (crop, hidden patches, hidden words) is already made here, so a step
needs no generator and no boolean selection, which would wait for the device. Masked report tokens
come as flat row numbers padded to one of few capacities, and the token axis to one of four lengths,
so that compiled code sees few shapes. Counts that the host needs are Python integers. Two reports count
as the same when the texts that the model reads are the same once normalised.

Shape letters: B pairs, S pixels of the crop's side, P patches, T tokens, C capacity of masked rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpma.data.counter_hash import counter_hash
from mpma.data.decoding import Cropper
from mpma.data.masking import hidden_pieces, patch_order, visible_patches
from mpma.data.report_tokens import Reports, encode_reports, texts_of
from mpma.data.rows import PIXELS_COLUMN, cut_images, encoded_images
from mpma.data.tokenizer import ReportTokenizer
from mpma.model.config import ImageConfig, ReportConfig

IGNORED_TARGET: Final = -100
"""Target of a padding row of `masked_rows`; cross-entropy's own default for "leave out"."""

_LENGTH_STEPS: Final = 4
_CAPACITY_STEPS: Final = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """B image-report pairs with their crops and masks drawn."""

    pixels: Tensor
    """uint8 [B,1,S,S]: the crop, S = image.size * target_scale."""
    patch_order: Tensor
    """int64 [B,P]: a permutation of the patches per pair; the first `visible` are seen by the encoder."""
    visible: int
    """V, patches that stay visible: round(P * (1 - ratio))."""
    token_ids: Tensor
    """int64 [B,T]: the whole report."""
    attention: Tensor
    """bool [B,T]: True on tokens, False on padding."""
    word_index: Tensor
    """int64 [B,T]: number of the word a piece belongs to, -1 on special tokens and padding."""
    masked_token_ids: Tensor
    """int64 [B,T]: `token_ids` with every piece of the hidden words replaced by the mask token."""
    masked_rows: Tensor
    """int64 [C]: ascending flat indices into B*T of the hidden pieces; padding rows point at 0."""
    masked_targets: Tensor
    """int64 [C]: token ids at `masked_rows`; -100 on padding rows."""
    masked_count: int
    """Rows of `masked_rows` that are real; they stand first."""
    report_hash: Tensor
    """int64 [B]: equal for pairs whose normalised reports are equal."""
    study_hash: Tensor
    """int64 [B]: equal for pairs of one study."""
    position: Tensor
    """int64 [B]: place in the endless sample order (step * batch size + place in the global batch); with
    the seed and the epoch it names every random choice. In validation: the pair's row."""
    epoch: Tensor
    """int64 [B]: pass over the data that this occurrence of the pair belongs to."""

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`; asynchronous from pinned memory with `non_blocking`."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) for name, value in self._tensors()
        }
        return replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (needs a GPU)."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in self._tensors()}
        return replace(self, **pinned)

    def slice(self, start: int, stop: int) -> Batch:
        """Pairs [start, stop) with `masked_rows` counted from the slice's first token.

        Meant for host tensors (micro-batches are cut before they move to the device): how many
        masked rows fall into the slice is read on the host.
        """
        size, length = self.token_ids.shape
        if not 0 <= start < stop <= size:
            raise ValueError(f"slice [{start}, {stop}) of a batch of {size} pairs")
        rows = self.masked_rows[: self.masked_count]
        bounds = torch.tensor([start * length, stop * length], device=rows.device)
        first, last = torch.searchsorted(rows, bounds).tolist()
        masked_rows, masked_targets = padded_rows(
            rows[first:last] - start * length, self.masked_targets[first:last], stop - start, length
        )
        per_pair: dict[str, Any] = {
            name: value[start:stop]
            for name, value in self._tensors()
            if name not in ("masked_rows", "masked_targets")
        }
        per_pair.update(masked_rows=masked_rows, masked_targets=masked_targets)
        return replace(self, **per_pair, masked_count=last - first)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, value) for name, value in values if isinstance(value, Tensor)]


DIGEST_MODULUS: Final = 2**48
"""Digests of batches are exact in a JSON number, which is a double."""


def pair_digests(batch: Batch) -> Tensor:
    """int64 [B] below `DIGEST_MODULUS`: a hash of where each pair stands in the order and which pair it is.

    Made from what was read, not from the plan; a sum of them names a batch whatever its workers. The pair
    is told by the hashes of its study and of its report, from which neither can be had back.
    """
    parts = (each.numpy() for each in (batch.position, batch.study_hash, batch.report_hash))
    digests = counter_hash(0, "batch digest", *(part.astype(np.uint64) for part in parts))
    return torch.from_numpy((np.asarray(digests) % np.uint64(DIGEST_MODULUS)).astype(np.int64))


def concatenate(batches: Sequence[Batch]) -> Batch:
    """The pairs of `batches` one after another; all must have the same T, S, P and V.

    Raises ValueError where they differ.
    """
    first = batches[0]
    shapes = {(batch.pixels.shape[1:], batch.patch_order.shape[1], batch.visible) for batch in batches}
    lengths = {batch.token_ids.shape[1] for batch in batches}
    if len(shapes) != 1 or len(lengths) != 1:
        raise ValueError(f"batches of different shapes: pixels and patches {shapes}, tokens {lengths}")
    length, offset = lengths.pop(), 0
    rows, targets = [], []
    for batch in batches:
        rows.append(batch.masked_rows[: batch.masked_count] + offset * length)
        targets.append(batch.masked_targets[: batch.masked_count])
        offset += len(batch)
    masked_rows, masked_targets = padded_rows(torch.cat(rows), torch.cat(targets), offset, length)
    names = [name for name, _ in first._tensors() if name not in ("masked_rows", "masked_targets")]
    joined: dict[str, Any] = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
    joined.update(masked_rows=masked_rows, masked_targets=masked_targets)
    return replace(first, **joined, masked_count=sum(batch.masked_count for batch in batches))


def masked_capacity(count: int, pairs: int, length: int) -> int:
    """C for `count` masked rows among pairs * length tokens: a multiple of a sixteenth of them, never 0."""
    unit = -(-pairs * length // _CAPACITY_STEPS)
    return max(1, -(-count // unit)) * unit


def padded_rows(rows: Tensor, targets: Tensor, pairs: int, length: int) -> tuple[Tensor, Tensor]:
    """int64 [count] rows and targets -> both int64 [C], padded with row 0 and target -100."""
    padding = masked_capacity(rows.shape[0], pairs, length) - rows.shape[0]
    return (
        torch.cat([rows, rows.new_zeros(padding)]),
        torch.cat([targets, targets.new_full((padding,), IGNORED_TARGET)]),
    )


class Collator:
    """Makes batches from rows: decodes, crops, tokenises, and draws what is hidden.

    Every draw is a function of (seed, epoch, position) alone. `target_scale` is the crop's side over
    image.size. Picklable; its threads start with the first batch and end with `close`.
    """

    def __init__(
        self,
        tokenizer: ReportTokenizer,
        image: ImageConfig,
        report: ReportConfig,
        seed: int,
        target_scale: int,
        decode_threads: int = 2,
    ) -> None:
        self.tokenizer = tokenizer
        self.patches = image.patches
        self.max_tokens = report.max_tokens
        self.mask_draw = report.mask_draw
        self.seed = seed
        self.decode_threads = decode_threads
        self.cropper = Cropper(
            size=image.size * target_scale,
            scale_min=image.crop_scale_min,
            scale_max=image.crop_scale_max,
            aspect_max=image.crop_aspect_max,
            flip=image.horizontal_flip,
            seed=seed,
        )

    def collate(
        self,
        rows: pa.Table,
        epoch: NDArray[np.int64],
        position: NDArray[np.int64],
        *,
        image_mask_ratio: float,
        report_mask_ratio: float,
        augment: bool,
    ) -> Batch:
        """The batch of `rows`, which have the columns COLLATED_COLUMNS, and their int64 [B] counters.

        PIXELS_COLUMN may stand in for the image.

        `augment` False takes the centre view instead of a random crop. A ratio of 0 hides nothing.
        Raises UserError where an image cannot be decoded.
        """
        return self.begin(
            rows,
            epoch,
            position,
            image_mask_ratio=image_mask_ratio,
            report_mask_ratio=report_mask_ratio,
            augment=augment,
            threads=self.decode_threads if self.decode_threads > 1 else 0,
        )()

    def begin(
        self,
        rows: pa.Table,
        epoch: NDArray[np.int64],
        position: NDArray[np.int64],
        *,
        image_mask_ratio: float,
        report_mask_ratio: float,
        augment: bool,
        threads: int,
    ) -> Callable[[], Batch]:
        """As `collate`, with the images given to `threads` threads at once; the function returned waits
        for them. Whoever begins the next batch before it asks for this one leaves no thread idle.

        `threads` 0: the function returned decodes.
        """
        return self.put_together(
            self._pixels(rows, epoch, position, augment, threads),
            lambda: encode_reports(texts_of(rows), self.tokenizer, self.max_tokens),
            epoch,
            position,
            image_mask_ratio=image_mask_ratio,
            report_mask_ratio=report_mask_ratio,
        )

    def begin_crops(
        self,
        images: Sequence[bytes | memoryview],
        epoch: NDArray[np.int64],
        position: NDArray[np.int64],
        *,
        augment: bool,
        threads: int,
    ) -> Callable[[], Tensor]:
        """Give encoded images to `threads` threads; the function returned waits for uint8 [B,1,S,S]."""
        executor = self._executor if threads else None
        return self.cropper.begin(
            images, epoch, position, augment=augment, executor=executor, threads=threads
        )

    def put_together(
        self,
        pixels: Callable[[], Tensor],
        reports: Callable[[], Reports],
        epoch: NDArray[np.int64],
        position: NDArray[np.int64],
        *,
        image_mask_ratio: float,
        report_mask_ratio: float,
    ) -> Callable[[], Batch]:
        """What makes the batch of pairs whose crops and reports are given by functions; crops come last."""
        epoch, position = np.asarray(epoch, np.int64), np.asarray(position, np.int64)

        def finish() -> Batch:
            tokens, report_hash, study_hash = reports()
            length = self._bucket(tokens.ids.shape[1])
            token_ids = _widened(tokens.ids, length, self.tokenizer.pad_id)
            word_index = _widened(tokens.word_index, length, -1)
            hidden = hidden_pieces(word_index, report_mask_ratio, self.seed, epoch, position, self.mask_draw)
            masked = torch.from_numpy(np.flatnonzero(hidden))
            masked_rows, masked_targets = padded_rows(
                masked, torch.from_numpy(token_ids.reshape(-1))[masked], len(position), length
            )
            return Batch(
                patch_order=torch.from_numpy(patch_order(self.seed, epoch, position, self.patches)),
                visible=visible_patches(self.patches, image_mask_ratio),
                token_ids=torch.from_numpy(token_ids),
                attention=torch.from_numpy(_widened(tokens.attention, length, False)),
                word_index=torch.from_numpy(word_index),
                masked_token_ids=torch.from_numpy(np.where(hidden, self.tokenizer.mask_id, token_ids)),
                masked_rows=masked_rows,
                masked_targets=masked_targets,
                masked_count=len(masked),
                report_hash=torch.from_numpy(report_hash),
                study_hash=torch.from_numpy(study_hash),
                position=torch.from_numpy(position.copy()),
                epoch=torch.from_numpy(epoch.copy()),
                pixels=pixels(),
            )

        return finish

    def close(self) -> None:
        """End the decoding threads."""
        if "_executor" in self.__dict__:
            self.__dict__.pop("_executor").shutdown(wait=False, cancel_futures=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_executor"}

    @cached_property
    def _executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.decode_threads, thread_name_prefix="decode")

    def _pixels(
        self,
        rows: pa.Table,
        epoch: NDArray[np.int64],
        position: NDArray[np.int64],
        augment: bool,
        threads: int,
    ) -> Callable[[], Tensor]:
        if PIXELS_COLUMN in rows.column_names:
            side = self.cropper.size
            return lambda: torch.from_numpy(cut_images(rows).reshape(-1, 1, side, side))
        return self.begin_crops(encoded_images(rows), epoch, position, augment=augment, threads=threads)

    def _bucket(self, length: int) -> int:
        """T: the smallest quarter of max_tokens that holds `length` tokens."""
        steps = range(1, _LENGTH_STEPS + 1)
        return next(t for t in (-(-self.max_tokens * step // _LENGTH_STEPS) for step in steps) if t >= length)


def _widened(values: NDArray[Any], length: int, filler: int | bool) -> NDArray[Any]:
    """[B, t] -> [B, length], filled on the right."""
    wide = np.full((values.shape[0], length), filler, values.dtype)
    wide[:, : values.shape[1]] = values
    return wide
