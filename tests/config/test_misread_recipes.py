"""Recipes that are not what somebody takes them for."""

import pytest

from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.load import read_recipe
from emu3_megatron.errors import InputError


def refusal(tmp_path, text, overrides=(), schema=Recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        load_recipe(schema, path, overrides)
    return str(refused.value)


def test_a_key_that_stands_there_twice_is_refused(tmp_path):
    text = "run:\n  dir: a\n  steps: 1\n  dir: b\n"

    assert "line 4: dir stands there twice, first in line 2" in refusal(tmp_path, text)
    assert "a stands there twice" in refusal(tmp_path, "{}", ["run={a: 1, a: 2}"])


def test_keys_that_are_merged_may_be_replaced(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("images: &a {area: 4096}\nclips: {<<: *a, area: 1024}\n", encoding="utf-8")

    read = read_recipe(path)

    assert (read["images"]["area"], read["clips"]["area"]) == (4096, 1024)


def test_a_list_of_defaults_is_said_to_mean_nothing(tmp_path):
    assert "defaults: a recipe builds on no others" in refusal(tmp_path, "defaults: [base]\n")


def test_a_key_that_nothing_reads_is_named_before_those_that_are_missing(tmp_path):
    line = refusal(tmp_path, "run: {dir: a, steps: 1}\noptimiser: {lr: 1}\n")

    assert "optimiser: no such key; did you mean optimizer?" in line
