"""Runs the command line: `python -m emu3_megatron` is `emu3`."""

from emu3_megatron.cli import main

# Megatron's checkpoint writer spawns processes that import this module again: keep the guard.
if __name__ == "__main__":
    main()
