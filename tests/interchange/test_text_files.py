# ruff: noqa: RUF001 (texts that look alike are the point)
"""The exported text tokenizer gives the ids of BAAI's, which tiktoken computes."""

import hashlib
import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from emu3_megatron.grammar import Turn, dialogue
from emu3_megatron.interchange import text_files
from emu3_megatron.vocabulary import QWEN_RANKS_SHA256, Vocabulary

EMU3 = Vocabulary.emu3()
WHERE_THE_STOCK_CONVERTER_DIFFERS = [
    "\tif x:\n\t\treturn 1;\n\n",
    "Stop!\nGo...\r\n\r\nWhat?!\n",
    "DON'T we'LL I'M",
    ";foo #bar @baz $x",
    "cafe\u0301 e\u0323\u0302 \u212b",  # not in NFC
    "for (int i=0;i<10;++i) { a[i] += 42; }\n",
]
OTHERS = [
    "A tabby cat looks past the camera.",
    "1234567 3.14159 ٣٤ ²",
    "你好，世界！\n日本語のテキスト。한국어 문장. Привет, мир!",
    "   many    spaces   " + " " * 90 + "x" + "\t" * 30 + "\n" * 17,
    "=" * 200 + "a" * 200 + "é" * 50,
    "👩‍👩‍👧 🏳️‍🌈 naïve ſ K İ",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    text_files.write_files(folder, text_files.transformers_tokenizer(EMU3))
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", WHERE_THE_STOCK_CONVERTER_DIFFERS + OTHERS)
def test_ids_are_tiktokens(text, theirs):
    ids = theirs(text)["input_ids"]

    assert ids == EMU3.encode(text).tolist()
    assert theirs.decode(ids) == EMU3.decode(ids)


def test_ids_are_tiktokens_for_code_and_prose_of_this_repository(theirs):
    root = Path(__file__).parents[2]
    files = [*root.glob("emu3_megatron/*.py"), *root.glob("docs/*.md"), root / "Makefile"]
    for file in files:
        # transformers, as BAAI, reads special tokens out of text; our `encode` never does.
        text = file.read_text(encoding="utf-8").replace("<|", "< |")
        assert theirs(text)["input_ids"] == EMU3.encode(text).tolist()


def test_ids_are_tiktokens_for_a_long_text(theirs):
    choose = random.Random(0)
    words = ["the", "lighthouse", "unquestionably", "1,984", "“impossible!”", "世界，你好。"]
    words += ["Привет", "DON'T", "==>", "🙂"]
    breaks = [" ", " ", " ", "\n", "\r\n\r\n", "    ", "\t", ""]
    text = "".join(choose.choice(words) + choose.choice(breaks) for _ in range(70_000))

    assert len(text) > 450_000
    assert theirs(text)["input_ids"] == EMU3.encode(text).tolist()


def test_ids_are_tiktokens_for_random_text(theirs):
    # Marks that came to Unicode after 9.0 are left out: the tables of `tokenizers` sort them
    # otherwise into NFC than Python's.
    choose = random.Random(0)
    alphabet = [*map(chr, range(32, 127)), *"\t\n\r  \n'é\u0301\u0327\u00a0\u3000ß。，！你好𝔘🙂"]
    for _ in range(2000):
        text = "".join(choose.choices(alphabet, k=choose.randint(1, 40)))
        assert theirs(text)["input_ids"] == EMU3.encode(text).tolist(), repr(text)


def test_special_tokens_have_their_ids(theirs):
    surfaces = EMU3.surfaces()

    assert len(theirs) == EMU3.size == 184_622
    assert theirs.convert_tokens_to_ids(surfaces) == list(range(EMU3.num_text, EMU3.size))
    assert theirs("<|image start|>90*90<|image token|>")["input_ids"] == [
        EMU3.vision_start,
        *EMU3.encode("90*90").tolist(),
        EMU3.codes_follow,
    ]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (EMU3.bos, EMU3.eos)
    assert (theirs.pad_token_id, theirs.image_token_id) == (EMU3.pad, EMU3.image_placeholder)


def test_the_chat_template_is_emu3s(theirs):
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]
    (span,) = dialogue(EMU3, [Turn(["What is it?"], None)]).spans

    text = render(theirs, messages)

    assert text == "You are a helpful assistant. USER: What is it?. ASSISTANT:"
    assert [EMU3.bos, *theirs(text)["input_ids"]] == span.tokens.tolist()


def test_further_turns_go_on_as_in_training(theirs):
    picture = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [
        {"role": "user", "content": picture},
        {"role": "assistant", "content": "A cat"},
        {"role": "user", "content": "Which colour?"},
    ]

    assert render(theirs, messages) == (
        "You are a helpful assistant. USER: <|extra_0|>What is it?. ASSISTANT:A cat<|extra_204|>"
        " USER: Which colour?. ASSISTANT:"
    )


def render(tokenizer, messages):
    return tokenizer.apply_chat_template(
        messages, chat_template=text_files.CHAT_TEMPLATE, tokenize=False
    )


def test_baais_files_are_baais(tmp_path):
    text_files.baai_tokenizer(EMU3, tmp_path)

    ranks = (tmp_path / "emu3.tiktoken").read_bytes()
    assert hashlib.sha256(ranks).hexdigest() == QWEN_RANKS_SHA256
    vision = (tmp_path / "emu3_vision_tokens.txt").read_text(encoding="utf-8").split("\n")
    assert vision[:4] == [
        "<|image token|>",
        "<|image start|>",
        "<|image end|>",
        "<|visual token 000000|>",
    ]
    assert len(vision) == 3 + 32_768 + 1


def test_bytes_are_a_tokenizer_too(tmp_path):
    tiny = Vocabulary.tiny(600)
    text_files.write_files(tmp_path, text_files.transformers_tokenizer(tiny))
    theirs = AutoTokenizer.from_pretrained(tmp_path)

    assert (
        json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
        == []
    )
    assert theirs("e\u0301 <|extra_203|>")["input_ids"] == [*tiny.encode("é "), tiny.bos]
