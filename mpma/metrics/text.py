"""Generated text against the true one: what BLEU and ROUGE-L need, text by text.

Decisions:
- Both texts are lower case, cut into runs of word characters and single marks of punctuation; white space
  and line breaks mean nothing. So what a WordPiece decoder writes as `4 . 5 cm` equals `4.5 cm`. There is
  no stemming, and the figures are those of these words: published ones with another tokeniser differ.
- BLEU belongs to a corpus: what is kept per text are its sums, so that a bootstrap can weight texts. They
  are sacrebleu's. ROUGE-L is a mean over texts: torchmetrics' F-measure of the longest common subsequence.
- An empty generated text scores 0, whatever the reference.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_TOKEN: Final = re.compile(r"[^\W_]+|[^\w\s]|_")


def tokens(text: str) -> list[str]:
    """Lower-case words and single marks of punctuation.

    Example:
        >>> tokens("No effusion, 4.5 cm.")
        ['no', 'effusion', ',', '4', '.', '5', 'cm', '.']
    """
    return _TOKEN.findall(text.lower())


def text_statistics(generated: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays of m texts against one reference each, for the rules `bleu` and `mean`.

    `bleu_matches`, `bleu_totals` int64 [m, 4]: n-grams of the generated text that the reference has (each
    as often as there at most), and all; `bleu_lengths` int64 [m, 2]: tokens of both; `rouge_l` float64 [m].
    Raises ValueError where the numbers of texts differ.
    """
    if len(generated) != len(references):
        raise ValueError(f"{len(generated)} generated texts for {len(references)} references")
    from sacrebleu.metrics import BLEU

    # Only counts are read, so neither smoothing nor order matters; the texts are cut already.
    counter = BLEU(tokenize="none", smooth_method="none", effective_order=True)
    matches, totals, lengths, rouge = [], [], [], []
    for said, meant in zip(generated, references, strict=True):
        words, true_words = " ".join(tokens(said)), " ".join(tokens(meant))
        found = counter.sentence_score(words, [true_words])
        matches.append(found.counts)
        totals.append(found.totals)
        lengths.append([found.sys_len, found.ref_len])
        rouge.append(_rouge_l(words, true_words))
    return {
        "bleu_matches": np.array(matches, np.int64).reshape(-1, 4),
        "bleu_totals": np.array(totals, np.int64).reshape(-1, 4),
        "bleu_lengths": np.array(lengths, np.int64).reshape(-1, 2),
        "rouge_l": np.array(rouge, np.float64),
    }


def _rouge_l(words: str, true_words: str) -> float:
    from torchmetrics.functional.text import rouge_score

    if not words or not true_words:
        return 0.0
    found = rouge_score(words, true_words, rouge_keys="rougeL", tokenizer=str.split, normalizer=str)
    return float(found["rougeL_fmeasure"])
