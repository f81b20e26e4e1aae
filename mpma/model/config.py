"""Settings of the model, one class per part. Torch-free, so that it loads fast.

Where the method's abstract is silent the variants are switchable; docs/method.md says which value
comes from where.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mpma.strict import StrictConfig


class ImageConfig(StrictConfig):
    """Image branch: crop, masking, encoder, decoder."""

    backbone: str = "vit_base_patch16_224"
    """A timm VisionTransformer by name; the fields below override its sizes."""
    size: int = Field(default=224, ge=32, le=2048)
    """Height and width of the encoder's input, in pixels; a multiple of patch_size."""
    patch_size: int = Field(default=16, ge=4, le=64)
    """Height and width of a patch of the encoder's input, in pixels."""
    width: int | None = Field(default=None, ge=16, le=4096)
    """Token width D. None: the backbone's."""
    layers: int | None = Field(default=None, ge=1, le=64)
    """Encoder blocks. None: the backbone's."""
    heads: int | None = Field(default=None, ge=1, le=64)
    """Attention heads of the encoder. None: the backbone's."""
    pretrained: str | None = None
    """Starting weights of the encoder: `timm` (the backbone's own tag) or a local .safetensors/.pth
    file. None: random. Three-channel weights are folded into the one-channel kernel."""
    mask_ratio: float = Field(default=0.75, ge=0.0, le=0.95)
    """Share of patches hidden from the encoder and reconstructed. 0 skips the reconstruction."""
    target_scale: Literal[1, 2, "auto"] = "auto"
    """Side of the reconstructed crop over that of the encoder's input. `auto`: 2 where the source
    images have the detail (median short side at least 2 * size), else 1; the choice is printed."""
    target_normalisation: Literal["patch", "none"] = "patch"
    """`patch`: each target patch standardised by its own mean and unbiased variance."""
    crop_scale_min: float = Field(default=0.6, gt=0.0, le=1.0)
    """Smallest share of the image's area that a random crop keeps."""
    crop_scale_max: float = Field(default=1.0, gt=0.0, le=1.0)
    """Largest share of the image's area that a random crop keeps."""
    crop_aspect_max: float = Field(default=1.2, ge=1.0, le=2.0)
    """A crop's aspect ratio is log-uniform between 1/crop_aspect_max and crop_aspect_max."""
    horizontal_flip: bool = False
    """Mirror half of the crops. Off: reports say left and right."""
    decoder_width: int = Field(default=384, ge=16, le=4096)
    """Width of the reconstruction decoder."""
    decoder_layers: int = Field(default=4, ge=1, le=16)
    """Blocks of the reconstruction decoder."""
    decoder_heads: int = Field(default=6, ge=1, le=64)
    """Attention heads of the reconstruction decoder."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ImageConfig:
        if self.size % self.patch_size:
            raise ValueError(
                f"image.size {self.size} is not a multiple of image.patch_size {self.patch_size}"
            )
        if self.crop_scale_min > self.crop_scale_max:
            raise ValueError("image.crop_scale_min is above image.crop_scale_max")
        if self.decoder_width % self.decoder_heads or (self.decoder_width // 4) * 4 != self.decoder_width:
            raise ValueError("image.decoder_width must be a multiple of image.decoder_heads and of 4")
        if self.width is not None and self.width % 4:
            raise ValueError("image.width must be a multiple of 4 (two-dimensional sine-cosine positions)")
        if self.width is not None and self.heads is not None and self.width % self.heads:
            raise ValueError(f"image.width {self.width} is not a multiple of image.heads {self.heads}")
        return self

    @property
    def patches(self) -> int:
        """P, patches of one image."""
        return (self.size // self.patch_size) ** 2


class ReportConfig(StrictConfig):
    """Report branch: length, masking, encoder."""

    max_tokens: int = Field(default=128, ge=8, le=512)
    """Tokens kept of a report, class and end tokens included; what is cut is counted at ingest."""
    mask_ratio: float = Field(default=0.5, ge=0.0, le=0.95)
    """Share of whole words hidden and reconstructed. 0 skips the reconstruction."""
    mask_draw: Literal["exact", "independent"] = "exact"
    """`exact`: round(ratio * words) of a report's words are hidden, at least one; `independent`: each word
    with probability ratio, as in MRM. Validation always draws exactly."""
    layers: int = Field(default=6, ge=1, le=48)
    """BERT layers."""
    width: int = Field(default=384, ge=16, le=4096)
    """E, width of the text and of the fusion."""
    heads: int = Field(default=6, ge=1, le=64)
    """Attention heads of the text encoder."""
    feed_forward_factor: int = Field(default=4, ge=1, le=8)
    """Feed-forward width over `width`, in the text encoder and in the fusion."""
    pretrained: str | None = None
    """A Hugging Face BERT by name or local folder, whose sizes and tokeniser must fit. None: random."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ReportConfig:
        if self.width % self.heads:
            raise ValueError(f"report.width {self.width} is not a multiple of report.heads {self.heads}")
        return self


