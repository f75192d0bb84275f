"""Losses that compare what is seen: LPIPS, or without weights gradients and SSIM."""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from emu3_megatron.config.tokenizer_losses import PerceptualConfig
from emu3_megatron.tokenizer_training.losses.terms import at_least_fp32, mean_b
from emu3_megatron.vision.lpips import Lpips

_SCALES = 3  # whole, half, quarter
# Of SSIM as it is measured: window, and what keeps divisions stable where pixels span 2.
_SIDE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


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
            values = [_edges_n(one, other) + 1 - _ssim_n(one, other)]
            while len(values) < _SCALES and min(one.shape[-2:]) >= 2 * _SIDE:
                one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
                values.append(_edges_n(one, other) + 1 - _ssim_n(one, other))
            return torch.stack(values).mean(0)


def _edges_n(one_nchw: Tensor, other_nchw: Tensor) -> Tensor:
    """The mean absolute difference of the two images' gradients."""
    error = one_nchw - other_nchw
    return mean_b(error.diff(dim=-1).abs()) + mean_b(error.diff(dim=-2).abs())


def _ssim_n(one_nchw: Tensor, other_nchw: Tensor) -> Tensor:
    """As `ssim_b` measures it, in fp32; the window of a smaller image is cut to it."""
    stacked = torch.stack((one_nchw, other_nchw, one_nchw**2, other_nchw**2, one_nchw * other_nchw))
    mean, mean_other, square, square_other, product = _blur(stacked)
    variances = (square - mean**2) + (square_other - mean_other**2)
    covariance = product - mean * mean_other
    luminance = (2 * mean * mean_other + _C1) / (mean**2 + mean_other**2 + _C1)
    return mean_b(luminance * (2 * covariance + _C2) / (variances + _C2))


def _blur(x: Tensor) -> Tensor:
    """Gaussian means around every place whose window lies inside.

    By a product with a banded matrix: on a CPU it takes a tenth of the time of a convolution.
    """
    height, width = x.shape[-2:]
    return _windows(height, x) @ x @ _windows(width, x).T


def _windows(side: int, like: Tensor) -> Tensor:
    """[places, side]: the weights of the window around each place."""
    half = (min(_SIDE, side) - 1) / 2
    pixels = torch.arange(side, dtype=like.dtype, device=like.device)
    places = pixels[: side - int(2 * half)] + half
    distance = pixels - places[:, None]
    weights = (-(distance**2) / (2 * _SIGMA**2)).exp() * (distance.abs() <= half)
    return weights / weights.sum(1, keepdim=True)
