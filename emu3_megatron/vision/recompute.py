"""Saves memory in training: the activations inside a block are computed again in backward."""

from torch import nn

from emu3_megatron.vision.block import Block


def recompute_blocks(tokenizer: nn.Module, on: bool) -> None:
    """Switch it on or off in all 2D blocks; the layers of time are too small to matter."""
    for module in tokenizer.modules():
        if isinstance(module, Block):
            module.recompute = on
