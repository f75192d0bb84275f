"""A running mean of the tokenizer's weights: what is saved and evaluated."""

import copy

import torch
from torch import Tensor

from emu3_megatron.vision.tokenizer import VisionTokenizer


class Ema:
    """The mean of the weights over the last steps; buffers are the live ones.

    Early on the mean is shorter: min(decay, (1 + n) / (10 + n)) after n updates.
    """

    def __init__(self, live: VisionTokenizer, decay: float):
        self.decay, self.updates = decay, 0
        self.tokenizer = copy.deepcopy(live).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, live: VisionTokenizer) -> None:
        self.updates += 1
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        means: list[Tensor] = list(self.tokenizer.parameters())
        torch._foreach_lerp_(means, list[Tensor](live.parameters()), 1 - kept)
        for mean, buffer in zip(self.tokenizer.buffers(), live.buffers(), strict=True):
            mean.copy_(buffer)

    @torch.no_grad()
    def place_codes(self, live: VisionTokenizer, codes: Tensor) -> None:
        """Take over codes that were placed anew: they have no past to be averaged with."""
        self.tokenizer.quantize.embedding.weight[codes] = live.quantize.embedding.weight[codes]
