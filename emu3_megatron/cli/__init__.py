"""The command line `emu3`: one file a command, whose signature is its flags."""

from emu3_megatron.cli.app import main

__all__ = ["main"]
