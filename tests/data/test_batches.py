from __future__ import annotations

import io
import itertools
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from batch_equality import assert_same_batch
from PIL import Image

from mpma.data.batches import Batch, Collator, concatenate
from mpma.data.masking import hidden_pieces, patch_order, visible_patches
from mpma.data.rows import encoded_images
from mpma.data.tokenizer import ReportTokenizer, train_tokenizer
from mpma.model.config import ImageConfig, ReportConfig

IMAGE = ImageConfig(size=32, patch_size=8)
REPORT = ReportConfig(max_tokens=48)
WORDS = [
    "no",
    "focal",
    "consolidation",
    "pleural",
    "effusion",
    "or",
    "pneumothorax",
    "is",
    "seen",
    "heart",
    "size",
    "normal",
]
TEXTS = [" ".join(WORDS[i % 5 :][: 3 + i % 7] * (1 + i % 4)) for i in range(24)]


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    return ReportTokenizer.load(train_tokenizer(enumerate(TEXTS * 2), 60))


@pytest.fixture(scope="module")
def collator(tokenizer: ReportTokenizer) -> Collator:
    return Collator(tokenizer, IMAGE, REPORT, seed=9, target_scale=2, decode_threads=2)


def rows(texts: list[str] = TEXTS, studies: list[str] | None = None) -> pa.Table:
    images = []
    for index in range(len(texts)):
        pixels = np.random.default_rng(index).integers(0, 255, (70, 80)).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        images.append(out.getvalue())
    return pa.table(
        {
            "image": pa.array(images, pa.binary()),
            "report": texts,
            "findings": texts,
            "impression": [""] * len(texts),
            "study_id": studies or [f"s{index}" for index in range(len(texts))],
        }
    )


def collated(collator: Collator, table: pa.Table | None = None, start: int = 0, **changes: object) -> Batch:
    table = rows() if table is None else table
    settings = {"image_mask_ratio": 0.75, "report_mask_ratio": 0.5, "augment": True} | changes
    position = np.arange(start, start + len(table))
    return collator.collate(table, np.zeros(len(table), np.int64), position, **settings)  # type: ignore[arg-type]


def test_every_field_has_the_shape_and_type_that_it_promises(collator: Collator) -> None:
    batch = collated(collator)
    length = batch.token_ids.shape[1]
    assert length in (12, 24, 36, 48)
    per_token = {"token_ids": torch.int64, "attention": torch.bool, "word_index": torch.int64}
    for name, dtype in (per_token | {"masked_token_ids": torch.int64}).items():
        assert getattr(batch, name).shape == (24, length)
        assert getattr(batch, name).dtype == dtype
    for name in ("report_hash", "study_hash", "position", "epoch"):
        assert getattr(batch, name).shape == (24,)
        assert getattr(batch, name).dtype == torch.int64
    assert batch.pixels.shape == (24, 1, 64, 64)
    assert batch.pixels.dtype == torch.uint8
    assert batch.patch_order.shape == (24, 16)
    assert batch.visible == 4
    assert len(batch) == 24


def test_the_whole_report_is_there_and_padding_is_marked(
    collator: Collator, tokenizer: ReportTokenizer
) -> None:
    batch = collated(collator)
    for text, ids, attention, words in zip(
        TEXTS, batch.token_ids, batch.attention, batch.word_index, strict=True
    ):
        expected = tokenizer.encode([text], 48).ids[0]
        assert ids[attention].tolist() == expected.tolist()
        assert (ids[~attention] == tokenizer.pad_id).all()
        assert (words[~attention] == -1).all()


def test_exactly_the_asked_share_of_whole_words_is_hidden(
    collator: Collator, tokenizer: ReportTokenizer
) -> None:
    for ratio in (0.1, 0.5, 0.8):
        batch = collated(collator, report_mask_ratio=ratio)
        hidden = (batch.masked_token_ids == tokenizer.mask_id) & (batch.token_ids != tokenizer.mask_id)
        for words, lost in zip(batch.word_index, hidden, strict=True):
            count = int(words.max()) + 1
            lost_words = set(words[lost].tolist())
            assert len(lost_words) == max(1, round(ratio * count))
            assert -1 not in lost_words
            assert {int(w) for w in words[~lost]}.isdisjoint(lost_words)  # whole words or nothing
        kept = ~hidden
        assert torch.equal(batch.masked_token_ids[kept], batch.token_ids[kept])


