"""Ids: Emu3's own table, its text vocabulary, and the classes of tokens."""

import importlib.util
import random
import time
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
import tiktoken
import torch

from emu3_megatron import vocabulary
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import (
    CODE,
    STRUCTURE,
    TEXT,
    ByteEncoding,
    QwenEncoding,
    Vocabulary,
    nfc,
)

needs_ranks = pytest.mark.skipif(
    importlib.util.find_spec("dashscope") is None, reason="no text vocabulary of Qwen here"
)

# What stands for what in baaivision/Emu3: emu3.tiktoken and 211 special tokens behind it.
EMU3_IDS = {
    "pad": 151_643,
    "end_of_line": 151_846,
    "end_of_frame": 151_847,
    "bos": 151_849,
    "eos": 151_850,
    "codes_follow": 151_851,
    "vision_start": 151_852,
    "vision_end": 151_853,
    "first_code": 151_854,
    "num_text": 151_643,
    "num_specials": 211,
    "size": 184_622,
}


@pytest.fixture(scope="module")
def emu3():
    return Vocabulary.emu3()


@pytest.fixture
def tiny():
    return Vocabulary.tiny()


# Ids


@pytest.mark.parametrize("name", EMU3_IDS)
def test_ids_are_emu3s(emu3, name):
    assert getattr(emu3, name) == EMU3_IDS[name]


def test_last_code(emu3):
    assert emu3.first_code + emu3.num_codes - 1 == emu3.size - 1 == 184_621


@pytest.mark.parametrize(
    ("tensor", "rows"), [(1, 184_704), (2, 184_832), (4, 184_832), (8, 185_344), (16, 186_368)]
)
def test_padded_sizes(emu3, tensor, rows):
    assert emu3.padded_size(tensor) == rows


def test_tiny_ids(tiny):
    ids = (tiny.num_text, tiny.pad, tiny.bos, tiny.eos, tiny.first_code, tiny.size)
    assert ids == (256, 256, 462, 463, 467, 979)


# Classes

CLASSES = [
    (0, TEXT),
    (151_642, TEXT),
    (151_643, TEXT),  # padding
    (151_846, STRUCTURE),
    (151_847, STRUCTURE),
    (151_848, TEXT),
    (151_849, TEXT),  # BOS
    (151_850, TEXT),  # EOS
    (151_851, STRUCTURE),
    (151_852, STRUCTURE),
    (151_853, STRUCTURE),
    (151_854, CODE),
    (184_621, CODE),
]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_token_class(emu3, kind):
    ids, classes = zip(*CLASSES, strict=True)

    found = emu3.token_class(kind(ids))

    assert type(found) is type(kind(ids))
    assert found.tolist() == list(classes)


def test_token_class_keeps_the_shape(emu3):
    assert emu3.token_class(torch.zeros(2, 3, dtype=torch.int64)).shape == (2, 3)


# Bytes


@pytest.mark.parametrize("text", ["", "a cat", "一只猫", "\t\r\n", "<|endoftext|>"])
def test_bytes_and_back(tiny, text):
    ids = tiny.encode(text)

    assert ids.tolist() == list(text.encode())
    assert ids.dtype == np.int32
    assert tiny.decode(ids) == text


def test_bytes_normalise_to_nfc(tiny):
    assert tiny.encode("e\u0301").tolist() == list("é".encode())


def test_half_a_character_becomes_a_mark(tiny):
    assert tiny.decode("猫".encode()[:2]) == "\ufffd"


def test_a_lone_surrogate_becomes_a_mark(tiny):
    assert tiny.decode(tiny.encode("a\ud800b")) == "a?b"


def test_decoding_leaves_out_what_is_not_text(tiny):
    ids = [tiny.bos, *b"a", tiny.vision_start, tiny.first_code, *b"b", tiny.eos, tiny.pad]

    assert tiny.decode(ids) == "ab"


# Qwen's byte-BPE

