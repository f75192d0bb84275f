"""A recipe printed with every key loads again as it was; every key is described."""

import pytest

from emu3_megatron.config.base import Config
from emu3_megatron.config.describe import describe
from emu3_megatron.config.load import load_recipe, read_recipe, shipped_recipes
from emu3_megatron.config.schemas import SCHEMAS, schema_of
from emu3_megatron.config.sections import sections_of

PROMPT = 'sample={every: 5, tokenizer: t, prompts: [{caption: "a: b\n# no", height: 1, width: 2}]}'


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_what_is_printed_is_the_same_recipe(name, tmp_path):
    schema = schema_of(read_recipe(name))
    recipe = load_recipe(schema, name)

    (tmp_path / "again.yaml").write_text(describe(recipe), encoding="utf-8")

    assert load_recipe(schema, tmp_path / "again.yaml") == recipe


def test_lists_and_strings_of_every_kind_come_back(tmp_path):
    schema = schema_of(read_recipe("stage1-tiny-cpu"))
    second = "data.sources.1={pack: 'b c.pack', weight: 0.5}"
    recipe = load_recipe(schema, "stage1-tiny-cpu", [PROMPT, second, "run.dir='null'"])

    (tmp_path / "again.yaml").write_text(describe(recipe), encoding="utf-8")

    assert load_recipe(schema, tmp_path / "again.yaml") == recipe


def fields():
    for schema in SCHEMAS:
        for section in sections_of(schema):
            for name, field in section.model_fields.items():
                yield f"{section.__name__}.{name}", field


@pytest.mark.parametrize(("name", "field"), dict(fields()).items())
def test_every_key_has_a_description(name, field):
    assert field.description


def test_the_sections_are_those_of_all_recipes():
    found = {section.__name__ for schema in SCHEMAS for section in sections_of(schema)}

    assert {"Recipe", "PackSource", "NextTokenConfig", "EndpointConfig", "LossConfig"} <= found
    assert all(issubclass(schema, Config) for schema in SCHEMAS)
