"""Settings of an evaluation: which tasks, how much of the labels, how long each model is fitted.

Torch-free, so that it loads fast. Protocols and their sources: docs/evaluation.md.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mpma.strict import StrictConfig

TaskName = Literal["classification", "segmentation", "retrieval", "zero_shot", "report_generation", "vqa"]

TASKS: tuple[TaskName, ...] = (
    "classification",
    "segmentation",
    "retrieval",
    "zero_shot",
    "report_generation",
    "vqa",
)

DEFAULT_BREAKDOWN: tuple[str, ...] = ("view", "source")


class FitConfig(StrictConfig):
    """How a head, or a head and the encoders under it, is trained."""

    steps: int = Field(default=500, ge=1, le=10_000_000)
    """Optimiser steps."""
    batch_size: int = Field(default=32, ge=1, le=4096)
    """Examples of one step."""
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    """Peak rate of what is new (heads, decoders); a cosine to zero follows a tenth of warm-up."""
    encoder_learning_rate_factor: float = Field(default=0.1, ge=0.0, le=1.0)
    """Rate of pre-trained parts over `learning_rate`. 0: they stay as they are."""
    weight_decay: float = Field(default=0.05, ge=0.0, le=1.0)
    """AdamW's decay; none on norms and biases."""
    augment: bool = True
    """Random crops, as in pre-training; else the centre view."""


class ClassificationConfig(StrictConfig):
    """Findings of an image: several labels at once, or one class of several."""

    methods: list[Literal["linear_probe", "knn", "fine_tune"]] = Field(
        default=["linear_probe", "knn", "fine_tune"], min_length=1
    )
    """Ways to read the labels: logistic regressions on frozen features, nearest neighbours, or training
    the encoder with a linear head."""
    label_fractions: list[float] = Field(default=[0.01, 0.1, 1.0], min_length=1)
    """Shares of the labelled training patients: nested subsets, fixed per seed."""
    fine_tune_fractions: list[float] | None = None
    """Shares for `fine_tune`, which costs most. None: `label_fractions`."""
    neighbours: int = Field(default=20, ge=1, le=1000)
    """Neighbours of `knn`."""
    fine_tune: FitConfig = FitConfig()
    """Training of `fine_tune`."""

    @model_validator(mode="after")
    def _fractions_in_range(self) -> ClassificationConfig:
        for name in ("label_fractions", "fine_tune_fractions"):
            for value in getattr(self, name) or []:
                if not 0.0 < value <= 1.0:
                    raise ValueError(f"classification.{name}: {value} is not above 0 and at most 1")
        return self


class SegmentationConfig(StrictConfig):
    """Masks by a light decoder on the ViT's features."""

    mask_column: str = "mask"
    """Column of the dataset that holds the masks (PNG)."""
    decoder_width: int = Field(default=64, ge=8, le=1024)
    """Channels of the decoder."""
    freeze_encoder: bool = True
    """Only the decoder is trained, so that what is measured is the features."""
    fit: FitConfig = FitConfig(augment=False)
    """Training of the decoder."""


class RetrievalConfig(StrictConfig):
    """Image to report and report to image."""

    gallery_size: int = Field(default=2000, ge=2, le=1_000_000)
    """Most pairs of the gallery: one per patient, distinct reports where there are enough."""
    recall_at: list[int] = Field(default=[1, 5, 10], min_length=1)
    """The k of R@k: any pair with the query's normalised report is a hit."""
    precision_at: list[int] = Field(default=[5, 10], min_length=1)
    """The k of P@k: share of the first k that carry the query's labels."""


class ZeroShotConfig(StrictConfig):
    """Classes named in words instead of learned from labels."""

    prompts: str | None = None
    """YAML file of prompts per label (see docs/evaluation.md). None: the ones shipped for the labels that
    are known, plain templates for the others."""