class MemoryConfig(StrictConfig):
    """The learned memory of the cross-modal fusion."""

    kind: Literal["shared", "key_value", "none"] = "shared"
    """`shared`: one matrix queried by both modalities; `key_value`: learned slots beside the keys and
    values of the cross-attention; `none`: the ablation."""
    slots: int | None = Field(default=None, ge=1, le=65536)
    """M, memory slots. None: 2048 for `shared`, 40 for `key_value`."""
    top_k: int = Field(default=32, ge=1, le=4096)
    """Slots that each query and head attends to (`shared` only); at most slots / 2."""
    heads: int = Field(default=6, ge=1, le=64)
    """Heads of the memory's attention (`shared` only)."""
    dropout: float = Field(default=0.0, ge=0.0, le=0.9)
    """Dropout on the memory's attention weights."""

    @model_validator(mode="after")
    def _top_k_fits(self) -> MemoryConfig:
        if self.kind == "shared" and self.top_k * 2 > self.resolved_slots:
            raise ValueError(f"memory.top_k {self.top_k} is above half of memory.slots {self.resolved_slots}")
        return self

    @property
    def resolved_slots(self) -> int:
        """M with the kind's default filled in."""
        if self.slots is not None:
            return self.slots
        return {"shared": 2048, "key_value": 40, "none": 0}[self.kind]


class FusionConfig(StrictConfig):
    """How the image reaches the masked report."""

    kind: Literal["cross_attention", "mean_add"] = "cross_attention"
    """`cross_attention`: blocks of self-attention, cross-attention and feed-forward; `mean_add`: the
    mean visible token added to every word embedding (after MRM)."""
    layers: int = Field(default=2, ge=1, le=12)
    """Blocks of the cross-attention fusion."""
    heads: int = Field(default=6, ge=1, le=64)
    """Heads of the fusion's attentions."""


class AlignmentConfig(StrictConfig):
    """Global and local alignment of image and report."""

    width: int = Field(default=128, ge=8, le=2048)
    """A, width of the alignment space."""
    image_pooling: Literal["mean", "class"] = "mean"
    """The image vector: mean of patch tokens, or the class token."""
    text_view: Literal["unmasked", "masked"] = "unmasked"
    """Which half of the text batch is aligned; `masked` is read before memory and fusion."""
    image_view: Literal["masked", "full"] = "masked"
    """Which image is aligned: the visible patches (cheap) or a second pass over the full image."""
    unmasked_tail: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of the last steps that run with the full image (and without image reconstruction)."""
    temperature: float = Field(default=0.07, ge=0.01, le=1.0)
    """Starting temperature of the global contrast; learned, clamped to [0.01, 1]."""
    local: Literal["words_to_patches", "within_pair", "none"] = "words_to_patches"
    """Local alignment: between pairs of a group (after GLoRIA), within each pair (after MGCA), or none."""
    group_size: int = Field(default=64, ge=2, le=4096)
    """Consecutive positions of the global batch that contrast locally, whatever the number of workers."""
    within_pair_temperature: float = Field(default=0.1, ge=0.01, le=1.0)
    """Temperature of the within-pair variant."""


class LossWeights(StrictConfig):
    """Weights of the four terms; 0 skips that branch's work."""

    image_reconstruction: float = Field(default=1.0, ge=0.0, le=1000.0)
    """Masked-patch reconstruction."""
    report_reconstruction: float = Field(default=1.0, ge=0.0, le=1000.0)
    """Masked-word reconstruction."""
    global_alignment: float = Field(default=1.0, ge=0.0, le=1000.0)
    """Contrast of image and report vectors."""
    local_alignment: float = Field(default=1.0, ge=0.0, le=1000.0)
    """Contrast of words and patches."""
