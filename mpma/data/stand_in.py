"""A batch of random content in a run's shapes, for measuring what a step costs where no pairs are at hand.

Decisions: every report fills all tokens with words of one or two pieces, and loses exactly the asked share
of its words, so that a step on this batch does the most work that a real batch of these sizes can ask for.
"""

from __future__ import annotations

from typing import Final

import torch

from mpma.data.batches import Batch, padded_rows
from mpma.data.masking import visible_patches
from mpma.model.config import ImageConfig, ReportConfig

_MASK_ID: Final = 4
_FIRST_WORD_ID: Final = 5
"""Ids as `mpma.data.tokenizer` gives them: special tokens first."""


def stand_in_batch(
    pairs: int,
    image: ImageConfig,
    report: ReportConfig,
    *,
    vocabulary_size: int,
    target_scale: int,
    image_mask_ratio: float,
) -> Batch:
    """The batch: pixels of noise [pairs,1,S,S] with S = image.size * target_scale, T = report.max_tokens.

    A pure function of its arguments. `vocabulary_size` is at least 6.
    """
    draw = torch.Generator().manual_seed(0)
    length, patches, side = report.max_tokens, image.patches, target_scale * image.size
    place = torch.arange(length).expand(pairs, -1)
    body = (place > 0) & (place < length - 1)
    word_index = torch.where(body, (place - 1) * 3 // 4, -1)
    words = int(word_index.max()) + 1
    order = torch.rand(pairs, words, generator=draw).argsort(dim=1)
    hidden_words = order < round(words * report.mask_ratio)
    hidden = hidden_words.gather(1, word_index.clamp_min(0)) & body
    ids = torch.randint(_FIRST_WORD_ID, vocabulary_size, (pairs, length), generator=draw)
    rows = hidden.flatten().nonzero().squeeze(1)
    masked_rows, masked_targets = padded_rows(rows, ids.flatten()[rows], pairs, length)
    return Batch(
        pixels=torch.randint(0, 256, (pairs, 1, side, side), dtype=torch.uint8, generator=draw),
        patch_order=torch.rand(pairs, patches, generator=draw).argsort(dim=1),
        visible=visible_patches(patches, image_mask_ratio),
        token_ids=ids,
        attention=torch.ones(pairs, length, dtype=torch.bool),
        word_index=word_index,
        masked_token_ids=torch.where(hidden, _MASK_ID, ids),
        masked_rows=masked_rows,
        masked_targets=masked_targets,
        masked_count=len(rows),
        report_hash=torch.arange(pairs),
        study_hash=torch.arange(pairs),
        position=torch.arange(pairs),
        epoch=torch.zeros(pairs, dtype=torch.int64),
    )
