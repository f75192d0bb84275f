"""Saves memory in training: the activations inside a block are computed again in backward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputable(nn.Module):
    """A block that keeps its inputs alone for backward while `recompute` is on."""

    recompute = False

    def run(self, compute: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """`compute(*inputs)`."""
        if not (self.recompute and torch.is_grad_enabled()):
            return compute(*inputs)
        # nothing in the network is random, so there is no random state to keep
        return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)


def recompute_blocks(tokenizer: nn.Module, on: bool) -> None:
    """Switch it on or off in all 2D blocks; the layers of time are too small to matter."""
    for module in tokenizer.modules():
        if isinstance(module, Recomputable):
            module.recompute = on
