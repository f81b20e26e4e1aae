"""Settings of the training run, its validation and its pictures. Torch-free, so that it loads fast."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mpma.strict import StrictConfig


class WorkerRange(StrictConfig):
    """As many workers as there is room for, within bounds: the group shrinks when a node is lost and grows
    when one comes."""

    min: int = Field(ge=1, le=4096)
    """Fewest workers that train; with less room than for these the run waits."""
    max: int = Field(ge=1, le=4096)
    """Most workers that train."""

    @model_validator(mode="after")
    def _in_order(self) -> WorkerRange:
        if self.min > self.max:
            raise ValueError(f"training.workers.min {self.min} is more than training.workers.max {self.max}")
        return self


def _number_or_range(value: Any) -> Any:
    """Refuse what is neither, in one line instead of one for each of the two."""
    if isinstance(value, WorkerRange) or (isinstance(value, int) and not isinstance(value, bool)):
        if isinstance(value, int) and not 1 <= value <= 4096:
            raise ValueError(f"training.workers {value}: 1 to 4096 workers are possible")
        return value
    if isinstance(value, dict) and set(value) == {"min", "max"}:
        try:
            return WorkerRange.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(("training.workers", *(str(part) for part in first["loc"])))
            message = first["msg"].removeprefix("Value error, ")
            raise ValueError(message if not first["loc"] else f"{key}: {message}") from None
    raise ValueError("training.workers: a number is expected, or a range such as {min: 1, max: 4}")


Workers = Annotated[int | WorkerRange, BeforeValidator(_number_or_range)]


class TrainingConfig(StrictConfig):
    """Optimisation, hardware and what is kept."""

    steps: int = Field(default=1000, ge=1, le=100_000_000)
    """Optimiser steps of the run. May grow when a run is continued."""
    batch_size: int = Field(default=256, ge=2, le=1_048_576)
    """Pairs of one optimiser step, over all workers."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Pairs that one worker holds at a time; the contrastive batch stays whole by feature caching and
    replay. None: the worker's whole share, with a range of workers the share of the most, so that fewer need
    no more memory each."""
    seed: int = Field(default=0, ge=0, le=2**62)
    """Seed of initial weights, order, crops and masks."""
    workers: Workers = 1
    """Training processes; divides data.lanes. A range `{min: 1, max: 4}` trains on as many as there is room
    for: a lost node's share goes to the others with the same global batch in the same order, and the group
    grows again when a node comes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU per worker where the cluster has that many, else CPU; the choice is printed."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """`auto`: bf16 where the device has it in hardware (GPU), fp32 on CPU; losses are in fp32 at least.
    `fp64`, on a CPU alone, is for telling rounding from mistakes: the same steps differ by 1e-15 instead of
    1e-7."""
    threads_per_worker: int | None = Field(default=None, ge=1, le=256)
    """CPU threads of one worker. None: the machine's cores over its workers."""
    learning_rate_per_256: float = Field(default=1.5e-4, gt=0.0, le=1.0)
    """Peak learning rate for a batch of 256; scaled linearly with training.batch_size."""
    warmup_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the steps with a linearly rising rate; a cosine to final_learning_rate_fraction follows."""
    final_learning_rate_fraction: float = Field(default=0.01, ge=0.0, le=1.0)
    """Learning rate of the last step over the peak."""
    weight_decay: float = Field(default=0.05, ge=0.0, le=1.0)
    """AdamW's decay; none on norms, biases, positions, memory and temperature."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """AdamW's first moment decay."""
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    """AdamW's second moment decay."""
    gradient_clip: float = Field(default=1.0, gt=0.0, le=1e6)
    """Largest global gradient norm, after weighting."""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """How several workers share the model: `ddp` keeps it whole on each, `fsdp2` shards weights, gradients
    and optimiser state over them, for models that do not fit one GPU."""
    compile: bool = False
    """torch.compile the model. Compiled code is kept for later programs in ~/.cache/mpma/compile, which is
    closed to others, or in TORCHINDUCTOR_CACHE_DIR where that is set."""
    gradient_checkpointing: bool = False
    """Recompute encoder activations in the backward pass: less memory, about a third more time."""
    checkpoint_every_steps: int = Field(default=200, ge=1)
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = Field(default=2, ge=1, le=10_000)
    """Newest checkpoints that are kept."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    gradient_norms_every_steps: int = Field(default=0, ge=0)
    """Steps between measurements of each loss term's gradient norm on the shared trunk. 0: never."""
    initial_checkpoint: str | None = None
    """A checkpoint directory whose weights start a NEW run."""
    max_failures: int = Field(default=3, ge=0, le=1000)
    """Restarts of the worker group after a worker dies."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> TrainingConfig:
        for key, workers in self.worker_bounds.items():
            if self.batch_size % workers:
                raise ValueError(
                    f"training.batch_size {self.batch_size} is not a multiple of {key} {workers}"
                )
        share = self.batch_size // self.most_workers
        if self.precision == "fp64" and self.device == "cuda":
            raise ValueError("training.precision fp64 is for CPUs; use training.device=cpu, or bf16")
        if self.micro_batch_size is not None and share % self.micro_batch_size:
            raise ValueError(
                f"training.micro_batch_size {self.micro_batch_size} does not divide a worker's share {share}"
            )
        if self.parallel == "fsdp2" and self.gradient_norms_every_steps:
            # They are taken of the graph's own parameters, which are shards once a block has run.
            raise ValueError(
                "training.gradient_norms_every_steps is not measured with training.parallel fsdp2"
            )
        return self

    @property
    def most_workers(self) -> int:
        """Workers that train where there is room for all."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def fewest_workers(self) -> int:
        """Workers below which the run waits."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def worker_bounds(self) -> dict[str, int]:
        """The numbers of workers that stand in the configuration, by their keys."""
        if isinstance(self.workers, int):
            return {"training.workers": self.workers}
        return {"training.workers.min": self.workers.min, "training.workers.max": self.workers.max}

    def micro_batch_for(self, world: int) -> int | None:
        """Pairs that each of `world` workers holds at a time; None: its whole share.

        With a range of workers: the most pairs that divide the share and are no more than at the full number.
        """
        if isinstance(self.workers, int):
            return self.micro_batch_size
        most, share = self.micro_batch_size or self.batch_size // self.workers.max, self.batch_size // world
        if most >= share:
            return None
        return next(pairs for pairs in range(most, 0, -1) if share % pairs == 0)


class ValidationConfig(StrictConfig):
    """Validation on held-out patients with the full image and the whole report."""

    every_steps: int = Field(default=200, ge=1)
    """Steps between validations; step 0 and the last step are always validated."""
    gallery_size: int = Field(default=1000, ge=2, le=100_000)
    """Most pairs of the retrieval gallery: one per patient, distinct reports where there are enough."""
    loss_pairs: int = Field(default=64, ge=2, le=4096)
    """Pairs of the fixed batch on which losses are reported at the reference masks."""
    reference_image_mask_ratio: float = Field(default=0.75, ge=0.05, le=0.95)
    """Image masking of the reference losses."""
    reference_report_mask_ratio: float = Field(default=0.5, ge=0.05, le=0.95)
    """Report masking of the reference losses."""
    probe_train_pairs: int = Field(default=5000, ge=10, le=100_000)
    """Most training pairs that the linear probe is fitted on."""
    visual_gain_pairs: int = Field(default=256, ge=2, le=10_000)
    """Most pairs on which visual gain is measured."""
    batch_size: int = Field(default=64, ge=1, le=4096)
    """Pairs embedded at a time."""
    cache_bytes: int = Field(default=1024**3, ge=0)
    """Most memory in which a worker keeps the decoded pictures of its share between validations; what does
    not fit is decoded again each time."""
    seed: int = Field(default=0, ge=0)
    """Seed of gallery, masks and derangement, independent of training.seed so that runs compare."""


class PicturesConfig(StrictConfig):
    """Pictures of original, masked and reconstructed images, written into the run directory only."""

    enabled: bool | None = None
    """None: on for phantom pairs, off for real ones (pixels are confidential)."""
    pairs: int = Field(default=6, ge=1, le=64)
    """Validation pairs that are drawn."""


class TrackingConfig(StrictConfig):
    """Where a run's figures are sent beside its own record. Off unless asked for."""

    mlflow_uri: str | None = Field(default=None, min_length=1)
    """An MLflow that the run's figures and its configuration's numbers are sent to: an address
    (`https://host`), a database (`sqlite:///FILE`) or a folder. None: none. Needs the extra `mlflow`."""
    mlflow_experiment: str = Field(default="mpma", min_length=1, max_length=200)
    """The MLflow experiment that the run is put into; it is made where it is not there."""

    @model_validator(mode="after")
    def _is_a_place_without_a_password(self) -> TrackingConfig:
        scheme, separator, rest = (self.mlflow_uri or "").partition("://")
        if separator and scheme not in ("http", "https", "sqlite", "file"):
            raise ValueError(
                "tracking.mlflow_uri: an http or https address, sqlite:///FILE or a folder is expected"
            )
        if scheme in ("http", "https") and "@" in rest.partition("/")[0]:
            # The configuration is kept with the run, and shown.
            raise ValueError(
                "tracking.mlflow_uri: no name or password may stand in it; put them into "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self

    @property
    def leaves_the_machine(self) -> bool:
        """Whether figures are sent to an address."""
        return self.mlflow_uri is not None and self.mlflow_uri.startswith(("http://", "https://"))
