"""The tokenizer's loss: a weighted sum of named terms.

A perceptual or an adversarial term is one more function of a Reconstruction in TERMS, and one
more weight in the recipe.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Reconstruction:
    pixels: Tensor  # what went in, in [-1, 1]
    rebuilt: Tensor  # what came out, of the same shape
    latents: Tensor  # what the encoder gave
    vectors: Tensor  # the code vectors nearest to it, of the same shape


def l2(result: Reconstruction) -> Tensor:
    return F.mse_loss(result.rebuilt, result.pixels)


def l1(result: Reconstruction) -> Tensor:
    return F.l1_loss(result.rebuilt, result.pixels)


def codebook(result: Reconstruction) -> Tensor:
    """Draws the codes to the latents."""
    return F.mse_loss(result.vectors, result.latents.detach())


def commitment(result: Reconstruction) -> Tensor:
    """Draws the latents to their codes."""
    return F.mse_loss(result.latents, result.vectors.detach())


TERMS: dict[str, Callable[[Reconstruction], Tensor]] = {
    "l2": l2,
    "l1": l1,
    "codebook": codebook,
    "commitment": commitment,
}


def weighted_loss(
    result: Reconstruction, weights: dict[str, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and each of its terms before its weight; a term of weight 0 is not run."""
    values = {name: TERMS[name](result) for name, weight in weights.items() if weight}
    total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
    return total, {name: value.detach() for name, value in values.items()}


def psnr_db(result: Reconstruction) -> Tensor:
    """Peak signal-to-noise ratio of the picture as it is shown, clipped to [-1, 1], in decibels."""
    error = F.mse_loss(result.rebuilt.detach().clamp(-1, 1), result.pixels)
    return 10 * (4 / error).log10()  # the range is 2 wide, so the peak squared is 4
