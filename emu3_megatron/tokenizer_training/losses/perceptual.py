"""Losses that compare what is seen: LPIPS, or without weights gradients and SSIM."""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from emu3_megatron.config.tokenizer_losses import PerceptualConfig
from emu3_megatron.tokenizer_training.losses.terms import at_least_fp32, mean_b
from emu3_megatron.vision.lpips import Lpips
from emu3_megatron.vision.measures.similarity import SSIM_SIDE, ssim_b

_SCALES = 3  # whole, half, quarter
_SPAN = 2.0  # of pixels in [-1, 1]


class Perceptual(Protocol):
    """A loss of pairs of frames, one value for each.

    Attributes:
        name: in metrics and status.
        identity: what a resumed run must have again: the name, and the hash of its weights.
    """

    name: str
    identity: str

    def __call__(self, pixels_nchw: Tensor, rebuilt_nchw: Tensor) -> Tensor: ...


def build_perceptual(section: PerceptualConfig, device: torch.device) -> Perceptual | None:
    """The loss that a recipe names, or None.

    Raises:
        InputError: a file of LPIPS cannot be read or is not what it should be.
    """
    if section.kind == "lpips":
        return _Lpips(section, device)
    return GradientSsim() if section.kind == "gradient_ssim" else None


def perceptual_b(loss: Perceptual, pixels: Tensor, rebuilt: Tensor) -> Tensor:
    """The loss of each sample [b]: images [b, 3, h, w], or the mean over frames [b, t, 3, h, w]."""
    if pixels.ndim == 4:
        return loss(pixels, rebuilt)
    frames = loss(pixels.flatten(0, 1), rebuilt.flatten(0, 1))
    return frames.unflatten(0, pixels.shape[:2]).mean(1)


class _Lpips:
    def __init__(self, section: PerceptualConfig, device: torch.device):
        weights, heads = section.weights or Path(), section.heads or Path()  # the schema has both
        self._network = Lpips.load(weights, heads, section.sha256).to(device)
        self.name = self._network.name
        self.identity = f"{self.name} {self._network.hash}"

    def __call__(self, pixels_nchw: Tensor, rebuilt_nchw: Tensor) -> Tensor:
        return self._network(pixels_nchw, rebuilt_nchw)


class GradientSsim:
    """Differences of neighbouring pixels, and 1 - SSIM, at three scales.

    It needs no weights. It is not LPIPS, nor does it carry its name.
    """

    name = identity = "gradient_ssim"

    def __call__(self, pixels_nchw: Tensor, rebuilt_nchw: Tensor) -> Tensor:
        with torch.autocast(pixels_nchw.device.type, enabled=False):
            one, other = at_least_fp32(pixels_nchw), at_least_fp32(rebuilt_nchw)
            values = [_edges_n(one, other) + 1 - ssim_b(one, other, _SPAN)]
            while len(values) < _SCALES and min(one.shape[-2:]) >= 2 * SSIM_SIDE:
                one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
                values.append(_edges_n(one, other) + 1 - ssim_b(one, other, _SPAN))
            return torch.stack(values).mean(0)


def _edges_n(one_nchw: Tensor, other_nchw: Tensor) -> Tensor:
    """The mean absolute difference of the two images' gradients."""
    error = one_nchw - other_nchw
    return mean_b(error.diff(dim=-1).abs()) + mean_b(error.diff(dim=-2).abs())
