"""A block of the 2D networks, which can run with less memory than it takes by itself."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Compute = Callable[..., Tensor]


class BandRunner(Protocol):
    """Runs blocks on rows of a frame at a time; `tiling.Bands`."""

    def run(self, compute: Compute, halo: int, hidden: Tensor, code: Tensor | None) -> Tensor:
        """`compute(hidden, code)`, each output row of which sees `halo` rows above and below."""

    def norm(self, layer: nn.GroupNorm, rows: Tensor) -> Tensor:
        """`layer(rows)`, with the statistics of the whole frame."""


class Block(nn.Module):
    """Subclasses compute through `run`.

    Attributes:
        halo: how many rows above and below an output row depends on; 0: on all.
        recompute: with gradients, keep the inputs alone and compute the rest again in backward.
        bands: without gradients, compute some rows at a time.
    """

    halo = 0
    recompute = False
    bands: BandRunner | None = None

    def run(self, compute: Compute, hidden: Tensor, code: Tensor | None = None) -> Tensor:
        """`compute(hidden, code)`."""
        gradients = torch.is_grad_enabled()
        if self.recompute and gradients:  # nothing in the network is random
            return checkpoint(compute, hidden, code, use_reentrant=False, preserve_rng_state=False)
        if self.bands is not None and self.halo and not gradients:
            return self.bands.run(compute, self.halo, hidden, code)
        return compute(hidden, code)


class FrameNorm(nn.GroupNorm):
    """GroupNorm of whole frames, also where it sees some of their rows."""

    bands: BandRunner | None = None

    def forward(self, hidden_nchw: Tensor) -> Tensor:
        if self.bands is not None:
            return self.bands.norm(self, hidden_nchw)
        return super().forward(hidden_nchw)
