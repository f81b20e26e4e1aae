"""Global and local alignment of image and report (GLA).

Decisions:
- all similarity maths in fp32, whatever the caller's autocast says;
- global: symmetric InfoNCE over all workers' pairs in local-loss form, each worker scoring its own
  images and reports against everybody's, gathered with gradient;
- not negatives of each other, globally and locally: pairs whose normalised reports are equal, and
  pairs of one study. The diagonal stays, so a batch of identical reports costs exactly 0;
- the temperature is learned by its logarithm and kept in [0.01, 1]; its gradient is dropped only where
  it points further out, so it cannot get stuck at a bound;
- local `words_to_patches` [after GLoRIA]: one softmax over patches of 10 * cosine, context vector,
  pair score 10 * (1/5) * log-MEAN-exp over words of 5 * cosine(word, context): the mean, because a sum
  would favour long reports. Contrast both ways inside groups of consecutive positions of the global
  batch, so the result does not depend on the number of workers;
- the context vector is never built: with s the word's cosines and G the patches' Gram matrix,
  word.context = a.s and |context|^2 = a'Ga. Reports go through in chunks, which backward computes again
  where keeping them would be large. On a GPU the word-patch matrices are never in memory, and all whole
  groups go through at once (`mpma.model.alignment_kernels`);
- local `within_pair` [after MGCA]: tokens against their own attended patches and patches against their
  own attended tokens, inside one pair, uniform weights; equal token ids are not negatives.

Shape letters: I images, J reports, B own pairs, N global pairs, P patches, W words, T tokens, A width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mpma.model.gather import gather, gather_with_gradient, rank_and_world
from mpma.model.kernels import kernels_at_hand
from mpma.model.widening import widened

ATTENTION_SHARPNESS = 10.0
"""Factor on word-patch cosines before the softmax over patches."""
WORD_SHARPNESS = 5.0
"""Factor inside the log-mean-exp over words."""
LOCAL_SCALE = 10.0
"""Factor on a pair's local score, the inverse of a fixed temperature of 0.1."""
TEMPERATURE_BOUNDS = (0.01, 1.0)

_CHUNK_ELEMENTS = {"cpu": 2**21}
_CHUNK_ELEMENTS_ELSEWHERE = 2**26
_RECOMPUTED_FROM = 2**26
_SMALLEST_NORM_SQUARED = 1e-8
_LARGEST_WIDTH_OF_KERNELS = 256
_LARGEST_PATCHES_OF_KERNELS = 2**14
"""Elements P*A of an image's patches that a multiprocessor's memory holds beside words."""


class Projection(nn.Module):
    """Two layers into the alignment space and unit norm; Xavier, since the norm hides the scale anyway."""

    def __init__(self, width: int, alignment_width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, alignment_width)
        for layer in (self.hidden, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, values: Tensor) -> Tensor:
        """[...,E] -> fp32 [...,A] of unit norm."""
        projected = self.output(functional.gelu(self.hidden(values)))
        with torch.autocast(values.device.type, enabled=False):
            return functional.normalize(widened(projected), dim=-1)


