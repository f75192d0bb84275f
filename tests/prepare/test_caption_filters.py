# ruff: noqa: RUF001
"""Captions that are too short or in other languages are left out."""

import pytest

from emu3_megatron.config.prepare import CaptionConfig, PrepareRecipe
from emu3_megatron.prepare.captions import filtering
from emu3_megatron.prepare.captions.filtering import filter_captions
from emu3_megatron.prepare.workspace import Workspace

ENGLISH = "A man riding a wave on top of a surfboard."
CHINESE = "一只猫躺在沙发上，旁边有一本书"
FRENCH = "Un chat sur le canapé rouge, à côté d'un livre."


@pytest.fixture
def left(tmp_path):
    """A function that filters captions of items; returns the rows."""
    workspace = Workspace(
        PrepareRecipe.model_validate({"out": tmp_path, "run": {"executor": "local"}})
    )

    def left(*items, **config):
        nothing = {"kept": True, "reason": None, "captions_left_out": None}  # as tables give it
        rows = [{**nothing, "captions": list(captions)} for captions in items]
        filter_captions(workspace, "images", rows, CaptionConfig(**config))
        return rows

    return left


def test_short_captions_are_left_out(left):
    (row,) = left(["cat", "a red cat"], min_characters=5)

    assert (row["kept"], row["captions"]) == (True, ["a red cat"])
    assert row["captions_left_out"] == ["short caption: 3 characters: cat"]


@pytest.mark.parametrize(("caption", "kept"), [("a cat", False), ("小猫", False), ("一只猫", True)])
def test_words_of_chinese_are_its_characters(left, caption, kept):
    (row,) = left([caption], min_words=3)

    assert row["kept"] == kept
    assert row["reason"] == (None if kept else "short caption: 2 words")


def test_languages_and_their_scores_are_in_the_row(left):
    several, other = left([ENGLISH, FRENCH, CHINESE], [FRENCH], languages=["en", "zh"])

    assert several["captions"] == [ENGLISH, CHINESE]
    assert several["caption_languages"] == ["en", "zh"]
    assert all(0.5 < score <= 1 for score in several["caption_language_scores"])
    assert not other["kept"]
    assert other["reason"].startswith("caption in other language: fr (")


def test_a_threshold_changes_without_identifying_again(left, monkeypatch):
    (before,) = left([ENGLISH], languages=["en"])
    monkeypatch.setattr(filtering, "identify", None)

    (row,) = left([ENGLISH], languages=["en"], min_language_score=1.0)

    (score,) = before["caption_language_scores"]
    assert row["reason"] == f"caption in unsure language: en ({score:.2f})"


def test_without_a_rule_nothing_changes(left):
    (row,) = left(["cat"])

    assert (row["captions"], row["captions_left_out"]) == (["cat"], None)
