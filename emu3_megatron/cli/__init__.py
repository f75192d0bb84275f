from emu3_megatron.cli.app import main

__all__ = ["main"]
