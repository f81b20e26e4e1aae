"""Which patches and which words are hidden, drawn on the host from the counter hash.

Decisions: an image keeps exactly round(P * (1 - ratio)) patches and a report loses exactly
max(1, round(ratio * words)) whole words, drawn without replacement. Exact counts give fixed shapes and
less variance than independent coins. Both are the first entries of an argsort of hashed noise, as in
the masked auto-encoder's random masking (He et al., "Masked autoencoders are scalable vision
learners", 2022), so no loop runs over pairs, patches or words. 0 is keep, 1 is hide.

Independent coins per word, as in MRM, can be had instead: there a report may lose no word, or all. The
coins of two ratios are those of the same noise, so a higher ratio hides the same words and more.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpma.data.counter_hash import counter_hash, uniform

Counters = NDArray[np.int64]

WordDraw = Literal["exact", "independent"]


def visible_patches(patches: int, ratio: float) -> int:
    """V, patches that stay visible at a mask ratio: round(patches * (1 - ratio)), at least 1."""
    return max(1, round(patches * (1 - ratio)))


def patch_order(seed: int, epoch: Counters, position: Counters, patches: int) -> NDArray[np.int64]:
    """int64 [B, patches]: a uniformly random permutation per pair, from int64 [B] counters."""
    noise = counter_hash(seed, "patches", epoch[:, None], position[:, None], np.arange(patches))
    return np.argsort(noise, axis=1, kind="stable")


def hidden_pieces(
    word_index: NDArray[np.int64],
    ratio: float,
    seed: int,
    epoch: Counters,
    position: Counters,
    draw: WordDraw = "exact",
) -> NDArray[np.bool_]:
    """bool [B, T]: True on every piece of the hidden words.

    `word_index` int64 [B, T] numbers the words from 0 and is -1 on special tokens and padding, which
    are never hidden. A report without words, and every report at ratio 0, loses none.
    """
    words = word_index.max(axis=1, initial=-1) + 1
    most = int(words.max(initial=0))
    if ratio == 0 or most == 0:
        return np.zeros(word_index.shape, bool)
    column = np.arange(most)
    noise = uniform(seed, "words", epoch[:, None], position[:, None], column)
    if draw == "independent":
        chosen = noise < ratio
    else:
        hidden = np.minimum(np.maximum(np.rint(ratio * words), 1), words)
        noise[column >= words[:, None]] = np.inf
        rank = np.argsort(np.argsort(noise, axis=1, kind="stable"), axis=1, kind="stable")
        chosen = rank < hidden[:, None]
    pieces: NDArray[np.bool_] = np.take_along_axis(chosen, np.maximum(word_index, 0), axis=1)
    return pieces & (word_index >= 0)
