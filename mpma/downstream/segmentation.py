"""Segmentation: a light decoder on the ViT's patch tokens.

Decisions:
- With `segmentation.freeze_encoder` (the default) the encoder only reads: tokens of centre views are kept in
  fp16 where they fit, and rounded the same where they do not.
- Scores are Dice and intersection over union of each image at a threshold of 0.5, on judged pixels of the
  centre view at the mask's own resolution; the decoder's logits are resized bilinearly to it.
- A mask of another size than its image and one that cannot be read are left out; an all-empty true mask is
  judged: right where nothing is predicted (both scores 1), else 0. All are counted.
- Chance is the mean training mask at the threshold that gives the best mean Dice on training masks: it knows
  where such a structure usually lies and ignores the image.

Shapes: m judged images · P patches · D encoder width · S side of a view.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mpma.downstream import fitting
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Example, Job, Judged, NotPossible, Predictions
from mpma.downstream.features import FeatureStore, autocast, centre_views
from mpma.downstream.kept_features import KeptFeatures
from mpma.downstream.labelled import FitImages, LabelledData, Rows, batches, fit_order
from mpma.downstream.mask_decoder import MaskDecoder, mask_loss
from mpma.downstream.mask_views import Mask, at_side, judged_view, mask_crops
from mpma.downstream.usable_masks import PackedMask, UsableMasks, UsualMask
from mpma.loading import LoadedModel
from mpma.metrics.masks import mask_scores
from mpma.metrics.outcomes import Figure, Outcomes, identity_of, numbered_patients

_STANDARDISED_ON: Final = 512


@dataclass(frozen=True, kw_only=True)
class JudgedMasks(Judged):
    """Rows to fit on, and true masks to judge by."""

    train: Rows
    """[n]: rows with a usable mask."""
    true: Sequence[PackedMask]
    """[m]."""
    judged: Sequence[PackedMask]
    """[m]: pixels that count."""
    usual: Mask
    """bool [128, 128]: the mean training mask at its best threshold."""


@dataclass(frozen=True)
class FittedDecoder:
    """What predicts masks."""

    tokens: Callable[[Tensor], Tensor]
    """uint8 [B,1,S,S] -> patch tokens [B,P,D]."""
    decoder: MaskDecoder


class SegmentationTask:
    """See the module."""

    name = "segmentation"

    def __init__(self, config: EvaluationConfig) -> None:
        self._config = config

    def jobs(self) -> list[Job]:
        """One job a seed."""
        return [Job(self.name, seed=seed) for seed in range(self._config.resolved_fit_seeds)]

    def prepare(self, data: LabelledData) -> JudgedMasks:
        """Raises `NotPossible` where there is no such column, or no usable mask to fit on or to judge by."""
        column, split = self._config.segmentation.mask_column, data.judged_split
        if column not in data.columns:
            raise NotPossible(
                f"segmentation.mask_column: the data have no column {column!r}",
                "ingest a set with masks, or name the column that holds them",
            )
        training, usual = UsableMasks("train"), UsualMask()
        for mask, known in training.read(data, column):
            usual.add(mask, known)
        tested = UsableMasks(split)
        true, judged = [], []
        for mask, known in tested.read(data, column):
            mask, known = judged_view(mask, known)
            true.append(PackedMask.of(mask & known))
            judged.append(PackedMask.of(known))
        for usable in (training, tested):
            if not usable.rows:
                raise NotPossible(
                    f"no pair of the {usable.split} split has a usable mask in column {column!r}"
                    + usable.told()
                )
        problems = {f"training {what}": count for what, count in training.problems.items()}
        problems |= dict(tested.problems)
        rows = np.array(tested.rows, np.int64)
        return JudgedMasks(
            split=split,
            rows=rows,
            patients=data.patients(split, rows),
            problems=problems,
            train=np.array(training.rows, np.int64),
            true=true,
            judged=judged,
            usual=usual.mask(),
        )

    def fit(
        self, model: LoadedModel, features: FeatureStore, prepared: JudgedMasks, job: Job
    ) -> FittedDecoder:
        """Train the decoder, and a copy of the encoder unless it is frozen. Raises `JobError`."""
        settings, budget = self._config.segmentation, self._config.image_cache_bytes // 3
        fit, rows, device = settings.fit, prepared.train, model.device
        frozen = settings.freeze_encoder or fit.encoder_learning_rate_factor == 0
        encoder = _Encoder(model, own_copy=not frozen).to(device).eval()
        images = FitImages(features.data, "train", rows, budget)
        masks = FitImages(features.data, "train", rows, budget, settings.mask_column)
        cropper = model.cropper(job.seed)
        augment = fit.augment

        def order(epoch: int) -> NDArray[np.int64]:
            return fit_order(rows, images.row_groups, job.seed, epoch)

        def pixels(places: NDArray[np.int64], epoch: int, augment: bool) -> Tensor:
            chosen = rows[places]
            counters = np.full(len(chosen), epoch)
            return cropper(images.get(chosen), counters, chosen, augment=augment).to(device)

        def read(places: NDArray[np.int64]) -> Tensor:
            with torch.no_grad(), autocast(model):
                found: Tensor = encoder(pixels(places, 0, augment=False))
            return found

        kept = KeptFeatures(len(rows), read, budget)

        def loss_of(batch: tuple[int, NDArray[np.int64]]) -> Tensor:
            epoch, places = batch
            if not frozen:
                tokens = encoder(pixels(places, epoch, augment))
            elif augment:
                with torch.no_grad():
                    tokens = encoder(pixels(places, epoch, augment))
            else:
                tokens = kept.get(places).to(device)
            counters = np.full(len(places), epoch)
            foreground, judged = mask_crops(
                masks.get(rows[places]), cropper, counters, rows[places], augment=augment
            )
            logits = decoder(tokens, cropper.size)
            return mask_loss(logits, foreground.to(device), judged.to(device))

        sample = order(0)[:_STANDARDISED_ON]
        known = torch.cat(
            [kept.get(sample[i : i + fit.batch_size]) for i in range(0, len(sample), fit.batch_size)]
        ).flatten(0, 1)
        mean, deviation = known.mean(dim=0), known.std(dim=0, unbiased=False)
        made = fitting.seeded(job.seed, lambda: MaskDecoder(mean, deviation, settings.decoder_width))
        assert isinstance(made, MaskDecoder)
        decoder = made
        fitting.fit(
            model,
            decoder,
            None if frozen else encoder,
            fit,
            batches(len(rows), fit.batch_size, fit.steps, order),
            loss_of,
        )
        return FittedDecoder(encoder, decoder)

    @torch.no_grad()
    def predict(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: JudgedMasks,
        job: Job,
        fitted: FittedDecoder,
    ) -> Predictions:
        """`masks`: a `PackedMask` of the true mask's size for each judged image."""
        found: list[PackedMask] = []
        for start in range(0, len(prepared.rows), self._config.batch_size):
            rows = prepared.rows[start : start + self._config.batch_size]
            with autocast(model):
                tokens = fitted.tokens(centre_views(model, features.data, prepared.split, rows))
                logits = fitted.decoder(tokens, model.pixel_side)
            if not bool(torch.isfinite(logits).all()):
                raise NotPossible("the decoder's scores are not finite")
            for own, true in zip(logits.cpu(), prepared.true[start : start + len(rows)], strict=True):
                sized = functional.interpolate(
                    own[None, None], size=(true.side, true.side), mode="bilinear", align_corners=False
                )
                found.append(PackedMask.of((sized[0, 0] >= 0.0).numpy()))
        return {"masks": found}

    def score(self, prepared: JudgedMasks, predictions: Predictions) -> Outcomes:
        """`dice` and `iou`: means over images."""
        scores: dict[str, list[NDArray[np.float64]]] = {"dice": [], "iou": []}
        for predicted, true, judged in zip(predictions["masks"], prepared.true, prepared.judged, strict=True):
            one = mask_scores([predicted.mask()], [true.mask()], [judged.mask()])
            for name, values in scores.items():
                values.append(one[name])
        arrays = {name: np.concatenate(values) for name, values in scores.items()}
        truth = [np.concatenate([mask.bits for mask in part]) for part in (prepared.true, prepared.judged)]
        return Outcomes(
            patient=numbered_patients(prepared.patients),
            arrays=arrays,
            figures={name: Figure("mean", {"value": name}) for name in arrays},
            headline=tuple(arrays),
            identity=identity_of(prepared.patients, prepared.rows, *truth),
            problems=dict(prepared.problems),
        ).checked()

    def perfect(self, prepared: JudgedMasks) -> Predictions:
        """The true masks."""
        return {"masks": list(prepared.true)}

    def constant(self, prepared: JudgedMasks) -> Predictions:
        """The usual training mask for every image."""
        of_side = {
            side: PackedMask.of(at_side(prepared.usual, side)) for side in {t.side for t in prepared.true}
        }
        return {"masks": [of_side[true.side] for true in prepared.true]}

    def examples(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: JudgedMasks,
        job: Job,
        fitted: FittedDecoder,
        predictions: Predictions,
        count: int,
    ) -> list[Example]:
        """Images with the true and the predicted mask over them."""
        rows = prepared.rows[:count]
        if not len(rows):
            return []
        views = centre_views(model, features.data, prepared.split, rows)[:, 0].cpu().numpy()
        made = []
        for view, true, judged, predicted in zip(
            views, prepared.true, prepared.judged, predictions["masks"], strict=False
        ):
            scores = mask_scores([predicted.mask()], [true.mask()], [judged.mask()])
            made.append(
                Example(
                    title="segmentation",
                    image=view,
                    texts={"Dice": f"{scores['dice'][0]:.3f}"},
                    overlays={
                        "true mask": true.mask().astype(np.float32),
                        "predicted mask": predicted.mask().astype(np.float32),
                    },
                )
            )
        return made


def build(config: EvaluationConfig) -> SegmentationTask:
    """The task of that configuration."""
    return SegmentationTask(config)


class _Encoder(nn.Module):
    """Pixels to patch tokens, by the model itself or by a copy that may be trained."""

    def __init__(self, model: LoadedModel, *, own_copy: bool) -> None:
        super().__init__()
        self.pixels = model.model.pixels
        self.encoder = copy.deepcopy(model.model.image_encoder) if own_copy else model.model.image_encoder
        if own_copy:
            self.encoder.requires_grad_(True)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B,1,S,S] -> [B,P,D]."""
        tokens: Tensor = self.encoder(self.pixels.encoder_view(self.pixels(pixels))).patches
        return tokens
