"""Training the decoder: a stage is a recipe."""

from emu3_megatron.training.stage import train

__all__ = ["train"]
