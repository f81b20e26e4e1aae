"""What a model did on each held-out patient, and every comparable figure as a function of patients' weights.

Decisions:
- Patients are numbers: the gallery's in its order, then labelled patients outside it in the order of
  their pairs. No identifier, text or pixel is kept, so outcomes may lie beside a search's results.
- Ranks are those in the full gallery: a resample draws queries, never another gallery, whose size would
  change what a recall means. Chance is drawn with them, query by query.
- The probe is not fitted anew: its scores are weighted. A label that loses a class in a resample is left
  out of it. Pairs of two models have the same labels, so it is left out for both.
- With every weight 1 each figure is the one that a validation of the same split reports.

Names are those of the metrics without the split in front: `retrieval/mean_recall`. Shapes: P patients ·
N gallery pairs · m probed pairs · L labels · g pairs with visual gain · R report mask ratios · B resamples.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mpma.metrics.bootstrap import Floats, Statistic, weighted_auroc, weighted_mean
from mpma.metrics.retrieval import DIRECTIONS, RECALL_AT, Ranks, above_chance, chance_recall_of_queries

REPRESENTATION_SCORE: Final = "representation_score"
MEAN_RECALL: Final = "retrieval/mean_recall"
RANK_SCORE: Final = "retrieval/rank_score"
AUROC: Final = "probe/auroc"
VISUAL_GAIN: Final = "report_reconstruction/visual_gain"
_RECALL: Final = re.compile(rf"^retrieval/({'|'.join(DIRECTIONS)})/recall_at_([1-9][0-9]*)$")


@dataclass(frozen=True)
class PatientOutcomes:
    """One model on one split."""

    patients: int
    """P; the first N are the gallery's, in its order."""
    ranks: tuple[Ranks, Ranks]
    """Of the N queries in each direction of `DIRECTIONS`."""
    classes: NDArray[np.int64]
    """[N]: equal where the normalised reports are equal."""
    probe_patient: NDArray[np.int64]
    """[m]: patient of each probed pair; m = 0 without a probe."""
    probe_scores: Floats
    """[m, L]: logits."""
    probe_labels: Floats
    """[m, L]: 1, 0, or NaN where the pair is not labelled."""
    gain_patient: NDArray[np.int64]
    """[g]: patient of each pair with visual gain; g = 0 without."""
    gain_sums: Floats
    """[g, R, 3]: nats under the pair's own picture, nats under another pair's, hidden words."""

    @property
    def probed(self) -> bool:
        """Whether there is a probe."""
        return self.probe_scores.size > 0

    @property
    def gained(self) -> bool:
        """Whether there is a visual gain."""
        return len(self.gain_sums) > 0

    def has(self, metric: str) -> bool:
        """Whether the metric can be told of these patients."""
        if metric == AUROC:
            return self.probed
        if metric == VISUAL_GAIN:
            return self.gained
        return is_per_patient(metric)

    def metrics(self) -> list[str]:
        """Names of all figures, the headline first."""
        recalls = [f"retrieval/{direction}/recall_at_{k}" for direction in DIRECTIONS for k in RECALL_AT]
        names = [REPRESENTATION_SCORE, MEAN_RECALL, RANK_SCORE, *recalls, AUROC, VISUAL_GAIN]
        return [name for name in names if self.has(name)]

    def figures(self) -> dict[str, float]:
        """Every figure on all patients, by name."""
        everyone = np.ones((1, self.patients))
        return {name: float(self.statistic(name)(everyone)[0]) for name in self.metrics()}

    def statistic(self, metric: str) -> Statistic:
        """A metric as a function of patients' weights [B, P]. Raises ValueError where there is none."""
        if not self.has(metric):
            raise ValueError(f"{metric} is not known of single patients here")
        if metric == REPRESENTATION_SCORE:
            return self._representation_score()
        if metric == AUROC:
            return self._auroc
        if metric == VISUAL_GAIN:
            return self._visual_gain
        return self._query_mean(self._query_values(metric))

    def same_patients(self, other: PatientOutcomes) -> bool:
        """Whether both models met the same pairs, so that they may be compared patient by patient."""
        return (
            self.patients == other.patients
            and np.array_equal(self.classes, other.classes)
            and np.array_equal(self.probe_patient, other.probe_patient)
            and np.array_equal(self.probe_labels, other.probe_labels, equal_nan=True)
            and np.array_equal(self.gain_patient, other.gain_patient)
        )

    def to_bytes(self) -> bytes:
        """A compressed npz file."""
        content = io.BytesIO()
        ranks = {
            f"{direction}_{name}": getattr(found, name)
            for direction, found in zip(DIRECTIONS, self.ranks, strict=True)
            for name in ("above", "tied", "tied_hits")
        }
        np.savez_compressed(
            content,
            patients=np.int64(self.patients),
            classes=self.classes,
            probe_patient=self.probe_patient,
            probe_scores=self.probe_scores,
            probe_labels=self.probe_labels,
            gain_patient=self.gain_patient,
            gain_sums=self.gain_sums,
            **ranks,
        )
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PatientOutcomes:
        """What `to_bytes` made. Raises ValueError, OSError or KeyError where it is something else."""
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            size = len(file["classes"])
            one, other = (
                Ranks(
                    above=file[f"{direction}_above"],
                    tied=file[f"{direction}_tied"],
                    tied_hits=file[f"{direction}_tied_hits"],
                    gallery_size=size,
                )
                for direction in DIRECTIONS
            )
            return cls(
                patients=int(file["patients"]),
                ranks=(one, other),
                classes=file["classes"],
                probe_patient=file["probe_patient"],
                probe_scores=file["probe_scores"],
                probe_labels=file["probe_labels"],
                gain_patient=file["gain_patient"],
                gain_sums=file["gain_sums"],
            )

    def _query_values(self, metric: str) -> Floats:
        """Per query [N], such that the metric is their mean."""
        if metric == MEAN_RECALL:
            recalls = [found.recall_at(k) for found in self.ranks for k in RECALL_AT]
            return np.asarray(np.mean(recalls, axis=0))
        if metric == RANK_SCORE:
            return np.asarray(np.mean([found.rank_score() for found in self.ranks], axis=0))
        match = _RECALL.match(metric)
        assert match is not None
        return self.ranks[DIRECTIONS.index(match[1])].recall_at(int(match[2]))

    def _query_mean(self, values: Floats) -> Statistic:
        return lambda counts: weighted_mean(values, counts[:, : len(values)])

    def _representation_score(self) -> Statistic:
        recall = self._query_mean(self._query_values(MEAN_RECALL))
        chance = self._query_mean(
            np.asarray(np.mean([chance_recall_of_queries(self.classes, k) for k in RECALL_AT], axis=0))
        )

        def score(counts: Floats) -> Floats:
            pairs = zip(recall(counts), chance(counts), strict=True)
            retrieval = np.array([above_chance(found, by_luck) for found, by_luck in pairs])
            return (retrieval + 2.0 * self._auroc(counts) - 1.0) / 2.0 if self.probed else retrieval

        return score

    def _auroc(self, counts: Floats) -> Floats:
        by_patient = np.ascontiguousarray(counts.T)
        areas = []
        for scores, labels in zip(self.probe_scores.T, self.probe_labels.T, strict=True):
            known = np.flatnonzero(~np.isnan(labels))
            areas.append(
                weighted_auroc(scores[known], labels[known] == 1, by_patient[self.probe_patient[known]].T)
            )
        table = np.stack(areas)
        there = ~np.isnan(table)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(there, table, 0.0).sum(axis=0) / there.sum(axis=0))

    def _visual_gain(self, counts: Floats) -> Floats:
        sums = np.einsum("bg,grk->brk", counts[:, self.gain_patient], self.gain_sums, optimize=True)
        own, other, words = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(((other - own) / words).mean(axis=1))


def is_per_patient(metric: str) -> bool:
    """Whether a metric, named without its split, is made of single patients' outcomes."""
    known = (REPRESENTATION_SCORE, MEAN_RECALL, RANK_SCORE, AUROC, VISUAL_GAIN)
    return metric in known or _RECALL.match(metric) is not None
