from emu3_megatron.cli.main import build_parser, main

__all__ = ["build_parser", "main"]
