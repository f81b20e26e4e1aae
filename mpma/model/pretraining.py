"""MPMA whole: one trunk pass over images and reports, four losses, and what validation asks for.

Decisions:
- BERT is called once per step on the concatenation of the half that is aligned and the half that is
  fused; a half whose losses are switched off is left out. The image reaches the fused half only;
- a weight of 0 (or a mask ratio of 0) skips that branch's work, and its parameters are frozen at
  construction so that data parallelism does not wait for their gradients;
- a step in which a trained branch has no work (the full image of the last steps has nothing hidden)
  gives its parameters a zero gradient, the same for any number of workers;
- total = sum of weight * raw term; raw terms are this worker's, and their mean over workers is the
  term of the global batch;
- nothing here reads a tensor's value on the host.

The forward pass takes a `Replay` to run one micro-batch of a cached contrast: see
mpma/training/feature_cache.py.

Shape letters: B pairs, P patches, V visible, S crop side, T tokens, D image width, E text width,
A alignment width, C capacity of masked rows, X pixels of a target patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mpma.data.batches import IGNORED_TARGET, Batch
from mpma.errors import UserError
from mpma.model import image as images
from mpma.model.alignment import (
    AlignmentFeatures,
    Projection,
    Temperature,
    global_alignment_loss,
    within_pair_loss,
    words_to_patches_loss,
)
from mpma.model.config import (
    AlignmentConfig,
    FusionConfig,
    ImageConfig,
    LossWeights,
    MemoryConfig,
    ReportConfig,
)
from mpma.model.fusion import CrossModalFusion, PreparedImage
from mpma.model.gather import rank_and_world, sum_over_workers
from mpma.model.image import GreyPixels, ImageDecoder, ImageEncoder, ImageTokens
from mpma.model.masking import removal_mask, restore_order, take_patches
from mpma.model.outputs import TERMS, ImageEmbedding, Losses, Reconstruction, Replay
from mpma.model.pretrained import load_image_encoder
from mpma.model.report import ReportEncoder, averaged_words, masked_words_per_report
from mpma.model.widening import widened


@dataclass
class _Trunk:
    """One pass over a batch: what each branch goes on from, None where nobody needs it."""

    target: Tensor | None = None
    masked_image: ImageTokens | None = None
    aligned_image: ImageTokens | None = None
    aligned_text: Tensor | None = None
    fused_text: Tensor | None = None
    prepared: PreparedImage | None = None


class ModelSettings(Protocol):
    """The parts of the experiment's configuration that the model is built from."""

    @property
    def image(self) -> ImageConfig: ...
    @property
    def report(self) -> ReportConfig: ...
    @property
    def memory(self) -> MemoryConfig: ...
    @property
    def fusion(self) -> FusionConfig: ...
    @property
    def alignment(self) -> AlignmentConfig: ...
    @property
    def loss_weights(self) -> LossWeights: ...


