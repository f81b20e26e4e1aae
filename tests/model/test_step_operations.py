"""A step's counted operations against hand arithmetic, and what a weight of 0 or short reports save."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_samples import LENGTH, PATCH, PATCHES, VOCABULARY, small_batch, small_config, small_model
from torch.utils.flop_counter import FlopCounterMode

from mpma.data.batches import Batch
from mpma.model.pretraining import PretrainingModel

PAIRS, VISIBLE = 8, 4


def _counted(model: PretrainingModel, batch: Batch, *, backward: bool) -> int:
    model.watch_memory = False
    with FlopCounterMode(display=False) as counter:
        losses = model(batch)
        if backward:
            losses.total.backward()
    return int(counter.get_total_flops())


def _products(rows: int, *layers: tuple[int, int]) -> int:
    return sum(2 * rows * inner * outer for inner, outer in layers)


def _attention(batch: int, queries: int, keys: int, width: int) -> int:
    # Scores and the values that they weigh: heads share the width.
    return 2 * (2 * batch * queries * keys * width)


def _block(batch: int, length: int, width: int, factor: int = 4) -> int:
    linear = _products(
        batch * length, (width, 3 * width), (width, width), (width, factor * width), (factor * width, width)
    )
    return linear + _attention(batch, length, length, width)


def _by_hand(masked_rows: int, words: int) -> tuple[int, int]:
    """(matrix products of the forward pass, those whose first factor needs no gradient)."""
    c = small_config()
    image, decoder, text, align = c.image.width, c.image.decoder_width, c.report.width, c.alignment.width
    assert image is not None
    assert c.image.layers is not None
    memory, heads = c.memory, c.memory.heads
    embedding = _products(PAIRS * VISIBLE, (PATCH**2, image))
    encoder = c.image.layers * _block(PAIRS, VISIBLE + 1, image)
    decode = _products(PAIRS * (VISIBLE + 1), (image, decoder))
    decode += c.image.decoder_layers * _block(PAIRS, PATCHES + 1, decoder)
    decode += _products(PAIRS * (PATCHES - VISIBLE), (decoder, PATCH**2))
    # Both halves of the reports go through BERT at once.
    reports = c.report.layers * _block(2 * PAIRS, LENGTH, text)
    queries = PAIRS * (VISIBLE + LENGTH)
    read = _products(PAIRS * VISIBLE, (image, text)) + 2 * _products(memory.resolved_slots, (text, text))
    read += 2 * _products(queries, (text, text))
    read += 2 * heads * _products(queries, (text // heads, memory.resolved_slots))
    context = VISIBLE + 1
    fuse = c.fusion.layers * (
        _block(PAIRS, LENGTH, text)
        + _products(PAIRS * LENGTH, (text, text), (text, text))
        + _products(PAIRS * context, (text, 2 * text))
        + _attention(PAIRS, LENGTH, context, text)
    )
    vocabulary = _products(masked_rows, (text, text), (text, VOCABULARY))
    project = _products(PAIRS, (image, image), (image, align), (text, text), (text, align))
    project += _products(PAIRS * VISIBLE, (image, image), (image, align))
    project += _products(PAIRS * words, (text, text), (text, align))
    averages = 2 * PAIRS * words * LENGTH * text
    contrast = 2 * PAIRS * PAIRS * align
    group = c.alignment.group_size
    local = PAIRS // group * 2 * (group * VISIBLE) * (group * words) * align
    gram = PAIRS * 2 * VISIBLE * VISIBLE * align
    read_gram = PAIRS // group * 2 * group * VISIBLE * VISIBLE * group * words
    whole = embedding + encoder + decode + reports + read + fuse + vocabulary + project
    whole += averages + contrast + local + gram + read_gram
    # Pixels and the shares of word pieces are given: no gradient flows to them.
    return whole, embedding + averages


def test_the_count_of_a_step_is_that_of_hand_arithmetic() -> None:
    batch = small_batch(PAIRS, visible=VISIBLE)
    forward, one_sided = _by_hand(batch.masked_rows.shape[0], LENGTH)
    assert _counted(small_model(), batch, backward=False) == forward
    # Each product has one twin for either factor in the backward pass.
    assert _counted(small_model(), batch, backward=True) == 3 * forward - one_sided


@pytest.mark.parametrize(
    ("weight", "saved"),
    [("image_reconstruction", "decoder"), ("report_reconstruction", "fusion"), ("local_alignment", "local")],
)
def test_a_weight_of_zero_saves_its_branchs_operations(weight: str, saved: str) -> None:
    batch = small_batch(PAIRS, visible=VISIBLE)
    whole = _counted(small_model(), batch, backward=True)
    without = _counted(small_model(loss_weights={weight: 0.0}), batch, backward=True)
    c = small_config()
    decoder = c.image.decoder_width
    least = {
        "decoder": 3 * _block(PAIRS, PATCHES + 1, decoder),
        # One half of the reports, and the fusion behind it.
        "fusion": 3 * (_block(PAIRS, LENGTH, c.report.width) + _block(PAIRS, LENGTH, c.report.width)),
        "local": 3 * _products(PAIRS * LENGTH, (c.report.width, c.report.width)),
    }[saved]
    assert whole - without >= least


def test_padding_beyond_the_longest_report_of_a_batch_is_not_computed() -> None:
    batch = small_batch(PAIRS, visible=VISIBLE)
    short = LENGTH // 2
    rows = torch.arange(1, 4)
    half = replace(
        batch,
        token_ids=batch.token_ids[:, :short],
        attention=batch.attention[:, :short],
        word_index=batch.word_index[:, :short],
        masked_token_ids=batch.masked_token_ids[:, :short],
        masked_rows=rows,
        masked_targets=batch.token_ids[0, 1:4],
        masked_count=3,
    )
    saved = _counted(small_model(), batch, backward=True) - _counted(small_model(), half, backward=True)
    text = small_config().report.width
    assert saved > 3 * (_block(2 * PAIRS, LENGTH, text) - _block(2 * PAIRS, short, text))
