"""The report branch as a causal decoder: BERT, the fusion and the vocabulary head, one token after another.

Decisions:
- Every pre-trained part that fits is reused, with no new one: embeddings and layers of BERT, the fusion with
  its memory, the vocabulary head with the tied embeddings. Models differ in their weights alone.
- Self-attention, of BERT and of the fusion, becomes causal: a token sees itself and what stands before it.
  Cross-attention to patches and pooled image, and the memory, read token by token and need no mask; for
  `mean_add` the image is the shift of the word embeddings.
- One path computes whole reports (training) and the next token (generation), where keys and values of the
  tokens before are carried on and those of the image are computed once.
- Padding stands on the right, so that under a causal mask no real token sees it.
- The unknown token is never written, nor are the mask, padding and the start: no reader could use them.

Shape letters: B reports · T tokens · S tokens carried on · R live rows of a search · P patches · D image
width · E text width · H heads · F width of a head · C image context · K vocabulary.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertLayer

from mpma.data.batches import IGNORED_TARGET
from mpma.data.tokenizer import ReportTokenizer
from mpma.downstream.beam_search import Step
from mpma.model.fusion import FusionBlock, PreparedImage
from mpma.model.pretraining import PretrainingModel

KeysValues = tuple[Tensor, Tensor]


@dataclass
class SeenImage:
    """Images as the decoder reads them."""

    prepared: PreparedImage
    """Memory and shift; its patches are read through `context` alone."""
    context: list[KeysValues]
    """Keys and values [B,H,C,F] of the image for each fusion block."""

    def of(self, rows: Tensor) -> SeenImage:
        """The images of some rows, int64 [R]."""
        shift = self.prepared.shift
        prepared = PreparedImage(
            patches=self.prepared.patches[:0],
            memory=self.prepared.memory,
            shift=None if shift is None else shift[rows],
        )
        return SeenImage(prepared, [(keys[rows], values[rows]) for keys, values in self.context])


@dataclass
class Carried:
    """Keys and values [B,H,S,F] of the tokens so far, one entry for each self-attention."""

    entries: list[KeysValues] = field(default_factory=list)

    @property
    def length(self) -> int:
        """S."""
        return self.entries[0][0].shape[2] if self.entries else 0

    def of(self, rows: Tensor) -> Carried:
        """Those of some rows, int64 [R]."""
        return Carried([(keys[rows], values[rows]) for keys, values in self.entries])


class ReportDecoder(nn.Module):
    """A copy of a model's report branch and fusion that writes reports; all of it is trained."""

    def __init__(self, model: PretrainingModel) -> None:
        super().__init__()
        self.report_encoder = deepcopy(model.report_encoder)
        self.fusion = deepcopy(model.fusion)
        # Pre-training freezes what its own losses do not reach; these parts are reached here.
        self.requires_grad_(True)

    @property
    def longest(self) -> int:
        """Most tokens of a report, start and end included: BERT's positions."""
        return int(self.report_encoder.bert.embeddings.position_embeddings.num_embeddings)

    def look(self, patches_BPD: Tensor) -> SeenImage:
        """Patch tokens of the image encoder -> what every token of the report may read."""
        prepared = self.fusion.prepare(patches_BPD)
        if self.fusion.kind == "mean_add":
            return SeenImage(prepared, [])
        patches = prepared.patches
        if self.fusion.memory is not None and prepared.memory is not None:
            patches = self.fusion.memory(patches, prepared.memory)
        context = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        return SeenImage(
            prepared,
            [block.cross_attention.keys_values(block.context_norm(context)) for block in self._blocks],
        )

    def states(self, image: SeenImage, token_ids: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        """int64 [B,T] that follow the S carried tokens -> (fused states [B,T,E], all S+T carried)."""
        nothing = [None] * (len(self._layers) + len(self._blocks))
        past = iter(carried.entries or nothing)
        after: list[KeysValues] = []
        states = self.report_encoder.bert.embeddings(
            input_ids=token_ids, past_key_values_length=carried.length
        )
        if image.prepared.shift is not None:
            states = states + image.prepared.shift
        for layer in self._layers:
            states, kept = _causal_bert_layer(layer, states, next(past))
            after.append(kept)
        if self.fusion.memory is not None and image.prepared.memory is not None:
            states = self.fusion.memory(states, image.prepared.memory)
        for block, context in zip(self._blocks, image.context, strict=True):
            states, kept = _causal_fusion_block(block, states, context, next(past))
            after.append(kept)
        return self.fusion.norm(states), Carried(after)

    def logits(self, states: Tensor) -> Tensor:
        """[...,E] -> fp32 [...,K]."""
        head = self.report_encoder.head
        embedding = self.report_encoder.bert.embeddings.word_embeddings.weight
        return functional.linear(head.transform(states), embedding, head.bias).float()

    def loss(self, image: SeenImage, token_ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the next tokens, in nats; ids and targets int64 [B,T], -100 is no target."""
        states, _ = self.states(image, token_ids, Carried())
        known = targets.flatten() != IGNORED_TARGET
        total = self.report_encoder.head.negative_log_likelihood(
            states.flatten(0, 1)[known],
            targets.flatten()[known],
            self.report_encoder.bert.embeddings.word_embeddings.weight,
            "sum",
        )
        return total / known.sum().clamp_min(1)

    def stepper(self, image: SeenImage, tokenizer: ReportTokenizer) -> Step:
        """The decoder as `beam_search` asks for it, for one search over the images' reports."""
        forbidden = [tokenizer.pad_id, tokenizer.class_id, tokenizer.mask_id, tokenizer.unknown_id]
        carried = Carried()
        seen, seen_rows = image, None

        def step(prefix_RT: Tensor, example_R: Tensor, parent_R: Tensor) -> Tensor:
            nonlocal carried, seen, seen_rows
            # Most calls ask for the images of the call before, and gathering keys costs more than a step.
            if seen_rows is None or not torch.equal(seen_rows, example_R):
                seen, seen_rows = image.of(example_R), example_R
            states, carried = self.states(seen, prefix_RT[:, -1:], carried.of(parent_R))
            logits = self.logits(states[:, -1])
            logits[:, forbidden] = -torch.inf
            return logits.log_softmax(dim=-1)

        return step

    @property
    def _layers(self) -> list[BertLayer]:
        return list(self.report_encoder.bert.encoder.layer)

    @property
    def _blocks(self) -> list[FusionBlock]:
        return list(self.fusion.blocks)  # type: ignore[arg-type]


def next_token_targets(ids: Tensor, attention: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets of teacher forcing, int64 [B,T-1] each, from ids int64 [B,T], attention bool [B,T].

    `cut` bool [B]: reports whose rest was cut off. Their end token is an artefact and no target.
    """
    targets = ids[:, 1:].masked_fill(~attention[:, 1:], IGNORED_TARGET)
    last = attention.sum(dim=1) - 2
    rows = cut.nonzero().flatten()
    targets[rows, last[rows]] = IGNORED_TARGET
    return ids[:, :-1], targets


def _causal_bert_layer(
    layer: BertLayer, states: Tensor, past: KeysValues | None
) -> tuple[Tensor, KeysValues]:
    attention = layer.attention.self
    heads = attention.num_attention_heads
    queries, keys, values = (
        _split(project(states), heads) for project in (attention.query, attention.key, attention.value)
    )
    read, kept = _causal_attention(queries, keys, values, past)
    attended = layer.attention.output(read, states)
    return layer.feed_forward_chunk(attended), kept


def _causal_fusion_block(
    block: FusionBlock, states: Tensor, context: KeysValues, past: KeysValues | None
) -> tuple[Tensor, KeysValues]:
    attention: Attention = block.self_attention
    queries, keys, values = (
        _split(part, attention.num_heads) for part in attention.qkv(block.self_norm(states)).chunk(3, dim=-1)
    )
    read, kept = _causal_attention(queries, keys, values, past)
    states = states + attention.proj(read)
    states = states + block.cross_attention.read(block.cross_norm(states), *context)
    return states + block.feed_forward(block.feed_forward_norm(states)), kept


def _causal_attention(
    queries_BHTF: Tensor, keys_BHTF: Tensor, values_BHTF: Tensor, past: KeysValues | None
) -> tuple[Tensor, KeysValues]:
    """[B,T,E], and keys and values with those of the S tokens before. T is 1 wherever S is not 0."""
    tokens = queries_BHTF.shape[2]
    keys, values = keys_BHTF, values_BHTF
    if past is not None:
        assert tokens == 1
        keys = torch.cat([past[0], keys], dim=2)
        values = torch.cat([past[1], values], dim=2)
    read = functional.scaled_dot_product_attention(queries_BHTF, keys, values, is_causal=past is None)
    return read.transpose(1, 2).flatten(2), (keys, values)


def _split(states_BTE: Tensor, heads: int) -> Tensor:
    """[B,T,E] -> [B,H,T,F]."""
    return states_BTE.unflatten(-1, (heads, -1)).transpose(1, 2)
