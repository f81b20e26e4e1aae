"""Report branch: BERT, its vocabulary head on masked positions, and words from word pieces.

Decisions:
- transformers' BERT with sdpa attention, dropout 0; its embeddings and layers are called directly with
  a ready mask, because the model's own mask building looks at the mask's values and would wait for
  the device;
- the vocabulary head is BERT's own (dense, GELU, norm, tied embeddings, bias) on masked rows only
  (see vocabulary_loss.py);
- word pieces are averaged to words by a product with a 0/1 matrix of static shape: slot w of a report
  is its word w, and T slots always suffice.

Shape letters: B reports, T tokens, W word slots (= T), E width, C masked rows, K vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.bert.modeling_bert import BertModel, BertPredictionHeadTransform

from mpma.data.batches import IGNORED_TARGET
from mpma.model.bert_layer import bert_layer
from mpma.model.config import ReportConfig
from mpma.model.pretrained import load_bert
from mpma.model.recompute import run_blocks
from mpma.model.vocabulary_loss import vocabulary_loss


class ReportEncoder(nn.Module):
    """Token ids to contextual tokens."""

    def __init__(self, report: ReportConfig, *, vocabulary_size: int, pad_id: int) -> None:
        super().__init__()
        masked_language_model = _bert(report, vocabulary_size, pad_id)
        self.bert = cast(BertModel, masked_language_model.bert)
        self.head = VocabularyHead(masked_language_model)
        self.gradient_checkpointing = False

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [B,T] -> [B,T,E], positions added."""
        embedded: Tensor = self.bert.embeddings(input_ids=token_ids)
        return embedded

    def encode(self, embedded: Tensor, attention: Tensor) -> Tensor:
        """[B,T,E] and bool [B,T] (True on tokens) -> contextual tokens [B,T,E]."""
        mask = attention[:, None, None, :]
        layers = self.bert.encoder.layer
        return run_blocks(layers, embedded, mask, recompute=self.gradient_checkpointing, how=bert_layer)

    def negative_log_likelihood(
        self, states_BTE: Tensor, rows_C: Tensor, targets_C: Tensor, *, reduction: str = "sum"
    ) -> Tensor:
        """Cross-entropy of the rows, in fp32; padding rows (target -100) count nothing.

        `reduction` "sum" gives a scalar, "none" the value per row [C].
        """
        states_CE = states_BTE.flatten(0, 1).index_select(0, rows_C)
        return self.head.negative_log_likelihood(
            states_CE, targets_C, self.bert.embeddings.word_embeddings.weight, reduction
        )


class VocabularyHead(nn.Module):
    """BERT's prediction head; its output matrix, the embedding matrix, is passed in and never held twice."""

    def __init__(self, source: BertForMaskedLM) -> None:
        super().__init__()
        self.transform = cast(BertPredictionHeadTransform, source.cls.predictions.transform)
        self.bias = nn.Parameter(source.cls.predictions.bias.detach().clone())

    def negative_log_likelihood(
        self, states_CE: Tensor, targets_C: Tensor, embedding_KE: Tensor, reduction: str
    ) -> Tensor:
        """[C,E] -> fp32 scalar ("sum") or [C] ("none")."""
        states_CE = self.transform(states_CE)
        return vocabulary_loss(states_CE, targets_C, embedding_KE, self.bias, reduction)


def averaged_words(states_BTE: Tensor, word_index_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each word's pieces: [B,T,E] -> ([B,W,E], bool [B,W]: slots that hold a word), W = T.

    Special tokens and padding (index -1) belong to no word; empty slots are zero.
    """
    slots = torch.arange(word_index_BT.shape[1], device=word_index_BT.device)
    belongs = word_index_BT[:, None, :] == slots[None, :, None]
    pieces = belongs.sum(dim=-1, keepdim=True)
    shares = belongs.to(states_BTE.dtype) / pieces.clamp_min(1).to(states_BTE.dtype)
    return shares @ states_BTE, pieces.squeeze(-1) > 0


def masked_words_per_report(word_index_BT: Tensor, rows_C: Tensor, targets_C: Tensor) -> Tensor:
    """int64 [B]: how many words have at least one masked piece among `rows_C`."""
    reports, length = word_index_BT.shape
    word_C = word_index_BT.flatten().index_select(0, rows_C)
    real_C = (targets_C != IGNORED_TARGET) & (word_C >= 0)
    slot_C = rows_C.div(length, rounding_mode="floor") * length + word_C.clamp_min(0)
    hits = torch.zeros(reports * length, dtype=torch.int64, device=rows_C.device)
    hits.scatter_add_(0, slot_C, real_C.long())
    return (hits.view(reports, length) > 0).sum(dim=1)


def _bert(report: ReportConfig, vocabulary_size: int, pad_id: int) -> BertForMaskedLM:
    if report.pretrained is not None:
        return load_bert(report, vocabulary_size=vocabulary_size)
    config = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=report.width,
        num_hidden_layers=report.layers,
        num_attention_heads=report.heads,
        intermediate_size=report.width * report.feed_forward_factor,
        max_position_embeddings=report.max_tokens,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=pad_id,
    )
    config._attn_implementation = "sdpa"
    return BertForMaskedLM(config)
