"""Loss terms of the pixels and of the codebook, one value for each sample.

A term is the mean over a sample's own pixels or latents. Whoever sums it over samples and ranks
divides once by their number, so how samples are grouped changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    """A group of samples of one shape, and what came of it.

    Attributes:
        pixels: what went in, in [-1, 1]: [b, 3, h, w] or [b, t, 3, h, w].
        rebuilt: what came out, of the same shape.
        latents: [b, c, f, h, w] of the encoder.
        vectors: the code vectors nearest to them, of the same shape, as the codebook gave them:
            the straight-through sum has no gradient to the codebook.
    """

    pixels: Tensor
    rebuilt: Tensor
    latents: Tensor
    vectors: Tensor


Term = Callable[[Reconstruction], Tensor]


def at_least_fp32(x: Tensor) -> Tensor:
    """Losses are computed in fp32 whatever the networks run in; fp64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def mean_b(x: Tensor) -> Tensor:
    """The mean of each sample: [b]."""
    return x.flatten(1).mean(1)


def l2(result: Reconstruction) -> Tensor:
    return _squared_b(result.rebuilt, result.pixels)


def l1(result: Reconstruction) -> Tensor:
    return mean_b((at_least_fp32(result.rebuilt) - at_least_fp32(result.pixels)).abs())


def codebook(result: Reconstruction) -> Tensor:
    """Draws the codes to the latents."""
    return _squared_b(result.vectors, result.latents.detach())


def commitment(result: Reconstruction) -> Tensor:
    """Draws the latents to their codes; the beta of VQ-VAE is this term's weight."""
    return _squared_b(result.latents, result.vectors.detach())


TERMS: dict[str, Term] = {"l2": l2, "l1": l1, "codebook": codebook, "commitment": commitment}


def _squared_b(one: Tensor, other: Tensor) -> Tensor:
    return mean_b((at_least_fp32(one) - at_least_fp32(other)).square())
