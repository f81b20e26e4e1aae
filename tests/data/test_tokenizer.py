"""The report tokeniser: the same bytes every time, whole words numbered, marks and special tokens safe."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mpma.data.tokenizer import SPECIAL_TOKENS, ReportTokenizer, train_tokenizer
from mpma.errors import UserError

WORDS = ["heart", "lung", "pleural", "effusion", "no", "small", "right", "left", "opacity", "normal", "mild"]


def reports(count: int = 300) -> list[str]:
    generator = np.random.default_rng(3)
    return [
        f"{' '.join(generator.choice(WORDS, 8))} {number % 17}.{number % 5} cm, XXXX-year-old. é½µ"
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    return ReportTokenizer(train_tokenizer(enumerate(reports())))


def test_training_twice_gives_identical_bytes_in_any_order():
    first = train_tokenizer(enumerate(reports()))
    assert train_tokenizer(enumerate(reports()[::-1])) == first


def test_training_in_a_fresh_process_with_another_hash_seed_gives_identical_bytes():
    code = (
        "import sys, hashlib; from mpma.data.tokenizer import train_tokenizer;"
        "print(hashlib.sha256(train_tokenizer(enumerate(sys.stdin.read().split(chr(10))))).hexdigest())"
    )
    expected = hashlib.sha256(train_tokenizer(enumerate(reports()))).hexdigest()
    for seed in ("1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input="\n".join(reports()),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == expected


def test_real_reports_train_to_identical_bytes(data_root):
    import pyarrow.parquet as pq

    table = pq.read_table(data_root / "text_only" / "openi_reports.parquet", columns=["report"])
    texts = table.column("report").to_pylist()
    content = train_tokenizer(enumerate(texts))
    assert train_tokenizer(enumerate(texts[::-1])) == content
    loaded = ReportTokenizer(content)
    assert 2000 < loaded.vocabulary_size < 30_000
    encoded = loaded.encode(texts, 512)
    # Every letter of the training text is in the vocabulary, so nothing is unknown.
    assert not (encoded.ids == loaded.unknown_id).any()


def test_special_tokens_come_first_and_the_vocabulary_is_bounded():
    content = json.loads(train_tokenizer(enumerate(reports()), vocabulary_size=120))
    vocabulary = content["model"]["vocab"]
    assert list(vocabulary)[:6] == [*SPECIAL_TOKENS, "xxxx"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) == 120
    assert content["model"]["type"] == "WordPiece"


def test_a_rare_word_gets_no_entry_of_its_own():
    texts = [*(["clear lungs"] * 3), "zygomatic"]
    vocabulary = json.loads(train_tokenizer(enumerate(texts)))["model"]["vocab"]
    assert "clear" in vocabulary
    assert "lungs" in vocabulary
    assert "zygomatic" not in vocabulary


def test_a_word_of_one_patient_alone_shapes_no_entry():
    """However often it is written: a name or a record number must not travel with a model."""
    texts = [("p1", "mr zuckerkandl 48151623 has clear lungs")] * 50
    texts += [("p2", "clear lungs mrs abernathy"), ("p3", "mrs abernathy clear lungs")]
    vocabulary = json.loads(train_tokenizer(texts))["model"]["vocab"]
    assert {"clear", "lungs", "mrs", "abernathy"} <= vocabulary.keys()
    longest = {"zuckerkandl", "48151623"}
    pieces = {entry.removeprefix("##") for entry in vocabulary if len(entry.removeprefix("##")) > 1}
    shared = {"clear", "lungs", "mrs", "abernathy"}
    for word in longest:
        own = {word[i:j] for i in range(len(word)) for j in range(i + 2, len(word) + 1)}
        assert all(any(piece in other for other in shared) for piece in pieces & own)
        # Its letters stay, so that the model can read it.
        assert all(letter in vocabulary and f"##{letter}" in vocabulary for letter in word)


def test_which_patient_of_two_comes_first_does_not_matter():
    texts = [("p1", "opacity left"), ("p2", "opacity right"), ("p1", "right"), ("p3", "left upper lobe")]
    content = train_tokenizer(texts)
    assert all(train_tokenizer(texts[shift:] + texts[:shift]) == content for shift in range(1, 4))


def test_word_numbers_equal_those_of_the_library(tokenizer):
    texts = [
        *reports(40),
        "Unseenword cardiomegalyopacity, right/left!",
        "",
        "漢字 \ud83e\udec0".encode("utf-16", "surrogatepass").decode("utf-16"),
    ]
    encoded = tokenizer.encode(texts, 64)
    for row, encoding in enumerate(tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False)):
        count = len(encoding.ids)
        assert encoded.ids[row, 1 : 1 + count].tolist() == encoding.ids
        assert encoded.word_index[row, 1 : 1 + count].tolist() == encoding.word_ids
        assert encoded.ids[row, 0] == tokenizer.class_id
        assert encoded.ids[row, 1 + count] == tokenizer.end_id
        assert (encoded.ids[row, 2 + count :] == tokenizer.pad_id).all()
        assert (encoded.word_index[row, 1 + count :] == -1).all()
        assert encoded.word_index[row, 0] == -1
        assert encoded.attention[row].sum() == count + 2
        assert encoded.attention[row, : count + 2].all()
    assert encoded.ids.dtype == encoded.word_index.dtype == np.int64
    assert encoded.attention.dtype == bool


def test_long_reports_are_cut_with_their_end_token_and_counted(tokenizer):
    texts = ["heart " * 50, "heart lung", "no " * 14]
    encoded = tokenizer.encode(texts, 16)
    assert encoded.truncated == 1
    assert encoded.ids.shape == (3, 16)
    assert encoded.ids[0, 15] == tokenizer.end_id
    assert encoded.attention[0].all()
    assert encoded.attention.sum(axis=1).tolist() == [16, 4, 16]
    assert tokenizer.lengths(texts).tolist() == [52, 4, 16]


def test_a_batch_is_as_wide_as_its_longest_report(tokenizer):
    assert tokenizer.encode(["heart", "heart lung"], 128).ids.shape == (2, 4)
    assert tokenizer.encode([""], 128).ids.tolist() == [[tokenizer.class_id, tokenizer.end_id]]
    assert tokenizer.encode([], 128).ids.shape[0] == 0


@pytest.mark.parametrize("mark", ["XXXX", "xxxxxxx", "___", "[** Name 12 **]", "XXXX, XXXX XXXX"])
def test_a_deidentification_mark_is_one_token(tokenizer, mark):
    encoded = tokenizer.encode([f"heart {mark} lung"], 32)
    assert tokenizer.decode(encoded.ids[0]) == "heart xxxx lung"
    assert encoded.attention.sum() == 5
    assert encoded.word_index[0].tolist() == [-1, 0, 1, 2, -1]


def test_a_report_cannot_smuggle_in_special_tokens(tokenizer):
    encoded = tokenizer.encode(["heart [MASK] [PAD] [SEP] [CLS] lung"], 64)
    inner = encoded.ids[0, 1:-1]
    assert not np.isin(
        inner, [tokenizer.mask_id, tokenizer.pad_id, tokenizer.end_id, tokenizer.class_id]
    ).any()


def test_case_accents_and_compatibility_forms_fold_together(tokenizer):
    plain = tokenizer.encode(["cafe fi 2"], 32).ids
    assert (tokenizer.encode(["CAFÉ ﬁ ²"], 32).ids == plain).all()


def test_a_tokenizer_crosses_process_borders(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    texts = reports(5)
    assert (again.encode(texts, 64).ids == tokenizer.encode(texts, 64).ids).all()
    assert again.vocabulary_size == tokenizer.vocabulary_size


def test_a_foreign_tokenizer_with_other_names_is_read(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "heart", "lung", "pl", "eural"]
    foreign = Tokenizer(
        models.BPE({name: number for number, name in enumerate(names)}, [], unk_token="<unk>", fuse_unk=True)
    )
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    file = tmp_path / "tokenizer.json"
    file.write_text(foreign.to_str())
    loaded = ReportTokenizer.load(file)
    assert (loaded.class_id, loaded.pad_id, loaded.end_id, loaded.unknown_id, loaded.mask_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert loaded.encode(["a b"], 8).word_index.tolist() == [[-1, 0, 1, -1]]


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="no tokeniser there"):
        ReportTokenizer.load(file)
    file.write_text("{}")
    with pytest.raises(UserError, match="not a tokeniser"):
        ReportTokenizer.load(file)
    content = json.loads(train_tokenizer([(1, "a b")]))
    del content["model"]["vocab"]["[MASK]"]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[MASK]"]
    content["model"]["vocab"] = {name: n for n, name in enumerate(content["model"]["vocab"])}
    content["added_tokens"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"lacks the special tokens \[MASK\]"):
        ReportTokenizer.load(file)
