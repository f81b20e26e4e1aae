"""Pairs of MRM's sizes for a benchmark that trains: grey JPEG of 512 px, reports of over 100 tokens.

Decisions: pictures are noise over smooth shades, which decodes like a radiograph; words are made of
syllables, so that the tokeniser that is trained on them fills its vocabulary of 30,000.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from mpma.data.dataset_writing import write_dataset
from mpma.data.tokenizer import train_tokenizer

VOCABULARY: Final = 30_000


def write_pairs(folder: Path, pairs: int, side: int = 512) -> Path:
    """A dataset of grey noise with the spectrum of a picture, and of reports longer than 100 tokens."""
    generator = np.random.default_rng(0)
    syllables = [first + vowel for first in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
    words = sorted({"".join(generator.choice(syllables, 3)) for _ in range(24_000)})
    images = []
    for _ in range(min(pairs, 64)):
        coarse = Image.fromarray(generator.integers(0, 256, (side // 8, side // 8), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + generator.normal(0, 4, smooth.shape)
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
        images.append(out.getvalue())

    def rows(first: int, count: int) -> Iterator[dict[str, Any]]:
        for row in range(first, first + count):
            text = " ".join(generator.choice(words, 110))
            ids = dict.fromkeys(("pair_id", "patient_id", "study_id"), f"synthetic-{row}")
            yield {
                **ids,
                **{"image": images[row % len(images)], "width": side, "height": side, "view": "PA"},
                **{"report": text, "findings": text, "impression": "", "labels": [str(row % 2)]},
                **{"source": "synthetic", "license": ""},
            }

    # Every word twice, or it would shape no entry.
    texts = [(patient, " ".join(words)) for patient in range(2)]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    splits = {"train": rows(0, pairs), "val": rows(pairs, 64)}
    write_dataset(folder, splits, tokenizer=tokenizer)
    return folder
