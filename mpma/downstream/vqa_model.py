"""What answers a question of an image: the fused representation of both, and a small head on it.

Decisions:
- The representation is that of `PretrainingModel.embed_pairs`, question in place of report: mean of the
  question's fused word tokens and mean patch token. Only how it is computed differs: an image is encoded, and
  reads the memory, once for all its questions, and a text once for all images that share it, since images are
  the cost and questions repeat. (With `fusion.kind` mean_add the text encoder sees the image: no sharing.)
- The head [after M3AE]: linear, norm, GELU, linear; on inputs standardised by what the model as it came says
  of training questions, so that features that differ little in size can still be told apart.

Shape letters: B images, Q questions, U distinct question texts, T tokens, P patches, D image width, E text
width, F = E + D, C answers.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from mpma.model.fusion import PreparedImage
from mpma.model.pretraining import PretrainingModel

Part = TypeVar("Part", bound=nn.Module)

_SMALLEST_DEVIATION = 1e-4
"""Features that differ less are constant; the fp16 in which they may be kept resolves no more."""


class QuestionReader(nn.Module):
    """The parts of a pre-trained model that read an image and a question together."""

    def __init__(self, model: PretrainingModel, *, own_copy: bool) -> None:
        """`own_copy`: parts are copied, so that training them leaves the model as it is."""
        super().__init__()
        self.pixels = _part(model.pixels, own_copy)
        self.image_encoder = _part(model.image_encoder, own_copy)
        self.report_encoder = _part(model.report_encoder, own_copy)
        self.fusion = _part(model.fusion, own_copy)
        if own_copy:
            # Pre-training without a loss for a part leaves it frozen; here every part that is used learns.
            self.requires_grad_(True)
            self.report_encoder.head.requires_grad_(False)
        self.width: int = model.image_encoder.width + model.report.width

    def images(self, pixels: Tensor) -> Tensor:
        """uint8 [B,1,S,S] -> patch tokens [B,P,D]."""
        tokens: Tensor = self.image_encoder(self.pixels.encoder_view(self.pixels(pixels))).patches
        return tokens

    def forward(
        self,
        patches_BPD: Tensor,
        image_Q: Tensor,
        ids_UT: Tensor,
        attention_UT: Tensor,
        word_index_UT: Tensor,
        text_Q: Tensor,
    ) -> Tensor:
        """Fused representation [Q,F]; `image_Q` and `text_Q` int64 [Q] say which image and which text."""
        fusion, prepared = self.fusion, self.fusion.prepare(patches_BPD)
        real_QT = word_index_UT[text_Q] >= 0
        embedded = self.report_encoder.embed(ids_UT)
        if fusion.kind == "mean_add":
            own = PreparedImage(prepared.patches[image_Q], prepared.memory, None)
            assert prepared.shift is not None
            embedded = embedded[text_Q] + prepared.shift[image_Q]
            encoded = self.report_encoder.encode(embedded, attention_UT[text_Q])
            fused = fusion(own, encoded, attention_UT[text_Q])
        else:
            encoded, patches = self.report_encoder.encode(embedded, attention_UT), prepared.patches
            if fusion.memory is not None and prepared.memory is not None:
                encoded = fusion.memory(encoded, prepared.memory)
                patches = fusion.memory(patches, prepared.memory)
            context = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)[image_Q]
            fused = encoded[text_Q]
            mask = attention_UT[text_Q][:, None, None, :]
            for block in fusion.blocks:
                fused = block(fused, context, mask)
            fused = fusion.norm(fused)
        real = real_QT.to(fused.dtype).unsqueeze(-1)
        words = (fused * real).sum(dim=1) / real.sum(dim=1).clamp_min(1.0)
        return torch.cat([words, patches_BPD.mean(dim=1)[image_Q]], dim=1)


def _part(module: Part, own_copy: bool) -> Part:
    return copy.deepcopy(module) if own_copy else module


class AnswerHead(nn.Module):
    """Fused representation -> scores of the answers."""

    def __init__(self, mean_F: Tensor, deviation_F: Tensor, width: int, answers: int) -> None:
        """`mean_F` and `deviation_F`: of the representations of training questions."""
        super().__init__()
        self.register_buffer("mean", mean_F)
        self.register_buffer("scale", 1.0 / deviation_F.clamp_min(_SMALLEST_DEVIATION))
        self.layers = nn.Sequential(
            nn.Linear(len(mean_F), width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, answers)
        )

    mean: Tensor
    scale: Tensor

    def forward(self, fused_QF: Tensor) -> Tensor:
        """[Q,F] -> logits [Q,C], fp32."""
        logits: Tensor = self.layers((fused_QF.float() - self.mean) * self.scale)
        return logits.float()
