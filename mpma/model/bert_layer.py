"""One layer of BERT with the weights of the library's module and fewer, larger operations.

Decisions: query, key and value come from one matrix product instead of three, each too narrow to fill a
GPU; what a layer hands on is in autocast's dtype (see recompute.py). The weights stay where transformers
puts them, so checkpoints and exports know nothing of it. A layer whose class was changed (FSDP2 does that,
to gather weights when the module is called) is called as it is.

Shape letters: B reports, T tokens, E width, H heads.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertLayer

from mpma.model.attention import self_attention
from mpma.model.recompute import in_autocast_dtype


def bert_layer(layer: nn.Module, states_BTE: Tensor, mask_B11T: Tensor) -> Tensor:
    """Post-norm self-attention and feed-forward (Devlin et al. 2019), without dropout: [B,T,E] -> [B,T,E].

    `mask_B11T`: bool, True where tokens are real.
    """
    if type(layer) is not BertLayer:
        return cast(Tensor, layer(states_BTE, mask_B11T))
    attention, feed_forward, output = (
        cast(Any, layer.attention),
        cast(Any, layer.intermediate),
        cast(Any, layer.output),
    )
    read = _self_attention(attention.self, states_BTE, mask_B11T)
    states = attention.output.dense(read) + states_BTE
    states = in_autocast_dtype(attention.output.LayerNorm(states))
    return in_autocast_dtype(output.LayerNorm(output.dense(feed_forward(states)) + states))


def _self_attention(attention: Any, states_BTE: Tensor, mask_B11T: Tensor) -> Tensor:
    batch, length, _ = states_BTE.shape
    parts: tuple[nn.Linear, ...] = (attention.query, attention.key, attention.value)
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([part.bias for part in parts])
    projected = functional.linear(states_BTE, weight, bias)
    packed = projected.view(batch, length, 3, attention.num_attention_heads, -1)
    return self_attention(packed, mask_B11T[:, 0, 0])
