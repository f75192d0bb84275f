"""Recipes: every schema, presets of model sizes, loading, and the recipes that ship."""

from emu3_megatron.config.load import load_recipe
from emu3_megatron.config.model import ModelConfig
from emu3_megatron.config.training import Recipe

__all__ = ["ModelConfig", "Recipe", "load_recipe"]
