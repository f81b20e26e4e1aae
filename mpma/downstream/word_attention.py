"""Where a word looks: the attention of words on patches that local alignment learned, as pictures.

Decisions: the attention is that of training, a softmax over patches of 10 * cosine of the word's and the
patches' local vectors (`mpma.model.alignment`), on the full image and the whole report, scaled so that its
peak is 1; only a model that was trained with local alignment has it. The words shown are the first of the
report that carry meaning by their length, each once.

Shape letters: B pairs, P patches, W word slots, A alignment width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mpma.loading import LoadedModel
from mpma.model.alignment import ATTENTION_SHARPNESS
from mpma.model.report import averaged_words

WORDS: Final = 4
"""Words shown of a report."""
_LEAST_LETTERS: Final = 4
_UNTOLD: Final = frozenset({"xxxx", "there", "with", "seen", "this", "that", "from", "been", "were", "which"})


def has_word_attention(loaded: LoadedModel) -> bool:
    """Whether local alignment was trained."""
    return loaded.model.wants_local and bool(loaded.step)


def word_attention(
    loaded: LoadedModel, pixels: Tensor, texts: Sequence[str]
) -> list[dict[str, NDArray[np.float32]]]:
    """Overlays [g, g] in 0..1 by word, for centre views uint8 [B,1,S,S] and their texts; empty without it."""
    if not has_word_attention(loaded):
        return [{} for _ in texts]
    ids, attention, word_index = loaded.tokens(texts)
    with (
        torch.no_grad(),
        torch.autocast(loaded.device.type, torch.bfloat16, enabled=loaded.precision == "bf16"),
    ):
        patches, words = local_vectors(loaded, pixels, ids, attention, word_index)
        looks = torch.softmax(ATTENTION_SHARPNESS * words.float() @ patches.float().transpose(1, 2), dim=-1)
    looks = looks / looks.amax(dim=-1, keepdim=True)
    side = round(looks.shape[-1] ** 0.5)
    shown = looks.view(*looks.shape[:2], side, side).cpu().numpy().astype(np.float32)
    return [
        {word: shown[pair, slot] for slot, word in _chosen(loaded, ids[pair], word_index[pair])}
        for pair in range(len(texts))
    ]


def local_vectors(
    loaded: LoadedModel, pixels: Tensor, ids: Tensor, attention: Tensor, word_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Local vectors of unit norm: patches [B,P,A] and words [B,W,A] (empty slots hold anything)."""
    model = loaded.model
    patches = model.local_image(model.embed_images(pixels).tokens)
    states = model.report_encoder.encode(model.report_encoder.embed(ids), attention)
    if model.alignment.local == "words_to_patches":
        return patches, model.local_report(averaged_words(states, word_index)[0])
    # Trained token by token: the tokens are projected, and a word is their mean.
    words, _ = averaged_words(model.local_report(states), word_index)
    return patches, functional.normalize(words, dim=-1)


def _chosen(loaded: LoadedModel, ids: Tensor, word_index: Tensor) -> list[tuple[int, str]]:
    found: dict[str, int] = {}
    for slot in range(int(word_index.max()) + 1):
        word = loaded.tokenizer.decode(ids[word_index == slot].tolist())
        if len(word) >= _LEAST_LETTERS and word.isalpha() and word not in _UNTOLD:
            found.setdefault(word, slot)
        if len(found) == WORDS:
            break
    return [(slot, word) for word, slot in found.items()]