TEXTS = {
    "words": ("hello world", [14990, 1879]),
    "punctuation and newlines are one": ("Hello, world!\n\n", [9707, 11, 1879, 2219]),
    "digits one by one": ("2024", [17, 15, 17, 19]),
    "size of a grid": ("64*64", [21, 19, 9, 21, 19]),
    "tabs": ("\t\tx", [197, 10225]),
    "Chinese": ("一只猫", [102292, 100472]),
    "NFC": ("e\u0301", [963]),
    "contraction in capitals": ("I'LL", [40, 6, 4086]),
    "a letter behind punctuation": ("go;foo", [3346, 26, 7975]),
    "a special token's name is plain text": ("<|endoftext|>", [27, 91, 8691, 723, 427, 91, 29]),
    "an image token's name is plain text": ("<|image token|>", [27, 91, 1805, 3950, 91, 29]),
}


@needs_ranks
@pytest.mark.parametrize(("text", "ids"), TEXTS.values(), ids=TEXTS)
def test_ids_of_text(emu3, text, ids):
    assert emu3.encode(text).tolist() == ids


@needs_ranks
@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n \t\r\n",
        "naïve café — “q”",
        "日本語のテキスト。",
        "👩‍👩‍👧 and 🏳️‍🌈",
        "a\x00b",
        "x" * 100,
    ],
)
def test_text_and_back(emu3, text):
    ids = emu3.encode(text)

    assert emu3.decode(ids) == text
    assert all(0 <= id < 151_643 for id in ids)


@needs_ranks
def test_a_lone_surrogate_in_bpe_text_becomes_a_mark(emu3):
    assert emu3.decode(emu3.encode("a\ud800b")) == "a\ufffdb"


# Long text: every reference here is tiktoken with Qwen's own pattern, on the whole text at once.


@pytest.fixture(scope="module")
def uncut(emu3):
    """Text to ids by tiktoken alone."""
    plain = tiktoken.Encoding(
        "plain",
        pat_str=emu3.encoding.split_pattern,
        mergeable_ranks=emu3.encoding._bpe._mergeable_ranks,
        special_tokens={},
    )
    return lambda text: plain.encode_ordinary(unicodedata.normalize("NFC", text))


PHRASES = [
    "A cat's life, in 9 parts",
    "don't STOP!?",
    "一只猫。",
    "のテキスト",
    "Привет",
    "naïve e\u0301",
    "3.14159",
    "👩‍👩‍👧🏳️‍🌈",
    "==>",
    "x" * 40,
]
BREAKS = [" ", "\n", "\r\n", "\n\n", "\t", "    ", " \n ", "\u00a0", "\u3000", "\u2028", "\x1c", ""]


def mixed_text(draw, parts):
    return "".join(draw.choice(PHRASES) + draw.choice(BREAKS) for _ in range(parts))