class ReportGenerationConfig(StrictConfig):
    """The report branch as a causal decoder that looks at the image and at the memory."""

    max_tokens: int | None = Field(default=None, ge=8, le=512)
    """Longest generated report. None: report.max_tokens of the model."""
    beams: int = Field(default=3, ge=1, le=16)
    """Beams of the search."""
    test_patients: int = Field(default=500, ge=2, le=1_000_000)
    """Most test patients whose reports are generated, one pair each: beam search is the slowest part."""
    labeller: Literal["auto", "chest", "phantom"] = "auto"
    """Rules that read findings from text for the clinical F1. `auto`: those of the phantom for synthetic
    pairs, else `chest`."""
    fit: FitConfig = FitConfig(encoder_learning_rate_factor=0.5)
    """Fine-tuning of the decoder and the encoder."""


class VqaConfig(StrictConfig):
    """Questions of an image, answers as classes."""

    max_answers: int = Field(default=1000, ge=2, le=100_000)
    """Most frequent answers of the training questions, which become the classes."""
    freeze_encoders: bool = False
    """Only the head on the fused representation is trained, on centre views: far cheaper."""
    fit: FitConfig = FitConfig()
    """Training of the head and the encoders; `batch_size` counts images, each with all its questions."""


class EvaluationPhantomConfig(StrictConfig):
    """The synthetic labelled patients that a model of phantom pairs is judged on, where no data is named."""

    train_pairs: int = Field(default=5120, ge=64, le=10_000_000)
    """Labelled pairs, one per synthetic patient."""
    val_pairs: int = Field(default=256, ge=64, le=1_000_000)
    """Pairs for choices such as a threshold."""
    test_pairs: int = Field(default=1024, ge=64, le=1_000_000)
    """Test patients."""
    seed_offset: int = Field(default=1, ge=1, le=1_000_000)
    """Added to the seed of the pre-training pairs, so that no patient was seen before."""


class EvaluationConfig(StrictConfig):
    """Everything that decides an evaluation, the model and the data aside."""

    tasks: list[TaskName] = Field(default=list(TASKS), min_length=1)
    """Tasks to run; one whose data are not there (no masks, no questions) is skipped and said."""
    untrained: bool = True
    """Whether the same model without training stands beside every figure."""
    seeds: int = Field(default=3, ge=1, le=100)
    """Seeds of label subsets and of training; figures are means over them."""
    fit_seeds: int | None = Field(default=None, ge=1, le=100)
    """Seeds of what is trained by steps (fine-tuning, decoders, the reader of questions), which costs most.
    None: `seeds`."""
    resamples: int = Field(default=1000, ge=100, le=1_000_000)
    """Bootstrap resamples of patients."""
    breakdown: list[str] = Field(default=list(DEFAULT_BREAKDOWN))
    """Columns whose values get figures of their own, each with at least `breakdown_least_patients`."""
    breakdown_least_patients: int = Field(default=20, ge=1)
    """Test patients below which a value of a breakdown column is left out."""
    split: Literal["auto", "test", "val"] = "auto"
    """Split that is judged on. `auto`: test, or val where there is no test split."""
    phantom: EvaluationPhantomConfig = EvaluationPhantomConfig()
    """Synthetic labelled data."""
    classification: ClassificationConfig = ClassificationConfig()
    """Findings of an image."""
    segmentation: SegmentationConfig = SegmentationConfig()
    """Masks."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """Both ways."""
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    """Classes by prompts."""
    report_generation: ReportGenerationConfig = ReportGenerationConfig()
    """Reports from images."""
    vqa: VqaConfig = VqaConfig()
    """Questions."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Images or texts embedded at a time."""
    threads_per_job: int = Field(default=1, ge=1, le=256)
    """CPU threads of one job. Jobs run beside each other, so one is usually best; scores are equal bit for
    bit only under the same number."""
    image_cache_bytes: int = Field(default=2 * 1024**3, ge=0)
    """Most memory in which a fit keeps images and frozen tokens; what does not fit is read or made again."""

    @property
    def resolved_fit_seeds(self) -> int:
        """`fit_seeds`, or `seeds`."""
        return self.seeds if self.fit_seeds is None else self.fit_seeds
