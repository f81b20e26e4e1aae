"""Batches, representations and losses of a fit on questions.

Decisions:
- A step takes images and all their questions (at most `MOST_QUESTIONS` of each), since the image is what
  costs. The loss is the mean over questions.
- Where the encoders stay as they are, the representation of centre views is computed once for each question.

Shapes: q training questions · n images with a question · F fused width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mpma.data.counter_hash import counter_hash
from mpma.downstream.asked_questions import AskedQuestions
from mpma.downstream.config import FitConfig
from mpma.downstream.features import autocast
from mpma.downstream.kept_features import KeptFeatures
from mpma.downstream.labelled import FitImages, LabelledData, batches, fit_order
from mpma.downstream.vqa_model import AnswerHead, QuestionReader
from mpma.loading import LoadedModel

MOST_QUESTIONS: Final = 16
"""Questions of one image in one step."""

_STANDARDISED_ON: Final = 512
"""Images from whose questions the head's standardisation is taken."""

Batch = tuple[int, NDArray[np.int64]]
"""Epoch, and places [B] of images."""


class QuestionTexts:
    """Distinct question texts as tokens."""

    def __init__(self, model: LoadedModel, texts: Sequence[str]) -> None:
        distinct, number = np.unique(np.array(texts, dtype=np.str_), return_inverse=True)
        self._number = number.reshape(-1)
        self._ids, self._attention, self._words = model.tokens([str(text) for text in distinct])

    def fused(
        self, reader: QuestionReader, patches: Tensor, image: NDArray[np.int64], questions: NDArray[np.int64]
    ) -> Tensor:
        """Representation [len(questions), F]; `image`: place of each question's image among `patches`."""
        device = patches.device
        distinct, text = np.unique(self._number[questions], return_inverse=True)
        chosen = torch.from_numpy(distinct).to(device)
        attention = self._attention[chosen]
        longest = int(attention.sum(dim=1).max())
        found: Tensor = reader(
            patches,
            torch.from_numpy(image).to(device),
            self._ids[chosen, :longest],
            attention[:, :longest],
            self._words[chosen, :longest],
            torch.from_numpy(text.reshape(-1)).to(device),
        )
        return found


class QuestionFit:
    """What one fit learns from: questions whose answer is a class."""

    def __init__(
        self,
        model: LoadedModel,
        reader: QuestionReader,
        data: LabelledData,
        questions: AskedQuestions,
        target: NDArray[np.int64],
        settings: FitConfig,
        *,
        frozen: bool,
        seed: int,
        cache_bytes: int,
    ) -> None:
        """`target` [q]: class of each question's answer, -1 where it has none; `frozen`: `reader` stays."""
        self._model, self._reader, self._settings = model, reader, settings
        self._frozen, self._seed = frozen, seed
        self._target = torch.from_numpy(target)
        self._texts = QuestionTexts(model, questions.texts)
        usable = np.flatnonzero(target >= 0)
        self._rows, place = np.unique(questions.rows[usable], return_inverse=True)
        place = place.reshape(-1)
        order = np.argsort(place, kind="stable")
        self._of_image = np.split(usable[order], np.cumsum(np.bincount(place))[:-1])
        self._place_of = np.full(len(target), -1, np.int64)
        self._place_of[usable] = place
        self._images = FitImages(data, "train", self._rows, cache_bytes)
        self._cropper = model.cropper(seed)
        self._kept = KeptFeatures(len(target), self._representation, cache_bytes)

    def batches(self) -> Iterator[Batch]:
        """Images of every step."""
        return batches(len(self._rows), self._settings.batch_size, self._settings.steps, self._order)

    def loss(self, head: AnswerHead, batch: Batch) -> Tensor:
        """Mean cross-entropy of the questions of a batch's images."""
        epoch, places = batch
        questions, image = self._questions(epoch, places)
        if self._frozen:
            fused = self._kept.get(questions).to(self._model.device)
        else:
            patches = self._reader.images(self._pixels(places, epoch, self._settings.augment))
            fused = self._texts.fused(self._reader, patches, image, questions)
        target = self._target[torch.from_numpy(questions)].to(fused.device)
        return functional.cross_entropy(head(fused), target)

    def standardisation(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [F] of the representation before training."""
        places = self._order(0)[:_STANDARDISED_ON]
        size = self._settings.batch_size
        parts = [self._questions(0, places[i : i + size])[0] for i in range(0, len(places), size)]
        fused = torch.cat([self._kept.get(questions) for questions in parts])
        return fused.mean(dim=0), fused.std(dim=0, unbiased=False)

    @torch.no_grad()
    def _representation(self, questions: NDArray[np.int64]) -> Tensor:
        """[len(questions), F] of centre views."""
        places, image = np.unique(self._place_of[questions], return_inverse=True)
        with autocast(self._model):
            patches = self._reader.images(self._pixels(places, 0, augment=False))
            return self._texts.fused(self._reader, patches, image.reshape(-1), questions)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return fit_order(self._rows, self._images.row_groups, self._seed, epoch)

    def _pixels(self, places: NDArray[np.int64], epoch: int, augment: bool) -> Tensor:
        rows = self._rows[places]
        epochs = np.full(len(rows), epoch)
        pixels = self._cropper(self._images.get(rows), epochs, rows, augment=augment)
        return pixels.to(self._model.device)

    def _questions(
        self, epoch: int, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Questions of the images at `places`, and which of `places` each belongs to."""
        chosen = []
        for place in places.tolist():
            mine = self._of_image[place]
            if len(mine) > MOST_QUESTIONS:
                draws = counter_hash(self._seed, "questions of an image", np.full(len(mine), epoch), mine)
                mine = np.sort(mine[np.argsort(draws, kind="stable")[:MOST_QUESTIONS]])
            chosen.append(mine)
        return np.concatenate(chosen), np.repeat(np.arange(len(chosen)), [len(mine) for mine in chosen])