class Temperature(nn.Module):
    """A learned scalar in [0.01, 1]."""

    def __init__(self, start: float) -> None:
        super().__init__()
        # One element and not a scalar: sharded data parallelism refuses scalars.
        self.logarithm = nn.Parameter(torch.tensor([math.log(start)]))

    def forward(self) -> Tensor:
        """The temperature, fp32 scalar."""
        low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
        bounded: Tensor = _Bounded.apply(self.logarithm, low, high)
        return bounded.exp().squeeze(0)


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient passes wherever following it would move the value inward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.bounds = (low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        low, high = ctx.bounds
        gradient = gradients[0]
        # Descent subtracts the gradient, so a positive one lowers the value.
        outward = ((value <= low) & (gradient > 0)) | ((value >= high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


@dataclass
class AlignmentFeatures:
    """What the alignment losses need of B pairs; fp32, unit norm. None where a loss is switched off."""

    image: Tensor | None
    """[B,A] image vectors of the global contrast."""
    report: Tensor | None
    """[B,A] report vectors of the global contrast."""
    patches: Tensor | None
    """[B,P,A] of the local alignment."""
    words: Tensor | None
    """[B,W,A]: words (`words_to_patches`) or tokens (`within_pair`)."""
    word_mask: Tensor | None
    """bool [B,W]: True where `words` holds a word or token."""
    word_ids: Tensor | None
    """int64 [B,W] token ids (`within_pair`)."""
    report_hash: Tensor
    """int64 [B]."""
    study_hash: Tensor
    """int64 [B]."""

    def differentiable(self) -> dict[str, Tensor]:
        """The features that carry gradients, by name."""
        found = {name: getattr(self, name) for name in ("image", "report", "patches", "words")}
        return {name: value for name, value in found.items() if value is not None}


def contrast(logits_RN: Tensor, target_R: Tensor, excluded_RN: Tensor) -> Tensor:
    """Cross-entropy per row [R] with excluded columns out of the denominator; fp32."""
    return functional.cross_entropy(
        logits_RN.masked_fill(excluded_RN, -torch.inf), target_R, reduction="none"
    )


def false_negatives(
    own_report_R: Tensor, own_study_R: Tensor, report_N: Tensor, study_N: Tensor, own_column_R: Tensor
) -> Tensor:
    """bool [R,N]: True where row and column share report or study and are not the same pair.

    Reports and studies may have leading dimensions, of groups that are each compared within themselves.
    """
    same = own_report_R[..., :, None] == report_N[..., None, :]
    same = same | (own_study_R[..., :, None] == study_N[..., None, :])
    columns = torch.arange(report_N.shape[-1], device=report_N.device)
    return same & (columns != own_column_R[:, None])


def global_alignment_loss(
    image_BA: Tensor, report_BA: Tensor, report_hash_B: Tensor, study_hash_B: Tensor, temperature: Tensor
) -> Tensor:
    """Symmetric InfoNCE of this worker's pairs against all workers' (Oord et al. 2018; CLIP's two ways).

    The mean over workers is the loss of the global batch; gradients follow once they are averaged over
    workers as data parallelism does.
    """
    rank, world = rank_and_world()
    count, width = image_BA.shape
    with torch.autocast(image_BA.device.type, enabled=False):
        image, report = widened(image_BA), widened(report_BA)
        if world == 1:
            all_images, all_reports = image, report
            hashes = torch.stack([report_hash_B, study_hash_B], dim=1)
        else:
            both = gather_with_gradient(torch.cat([image, report], dim=1))
            all_images, all_reports = both[:, :width], both[:, width:]
            hashes = gather(torch.stack([report_hash_B, study_hash_B], dim=1))
        column = torch.arange(count, device=image.device) + rank * count
        excluded = false_negatives(report_hash_B, study_hash_B, hashes[:, 0], hashes[:, 1], column)
        image_logits = image @ all_reports.T / temperature
        report_logits = image_logits.T if world == 1 else report @ all_images.T / temperature
        losses = contrast(image_logits, column, excluded) + contrast(report_logits, column, excluded)
        return 0.5 * losses.mean()


def word_patch_scores(patches_IPA: Tensor, words_JWA: Tensor, word_mask_JW: Tensor) -> Tensor:
    """Score of every image with every report, fp32 [I,J]; a report without words scores 0.

    Inputs are unit vectors. See the module's docstring for the formula.
    """
    if _has_kernels(patches_IPA):
        return group_scores(patches_IPA[None], words_JWA[None], word_mask_JW[None]).squeeze(0)
    with torch.autocast(patches_IPA.device.type, enabled=False):
        patches, words = widened(patches_IPA), widened(words_JWA)
        gram_IPP = patches @ patches.transpose(1, 2)
        per_report = words.shape[1] * patches.shape[0] * patches.shape[1]
        largest = _CHUNK_ELEMENTS.get(patches.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
        chunk = max(1, largest // per_report)
        recompute = per_report * words.shape[0] >= _RECOMPUTED_FROM and torch.is_grad_enabled()
        parts = []
        for part, mask in zip(words.split(chunk), word_mask_JW.split(chunk), strict=True):
            if recompute:
                again: Tensor = checkpoint(_scores_part, patches, gram_IPP, part, mask, use_reentrant=False)
                parts.append(again)
            else:
                parts.append(_scores_part(patches, gram_IPP, part, mask))
        return torch.cat(parts, dim=1)


def _scores_part(patches_IPA: Tensor, gram_IPP: Tensor, words_JWA: Tensor, word_mask_JW: Tensor) -> Tensor:
    images, count, width = patches_IPA.shape
    reports, slots, _ = words_JWA.shape
    # One plain matrix product, words innermost: softmax and sums over the few patches then run along
    # contiguous words, and the Gram product needs no copy.
    cosine = patches_IPA.reshape(-1, width) @ words_JWA.reshape(-1, width).T
    cosine = cosine.view(images, count, reports * slots)
    attention = torch.softmax(ATTENTION_SHARPNESS * cosine, dim=1)
    along = (attention * cosine).sum(dim=1)
    norm_squared = (attention * torch.bmm(gram_IPP, attention)).sum(dim=1)
    similarity = along * torch.rsqrt(norm_squared.clamp_min(_SMALLEST_NORM_SQUARED))
    return _pooled(similarity.view(images, reports, slots), word_mask_JW)


def _pooled(similarity_IJW: Tensor, word_mask_JW: Tensor) -> Tensor:
    """Scores of reports from their words' similarities: [...,I,J,W] and [...,J,W] -> [...,I,J]."""
    mask = word_mask_JW.unsqueeze(-3)
    words = mask.sum(dim=-1)
    # Finite, so that a report without words gives no NaN gradient before it is set to 0 below.
    padding = torch.zeros(mask.shape, device=similarity_IJW.device).masked_fill(~mask, -1e4)
    pooled = torch.logsumexp(WORD_SHARPNESS * similarity_IJW + padding, dim=-1)
    pooled = (pooled - words.clamp_min(1).log()) * (LOCAL_SCALE / WORD_SHARPNESS)
    return torch.where(words > 0, pooled, 0.0)


def _has_kernels(patches: Tensor) -> bool:
    """Whether `mpma.model.alignment_kernels` can be used: they need a GPU that Triton knows, and fit it."""
    count, width = patches.shape[-2:]
    tile = 1 << (max(count, 64) - 1).bit_length()
    fits = tile * width <= _LARGEST_PATCHES_OF_KERNELS and 16 <= width <= _LARGEST_WIDTH_OF_KERNELS
    return kernels_at_hand(patches) and fits and width & (width - 1) == 0


def group_scores(patches_NIPA: Tensor, words_NJWA: Tensor, word_mask_NJW: Tensor) -> Tensor:
    """`word_patch_scores` inside each of N groups: fp32 [N,I,J]."""
    if not _has_kernels(patches_NIPA):
        groups = zip(patches_NIPA, words_NJWA, word_mask_NJW, strict=True)
        return torch.stack([word_patch_scores(*group) for group in groups])
    from mpma.model.alignment_kernels import similarity_on_gpu

    with torch.autocast(patches_NIPA.device.type, enabled=False):
        similarity_NIL = similarity_on_gpu(
            patches_NIPA.float(),
            words_NJWA.float().flatten(1, 2),
            word_mask_NJW.flatten(1, 2),
            ATTENTION_SHARPNESS,
            _SMALLEST_NORM_SQUARED,
        )
        return _pooled(similarity_NIL.unflatten(2, word_mask_NJW.shape[1:]), word_mask_NJW)


def words_to_patches_loss(features: AlignmentFeatures, group_size: int) -> Tensor:
    """InfoNCE both ways over local scores inside groups of the global batch; fp32 scalar.

    Mean over this worker's pairs; the mean over workers is the loss of the global batch. Where a
    worker's share is whole groups, nothing is communicated.
    """
    rank, world = rank_and_world()
    patches, words, mask = _local_features(features)
    own = patches.shape[0]
    hashes = torch.stack([features.report_hash, features.study_hash], dim=1)
    first, total = rank * own, world * own
    offset = first
    if world > 1 and own % group_size:
        count, width = patches.shape[1], patches.shape[2]
        both = gather_with_gradient(torch.cat([widened(patches), widened(words)], dim=1))
        patches, words = both[:, :count], both[:, count:]
        mask, hashes, offset = gather(mask), gather(hashes), 0
        assert width == words.shape[2]
    # Whole groups of this worker's share go through together, those of two workers one by one.
    whole_start = -(-first // group_size) * group_size
    whole_stop = max(whole_start, (first + own) // group_size * group_size)
    losses = []
    start = first // group_size * group_size
    while start < first + own:
        stop = whole_stop if whole_start <= start < whole_stop else min(start + group_size, total)
        span = slice(start - offset, stop - offset)
        members = (patches[span], words[span], mask[span], hashes[span])
        if start == whole_start < whole_stop:
            losses.append(_whole_groups_losses(*members, group_size))
        else:
            mine = slice(max(start, first) - start, min(stop, first + own) - start)
            losses.append(_group_losses(*members, mine))
        start = stop
    return torch.cat(losses).mean()


def _whole_groups_losses(
    patches: Tensor, words: Tensor, mask: Tensor, hashes: Tensor, group_size: int
) -> Tensor:
    """Losses of pairs [N * group size] in consecutive groups."""
    patches, words, mask = (each.unflatten(0, (-1, group_size)) for each in (patches, words, mask))
    by_image = group_scores(patches, words, mask)
    column = torch.arange(group_size, device=patches.device)
    report, study = hashes.unflatten(0, (-1, group_size)).unbind(2)
    excluded = false_negatives(report, study, report, study, column)
    own, rows = column.repeat(patches.shape[0]), excluded.flatten(0, 1)
    # `excluded` is symmetric inside a group.
    by_report = by_image.transpose(1, 2).flatten(0, 1)
    return 0.5 * (contrast(by_image.flatten(0, 1), own, rows) + contrast(by_report, own, rows))


def _group_losses(patches: Tensor, words: Tensor, mask: Tensor, hashes: Tensor, mine: slice) -> Tensor:
    """Losses of this worker's pairs of one group that is not whole or not this worker's alone."""
    count = patches.shape[0]
    column = torch.arange(count, device=patches.device)[mine]
    excluded = false_negatives(hashes[mine, 0], hashes[mine, 1], hashes[:, 0], hashes[:, 1], column)
    if mine == slice(0, count):
        by_image = word_patch_scores(patches, words, mask)
        by_report = by_image.T
    else:
        by_image = word_patch_scores(patches[mine], words, mask)
        by_report = word_patch_scores(patches, words[mine], mask[mine]).T
    return 0.5 * (contrast(by_image, column, excluded) + contrast(by_report, column, excluded))


def within_pair_loss(features: AlignmentFeatures, temperature: float) -> Tensor:
    """Tokens with their attended patches and patches with their attended tokens, inside each pair.

    Each side is an InfoNCE both ways; uniform mean over a pair's tokens or patches, then over sides
    and pairs. Needs no other pair, hence no communication. fp32 scalar.
    """
    patches, tokens, mask = _local_features(features)
    assert features.word_ids is not None
    with torch.autocast(patches.device.type, enabled=False):
        patches, tokens = widened(patches), widened(tokens)
        cosine_BTP = ATTENTION_SHARPNESS * (tokens @ patches.transpose(1, 2))
        seen = functional.normalize(torch.softmax(cosine_BTP, dim=-1) @ patches, dim=-1)
        hidden = torch.where(mask[:, :, None], cosine_BTP, -1e4)
        read = functional.normalize(torch.softmax(hidden, dim=1).transpose(1, 2) @ tokens, dim=-1)
        same = features.word_ids[:, :, None] == features.word_ids[:, None, :]
        own = torch.eye(same.shape[1], dtype=torch.bool, device=same.device)
        token_excluded = (same & ~own) | (~mask[:, None, :] & ~own)
        token_losses = _both_ways(tokens, seen, token_excluded, temperature)
        real = mask.to(token_losses.dtype)
        token_side = (token_losses * real).sum(dim=1) / real.sum(dim=1).clamp_min(1.0)
        patch_excluded = torch.zeros(1, 1, 1, dtype=torch.bool, device=same.device)
        patch_side = _both_ways(patches, read, patch_excluded, temperature).mean(dim=1)
        patch_side = torch.where(mask.any(dim=1), patch_side, 0.0)
        return 0.5 * (token_side + patch_side).mean()


def _both_ways(left_BLA: Tensor, right_BLA: Tensor, excluded_BLL: Tensor, temperature: float) -> Tensor:
    logits = left_BLA @ right_BLA.transpose(1, 2) / temperature
    # `excluded` is symmetric between real tokens, and rows of padding are left out by the caller.
    forward = logits.masked_fill(excluded_BLL, -torch.inf).log_softmax(dim=2)
    backward = logits.transpose(1, 2).masked_fill(excluded_BLL, -torch.inf).log_softmax(dim=2)
    return -0.5 * (forward.diagonal(dim1=1, dim2=2) + backward.diagonal(dim1=1, dim2=2))


def _local_features(features: AlignmentFeatures) -> tuple[Tensor, Tensor, Tensor]:
    assert features.patches is not None
    assert features.words is not None
    assert features.word_mask is not None
    return features.patches, features.words, features.word_mask
