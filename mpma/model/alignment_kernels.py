"""Similarities of words and their attended patches on a GPU, without the word-patch matrices in memory.

With patches p, a word w, Gram matrix G of the image's patches (Shape letters below):
    c = p.w    a = softmax(10 c) over patches    along = a.c    n = a'Ga = |context|^2    s = along / sqrt(n).
With g the gradient of s, r = 1 / sqrt(n), u = g r and v = s r, the gradient of a is u (c - v Ga). Its mean
under a is 0, since s does not depend on the length of the context, so the softmax leaves of the cosines'
gradient d = u a (1 + 10 (c - v Ga)), and with m = -u v
    dw = sum over images of d'p    dp = (sum over words of d w') + (sum over words of m a a') p.
Where n is below its smallest value, so that patches cancel each other, u is 0: no gradient.

Decisions:
- one program holds an image's patches and goes through blocks of words, or holds a block of words and goes
  through the group's images; cosines, attention and their gradients stay in registers. Backward computes
  them again from three numbers a word: similarity, log of the softmax's sum, 1 / norm;
- products run on tensor cores at fp32's precision: every fp32 operand is the sum of two fp16 halves (22 bits
  of values that are at most about 1), and high.high + high.low + low.high are added up in fp32. That is half
  the work of three products in tf32. So that gradients have that range too, u is divided by its largest
  size, of the word over images or of the image over words, and the sum is multiplied by it;
- words that are padding are left out: a group's words are put in order with the real ones first, and the
  programs stop behind them;
- up to 64 patches Ga comes from the Gram matrix, above from the context p(p'a), which then needs less memory;
- no atomics: where one image's words are shared out over programs, a second sum adds up their parts, so
  two runs give the same bits.

Shape letters: N groups, I images of a group, P patches, L words of a group's reports, A width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PROGRAMS = 512
"""Programs below which an image's words are shared out over several."""
_PATCHES_BY_GRAM = 64
_SMALLEST_TILE = 64
_SMALLEST_SCALE = 1e-30
_LARGEST_TUNED = 2**13
"""Elements P*A of an image up to which registers hold nearly everything."""
_LAUNCHES = {
    # Two programs to a multiprocessor, or one of twice the warps, with almost nothing spilled.
    True: {
        "similarity": {"TILE_W": 64, "num_warps": 4, "num_stages": 2},
        "words": {"TILE_W": 128, "num_warps": 8, "num_stages": 2},
        "patches": {"TILE_W": 32, "num_warps": 4, "num_stages": 2},
    },
    False: {
        "similarity": {"TILE_W": 64, "num_warps": 8, "num_stages": 1},
        "words": {"TILE_W": 64, "num_warps": 8, "num_stages": 1},
        "patches": {"TILE_W": 32, "num_warps": 8, "num_stages": 1},
    },
}
# The interpreter's products of fp16 on a CPU are slow, hence fp32 there; sums are fp32 in both.
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _halves(values):  # type: ignore[no-untyped-def]
    high = values.to(tl.float16)
    return high, (values - high.to(tl.float32)).to(tl.float16)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _dot(left, right, total):  # type: ignore[no-untyped-def]
    if _INTERPRETED:
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(left, right, total)
    return total


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _add_product(total, left_high, left_low, right_high, right_low):  # type: ignore[no-untyped-def]
    total = _dot(left_low, right_high, total)
    total = _dot(left_high, right_low, total)
    return _dot(left_high, right_high, total)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _gram_kernel(  # type: ignore[no-untyped-def]
    patches_high, patches_low, gram_high, gram_low, patches, TILE_P: tl.constexpr, WIDTH: tl.constexpr
):
    image = tl.program_id(0).to(tl.int64)
    patch = tl.arange(0, TILE_P)
    place = image * patches * WIDTH + patch[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    high = tl.load(patches_high + place, mask=patch[:, None] < patches, other=0.0)
    low = tl.load(patches_low + place, mask=patch[:, None] < patches, other=0.0)
    gram = _dot(low, tl.trans(low), tl.zeros([TILE_P, TILE_P], tl.float32))
    gram = _add_product(gram, high, low, tl.trans(high), tl.trans(low))
    gram_high_part, gram_low_part = _halves(gram)
    target = image * TILE_P * TILE_P + patch[:, None] * TILE_P + patch[None, :]
    tl.store(gram_high + target, gram_high_part)
    tl.store(gram_low + target, gram_low_part)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _similarity_kernel(  # type: ignore[no-untyped-def]
    patches_high, patches_low, gram_high, gram_low, words_high, words_low, counts,
    similarities, logarithms, inverses, images, patches, length, parts, sharpness, smallest,
    TILE_P: tl.constexpr, TILE_W: tl.constexpr, WIDTH: tl.constexpr, BY_GRAM: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    group = image // images
    patch = tl.arange(0, TILE_P)
    column = tl.arange(0, WIDTH)
    patches_place = image * patches * WIDTH + patch[:, None] * WIDTH + column[None, :]
    p_high = tl.load(patches_high + patches_place, mask=patch[:, None] < patches, other=0.0)
    p_low = tl.load(patches_low + patches_place, mask=patch[:, None] < patches, other=0.0)
    if BY_GRAM:
        gram_place = image * TILE_P * TILE_P + patch[:, None] * TILE_P + patch[None, :]
        g_high = tl.load(gram_high + gram_place)
        g_low = tl.load(gram_low + gram_place)
    count = tl.load(counts + group)
    share = tl.cdiv(tl.cdiv(count, TILE_W), parts) * TILE_W
    stop = tl.minimum((part + 1) * share, count)
    for first in range(part * share, stop, TILE_W):
        word = first + tl.arange(0, TILE_W)
        there = word < stop
        words_place = (group * length + word[:, None]) * WIDTH + column[None, :]
        w_high = tl.load(words_high + words_place, mask=there[:, None], other=0.0)
        w_low = tl.load(words_low + words_place, mask=there[:, None], other=0.0)
        cosine = tl.zeros([TILE_W, TILE_P], tl.float32)
        cosine = _add_product(cosine, w_high, w_low, tl.trans(p_high), tl.trans(p_low))
        sharp = tl.where(patch[None, :] < patches, cosine * sharpness, float("-inf"))
        largest = tl.max(sharp, axis=1)
        exponents = tl.exp(sharp - largest[:, None])
        total = tl.sum(exponents, axis=1)
        attention = exponents * (1.0 / total)[:, None]
        along = tl.sum(attention * cosine, axis=1)
        a_high, a_low = _halves(attention)
        if BY_GRAM:
            product = tl.zeros([TILE_W, TILE_P], tl.float32)
            product = _add_product(product, a_high, a_low, g_high, g_low)
            norm = tl.sum(attention * product, axis=1)
        else:
            context = tl.zeros([TILE_W, WIDTH], tl.float32)
            context = _add_product(context, a_high, a_low, p_high, p_low)
            norm = tl.sum(context * context, axis=1)
        target = image * length + word
        inverse = 1.0 / tl.sqrt(tl.maximum(norm, smallest))
        tl.store(similarities + target, along * inverse, mask=there)
        tl.store(logarithms + target, largest + tl.log(total), mask=there)
        tl.store(inverses + target, tl.where(norm >= smallest, inverse, 0.0), mask=there)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _factors(toward, lengths, logarithms, place, there):  # type: ignore[no-untyped-def]
    """Per word: u, v and the log of the softmax's sum."""
    return (
        tl.load(toward + place, mask=there, other=0.0),
        tl.load(lengths + place, mask=there, other=0.0),
        tl.load(logarithms + place, mask=there, other=0.0),
    )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _words_gradient_kernel(  # type: ignore[no-untyped-def]
    patches_high, patches_low, gram_high, gram_low, words_high, words_low, counts,
    toward, lengths, logarithms, scales, result, images, patches, length, sharpness,
    TILE_P: tl.constexpr, TILE_W: tl.constexpr, WIDTH: tl.constexpr, BY_GRAM: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    word = tl.program_id(0) * TILE_W + tl.arange(0, TILE_W)
    patch = tl.arange(0, TILE_P)
    column = tl.arange(0, WIDTH)
    count = tl.load(counts + group)
    there = word < count
    words_place = (group * length + word[:, None]) * WIDTH + column[None, :]
    w_high = tl.load(words_high + words_place, mask=there[:, None], other=0.0)
    w_low = tl.load(words_low + words_place, mask=there[:, None], other=0.0)
    scale = tl.load(scales + group * length + word, mask=there, other=1.0)
    shrink = 1.0 / scale
    total = tl.zeros([TILE_W, WIDTH], tl.float32)
    # No image where the block holds padding only.
    stop = tl.where(tl.program_id(0) * TILE_W < count, images, 0)
    for index in range(0, stop):
        image = group * images + index
        patches_place = image * patches * WIDTH + patch[:, None] * WIDTH + column[None, :]
        p_high = tl.load(patches_high + patches_place, mask=patch[:, None] < patches, other=0.0)
        p_low = tl.load(patches_low + patches_place, mask=patch[:, None] < patches, other=0.0)
        u, v, logarithm = _factors(toward, lengths, logarithms, image * length + word, there)
        u = u * shrink
        cosine = tl.zeros([TILE_W, TILE_P], tl.float32)
        cosine = _add_product(cosine, w_high, w_low, tl.trans(p_high), tl.trans(p_low))
        attention = tl.exp(cosine * sharpness - logarithm[:, None])
        attention = tl.where(patch[None, :] < patches, attention, 0.0)
        a_high, a_low = _halves(attention)
        product = tl.zeros([TILE_W, TILE_P], tl.float32)
        if BY_GRAM:
            gram_place = image * TILE_P * TILE_P + patch[:, None] * TILE_P + patch[None, :]
            g_high = tl.load(gram_high + gram_place)
            g_low = tl.load(gram_low + gram_place)
            product = _add_product(product, a_high, a_low, g_high, g_low)
        else:
            context = tl.zeros([TILE_W, WIDTH], tl.float32)
            context = _add_product(context, a_high, a_low, p_high, p_low)
            x_high, x_low = _halves(context)
            product = _add_product(product, x_high, x_low, tl.trans(p_high), tl.trans(p_low))
        inner = cosine - v[:, None] * product
        gradient = u[:, None] * attention * (1.0 + sharpness * inner)
        d_high, d_low = _halves(gradient)
        total = _add_product(total, d_high, d_low, p_high, p_low)
    tl.store(result + words_place, total * scale[:, None], mask=word[:, None] < length)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _patches_gradient_kernel(  # type: ignore[no-untyped-def]
    patches_high, patches_low, gram_high, gram_low, words_high, words_low, counts,
    toward, lengths, logarithms, scales, result, images, patches, length, parts, sharpness,
    TILE_P: tl.constexpr, TILE_W: tl.constexpr, WIDTH: tl.constexpr, BY_GRAM: tl.constexpr,
):  # fmt: skip
    # Patches by words, so that no gradient is turned over between its making and its product.
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    group = image // images
    patch = tl.arange(0, TILE_P)
    column = tl.arange(0, WIDTH)
    patches_place = image * patches * WIDTH + patch[:, None] * WIDTH + column[None, :]
    p_high = tl.load(patches_high + patches_place, mask=patch[:, None] < patches, other=0.0)
    p_low = tl.load(patches_low + patches_place, mask=patch[:, None] < patches, other=0.0)
    if BY_GRAM:
        gram_place = image * TILE_P * TILE_P + patch[:, None] * TILE_P + patch[None, :]
        g_high = tl.load(gram_high + gram_place)
        g_low = tl.load(gram_low + gram_place)
        to_gram = tl.zeros([TILE_P, TILE_P], tl.float32)
    scale = tl.load(scales + image)
    shrink = 1.0 / scale
    total = tl.zeros([TILE_P, WIDTH], tl.float32)
    count = tl.load(counts + group)
    share = tl.cdiv(tl.cdiv(count, TILE_W), parts) * TILE_W
    stop = tl.minimum((part + 1) * share, count)
    for first in range(part * share, stop, TILE_W):
        word = first + tl.arange(0, TILE_W)
        there = word < stop
        words_place = (group * length + word[:, None]) * WIDTH + column[None, :]
        w_high = tl.load(words_high + words_place, mask=there[:, None], other=0.0)
        w_low = tl.load(words_low + words_place, mask=there[:, None], other=0.0)
        u, v, logarithm = _factors(toward, lengths, logarithms, image * length + word, there)
        u = u * shrink
        cosine = tl.zeros([TILE_P, TILE_W], tl.float32)
        cosine = _add_product(cosine, p_high, p_low, tl.trans(w_high), tl.trans(w_low))
        attention = tl.exp(cosine * sharpness - logarithm[None, :])
        attention = tl.where(patch[:, None] < patches, attention, 0.0)
        a_high, a_low = _halves(attention)
        product = tl.zeros([TILE_P, TILE_W], tl.float32)
        if BY_GRAM:
            product = _add_product(product, g_high, g_low, a_high, a_low)
        else:
            context = tl.zeros([WIDTH, TILE_W], tl.float32)
            context = _add_product(context, tl.trans(p_high), tl.trans(p_low), a_high, a_low)
            x_high, x_low = _halves(context)
            product = _add_product(product, p_high, p_low, x_high, x_low)
        inner = cosine - v[None, :] * product
        gradient = u[None, :] * attention * (1.0 + sharpness * inner)
        d_high, d_low = _halves(gradient)
        total = _add_product(total, d_high, d_low, w_high, w_low)
        m_high, m_low = _halves(attention * (-u * v)[None, :])
        if BY_GRAM:
            to_gram = _add_product(to_gram, m_high, m_low, tl.trans(a_high), tl.trans(a_low))
        else:
            total = _add_product(total, m_high, m_low, tl.trans(x_high), tl.trans(x_low))
    if BY_GRAM:
        # A sum over words may leave fp16's range.
        largest = tl.maximum(tl.max(tl.max(tl.abs(to_gram), axis=1), axis=0), 1e-30)
        to_gram_high, to_gram_low = _halves(to_gram * (1.0 / largest))
        last = tl.zeros([TILE_P, WIDTH], tl.float32)
        total += _add_product(last, to_gram_high, to_gram_low, p_high, p_low) * largest
    all_images = tl.num_programs(0).to(tl.int64)
    target = part * all_images * patches * WIDTH + patches_place
    tl.store(result + target, total * scale, mask=patch[:, None] < patches)


def _split(values: Tensor) -> tuple[Tensor, Tensor]:
    high = values.to(torch.float16)
    return high, (values - high).to(torch.float16)


class _Operands:
    """What every kernel takes: the halves of patches, Gram matrices and words in order, and the tiles."""

    def __init__(self, patches_NIPA: Tensor, words_NLA: Tensor, mask_NL: Tensor) -> None:
        self.groups, self.images, self.patches, self.width = patches_NIPA.shape
        self.length = words_NLA.shape[1]
        self.position, self.order = _real_words_first(mask_NL)
        self.counts = mask_NL.sum(dim=1, dtype=torch.int32)
        tile_patches = max(_SMALLEST_TILE, triton.next_power_of_2(self.patches))
        self.by_gram = tile_patches <= _PATCHES_BY_GRAM
        self.launch = _LAUNCHES[tile_patches * self.width <= _LARGEST_TUNED]
        self.tiles = {"TILE_P": tile_patches, "WIDTH": self.width, "BY_GRAM": self.by_gram}
        patches = _split(patches_NIPA.contiguous())
        rows = (self.order + torch.arange(self.groups, device=mask_NL.device)[:, None] * self.length).view(-1)
        words = _split(words_NLA.reshape(-1, self.width).index_select(0, rows))
        gram = patches
        if self.by_gram:
            shape = (self.groups * self.images, tile_patches, tile_patches)
            gram = (patches[0].new_empty(shape), patches[0].new_empty(shape))
            _gram_kernel[(shape[0],)](
                *patches, *gram, self.patches, TILE_P=tile_patches, WIDTH=self.width, num_warps=4
            )
        self.tensors = (*patches, *gram, *words, self.counts)
        blocks = triton.cdiv(self.length, self.launch["similarity"]["TILE_W"])
        self.parts = max(1, min(blocks, _PROGRAMS // (self.groups * self.images)))

    def in_order(self, values_NIL: Tensor) -> Tensor:
        return values_NIL.gather(2, self.order[:, None].expand(values_NIL.shape))

    def in_place(self, values_NIL: Tensor) -> Tensor:
        return values_NIL.gather(2, self.position[:, None].expand(values_NIL.shape))


def _real_words_first(mask_NL: Tensor) -> tuple[Tensor, Tensor]:
    """(where each slot goes, which slot comes there), int64 [N,L], keeping the order of the real words."""
    real = mask_NL.cumsum(dim=1)
    padding = (~mask_NL).cumsum(dim=1) + real[:, -1:]
    position = torch.where(mask_NL, real, padding) - 1
    slots = torch.arange(mask_NL.shape[1], device=mask_NL.device).expand(mask_NL.shape)
    return position, torch.empty_like(position).scatter_(1, position, slots)


def similarities(
    patches_NIPA: Tensor, words_NLA: Tensor, mask_NL: Tensor, sharpness: float, smallest: float
) -> tuple[Tensor, Tensor]:
    """(similarity [N,I,L], 0 for padding; what backward needs [3,N,I,L]); fp32."""
    given = _Operands(patches_NIPA, words_NLA, mask_NL)
    kept = patches_NIPA.new_zeros(3, given.groups, given.images, given.length)
    _similarity_kernel[(given.groups * given.images, given.parts)](
        *given.tensors, *kept, given.images, given.patches, given.length, given.parts,
        sharpness, smallest, **given.tiles, **given.launch["similarity"],
    )  # fmt: skip
    return given.in_place(kept[0]), kept


def similarity_gradients(
    gradient_NIL: Tensor, patches_NIPA: Tensor, words_NLA: Tensor, mask_NL: Tensor, kept: Tensor,
    sharpness: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of patches [N,I,P,A] and words [N,L,A]; fp32."""
    given = _Operands(patches_NIPA, words_NLA, mask_NL)
    similarity, logarithms, inverses = kept
    u = given.in_order(gradient_NIL) * inverses
    v = similarity * inverses
    size = u.abs()
    by_word, by_image = (size.amax(dim=axis).clamp_min(_SMALLEST_SCALE) for axis in (1, 2))
    words = torch.empty_like(words_NLA, memory_format=torch.contiguous_format)
    blocks = triton.cdiv(given.length, given.launch["words"]["TILE_W"])
    _words_gradient_kernel[(blocks, given.groups)](
        *given.tensors, u, v, logarithms, by_word, words, given.images, given.patches, given.length,
        sharpness, **given.tiles, **given.launch["words"],
    )  # fmt: skip
    parts = patches_NIPA.new_empty(given.parts, *patches_NIPA.shape)
    _patches_gradient_kernel[(given.groups * given.images, given.parts)](
        *given.tensors, u, v, logarithms, by_image, parts, given.images, given.patches, given.length,
        given.parts, sharpness, **given.tiles, **given.launch["patches"],
    )  # fmt: skip
    patches = parts[0] if given.parts == 1 else parts.sum(dim=0)
    return patches, words.gather(1, given.position[:, :, None].expand(words.shape))


@torch.library.custom_op("mpma::word_patch_similarity", mutates_args=(), device_types="cuda")
def _similarity(
    patches: Tensor, words: Tensor, mask: Tensor, sharpness: float, smallest: float
) -> tuple[Tensor, Tensor]:
    return similarities(patches, words, mask, sharpness, smallest)


@_similarity.register_fake
def _(
    patches: Tensor, words: Tensor, mask: Tensor, sharpness: float, smallest: float
) -> tuple[Tensor, Tensor]:
    shape = (patches.shape[0], patches.shape[1], words.shape[1])
    return patches.new_empty(shape), patches.new_empty(3, *shape)


@torch.library.custom_op("mpma::word_patch_similarity_backward", mutates_args=(), device_types="cuda")
def _similarity_backward(
    gradient: Tensor, patches: Tensor, words: Tensor, mask: Tensor, kept: Tensor,
    sharpness: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return similarity_gradients(gradient, patches, words, mask, kept, sharpness)


@_similarity_backward.register_fake
def _(
    gradient: Tensor, patches: Tensor, words: Tensor, mask: Tensor, kept: Tensor,
    sharpness: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return patches.new_empty(patches.shape), words.new_empty(words.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    patches, words, mask, ctx.sharpness, _ = inputs
    ctx.save_for_backward(patches, words, mask, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, None, None, None]:
    patches, words = _similarity_backward(gradient, *ctx.saved_tensors, ctx.sharpness)
    return patches, words, None, None, None


_similarity.register_autograd(_backward, setup_context=_keep)


def similarity_on_gpu(
    patches_NIPA: Tensor, words_NLA: Tensor, mask_NL: Tensor, sharpness: float, smallest: float
) -> Tensor:
    """Similarity of every word of a group with its context in every image of the group: fp32 [N,I,L].

    Padding words get 0 and no gradient. Inputs are fp32 CUDA tensors, words and patches unit vectors.
    """
    similarity, _ = _similarity(patches_NIPA, words_NLA, mask_NL, sharpness, smallest)
    return similarity