def build_model(
    config: ModelSettings,
    *,
    vocabulary_size: int,
    pad_id: int,
    grey_mean: float,
    grey_std: float,
    target_scale: int,
    seed: int = 0,
) -> PretrainingModel:
    """The model with its initial weights, a pure function of the arguments (and of pretrained files).

    `target_scale` is the resolved one (1 or 2). The caller's random state is left as it was.
    Raises UserError for sizes that do not fit each other and for unusable pretrained weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PretrainingModel(
            config.image,
            config.report,
            config.memory,
            config.fusion,
            config.alignment,
            config.loss_weights,
            vocabulary_size=vocabulary_size,
            pad_id=pad_id,
            grey_mean=grey_mean,
            grey_std=grey_std,
            target_scale=target_scale,
        )


class PretrainingModel(nn.Module):
    """Encoders, decoder, fusion and alignment, composed."""

    def __init__(
        self,
        image: ImageConfig,
        report: ReportConfig,
        memory: MemoryConfig,
        fusion: FusionConfig,
        alignment: AlignmentConfig,
        loss_weights: LossWeights,
        *,
        vocabulary_size: int,
        pad_id: int,
        grey_mean: float,
        grey_std: float,
        target_scale: int,
    ) -> None:
        super().__init__()
        if target_scale not in (1, 2):
            raise ValueError(f"target scale {target_scale} is neither 1 nor 2")
        if not grey_std > 0:
            raise UserError(
                f"the dataset's grey deviation is {grey_std}", "ingest images that differ from each other"
            )
        self.image, self.report, self.alignment = image, report, alignment
        self.weights = {name: float(getattr(loss_weights, name)) for name in TERMS}
        self.wants_image = self.weights["image_reconstruction"] > 0 and image.mask_ratio > 0
        self.wants_report = self.weights["report_reconstruction"] > 0 and report.mask_ratio > 0
        self.wants_global = self.weights["global_alignment"] > 0
        self.wants_local = self.weights["local_alignment"] > 0 and alignment.local != "none"
        self.wants_alignment = self.wants_global or self.wants_local
        if not (self.wants_image or self.wants_report or self.wants_alignment):
            raise UserError("loss_weights leave nothing to learn", "give at least one loss a weight above 0")
        self.separate_halves = alignment.text_view == "unmasked" or fusion.kind == "mean_add"
        self.target_side = image.patch_size * target_scale
        self.watch_memory = True
        """Whether `diagnostics` include the memory's usage: a few small products per step."""

        self.pixels = GreyPixels(image, grey_mean=grey_mean, grey_std=grey_std, target_scale=target_scale)
        self.image_encoder = ImageEncoder(image)
        self.image_decoder = ImageDecoder(
            image, encoder_width=self.image_encoder.width, target_side=self.target_side
        )
        self.report_encoder = ReportEncoder(report, vocabulary_size=vocabulary_size, pad_id=pad_id)
        self.fusion = CrossModalFusion(report, memory, fusion, image_width=self.image_encoder.width)
        self.global_image = Projection(self.image_encoder.width, alignment.width)
        self.global_report = Projection(report.width, alignment.width)
        self.temperature = Temperature(alignment.temperature)
        self.local_image = Projection(self.image_encoder.width, alignment.width)
        self.local_report = Projection(report.width, alignment.width)
        load_image_encoder(self.image_encoder, self.pixels, image)
        self.freeze_what_no_loss_reaches()

    # --- training -----------------------------------------------------------------------------

    def forward(
        self, batch: Batch, masked_tokens_global: Tensor | None = None, replay: Replay | None = None
    ) -> Losses:
        """All wanted losses of a batch in one trunk pass.

        `masked_tokens_global`: scalar, hidden tokens of the global batch (see `masked_token_total`);
        None: computed here, over the workers. With `replay` the alignment terms are replaced by the
        cached gradients' surrogate and stay None, and the reconstruction terms are this micro-batch's
        contribution to the whole batch's.
        """
        trunk = self._trunk(batch, reconstruction=True, alignment=True)
        losses = self._reconstructions(
            trunk, batch, masked_tokens_global, 1.0 if replay is None else replay.share
        )
        if self.wants_alignment:
            features = self._features(trunk, batch)
            if replay is None:
                aligned = self.alignment_losses(features)
                losses.global_alignment = aligned.global_alignment
                losses.local_alignment = aligned.local_alignment
                losses.total = losses.total + aligned.total
                losses.diagnostics |= aligned.diagnostics
            else:
                losses.total = losses.total + self._surrogate(features, replay)
        return losses

    def align_features(self, batch: Batch) -> AlignmentFeatures:
        """The features of the alignment losses alone: no reconstruction is computed."""
        return self._features(self._trunk(batch, reconstruction=False, alignment=True), batch)

    def alignment_losses(self, features: AlignmentFeatures) -> Losses:
        """Global and local alignment of this worker's pairs with the other workers' (a collective call)."""
        losses = Losses(total=features.report_hash.new_zeros((), dtype=torch.float32))
        if self.wants_global:
            assert features.image is not None
            assert features.report is not None
            temperature = self.temperature()
            losses.global_alignment = global_alignment_loss(
                features.image, features.report, features.report_hash, features.study_hash, temperature
            )
            losses.diagnostics["alignment/temperature"] = temperature.detach()
        if self.wants_local:
            if self.alignment.local == "words_to_patches":
                losses.local_alignment = words_to_patches_loss(features, self.alignment.group_size)
            else:
                losses.local_alignment = within_pair_loss(features, self.alignment.within_pair_temperature)
        for name, term in losses.terms().items():
            losses.total = losses.total + self.weights[name] * term
        return losses

    def reconstruction_losses(self, batch: Batch, masked_tokens_global: Tensor | None = None) -> Losses:
        """Image and report reconstruction alone: no alignment is computed."""
        trunk = self._trunk(batch, reconstruction=True, alignment=False)
        return self._reconstructions(trunk, batch, masked_tokens_global, 1.0)

    # --- validation, pictures, downstream -----------------------------------------------------

    def embed_images(self, pixels: Tensor) -> ImageEmbedding:
        """uint8 [B,1,S,S] -> embeddings of the full images."""
        tokens = self.image_encoder(self.pixels.encoder_view(self.pixels(pixels)))
        return ImageEmbedding(
            tokens=tokens.patches,
            class_token=tokens.class_token,
            mean=tokens.patches.mean(dim=1),
            aligned=self.global_image(self._pooled(tokens)),
        )

    def embed_reports(self, token_ids: Tensor, attention: Tensor) -> Tensor:
        """int64 [B,T] and bool [B,T] -> fp32 [B,A], unit norm."""
        encoded = self.report_encoder.encode(self.report_encoder.embed(token_ids), attention)
        aligned: Tensor = self.global_report(encoded[:, 0])
        return aligned

    def embed_pairs(self, pixels: Tensor, token_ids: Tensor, attention: Tensor, word_index: Tensor) -> Tensor:
        """Multi-modal representation [B,E+D]: mean of the fused word tokens, mean patch token."""
        return self.fuse_pairs(self.embed_images(pixels), token_ids, attention, word_index)

    def fuse_pairs(
        self, image: ImageEmbedding, token_ids: Tensor, attention: Tensor, word_index: Tensor
    ) -> Tensor:
        """`embed_pairs` of images that were embedded already."""
        fused = self._fused(self.fusion.prepare(image.tokens), token_ids, attention)
        real = (word_index >= 0).to(fused.dtype).unsqueeze(-1)
        words = (fused * real).sum(dim=1) / real.sum(dim=1).clamp_min(1.0)
        return torch.cat([words, image.mean], dim=1)

    def report_nll(self, image_tokens: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Patch tokens [B,P,D] (own or another pair's) -> (summed negative log-likelihood of the hidden
        tokens per pair, fp32 [B], in nats; hidden words per pair, int64 [B])."""
        prepared = self.fusion.prepare(image_tokens)
        fused = self._fused(prepared, batch.masked_token_ids, batch.attention)
        nll_C = self.report_encoder.negative_log_likelihood(
            fused, batch.masked_rows, batch.masked_targets, reduction="none"
        )
        pair_C = batch.masked_rows.div(batch.token_ids.shape[1], rounding_mode="floor")
        nll = nll_C.new_zeros(len(batch)).index_add_(0, pair_C, nll_C)
        return nll, masked_words_per_report(batch.word_index, batch.masked_rows, batch.masked_targets)

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """The batch's masks applied and undone, for pictures."""
        normalised = self.pixels(batch.pixels)
        target = images.patchify(normalised, self.target_side)
        visible, hidden_order = batch.visible, batch.patch_order[:, batch.visible :]
        mask = removal_mask(batch.patch_order, visible).unsqueeze(-1)
        order_BV = None if visible == self.image.patches else batch.patch_order[:, :visible]
        tokens = self.image_encoder(self.pixels.encoder_view(normalised), order_BV)
        predicted = restored = torch.zeros_like(target)
        if order_BV is not None:
            hidden = widened(self.image_decoder(tokens, batch.patch_order))
            pixels = hidden
            if self.image.target_normalisation == "patch":
                variance, mean = torch.var_mean(take_patches(target, hidden_order), dim=-1, keepdim=True)
                pixels = hidden * torch.sqrt(variance + self.pixels.one_grey_level_squared) + mean
            seen = hidden.new_zeros(len(batch), visible, hidden.shape[-1])
            predicted = restore_order(torch.cat([seen, hidden], dim=1), batch.patch_order)
            restored = restore_order(torch.cat([seen, pixels], dim=1), batch.patch_order)
        return Reconstruction(
            patches=predicted,
            mask=mask.squeeze(-1),
            original=self._grey(target),
            masked=self._grey(target * (1 - mask)),
            reconstructed=self._grey(target * (1 - mask) + restored * mask),
        )

    # --- settings and parameters --------------------------------------------------------------

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations of encoder, decoder and text layers in backward: less memory, more time."""
        self.image_encoder.gradient_checkpointing = enabled
        self.image_decoder.gradient_checkpointing = enabled
        self.report_encoder.gradient_checkpointing = enabled

    def no_weight_decay_names(self) -> set[str]:
        """Names of the parameters without weight decay: norms, biases, positions, special tokens, memory,
        temperature. Frozen parameters are named too."""
        special = ("cls_token", "mask_token", "position_embeddings.weight", "token_type_embeddings.weight")
        memory = ("memory.slots", "slots.keys", "slots.values")
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim <= 1 or name.endswith(special) or name.endswith(memory)
        }

    # --- inside -------------------------------------------------------------------------------

    def _trunk(self, batch: Batch, *, reconstruction: bool, alignment: bool) -> _Trunk:
        trunk = _Trunk()
        alignment = alignment and self.wants_alignment
        report = reconstruction and self.wants_report
        masked = batch.visible < self.image.patches
        image = reconstruction and self.wants_image and masked
        full_view = alignment and masked and self.alignment.image_view == "full"

        normalised = self.pixels(batch.pixels)
        view = self.pixels.encoder_view(normalised)
        if image or report or (alignment and not full_view):
            # With nothing hidden the order does not matter, and none is cheaper.
            order_BV = batch.patch_order[:, : batch.visible] if masked else None
            trunk.masked_image = self.image_encoder(view, order_BV)
        if alignment:
            trunk.aligned_image = self.image_encoder(view) if full_view else trunk.masked_image
        if image:
            trunk.target = self._hidden_target(normalised, batch)
        if report:
            assert trunk.masked_image is not None
            trunk.prepared = self.fusion.prepare(trunk.masked_image.patches)
        self._read_text(trunk, batch, alignment=alignment, report=report)
        return trunk

    def _read_text(self, trunk: _Trunk, batch: Batch, *, alignment: bool, report: bool) -> None:
        """One BERT call for the half that is aligned and the half that is fused."""
        encoder = self.report_encoder
        aligned_ids = batch.token_ids if self.alignment.text_view == "unmasked" else batch.masked_token_ids
        shift = trunk.prepared.shift if trunk.prepared is not None else None
        if alignment and report and self.separate_halves:
            embedded = encoder.embed(torch.cat([aligned_ids, batch.masked_token_ids]))
            if shift is not None:
                upper, lower = embedded.chunk(2)
                embedded = torch.cat([upper, lower + shift])
            attention = torch.cat([batch.attention, batch.attention])
            trunk.aligned_text, trunk.fused_text = encoder.encode(embedded, attention).chunk(2)
        elif alignment:
            trunk.aligned_text = encoder.encode(encoder.embed(aligned_ids), batch.attention)
            # Without the image in BERT, the masked half serves both.
            trunk.fused_text = trunk.aligned_text if report else None
        elif report:
            embedded = encoder.embed(batch.masked_token_ids)
            trunk.fused_text = encoder.encode(
                embedded if shift is None else embedded + shift, batch.attention
            )

    def _fused(self, prepared: PreparedImage, token_ids: Tensor, attention: Tensor) -> Tensor:
        embedded = self.report_encoder.embed(token_ids)
        if prepared.shift is not None:
            embedded = embedded + prepared.shift
        encoded = self.report_encoder.encode(embedded, attention)
        fused: Tensor = self.fusion(prepared, encoded, attention)
        return fused

    def _reconstructions(
        self, trunk: _Trunk, batch: Batch, masked_tokens_global: Tensor | None, share: float
    ) -> Losses:
        losses = Losses(total=batch.report_hash.new_zeros((), dtype=torch.float32))
        if trunk.target is not None:
            assert trunk.masked_image is not None
            predicted = self.image_decoder(trunk.masked_image, batch.patch_order)
            loss = images.reconstruction_loss(predicted, trunk.target)
            losses.image_reconstruction = loss if share == 1.0 else loss * share
        elif self.wants_image and torch.is_grad_enabled():
            losses.total = losses.total + _zero_through(self.image_decoder)
        if trunk.fused_text is not None:
            assert trunk.prepared is not None
            fused = self.fusion(trunk.prepared, trunk.fused_text, batch.attention)
            nll = self.report_encoder.negative_log_likelihood(fused, batch.masked_rows, batch.masked_targets)
            if masked_tokens_global is None:
                masked_tokens_global = masked_token_total(batch)
            _, world = rank_and_world()
            losses.report_reconstruction = nll * (world / masked_tokens_global.clamp_min(1))
            if self.watch_memory:
                losses.diagnostics |= self.fusion.diagnostics(
                    trunk.prepared, trunk.fused_text, batch.attention
                )
        for name, term in losses.terms().items():
            losses.total = losses.total + self.weights[name] * term
        return losses

    def _hidden_target(self, normalised: Tensor, batch: Batch) -> Tensor:
        """float32 [B,1,S,S] -> target of the hidden patches, fp32 [B,P-V,X], in the batch's order."""
        target = take_patches(
            images.patchify(normalised, self.target_side), batch.patch_order[:, batch.visible :]
        )
        if self.image.target_normalisation == "patch":
            return images.standardised_patches(target, self.pixels.one_grey_level_squared)
        return target

    def _features(self, trunk: _Trunk, batch: Batch) -> AlignmentFeatures:
        features = AlignmentFeatures(None, None, None, None, None, None, batch.report_hash, batch.study_hash)
        image, text = trunk.aligned_image, trunk.aligned_text
        assert image is not None
        assert text is not None
        if self.wants_global:
            features.image = self.global_image(self._pooled(image))
            features.report = self.global_report(text[:, 0])
        if self.wants_local:
            features.patches = self.local_image(image.patches)
            if self.alignment.local == "words_to_patches":
                words, features.word_mask = averaged_words(text, batch.word_index)
                features.words = self.local_report(words)
            else:
                ids = batch.token_ids if self.alignment.text_view == "unmasked" else batch.masked_token_ids
                features.words, features.word_ids = self.local_report(text), ids
                features.word_mask = batch.word_index >= 0
        return features

    def _surrogate(self, features: AlignmentFeatures, replay: Replay) -> Tensor:
        """A scalar whose gradient is that of the cached alignment losses on this micro-batch."""
        total = features.report_hash.new_zeros((), dtype=torch.float32)
        for name, value in features.differentiable().items():
            total = total + (value * replay.gradients[name]).sum()
        if replay.temperature_gradient is not None and self.wants_global:
            total = total + (self.temperature.logarithm * replay.temperature_gradient).sum()
        return total

    def _pooled(self, tokens: ImageTokens) -> Tensor:
        return tokens.class_token if self.alignment.image_pooling == "class" else tokens.patches.mean(dim=1)

    def _grey(self, patches_BPX: Tensor) -> Tensor:
        grey = images.unpatchify(patches_BPX) * self.pixels.grey_std + self.pixels.grey_mean
        return grey.clamp(0.0, 1.0)

    def freeze_what_no_loss_reaches(self) -> None:
        """Leave parameters out of training that no weighted loss depends on."""
        unused: list[nn.Module] = []
        if not self.wants_image:
            unused.append(self.image_decoder)
        if not self.wants_report:
            unused += [self.fusion, self.report_encoder.head]
        if not self.wants_global:
            unused += [self.global_image, self.global_report, self.temperature]
        if not self.wants_local:
            unused += [self.local_image, self.local_report]
        if not (self.wants_report or self.wants_alignment):
            unused.append(self.report_encoder)
        for module in unused:
            module.requires_grad_(False)


def masked_token_total(batch: Batch) -> Tensor:
    """int64 scalar: hidden report tokens of the global batch (a collective call with several workers)."""
    return sum_over_workers((batch.masked_targets != IGNORED_TARGET).sum())


def _zero_through(module: nn.Module) -> Tensor:
    """0, with a zero gradient for every trained parameter of `module`."""
    firsts = [parameter.flatten()[0] for parameter in module.parameters() if parameter.requires_grad]
    return 0.0 * torch.stack(firsts).sum()
