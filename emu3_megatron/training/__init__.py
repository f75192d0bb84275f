from emu3_megatron.training.stage import train

__all__ = ["train"]