def prose(draw, characters):
    words = ["the", "narrator", "unquestionably", "remembers", "grandfather's", "extraordinary"]
    words += ["lighthouse,", "and", "1,984", "letters.", "“Impossible!”", "she", "whispered;"]
    text = " ".join(draw.choices(words, k=characters // 6))
    assert len(text) > characters
    return text


@needs_ranks
@pytest.mark.parametrize(
    "text",
    [prose(random.Random(0), 450_000), mixed_text(random.Random(1), 40_000)],
    ids=["prose", "mixed"],
)
def test_long_text_has_the_ids_of_uncut_tiktoken(emu3, uncut, text):
    assert len(text) > 300_000
    assert emu3.encode(text).tolist() == uncut(text)


@needs_ranks
def test_many_spaces_change_no_ids(emu3, uncut, monkeypatch):
    monkeypatch.setattr(vocabulary, "_MANY_SPACES", 3)
    draw = random.Random(2)
    spaces = [*" \t\n\r\v\u00a0\u2009\u3000\x1c", "      ", "x", "!", "7", "猫", "'s", "\ud800"]
    for _ in range(5_000):
        text = "".join(draw.choices(spaces, k=draw.randint(1, 30)))
        assert emu3.encode(text).tolist() == uncut(text), repr(text)


MILLION = 1_100_000  # with so many spaces tiktoken alone fails
BETWEEN_WORDS = "one" + " \t" * MILLION + "!\n two"


@needs_ranks
@pytest.mark.parametrize(
    "text",
    ["a" * MILLION, "猫" * MILLION, "\n" * MILLION, " " * MILLION, BETWEEN_WORDS],
    ids=["letters", "ideographs", "newlines", "spaces", "spaces between words"],
)
def test_a_million_characters_without_a_break(emu3, text):
    assert emu3.decode(emu3.encode(text)) == text


ALPHABET = [
    " ",
    "\n",
    "\t",
    "a",
    "Bé",
    "don't",
    "'LL",
    "42",
    "!?",
    ";",
    "猫",
    "のテ",
    "e\u0301",
    "…",
]


@needs_ranks
def test_text_vocabulary_agrees_with_transformers(emu3):
    # Ranks with other bytes than these never come up, and finding their merges takes long.
    used = set("".join([*ALPHABET, "é"]).encode())
    ranks = emu3.encoding._bpe._mergeable_ranks
    theirs = qwen_of_transformers({p: rank for p, rank in ranks.items() if used.issuperset(p)})
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(ALPHABET, k=12))
        assert emu3.encode(text).tolist() == theirs(text)["input_ids"], repr(text)


@needs_ranks
def test_the_faster_pattern_splits_as_qwens(emu3, uncut):
    spaces = ["  ", "\r", "\r\n", "\u00a0", "\u3000", "\u2028", "1\u0662", "<|endoftext|>", "\x00"]
    draw = random.Random(0)
    for _ in range(20_000):
        text = "".join(draw.choices([*ALPHABET, *spaces], k=draw.randint(1, 20)))
        assert emu3.encode(text).tolist() == uncut(text), repr(text)


def qwen_of_transformers(ranks):
    """Its Qwen2 tokenizer over the same ranks, whose merges are found from the ranks."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letter = bytes_to_unicode()
    spell = lambda piece: "".join(letter[byte] for byte in piece)
    merges = [
        (spell(left), spell(right))
        for piece, rank in sorted(ranks.items(), key=lambda item: item[1])
        if len(piece) > 1
        for left, right in [halves(ranks, piece, rank)]
    ]
    return Qwen2Tokenizer({spell(piece): rank for piece, rank in ranks.items()}, merges)


def halves(ranks, piece, rank):
    """The two tokens that a token was merged from: all merges of lower rank, and no other."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_other_ranks_are_refused(tmp_path):
    file = tmp_path / "my.tiktoken"
    file.write_text("IQ== 0\nIg== 1\n", encoding="utf-8")

    with pytest.raises(InputError, match=r"my\.tiktoken: not Emu3's text vocabulary .*give emu3"):
        QwenEncoding(file).encode("a")


def test_missing_ranks_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.tiktoken: no such file; give the path of emu3"):
        QwenEncoding(tmp_path / "none.tiktoken").encode("a")


def test_without_ranks_the_mend_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(InputError, match=r"model\.ranks_file .*pip install --no-deps dashscope"):
        QwenEncoding().encode("a")


def test_ids_need_no_ranks(tmp_path):
    assert Vocabulary.emu3(tmp_path / "none.tiktoken").size == 184_622


# Fingerprints


def test_equal_vocabularies_have_one_fingerprint(tmp_path):
    assert Vocabulary.emu3().fingerprint() == Vocabulary.emu3(tmp_path / "copy").fingerprint()


def test_other_codes_or_text_have_another_fingerprint(emu3, tiny):
    others = [emu3, tiny, Vocabulary.tiny(256), Vocabulary(ByteEncoding(), 32_768)]

    assert len({vocabulary.fingerprint() for vocabulary in others}) == 4


# NFC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "e\u0301 " * 2000,
        "\u6211\u4eec, cafe\u0301\u3002 " * 500,
        "\u304b\u3099" * 3000,  # kana with a mark
        "\u1100\u1161\u11a8" * 2000,  # Hangul by its letters
        "a" + "\u0301\u0323\u0344" * 1000,  # out of order
        "\u0915\u093c" * 3000,  # nothing to cut before
    ],
)
def test_nfc_is_that_of_the_standard(text):
    assert nfc(text) == unicodedata.normalize("NFC", text)


def test_nfc_takes_no_square_of_a_run_of_marks():
    """unicodedata alone takes the square: over a second for a fifth of these."""
    text = "a" + "\u0301\u0323" * 100_000
    begin = time.process_time()

    assert len(nfc(text)) == len(text) - 1  # a dot below is part of the letter

    assert time.process_time() - begin < 2
