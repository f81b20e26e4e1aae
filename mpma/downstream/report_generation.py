"""Report generation: the report branch, fine-tuned as a causal decoder, writes what an image shows.

Decisions:
- Judged are patients with a report that says something, one pair each, drawn by hashes of their names; the
  same for every seed and model.
- The reference is what the model would read (findings and impression), whole: models may cut at different
  lengths, and a reference is the same for all. Those that a model cannot write to the end are counted.
- A WordPiece decoder writes lower case without accents, words and marks apart. So both texts are brought to
  that form, and then cut into words by `mpma.metrics.text`. The labeller reads both as they are.
- All parts are pre-trained, but none as a causal decoder: BERT, fusion and head learn at the full rate, the
  image encoder at its share.
- Teacher forcing, mean cross-entropy of the next token; the end token of a report that was cut is no target.
- Beam search by mean log-probability of a token (`LENGTH_POWER` 1), nothing forbidden but special tokens.
- The constant predictor says one training report to everybody: the one nearest to a sample of them, by F1
  of words. (The most frequent report would be an arbitrary one where all differ.)
- Clinical F1 compares what the labeller reads in both texts; where the data's labels are the labeller's own,
  `label_f1` compares with these.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpma.data.counter_hash import counter_hash, text_hash
from mpma.data.quality import normalised_report
from mpma.downstream.beam_search import beam_search
from mpma.downstream.config import EvaluationConfig
from mpma.downstream.contract import Example, Job, Judged, NotPossible, Predictions
from mpma.downstream.features import FeatureStore, autocast, centre_views
from mpma.downstream.fitting import fit
from mpma.downstream.kept_features import KeptFeatures
from mpma.downstream.labelled import FitImages, LabelledData, Rows, batches, fit_order
from mpma.downstream.labeller import labeller
from mpma.downstream.report_decoder import ReportDecoder, next_token_targets
from mpma.loading import LoadedModel
from mpma.metrics.outcomes import Figure, Outcomes, identity_of, numbered_patients
from mpma.metrics.text import text_statistics, tokens
from mpma.model.image import GreyPixels, ImageEncoder

LENGTH_POWER: Final = 1.0
"""Of `beam_search`."""

CHOICE_SEED: Final = 0
"""Of the judged patients and of the sample for the constant report: no seed of a job moves them."""

_CONSTANT_SAMPLE: Final = 512
"""Training reports among which the constant one is looked for."""

_REPORTS_AT_ONCE: Final = 32
"""Reports of one search: their keys and values then stay in a processor's cache."""


@dataclass(frozen=True)
class JudgedReports(Judged):
    """The true reports, and what may be learned from."""

    references: Sequence[str] = ()
    """[m]."""
    kind: Literal["chest", "phantom"] = "chest"
    """Of the labeller."""
    findings: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    """[m, L]: 1 where the labeller reads a finding in the reference."""
    labels: NDArray[np.float64] | None = None
    """[m, L]: the data's own labels, NaN where unknown; None where they are of another vocabulary."""
    training_rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    """[n]: training pairs with a report."""
    constant: str = ""
    """The training report nearest to the others."""