def test_masked_rows_point_at_the_hidden_pieces_and_padding_at_nothing(
    collator: Collator, tokenizer: ReportTokenizer
) -> None:
    batch = collated(collator)
    real = batch.masked_rows[: batch.masked_count]
    expected = torch.nonzero((batch.masked_token_ids == tokenizer.mask_id).flatten())[:, 0]
    assert torch.equal(real, expected)
    assert torch.equal(batch.masked_targets[: batch.masked_count], batch.token_ids.flatten()[real])
    assert (batch.masked_rows[batch.masked_count :] == 0).all()
    assert (batch.masked_targets[batch.masked_count :] == -100).all()


def test_capacities_and_lengths_take_few_values(collator: Collator) -> None:
    shapes = set()
    for start in range(0, 400, 4):
        shuffled = list(np.random.default_rng(start).permutation(TEXTS)[:3])
        batch = collated(collator, rows(shuffled), start, report_mask_ratio=0.1 + 0.8 * (start / 400))
        shapes.add((batch.token_ids.shape[1], batch.masked_rows.shape[0]))
        assert batch.masked_count <= batch.masked_rows.shape[0]
    lengths = {length for length, _ in shapes}
    assert lengths <= {12, 24, 36, 48}
    assert len(lengths) > 1
    for length in lengths:
        capacities = sorted(capacity for other, capacity in shapes if other == length)
        assert all(capacity % -(-3 * length // 16) == 0 for capacity in capacities)
        assert capacities[-1] <= 3 * length + length


def test_ratio_zero_hides_nothing(collator: Collator) -> None:
    batch = collated(collator, image_mask_ratio=0.0, report_mask_ratio=0.0)
    assert batch.visible == 16
    assert batch.masked_count == 0
    assert torch.equal(batch.masked_token_ids, batch.token_ids)
    assert (batch.masked_targets == -100).all()


def test_a_report_without_words_is_carried_along_unmasked(collator: Collator) -> None:
    batch = collated(collator, rows(["", "heart size normal"]))
    assert batch.masked_count >= 1
    assert (batch.masked_rows[: batch.masked_count] >= batch.token_ids.shape[1]).all()


def test_patch_orders_are_uniform_permutations() -> None:
    position = np.arange(6000)
    order = patch_order(1, np.zeros(6000, np.int64), position, 9)
    assert (np.sort(order, axis=1) == np.arange(9)).all()
    counts = np.stack([np.bincount(column, minlength=9) for column in order.T])
    assert np.abs(counts - 6000 / 9).max() < 5 * np.sqrt(6000 / 9)
    assert not np.array_equal(order, patch_order(1, np.ones(6000, np.int64), position, 9))


@pytest.mark.parametrize(("ratio", "visible"), [(0.0, 196), (0.75, 49), (0.9, 20), (0.5, 98)])
def test_visible_patches_are_the_rounded_share(ratio: float, visible: int) -> None:
    assert visible_patches(196, ratio) == visible


def test_every_word_is_hidden_equally_often() -> None:
    words = np.tile(np.array([-1, 0, 1, 1, 2, 3, -1]), (8000, 1))
    hidden = hidden_pieces(words, 0.5, 2, np.zeros(8000, np.int64), np.arange(8000))
    share = hidden.mean(0)
    np.testing.assert_allclose(share, [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0], atol=0.03)
    np.testing.assert_array_equal(hidden[:, 2], hidden[:, 3])


def test_independent_words_are_hidden_each_with_the_ratio_and_nothing_is_forced() -> None:
    words = np.tile(np.array([-1, 0, 1, 1, 2, -1]), (20_000, 1))
    counters = (np.zeros(20_000, np.int64), np.arange(20_000))
    hidden = hidden_pieces(words, 0.3, 2, *counters, draw="independent")
    assert not hidden[:, [0, 5]].any()
    np.testing.assert_array_equal(hidden[:, 2], hidden[:, 3])
    count = hidden[:, [1, 2, 4]].sum(1)
    # Binomial(3, 0.3); an exact draw would hide one word in every report.
    np.testing.assert_allclose(
        np.bincount(count, minlength=4) / 20_000, [0.343, 0.441, 0.189, 0.027], atol=0.015
    )
    more = hidden_pieces(words, 0.6, 2, *counters, draw="independent")
    assert (more | ~hidden).all()
    assert (more.sum() - hidden.sum()) > 0


def test_a_batch_in_which_no_word_is_hidden_has_padding_rows_alone(tokenizer: ReportTokenizer) -> None:
    report = REPORT.model_copy(update={"mask_draw": "independent"})
    drawn = Collator(tokenizer, IMAGE, report, seed=9, target_scale=2, decode_threads=1)
    batch = collated(drawn, rows(["heart size normal"]), 0, report_mask_ratio=0.001)
    assert batch.masked_count == 0
    assert torch.equal(batch.masked_token_ids, batch.token_ids)
    assert (batch.masked_targets == -100).all()
    assert collated(drawn, report_mask_ratio=0.5).masked_count > 0


def test_a_pairs_choices_do_not_depend_on_the_batch_it_is_in(collator: Collator) -> None:
    table, whole = rows(), collated(collator)
    for first, last in ((0, 8), (8, 24)):
        part = collated(collator, table[first:last], first)
        length = part.token_ids.shape[1]
        assert torch.equal(part.pixels, whole.pixels[first:last])
        assert torch.equal(part.patch_order, whole.patch_order[first:last])
        assert torch.equal(part.masked_token_ids, whole.masked_token_ids[first:last, :length])


@pytest.mark.parametrize("sizes", [(24,), (12, 12), (7, 1, 16), (1,) * 24])
def test_slices_recombine_exactly(collator: Collator, sizes: tuple[int, ...]) -> None:
    batch = collated(collator)
    edges = np.cumsum([0, *sizes]).tolist()
    parts = [batch.slice(first, last) for first, last in itertools.pairwise(edges)]
    assert sum(part.masked_count for part in parts) == batch.masked_count
    for part, first in zip(parts, edges, strict=False):
        targets = part.token_ids.flatten()[part.masked_rows[: part.masked_count]]
        assert torch.equal(part.masked_targets[: part.masked_count], targets)
        assert torch.equal(part.position, batch.position[first : first + len(part)])
    assert_same_batch(concatenate(parts), batch)
    assert len({part.masked_rows.shape[0] / len(part) for part in parts}) <= 16


def test_slices_outside_and_unlike_batches_are_refused(collator: Collator) -> None:
    batch = collated(collator)
    for start, stop in ((-1, 3), (3, 3), (20, 25)):
        with pytest.raises(ValueError, match="batch of 24 pairs"):
            batch.slice(start, stop)
    with pytest.raises(ValueError, match="different shapes"):
        concatenate([batch, collated(collator, image_mask_ratio=0.5)])


def test_the_same_reports_and_studies_have_the_same_hash(collator: Collator) -> None:
    texts = ["No effusion.", "no  EFFUSION", "effusion", "No effusion."]
    batch = collated(collator, rows(texts, ["a", "b", "a", "c"]))
    reports, studies = batch.report_hash.tolist(), batch.study_hash.tolist()
    assert reports[0] == reports[1] == reports[3] != reports[2]
    assert studies[0] == studies[2]
    assert len(set(studies)) == 3


def test_the_centre_view_does_not_depend_on_the_position(collator: Collator) -> None:
    one, other = (collated(collator, start=start, augment=False) for start in (0, 500))
    assert torch.equal(one.pixels, other.pixels)
    assert not torch.equal(one.patch_order, other.patch_order)


def test_crops_made_beforehand_are_taken_as_they_are(collator: Collator) -> None:
    table = rows()
    expected = collated(collator, table)
    crops = [crop.numpy().tobytes() for crop in expected.pixels]
    ready = table.drop_columns("image").append_column("pixels", pa.array(crops, pa.binary(64 * 64)))
    assert_same_batch(collated(collator, ready), expected)


def test_a_collator_survives_a_process_border_and_closing(collator: Collator) -> None:
    expected = collated(collator)
    again = pickle.loads(pickle.dumps(collator))
    assert_same_batch(collated(again), expected)
    again.close()
    assert_same_batch(collated(again), expected)


def test_a_chunked_table_gives_the_same_batch_as_a_whole_one(collator: Collator) -> None:
    table = rows()
    chunked = pa.concat_tables([table[:5], table[5:6], table[6:]])
    assert chunked["image"].num_chunks == 3
    assert [bytes(image) for image in encoded_images(chunked)] == table["image"].to_pylist()
    assert_same_batch(collated(collator, chunked), collated(collator, table))


def test_moving_keeps_the_integers_and_moves_the_tensors(collator: Collator) -> None:
    batch = collated(collator).to("meta")
    assert batch.pixels.device.type == batch.masked_targets.device.type == "meta"
    assert (batch.visible, batch.masked_count) == (4, collated(collator).masked_count)
