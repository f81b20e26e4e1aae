"""The report's tokeniser: trained at ingest to the same bytes every time, applied to whole batches.

Decisions: lower case, NFKD, accents stripped, BERT's division into words, WordPiece by longest match.
The library's WordPiece trainer depends on the order of a hash table; so the vocabulary is grown by
byte-pair merges, which depend on counts alone once every letter and its `##` form have numbers in a
fixed order, and is then handed to WordPiece. A run of de-identification marks (`XXXX`, `___`,
`[** **]`: what `mpma.data.sections.collapse_marks` collapses) becomes the one token `xxxx`. A report
cannot smuggle in a special token: text that looks like one is text. A word that only one patient's
reports hold (a name, a record number) shapes no entry, since the vocabulary travels with every model
that is given away; its letters stay, so that no report becomes unreadable to the model. Encoding runs
in the library's threads; word numbers are a cumulative sum, no loop over tokens.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from mpma.errors import UserError

_UNKNOWN: Final = "[UNK]"

SPECIAL_TOKENS: Final = ("[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
"""Numbers 0 to 4."""

DEIDENTIFICATION_MARK: Final = "xxxx"

DEFAULT_VOCABULARY_SIZE: Final = 30_000

LEAST_PATIENTS: Final = 2
"""Patients in whose texts a word must occur to shape the vocabulary: no entry comes from one person."""

_CONTINUATION: Final = "##"
_LONGEST_WORD: Final = 100
_MARK: Final = r"(?:\bx{3,}\b|_{3,}|\[\*\*[^*]{0,80}\*\*\])"
_MARK_RUN: Final = rf"{_MARK}(?:[\s,/]*{_MARK})*"

_ROLES: Final = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": (_UNKNOWN, "<unk>"),
    "class": ("[CLS]", "<s>"),
    "end": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


class EncodedReports(NamedTuple):
    """n reports as tokens; T is the longest of them, at most the limit."""

    ids: np.ndarray
    """int64 [n, T]: class token, pieces, end token, padding."""
    word_index: np.ndarray
    """int64 [n, T]: number of the word a piece belongs to, from 0; -1 on special tokens and padding."""
    attention: np.ndarray
    """bool [n, T]: True on tokens, False on padding."""
    truncated: int
    """Reports that were longer than the limit."""


def train_tokenizer(
    texts: Iterable[tuple[Hashable, str]],
    vocabulary_size: int = DEFAULT_VOCABULARY_SIZE,
    min_frequency: int = 2,
) -> bytes:
    """Content of a `tokenizer.json` with at most `vocabulary_size` entries, fewer for little text.

    A pure function of the multiset of texts: their order, the process and its hash seed do not matter.
    Memory grows with the distinct words, not with the text. A vocabulary never leaves out a letter that
    occurs, so it may exceed a size smaller than twice the alphabet.

    Args:
        texts: (patient, text). Words of fewer than `LEAST_PATIENTS` patients count for their letters alone.
    """
    words, shared = _counted(texts)
    words.pop(DEIDENTIFICATION_MARK, None)
    # WordPiece gives up on longer words anyway, and one stray data blob should not shape the merges.
    words = Counter({word: count for word, count in words.items() if len(word) <= _LONGEST_WORD})
    letters = sorted({letter for word in words for letter in word} | set(DEIDENTIFICATION_MARK))
    words = Counter({word: count for word, count in words.items() if word in shared})
    fixed = [*SPECIAL_TOKENS, *letters, *(_CONTINUATION + letter for letter in letters)]
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix=_CONTINUATION, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,
        min_frequency=min_frequency,
        special_tokens=fixed,
        initial_alphabet=letters,
        continuing_subword_prefix=_CONTINUATION,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_repeated(words), trainer)
    grown = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    vocabulary = [token for token, _ in grown if token != DEIDENTIFICATION_MARK]
    vocabulary.insert(len(SPECIAL_TOKENS), DEIDENTIFICATION_MARK)
    return _wordpiece(vocabulary)


def _counted(texts: Iterable[tuple[Hashable, str]]) -> tuple[Counter[str], set[str]]:
    """How often each word occurs, and those that more than one patient's texts hold."""
    pieces, normalizer = _pre_tokenizer(), _normalizer()
    words: Counter[str] = Counter()
    patient_of: dict[str, Hashable] = {}
    shared: set[str] = set()
    for patient, text in texts:
        found = [word for word, _ in pieces.pre_tokenize_str(normalizer.normalize_str(text))]
        words.update(found)
        for word in set(found) - shared:
            if patient_of.setdefault(word, patient) != patient:
                del patient_of[word]
                shared.add(word)
    return words, shared


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Every word as often as it was met, for a trainer that only counts; at most 1,000 at a time."""
    for word, count in sorted(words.items()):
        for start in range(0, count, 1000):
            yield " ".join(itertools.repeat(word, min(1000, count - start)))


def _wordpiece(vocabulary: Sequence[str]) -> bytes:
    model = models.WordPiece(
        vocab={token: number for number, token in enumerate(vocabulary)},
        unk_token=_UNKNOWN,
        continuing_subword_prefix=_CONTINUATION,
        max_input_chars_per_word=_LONGEST_WORD,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    content = json.loads(tokenizer.to_str())
    # The library writes the vocabulary in its own order; ours is by number, for equal bytes and for readers.
    content["model"]["vocab"] = dict(sorted(content["model"]["vocab"].items(), key=lambda entry: entry[1]))
    return (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode()


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True
            ),
            normalizers.Replace(Regex(_MARK_RUN), f" {DEIDENTIFICATION_MARK} "),
        ]
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.BertPreTokenizer()


class ReportTokenizer:
    """A tokeniser with the five special tokens of BERT (or RoBERTa's names for them)."""

    def __init__(self, data: bytes, name: str = "tokenizer.json") -> None:
        try:
            self._tokenizer = Tokenizer.from_str(data.decode())
        except Exception as error:  # The library raises bare Exception for whatever it cannot parse.
            raise UserError(f"{name} is not a tokeniser of the tokenizers library") from error
        self._data, self._name = data, name
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        numbers = {
            role: next((n for n in map(self._tokenizer.token_to_id, names) if n is not None), None)
            for role, names in _ROLES.items()
        }
        missing = [_ROLES[role][0] for role, number in numbers.items() if number is None]
        if missing:
            raise UserError(f"{name} lacks the special tokens {', '.join(missing)}")
        self.pad_id, self.unknown_id, self.class_id, self.end_id, self.mask_id = (
            int(numbers[role] or 0) for role in _ROLES
        )
        self.vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._continues = self._continuation_table()

    @classmethod
    def load(cls, source: bytes | str | os.PathLike[str]) -> ReportTokenizer:
        """From the content of a `tokenizer.json` or the path of one.

        Raises `UserError` where it is missing, not a tokeniser, or lacks a special token.
        """
        if isinstance(source, bytes):
            return cls(source)
        try:
            with open(source, "rb") as file:
                return cls(file.read(), os.fspath(source))
        except OSError as error:
            raise UserError(f"{os.fspath(source)}: no tokeniser there ({error.strerror})") from error

    def __reduce__(self) -> tuple[type[ReportTokenizer], tuple[bytes, str]]:
        return type(self), (self._data, self._name)

    def to_bytes(self) -> bytes:
        """Content of the `tokenizer.json` that it was made from."""
        return self._data

    def encode(self, texts: Sequence[str], max_tokens: int) -> EncodedReports:
        """Tokens of n texts, each cut to `max_tokens` (class and end tokens included, at least 3)."""
        if max_tokens < 3:
            raise ValueError(f"max_tokens is {max_tokens}; class token, end token and one piece need 3")
        # The fast form leaves out the word numbers, which WordPiece does not need from it.
        batch = self._tokenizer.encode_batch if self._continues is None else self._tokenizer.encode_batch_fast
        encodings = batch(list(texts), add_special_tokens=False)
        pieces = [encoding.ids for encoding in encodings]
        full = np.fromiter(map(len, pieces), np.int64, len(pieces))
        lengths = np.minimum(full, max_tokens - 2)
        width = int(lengths.max(initial=0)) + 2
        column = np.arange(width)
        # Column 0 is the class token, so piece p of a report stands in column p + 1.
        inside = (column >= 1) & (column <= lengths[:, None])
        kept = (piece[:length] for piece, length in zip(pieces, lengths.tolist(), strict=True))
        ids = np.full((len(pieces), width), self.pad_id, np.int64)
        ids[inside] = np.fromiter(itertools.chain.from_iterable(kept), np.int64, int(lengths.sum()))
        ids[:, 0] = self.class_id
        ids[np.arange(len(pieces)), lengths + 1] = self.end_id
        word_index = np.full_like(ids, -1)
        if self._continues is not None:
            starts = inside & ~self._continues[ids]
            word_index[inside] = (np.cumsum(starts, axis=1) - 1)[inside]
        else:
            words = (e.word_ids[:length] for e, length in zip(encodings, lengths.tolist(), strict=True))
            flat = (-1 if word is None else word for word in itertools.chain.from_iterable(words))
            word_index[inside] = np.fromiter(flat, np.int64, int(lengths.sum()))
        attention = column < (lengths + 2)[:, None]
        return EncodedReports(ids, word_index, attention, int((full > max_tokens - 2).sum()))

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [n]: tokens of each text, class and end tokens included, uncut."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.fromiter((len(encoding) + 2 for encoding in encodings), np.int64, len(encodings))

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of token numbers, special tokens left out."""
        words: list[str] = []
        special = {self.pad_id, self.class_id, self.end_id}
        kept = (int(number) for number in ids if int(number) not in special)
        for token in (self._tokenizer.id_to_token(number) or "" for number in kept):
            if token.startswith(_CONTINUATION) and words:
                words[-1] += token.removeprefix(_CONTINUATION)
            else:
                words.append(token)
        return " ".join(words)

    def token(self, number: int) -> str:
        """The vocabulary's entry of a number."""
        return str(self._tokenizer.id_to_token(number))

    def _continuation_table(self) -> np.ndarray | None:
        """bool [vocabulary]: does a piece continue a word? None where the tokeniser is not WordPiece."""
        model = json.loads(self._data)["model"]
        if model.get("type") != "WordPiece" or model.get("continuing_subword_prefix") != _CONTINUATION:
            return None
        table = np.zeros(self.vocabulary_size, bool)
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            table[number] = token.startswith(_CONTINUATION)
        return table
