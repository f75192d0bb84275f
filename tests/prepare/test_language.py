"""Languages of short and long texts, by the model in py3langid's wheel."""

import sys

import pytest

from emu3_megatron.errors import InputError
from emu3_megatron.prepare.scores import language
from emu3_megatron.prepare.scores.language import identify, language_fault, refuse_unknown
from emu3_megatron.prepare.words import words_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man riding a wave on top of a surfboard.", "en"),
        ("An old lighthouse by the sea", "en"),
        ("一只猫躺在沙发上", "zh"),
        ("金门大桥的夜景", "zh"),
        ("飛機在天空中", "zh"),
        ("Un chat sur le canapé rouge.", "fr"),
        ("猫がソファに座っている", "ja"),
        ("고양이가 소파에 앉아 있다", "ko"),
    ],
)
def test_captions_are_told_apart(text, expected):
    found, score = identify(text)

    assert found == expected
    assert 0.1 < score <= 1


@pytest.mark.parametrize("text", ["", "12345", "👍 !!!"])
def test_what_holds_no_language_is_undetermined(text):
    assert identify(text) == ("und", 0.0)


def test_the_language_must_be_wanted_and_sure_enough():
    assert language_fault("en", 0.7, ["en", "zh"], 0.5) is None
    assert language_fault("en", 0.4, ["en", "zh"], 0.5) == "unsure language: en (0.40)"
    assert language_fault("fr", 0.9, ["en", "zh"], 0.5) == "other language: fr (0.90)"


def test_a_code_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match=r"text.languages: no language 'english'; choose among "):
        refuse_unknown(["en", "english"], "text.languages")


def test_without_py3langid_the_extra_is_named(monkeypatch):
    language._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)

    with pytest.raises(InputError, match=r"pip install 'emu3-megatron\[languages\]'"):
        identify("text")


def test_words_are_counted_in_scripts_without_spaces_too():
    assert words_of("A cat, on the sofa!") == ["A", "cat", "on", "the", "sofa"]
    assert words_of("一只cat在沙发上。") == ["一", "只", "cat", "在", "沙", "发", "上"]
