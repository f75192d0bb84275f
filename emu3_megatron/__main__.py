"""Runs the command line for `torchrun -m emu3_megatron` and the like."""

from emu3_megatron.cli import main

# Megatron's checkpoint writer spawns processes that import this module again: keep the guard.
if __name__ == "__main__":
    main()
