"""Retrieval: the report of an image and the image of a report, among pairs of other patients.

Decisions:
- The gallery is validation's: one pair per patient, distinct reports where there are enough, fixed by one
  seed whatever the job's. Pairs without a report are left out.
- A hit is any pair with the query's normalised report; ties are scored by their expectation, so the constant
  predictor scores exactly chance. See `mpma.metrics.retrieval`.
- Precision at k asks the labels instead: the share of the first k labelled gallery items that carry a label
  of the query, or nothing where the query carries nothing (`precision_at_k`), or exactly its labels
  (`exact_precision_at_k`). The query's own pair is in the gallery and counts. Where fewer than k items
  match, even the perfect ranking stays below 1.
- A query belongs to its patient; a bootstrap draws queries and leaves the gallery as it is.

Shapes: N gallery pairs · A embedding width · L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Example, Job, Judged, NotPossible, Predictions, Related
from mpma.downstream.features import FeatureStore, centre_views
from mpma.downstream.labelled import LabelledData
from mpma.downstream.word_attention import word_attention
from mpma.errors import UserError
from mpma.loading import LoadedModel
from mpma.metrics.outcomes import Figure, Outcomes, identity_of, numbered_patients
from mpma.metrics.precision import precision_at
from mpma.metrics.retrieval import DIRECTIONS, retrieval_ranks
from mpma.training.validation_sets import choose_gallery

Floats = NDArray[np.float64]

GALLERY_SEED: Final = 0
RELATED: Final = 5
"""Found items that an example shows."""


@dataclass(frozen=True, kw_only=True)
class PreparedRetrieval(Judged):
    """The gallery, in row order; every pair of it is a query both ways."""

    classes: NDArray[np.int64]
    """[N]: equal where the normalised reports are equal."""
    labels: Floats
    """[N, L]: 1, 0, or NaN where the pair is not labelled."""


def build(config: EvaluationConfig) -> Retrieval:
    """The task."""
    return Retrieval(config)


@dataclass(frozen=True)
class Retrieval:
    """See the module."""

    config: EvaluationConfig

    name = "retrieval"

    def jobs(self) -> list[Job]:
        """One: nothing is fitted."""
        return [Job(self.name)]

    def prepare(self, data: LabelledData) -> PreparedRetrieval:
        """The gallery. Raises `NotPossible` without two patients whose reports differ."""
        split, size = data.judged_split, self.config.retrieval.gallery_size
        problems: dict[str, int] = {}
        # An absent report counts as one more distinct text, hence one more; where such pairs fill up a
        # gallery, all patients are asked for.
        for asked in (size + 1, data.rows(split)):
            try:
                rows, hashes = choose_gallery(data.dataset, asked, GALLERY_SEED, split)
            except UserError:
                raise NotPossible(f"the {split} split has fewer than two patients") from None
            told = np.array([bool(text) for text in data.texts(split, rows)])
            if told.all() or told.sum() >= size:
                break
        if not told.all():
            problems["pairs without a report, left out of the gallery"] = int((~told).sum())
        rows, hashes = rows[told][:size], hashes[told][:size]
        order = np.argsort(rows)
        rows, (_, classes) = rows[order], np.unique(hashes[order], return_inverse=True)
        if len(np.unique(classes)) < 2:
            raise NotPossible(f"the {split} split has fewer than two patients whose reports differ")
        labelled = data.labelled(split)
        place = {int(row): number for number, row in enumerate(labelled.rows)}
        labels = np.full((len(rows), len(data.label_names)), np.nan)
        for number, row in enumerate(rows.tolist()):
            if row in place:
                labels[number] = labelled.labels[place[row]]
        return PreparedRetrieval(
            split=split,
            rows=rows,
            patients=data.patients(split, rows),
            problems=problems,
            classes=classes.astype(np.int64),
            labels=labels,
        )

    def fit(self, model: LoadedModel, features: FeatureStore, prepared: PreparedRetrieval, job: Job) -> None:
        """Nothing."""

    def predict(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: PreparedRetrieval,
        job: Job,
        fitted: None,
    ) -> Predictions:
        """`image` and `report` [N, A]: vectors whose inner product ranks the gallery."""
        return {
            "image": features.image_vectors(prepared.split, prepared.rows),
            "report": features.report_vectors(prepared.split, prepared.rows),
        }

    def score(self, prepared: PreparedRetrieval, predictions: Predictions) -> Outcomes:
        """Figures per direction, `mean_recall` and `rank_score` over both. Raises `NotPossible`."""
        image, report = (torch.as_tensor(np.asarray(predictions[name])) for name in ("image", "report"))
        if not (torch.isfinite(image).all() and torch.isfinite(report).all()):
            raise NotPossible("the model's aligned vectors are not finite")
        own = self.config.retrieval
        recall_at, precision_ks = sorted(set(own.recall_at)), sorted(set(own.precision_at))
        class_of = torch.as_tensor(prepared.classes)
        arrays: dict[str, Floats] = {}
        scores = []
        for direction, queries, gallery in zip(DIRECTIONS, (image, report), (report, image), strict=True):
            ranks = retrieval_ranks(queries, gallery, class_of, class_of)
            scores.append(ranks.rank_score())
            for k in recall_at:
                arrays[f"{direction}/recall_at_{k}"] = ranks.recall_at(k)
        recalls = list(arrays.values())
        headline = {"mean_recall": np.mean(recalls, axis=0), "rank_score": np.mean(scores, axis=0)}
        arrays = {**headline, **arrays, **_precisions(image, report, prepared.labels, precision_ks)}
        return Outcomes(
            patient=numbered_patients(prepared.patients),
            arrays=arrays,
            figures={name: Figure("mean", {"value": name}) for name in arrays},
            headline=tuple(headline),
            identity=identity_of(
                prepared.patients, prepared.rows, prepared.classes, np.nan_to_num(prepared.labels, nan=-1.0)
            ),
            problems=prepared.problems,
        ).checked()

    def perfect(self, prepared: PreparedRetrieval) -> Predictions:
        """Vectors that rank equal reports first, then equal labels, then a label in common.

        Whole numbers, so that every inner product is exact: [N, classes + label sets + L + 1].
        """
        labelled = _labelled(prepared.labels)
        marks = np.nan_to_num(prepared.labels)
        parts: list[NDArray[Any]] = []
        if labelled.any():
            nothing = (marks.sum(axis=1) == 0) & labelled
            parts.append(np.column_stack([marks, nothing]))
            _, sets = np.unique(marks, axis=0, return_inverse=True)
            parts.append(np.eye(int(sets.max()) + 1)[sets.reshape(-1)] * labelled[:, None])
        parts.append(np.eye(int(prepared.classes.max()) + 1)[prepared.classes])
        vectors, bar = [], 1
        for part in parts:
            # One agreement here outweighs all that comes after it.
            factor = int(np.ceil(np.sqrt(bar)))
            vectors.append(factor * part)
            bar += factor**2 * int((part**2).sum(axis=1).max())
        both = np.concatenate(vectors, axis=1).astype(np.float32)
        return {"image": both, "report": both}

    def constant(self, prepared: PreparedRetrieval) -> Predictions:
        """Every item as near as any other."""
        same = np.zeros((len(prepared.rows), 1), dtype=np.float32)
        return {"image": same, "report": same}

    def examples(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: PreparedRetrieval,
        job: Job,
        fitted: None,
        predictions: Predictions,
        count: int,
    ) -> list[Example]:
        """The first `count` pairs as queries both ways, with the five nearest of the gallery."""
        if count < 1:
            return []
        data, split = features.data, prepared.split
        texts = data.texts(split, prepared.rows)
        image, report = (torch.as_tensor(np.asarray(predictions[name])) for name in ("image", "report"))
        shown = min(count, len(prepared.rows))
        found = {
            direction: (queries[:shown].float() @ gallery.float().T).topk(
                min(RELATED, len(gallery)), dim=1, sorted=True
            )
            for direction, queries, gallery in zip(DIRECTIONS, (image, report), (report, image), strict=True)
        }
        wanted = np.unique(np.concatenate([np.arange(shown), found[DIRECTIONS[1]].indices.flatten().numpy()]))
        views = centre_views(model, data, split, prepared.rows[wanted])
        pixels = dict(zip(wanted.tolist(), views[:, 0].cpu().numpy(), strict=True))
        overlays = word_attention(model, views[:shown], texts[:shown])
        made = []
        for query in range(shown):
            for direction in DIRECTIONS:
                near, which = (part[query].tolist() for part in found[direction])
                by_image = direction == DIRECTIONS[0]
                related = [
                    Related(
                        score,
                        bool(prepared.classes[item] == prepared.classes[query]),
                        text=texts[item] if by_image else None,
                        image=None if by_image else pixels[item],
                    )
                    for score, item in zip(near, which, strict=True)
                ]
                made.append(
                    Example(
                        direction.replace("_", " "),
                        pixels[query] if by_image else None,
                        {"report": texts[query]},
                        overlays[query] if by_image else {},
                        related,
                    )
                )
        return made


def _precisions(image: Tensor, report: Tensor, labels: Floats, ks: list[int]) -> dict[str, Floats]:
    """Precision at k both ways among labelled pairs: [N] by name, NaN for a query without labels."""
    labelled = np.flatnonzero(_labelled(labels))
    if not len(labelled):
        return {}
    marks = labels[labelled]
    with_nothing = torch.as_tensor(np.column_stack([marks, marks.sum(axis=1) == 0])).float()
    _, sets = np.unique(marks, axis=0, return_inverse=True)
    set_of = torch.as_tensor(sets.reshape(-1))
    image, report = image[labelled], report[labelled]
    found: dict[str, Floats] = {}
    for direction, queries, gallery in zip(DIRECTIONS, (image, report), (report, image), strict=True):
        sharing = precision_at(queries, gallery, lambda rows: with_nothing[rows] @ with_nothing.T > 0, ks)
        exact = precision_at(queries, gallery, lambda rows: set_of[rows, None] == set_of[None, :], ks)
        for name, values in (("precision_at", sharing), ("exact_precision_at", exact)):
            for k, value in zip(ks, values.T, strict=True):
                column = np.full(len(labels), np.nan)
                column[labelled] = value
                found[f"{direction}/{name}_{k}"] = column
    return found


def _labelled(labels: Floats) -> NDArray[np.bool_]:
    """[N]: which pairs are labelled; none where no label is known at all."""
    known = ~np.isnan(labels).any(axis=1)
    return np.asarray(known & (labels.shape[1] > 0), dtype=np.bool_)
