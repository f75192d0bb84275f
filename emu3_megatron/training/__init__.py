from emu3_megatron.training.loop import train

__all__ = ["train"]