class ReportWriter(nn.Module):
    """Image encoder and decoder, fine-tuned copies of a model's."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        self.pixels: GreyPixels = deepcopy(loaded.model.pixels)
        self.image_encoder: ImageEncoder = deepcopy(loaded.model.image_encoder)
        self.decoder = ReportDecoder(loaded.model)

    def patches(self, pixels: Tensor) -> Tensor:
        """uint8 [B,1,S,S] -> patch tokens [B,P,D]."""
        found: Tensor = self.image_encoder(self.pixels.encoder_view(self.pixels(pixels))).patches
        return found


@dataclass(frozen=True)
class ReportGenerationTask:
    """Reports from images."""

    config: EvaluationConfig

    name = "report_generation"

    def jobs(self) -> list[Job]:
        """One for each seed."""
        return [Job(self.name, seed=seed) for seed in range(self.config.resolved_fit_seeds)]

    def prepare(self, data: LabelledData) -> JudgedReports:
        """One pair of each judged patient. Raises `NotPossible` where a split has no reports."""
        training = _with_report(data, "train")
        judged = _with_report(data, data.judged_split)
        for split, found in (("train", training), (data.judged_split, judged)):
            if not len(found.rows):
                raise NotPossible(
                    f"report_generation: the {split} split of {data.dataset.path} has no reports",
                    "evaluate on pairs of images and reports",
                )
        rows = _one_pair_each(data, judged.rows, self.config.report_generation.test_patients)
        references = data.texts(data.judged_split, rows)
        kind = self.config.report_generation.labeller
        if kind == "auto":
            kind = "phantom" if data.synthetic else "chest"
        rules = labeller(kind)
        counted = {
            "pairs without a report, not judged": judged.without,
            "training pairs without a report, left out": training.without,
        }
        return JudgedReports(
            split=data.judged_split,
            rows=rows,
            patients=data.patients(data.judged_split, rows),
            problems={text: count for text, count in counted.items() if count},
            references=references,
            kind=kind,
            findings=rules.positives(references).astype(np.float64),
            labels=_own_labels(data, rows, rules.names),
            training_rows=training.rows,
            constant=_nearest_to_all(_sample(data, training.rows)),
        )

    def fit(
        self, model: LoadedModel, features: FeatureStore, prepared: JudgedReports, job: Job
    ) -> ReportWriter:
        """A writer fine-tuned on the training pairs; the model is left as it was."""
        settings = self.config.report_generation.fit
        writer = ReportWriter(model)
        longest = self._longest(model, writer)
        rows = prepared.training_rows
        texts = features.data.texts("train", rows)
        cut = model.tokenizer.lengths(texts) > longest
        budget = self.config.image_cache_bytes // 2
        images = FitImages(features.data, "train", rows, budget)
        cropper = model.cropper(job.seed)
        frozen = settings.encoder_learning_rate_factor == 0

        def seen(epoch: int, places: Rows) -> Tensor:
            epochs = np.full(len(places), epoch)
            pixels = cropper(images.get(rows[places]), epochs, rows[places], augment=settings.augment)
            with torch.set_grad_enabled(not frozen):
                return writer.patches(pixels.to(model.device))

        # Without crops a frozen encoder says the same of an image in every epoch.
        read_once = frozen and not settings.augment
        kept = KeptFeatures(len(rows), partial(seen, 0), budget)

        def loss_of(batch: tuple[int, Rows]) -> Tensor:
            epoch, places = batch
            found = model.tokenizer.encode([texts[place] for place in places], longest)
            ids, attention = torch.from_numpy(found.ids), torch.from_numpy(found.attention)
            inputs, targets = next_token_targets(ids, attention, torch.from_numpy(cut[places]))
            patches = kept.get(places).to(model.device) if read_once else seen(epoch, places)
            image = writer.decoder.look(patches)
            return writer.decoder.loss(image, inputs.to(model.device), targets.to(model.device))

        order = partial(fit_order, rows, images.row_groups, job.seed)
        drawn = batches(len(rows), settings.batch_size, settings.steps, order)
        fit(model, writer.decoder, writer.image_encoder, settings, drawn, loss_of)
        return writer.eval()

    def predict(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: JudgedReports,
        job: Job,
        fitted: ReportWriter,
    ) -> Predictions:
        """A report for each judged pair. Raises `NotPossible` where the model gives no finite numbers."""
        longest = self._longest(model, fitted)
        reports: list[str] = []
        endless = 0
        for start in range(0, len(prepared.rows), _REPORTS_AT_ONCE):
            rows = prepared.rows[start : start + _REPORTS_AT_ONCE]
            pixels = centre_views(model, features.data, prepared.split, rows)
            with torch.no_grad(), autocast(model):
                image = fitted.decoder.look(fitted.patches(pixels))
                try:
                    found = beam_search(
                        fitted.decoder.stepper(image, model.tokenizer),
                        len(rows),
                        beams=self.config.report_generation.beams,
                        start_id=model.tokenizer.class_id,
                        end_id=model.tokenizer.end_id,
                        max_tokens=longest - 1,
                        length_power=LENGTH_POWER,
                        device=model.device,
                    )
                except FloatingPointError as error:
                    raise NotPossible(f"report_generation: {error}", "a lower learning rate helps") from error
            reports += [model.tokenizer.decode(one.tokens) for one in found]
            endless += sum(not one.ended for one in found)
        too_long = int((model.tokenizer.lengths(list(prepared.references)) > longest).sum())
        counted = {
            f"true reports longer than the {longest} tokens that the model may write": too_long,
            f"generated reports without an end after {longest} tokens": endless,
        }
        return {"reports": reports, "problems": {text: n for text, n in counted.items() if n}}

    def score(self, prepared: JudgedReports, predictions: Predictions) -> Outcomes:
        """BLEU of the corpus, mean ROUGE-L, and F1 of the findings that the labeller reads."""
        generated: Sequence[str] = predictions["reports"]
        rules = labeller(prepared.kind)
        statistics = text_statistics(
            [as_written(text) for text in generated], [as_written(text) for text in prepared.references]
        )
        arrays: dict[str, NDArray[Any]] = {
            **statistics,
            "decisions": rules.positives(generated),
            "findings": prepared.findings,
        }
        sums = {role: f"bleu_{role}" for role in ("matches", "totals", "lengths")}
        figures = {f"bleu_{n}": Figure("bleu", sums, {"n": n}) for n in (1, 2, 3, 4)}
        figures["rouge_l"] = Figure("mean", {"value": "rouge_l"})
        read = {"decisions": "decisions", "labels": "findings"}
        figures["clinical_f1"] = Figure("micro_f1", read)
        figures["clinical_f1_macro"] = Figure("macro_f1", read)
        truth = [prepared.findings]
        if prepared.labels is not None:
            arrays["labels"] = prepared.labels
            figures["label_f1"] = Figure("micro_f1", {"decisions": "decisions", "labels": "labels"})
            truth.append(prepared.labels)
        hashes = np.array([text_hash(text) for text in prepared.references], np.int64)
        return Outcomes(
            patient=numbered_patients(prepared.patients),
            arrays=arrays,
            figures=figures,
            headline=("bleu_4", "rouge_l", "clinical_f1"),
            identity=identity_of(prepared.patients, hashes, *truth),
            problems={**prepared.problems, **predictions.get("problems", {})},
            names={name: rules.names for name in ("decisions", "findings", "labels") if name in arrays},
        ).checked()

    def perfect(self, prepared: JudgedReports) -> Predictions:
        """The true reports."""
        return {"reports": list(prepared.references)}

    def constant(self, prepared: JudgedReports) -> Predictions:
        """One training report for everybody."""
        return {"reports": [prepared.constant] * len(prepared.rows)}

    def examples(
        self,
        model: LoadedModel,
        features: FeatureStore,
        prepared: JudgedReports,
        job: Job,
        fitted: ReportWriter,
        predictions: Predictions,
        count: int,
    ) -> list[Example]:
        """Image, true report, generated report."""
        rows = prepared.rows[:count]
        if not len(rows):
            return []
        pixels = centre_views(model, features.data, prepared.split, rows)[:, 0].cpu().numpy()
        return [
            Example("report generation", image, {"report": true, "generated": generated})
            for image, true, generated in zip(
                pixels, prepared.references[: len(rows)], predictions["reports"][: len(rows)], strict=True
            )
        ]

    def _longest(self, model: LoadedModel, writer: ReportWriter) -> int:
        """Tokens of a report, start and end included. Raises `NotPossible` where BERT has fewer positions."""
        wanted = self.config.report_generation.max_tokens or model.config.report.max_tokens
        if wanted > writer.decoder.longest:
            raise NotPossible(
                f"report_generation.max_tokens {wanted}: {model.name} has {writer.decoder.longest} positions",
                f"set it to {writer.decoder.longest} or less",
            )
        return wanted


def build(config: EvaluationConfig) -> ReportGenerationTask:
    """The task."""
    return ReportGenerationTask(config)


def as_written(text: str) -> str:
    """A text as a WordPiece decoder would write it: lower case, no accents, words and marks apart.

    Example:
        >>> as_written("Größe: 4.5 cm, NÓDULO")
        'große : 4 . 5 cm , nodulo'
    """
    plain = unicodedata.normalize("NFKD", text)
    return " ".join(tokens("".join(letter for letter in plain if not unicodedata.combining(letter))))


@dataclass(frozen=True)
class _Reports:
    rows: Rows
    without: int


def _with_report(data: LabelledData, split: str) -> _Reports:
    """Rows whose report says something, and how many do not."""
    if not data.rows(split):
        return _Reports(np.zeros(0, np.int64), 0)
    speaks = np.array([bool(normalised_report(text)) for text in data.texts(split)])
    return _Reports(np.flatnonzero(speaks), int((~speaks).sum()))


def _one_pair_each(data: LabelledData, rows: Rows, most: int) -> Rows:
    """A row of each of `most` patients at most, ascending; the storage order moves nobody."""
    table = data.table(data.judged_split, ["patient_id", "pair_id"], rows)
    draws = {
        name: counter_hash(
            CHOICE_SEED, f"report generation {name}", np.array([text_hash(one) for one in ids])
        )
        for name, ids in ((name, table[name].to_pylist()) for name in ("patient_id", "pair_id"))
    }
    order = np.lexsort((draws["pair_id"], draws["patient_id"]))
    patients = draws["patient_id"][order]
    firsts = order[np.append(True, patients[1:] != patients[:-1])]
    return np.sort(rows[firsts[:most]])


def _own_labels(data: LabelledData, rows: Rows, names: Sequence[str]) -> NDArray[np.float64] | None:
    """The data's labels [m, L] by the labeller's names, or None where they are not all among them."""
    if not data.label_names or not set(data.label_names) <= set(names):
        return None
    labelled = data.labelled(data.judged_split)
    place = {row: number for number, row in enumerate(labelled.rows.tolist())}
    known = [number for number, row in enumerate(rows.tolist()) if row in place]
    if not known:
        return None
    found = np.full((len(rows), len(names)), np.nan)
    columns = [names.index(name) for name in data.label_names]
    found[np.ix_(known, columns)] = labelled.labels[[place[row] for row in rows[known].tolist()]]
    return found


def _sample(data: LabelledData, rows: Rows) -> list[str]:
    draws = counter_hash(CHOICE_SEED, "constant report", rows)
    return data.texts("train", rows[np.sort(np.argsort(draws, kind="stable")[:_CONSTANT_SAMPLE])])


def _nearest_to_all(texts: Sequence[str]) -> str:
    """The text with the highest mean F1 of words, repeated ones as often as they stand, with all texts."""
    counts = [Counter(tokens(as_written(text))) for text in texts]
    column = {word: number for number, word in enumerate(sorted(set().union(*counts)))}
    table = np.zeros((len(texts), len(column)), np.int32)
    for row, words in enumerate(counts):
        for word, times in words.items():
            table[row, column[word]] = times
    lengths = table.sum(axis=1)
    means = [
        float((2.0 * np.minimum(table, one).sum(axis=1) / (lengths + one.sum())).mean()) for one in table
    ]
    return texts[int(np.argmax(means))]
