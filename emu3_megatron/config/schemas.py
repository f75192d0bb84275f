"""Finds out which kind of recipe a file holds: training, tokenizer or prepare."""

from collections.abc import Mapping
from typing import Any

from emu3_megatron.config.base import Config
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.config.tokenizer_training import TokenizerRecipe
from emu3_megatron.config.training import Recipe

SCHEMAS: tuple[type[Config], ...] = (Recipe, TokenizerRecipe, PrepareRecipe)


def schema_of(values: Mapping[str, Any]) -> type[Config]:
    """The schema that shares most keys with a recipe."""
    return max(SCHEMAS, key=lambda schema: len(values.keys() & schema.model_fields.keys()))
