"""Memory-augmented cross-modal fusion: the image helps the masked report.

Decisions: pre-norm blocks (self-attention over the report, cross-attention from report to image,
feed-forward) with a final norm; the cross-attention sees the visible patch tokens and, in front of
them, their mean (the pooled image). The shared memory is read once by both modalities before the
blocks, patch tokens and report tokens in one call. `mean_add` [code: MRM] adds the mean patch token,
memory included, to every word embedding before BERT instead, and has no blocks.

Two stages, because `mean_add` acts before BERT and cross-attention after it: `prepare` takes the
image, `forward` the report.

Shape letters: B pairs, V patches, T tokens, D image width, E text width, H heads, M slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import Attention, LayerNorm, Mlp
from torch import Tensor, nn
from torch.nn import functional

from mpma.errors import UserError
from mpma.model.attention import SelfAttention, attention, cross_attention
from mpma.model.config import FusionConfig, MemoryConfig, ReportConfig
from mpma.model.memory import KeyValueSlots, ProjectedMemory, SharedMemory, usage_diagnostics
from mpma.model.recompute import in_autocast_dtype


@dataclass
class PreparedImage:
    """The image as the fusion takes it."""

    patches: Tensor
    """[B,V,E]."""
    memory: ProjectedMemory | None
    """The shared memory, projected for this step."""
    shift: Tensor | None
    """[B,1,E] to be added to the word embeddings (`mean_add`), else None."""


class CrossModalFusion(nn.Module):
    """Both kinds of fusion behind one pair of calls."""

    def __init__(
        self, report: ReportConfig, memory: MemoryConfig, fusion: FusionConfig, *, image_width: int
    ) -> None:
        super().__init__()
        _check_sizes(report, memory, fusion)
        self.kind = fusion.kind
        width = report.width
        self.project_image = nn.Linear(image_width, width)
        self.memory: SharedMemory | None = None
        if memory.kind == "shared":
            self.memory = SharedMemory(
                width=width,
                slots=memory.resolved_slots,
                top_k=memory.top_k,
                heads=memory.heads,
                dropout=memory.dropout,
            )
        self.blocks = nn.ModuleList()
        self.norm: nn.Module = nn.Identity()
        if fusion.kind == "cross_attention":
            slots = memory.resolved_slots if memory.kind == "key_value" else 0
            self.blocks.extend(
                FusionBlock(
                    width=width,
                    heads=fusion.heads,
                    feed_forward_factor=report.feed_forward_factor,
                    memory_slots=slots,
                    memory_dropout=memory.dropout,
                )
                for _ in range(fusion.layers)
            )
            self.norm = LayerNorm(width)
        self.apply(_initialise)

    def prepare(self, patches_BVD: Tensor) -> PreparedImage:
        """Encoder's patch tokens -> what the fusion needs of the image."""
        patches = self.project_image(patches_BVD)
        memory = self.memory.project() if self.memory is not None else None
        shift = None
        if self.kind == "mean_add":
            if self.memory is not None and memory is not None:
                patches = self.memory(patches, memory)
            shift = patches.mean(dim=1, keepdim=True)
        return PreparedImage(patches=patches, memory=memory, shift=shift)

    def forward(self, image: PreparedImage, report_BTE: Tensor, attention_BT: Tensor) -> Tensor:
        """Contextual tokens of the masked report -> fused tokens [B,T,E]."""
        if self.kind == "mean_add":
            if self.memory is not None and image.memory is not None:
                return self.memory(report_BTE, image.memory)
            return report_BTE
        patches, tokens = image.patches, in_autocast_dtype(report_BTE)
        if self.memory is not None and image.memory is not None:
            count = patches.shape[1]
            both = self.memory(torch.cat([patches, tokens.to(patches.dtype)], dim=1), image.memory)
            patches, tokens = both[:, :count], both[:, count:]
        context = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        mask = attention_BT[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, context, mask)
        fused: Tensor = self.norm(tokens)
        return fused

    @torch.no_grad()
    def diagnostics(
        self, image: PreparedImage, report_BTE: Tensor, attention_BT: Tensor
    ) -> dict[str, Tensor]:
        """How the shared memory is used by report tokens; empty for the other kinds."""
        if self.memory is None or image.memory is None:
            return {}
        return usage_diagnostics(self.memory.usage(report_BTE.detach(), attention_BT, image.memory))


class FusionBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each on a normalised input, each added."""

    def __init__(
        self, *, width: int, heads: int, feed_forward_factor: int, memory_slots: int, memory_dropout: float
    ) -> None:
        super().__init__()
        self.self_norm = LayerNorm(width)
        self.self_attention = SelfAttention(Attention(width, num_heads=heads, qkv_bias=True))
        self.cross_norm = LayerNorm(width)
        self.context_norm = LayerNorm(width)
        self.cross_attention = CrossAttention(
            width=width, heads=heads, memory_slots=memory_slots, memory_dropout=memory_dropout
        )
        self.feed_forward_norm = LayerNorm(width)
        self.feed_forward = Mlp(width, width * feed_forward_factor)

    def forward(self, tokens_BTE: Tensor, context_BCE: Tensor, mask_B11T: Tensor) -> Tensor:
        """Report tokens, image context, and where report tokens are real (bool) -> tokens [B,T,E]."""
        tokens = tokens_BTE + self.self_attention(self.self_norm(tokens_BTE), attn_mask=mask_B11T)
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), self.context_norm(context_BCE))
        added: Tensor = tokens + self.feed_forward(self.feed_forward_norm(tokens))
        return added


class CrossAttention(nn.Module):
    """Queries from the report; keys and values from the image, and from learned slots where asked."""

    def __init__(self, *, width: int, heads: int, memory_slots: int, memory_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.slots: KeyValueSlots | None = None
        self.dropout = 0.0
        if memory_slots:
            self.slots = KeyValueSlots(width=width, slots=memory_slots, heads=heads)
            self.dropout = memory_dropout

    def forward(self, tokens_BTE: Tensor, context_BCE: Tensor) -> Tensor:
        """[B,T,E] and [B,C,E] -> [B,T,E]."""
        if self.slots is not None:
            return self.read(tokens_BTE, *self.keys_values(context_BCE))
        queries = self.query(tokens_BTE).unflatten(-1, (self.heads, -1))
        both = self.key_value(context_BCE).unflatten(-1, (2, self.heads, -1))
        projected: Tensor = self.output(cross_attention(queries, both))
        return projected

    def keys_values(self, context_BCE: Tensor) -> tuple[Tensor, Tensor]:
        """[B,C,E] -> keys and values, each [B,H,C,F]; learned slots stand behind the context."""
        batch, length, _ = context_BCE.shape
        both = self.key_value(context_BCE).view(batch, length, 2, self.heads, -1)
        keys, values = both.permute(2, 0, 3, 1, 4).unbind(0)
        if self.slots is not None:
            slot_keys, slot_values = self.slots(batch)
            keys = torch.cat([keys, slot_keys.to(keys.dtype)], dim=2)
            values = torch.cat([values, slot_values.to(values.dtype)], dim=2)
        return keys, values

    def read(self, tokens_BTE: Tensor, keys_BHCF: Tensor, values_BHCF: Tensor) -> Tensor:
        """What tokens [B,T,E] read of keys and values -> [B,T,E]."""
        batch, length, width = tokens_BTE.shape
        queries = self.query(tokens_BTE).view(batch, length, self.heads, -1).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        if dropout:
            read = functional.scaled_dot_product_attention(queries, keys_BHCF, values_BHCF, dropout_p=dropout)
        else:
            read = attention(queries, keys_BHCF, values_BHCF)
        projected: Tensor = self.output(read.transpose(1, 2).reshape(batch, length, width))
        return projected


def _initialise(module: nn.Module) -> None:
    # As BERT: the fusion continues where BERT ends.
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_sizes(report: ReportConfig, memory: MemoryConfig, fusion: FusionConfig) -> None:
    if report.width % fusion.heads:
        raise UserError(f"fusion.heads {fusion.heads} does not divide report.width {report.width}")
    if memory.kind == "shared" and report.width % memory.heads:
        raise UserError(f"memory.heads {memory.heads} does not divide report.width {report.width}")
    if memory.kind == "key_value" and fusion.kind == "mean_add":
        raise UserError(
            "memory.kind key_value lives in the cross-attention, which fusion.kind mean_add does not have",
            "set fusion.kind to cross_attention, or memory.kind to shared or none",
        )
