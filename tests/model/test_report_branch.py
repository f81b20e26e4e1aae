"""The report branch: words from pieces, the vocabulary head on masked rows only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_samples import LENGTH, small_batch, small_model
from torch.nn import functional
from transformers import BertForMaskedLM

from mpma.data.batches import padded_rows
from mpma.model import vocabulary_loss
from mpma.model.report import averaged_words, masked_words_per_report


def test_words_are_the_means_of_their_pieces() -> None:
    batch = small_batch(4)
    states = torch.randn(4, LENGTH, 3)
    words, mask = averaged_words(states, batch.word_index)
    for pair in range(4):
        index = batch.word_index[pair]
        count = int(index.max()) + 1
        assert mask[pair].tolist() == [slot < count for slot in range(LENGTH)]
        for word in range(count):
            torch.testing.assert_close(words[pair, word], states[pair][index == word].mean(0))
    assert torch.equal(words[~mask], torch.zeros_like(words[~mask]))


def test_hidden_words_are_counted_once_whatever_their_pieces() -> None:
    batch = small_batch(5)
    expected = []
    for pair in range(5):
        hidden = batch.masked_token_ids[pair] != batch.token_ids[pair]
        expected.append(len(set(batch.word_index[pair][hidden].tolist())))
    counted = masked_words_per_report(batch.word_index, batch.masked_rows, batch.masked_targets)
    assert counted.tolist() == expected


def test_the_text_half_equals_transformers_bert_padding_included() -> None:
    model, batch = small_model(), small_batch(3)
    bert = model.report_encoder.bert
    with torch.no_grad():
        expected = bert(input_ids=batch.token_ids, attention_mask=batch.attention.long()).last_hidden_state
        ours = model.report_encoder.encode(model.report_encoder.embed(batch.token_ids), batch.attention)
    torch.testing.assert_close(ours[batch.attention], expected[batch.attention])


@pytest.mark.parametrize("chunks", [False, True])
def test_the_loss_on_masked_rows_equals_cross_entropy_over_the_whole_table(
    chunks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunks:
        monkeypatch.setattr(vocabulary_loss, "_LARGEST_LOGITS", 7 * 60)
    model, batch = small_model(), small_batch(4)
    encoder = model.report_encoder
    reference = BertForMaskedLM(encoder.bert.config)
    predictions = reference.cls.predictions
    encoder.head.bias.data.normal_()
    predictions.transform.load_state_dict(encoder.head.transform.state_dict())
    predictions.decoder.weight.data.copy_(encoder.bert.embeddings.word_embeddings.weight)
    predictions.decoder.bias.data.copy_(encoder.head.bias)
    states = torch.randn(4, LENGTH, 24, requires_grad=True)
    hidden = batch.masked_token_ids != batch.token_ids
    labels = torch.where(hidden, batch.token_ids, -100)
    expected = functional.cross_entropy(
        predictions(states).flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100
    )
    ours = encoder.negative_log_likelihood(states, batch.masked_rows, batch.masked_targets)
    torch.testing.assert_close(ours, expected)
    mine, theirs = torch.autograd.grad(ours, states), torch.autograd.grad(expected, states)
    torch.testing.assert_close(mine[0], theirs[0], atol=1e-5, rtol=1e-4)
    per_row = encoder.negative_log_likelihood(
        states, batch.masked_rows, batch.masked_targets, reduction="none"
    )
    torch.testing.assert_close(per_row.sum(), expected)
    assert torch.equal(per_row[batch.masked_count :], torch.zeros_like(per_row[batch.masked_count :]))


def test_the_capacity_of_masked_rows_does_not_change_the_loss() -> None:
    model, batch = small_model(), small_batch(4)
    real = batch.masked_count
    wide_rows, wide_targets = padded_rows(batch.masked_rows[:real], batch.masked_targets[:real], 40, LENGTH)
    assert wide_rows.shape[0] > batch.masked_rows.shape[0]
    wide = replace(batch, masked_rows=wide_rows, masked_targets=wide_targets)
    with torch.no_grad():
        torch.testing.assert_close(model(batch).report_reconstruction, model(wide).report_reconstruction)


def test_the_likelihood_per_pair_adds_up_to_the_loss_of_the_batch() -> None:
    model, batch = small_model(), small_batch(4, visible=16)
    with torch.no_grad():
        nll, words = model.report_nll(model.embed_images(batch.pixels).tokens, batch)
        loss = model(batch).report_reconstruction
    torch.testing.assert_close(nll.sum() / batch.masked_count, loss, atol=1e-5, rtol=1e-5)
    assert nll.shape == words.shape == (4,)
    assert (words >= 1).all()


def test_the_hidden_words_reach_the_fused_half_only_as_masks() -> None:
    model, batch = small_model(), small_batch(3)
    hidden = batch.masked_token_ids != batch.token_ids
    other = replace(batch, token_ids=torch.where(hidden, batch.token_ids % 50 + 6, batch.token_ids))
    with torch.no_grad():
        before, after = model(batch), model(other)
    assert torch.equal(before.report_reconstruction, after.report_reconstruction)
    assert not torch.equal(before.global_alignment, after.global_alignment)
