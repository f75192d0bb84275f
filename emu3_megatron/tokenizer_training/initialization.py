"""Sets the latents before training to principal components of the encoder's features."""

from collections.abc import Iterable

import torch
from torch import Tensor

from emu3_megatron.vision.encoder import Encoder

_SPREAD = 0.5  # standard deviation of the first latents
_RANDOM = 0.1  # what is left of the random weights beside the components


@torch.no_grad()
def start_from_principal_components(encoder: Encoder, frames: Iterable[Tensor]) -> None:
    """Make the latents the first principal components of what the encoder sees in `frames`.

    Latents that are random mixtures all say the same, how bright it is, and training leaves them
    so for long: the codes then lie on a line. Principal components each say something of their own.

    Args:
        frames: pixels [n, 3, h, w].
    """
    frames = list(frames)
    if not frames:
        return
    features_nc = torch.cat(
        [
            encoder.features(x.to(encoder.conv_in.weight)).movedim(1, -1).flatten(0, -2)
            for x in frames
        ]
    )
    values_c, axes_cc = torch.linalg.eigh(torch.cov(features_nc.T))
    wanted = encoder.conv_out.out_channels
    scaled_cl = axes_cc[:, -wanted:] * values_c[-wanted:].clamp_min(1e-8).rsqrt() * _SPREAD
    encoder.conv_out.weight.mul_(_RANDOM * _SPREAD)
    encoder.conv_out.weight[:, :, 1, 1] += scaled_cl.T
    encoder.conv_out.get_parameter("bias").copy_(-scaled_cl.T @ features_nc.mean(0))
