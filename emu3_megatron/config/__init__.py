from emu3_megatron.config.load import load_recipe
from emu3_megatron.config.schema import ModelConfig, Recipe

__all__ = ["ModelConfig", "Recipe", "load_recipe"]
